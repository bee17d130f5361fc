"""A checkpoint in the precision that TensorRT multiplies in, and what that costs.

TensorRT's integers are symmetric, its static scales one a tensor (TENSORRT 2.2). What a scheme asks
beyond that is not dropped but found anew, and every such change is measured: on text that it was
not found on, against the simulation of what was asked for.

    weights        W_q - z where that fits -127..127 (always, for 4 bits): the same numbers.
                   Otherwise the nearest symmetric levels
    per token      s = absmax / 127, at run time
    static         s by least squares or percentile of the calibration text, symmetric
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.exporters.lowering import Change
from slmq_edge.exporters.trt.linears import TOP
from slmq_edge.golden import kl_divergence
from slmq_edge.quantization import ranges
from slmq_edge.quantization.rounding import quantize
from slmq_edge.scheme import Grid, Range
from slmq_edge.simulation import Simulation, token_log_probabilities

# Clipped ranges: what is left of absmax where nothing else was asked for.
DEFAULT_RANGE: Range = "mse"
# QuantizeLinear rounds down to -128, where no value within a range gets.
STATIC = Grid(8, "tensor", lowest=True)
MEASURED = 8  # windows of text; and at least as many are left to find ranges on


def convert(
    checkpoint: Checkpoint, mode: str | None, text: Callable[[], Tensor]
) -> tuple[Checkpoint, tuple[Change, ...]]:
    """The checkpoint as TensorRT runs it, and what had to change, each change on top of the last.

    mode: of ``limits.activation_mode``. text: gives windows int64 [more than MEASURED, length];
    read only where something changes. What is expressible as it is comes back as it is.
    """
    asked, changes = checkpoint, []
    for what, step in (
        ("weights symmetric", _symmetric_weights),
        ("activations symmetric", _symmetric_tokens),
        ("activations static, symmetric", _static(text)),
    ):
        changed = step(checkpoint, mode)
        if changed is None:
            continue
        checkpoint = changed
        if what == "activations static, symmetric":
            what += f", range by {changed.scheme.range}"
        changes.append(measure(asked, checkpoint, text()[:MEASURED], what))
    return _as_stored(checkpoint), tuple(changes)


def measure(asked: Checkpoint, changed: Checkpoint, tokens: Tensor, what: str) -> Change:
    """The cost of a change over ``tokens`` int64 [windows, length], in float32."""
    kls, moves = [], []
    for window in torch.split(tokens, 1):
        reference, other = (Simulation(one).logits(window) for one in (asked, changed))
        kls.append(kl_divergence(reference, other).mean())
        ours, theirs = (token_log_probabilities(x, window).mean() for x in (other, reference))
        moves.append(theirs - ours)
    kl, move = torch.stack(kls).mean().item(), torch.stack(moves).mean().item()
    return Change(what, kl, math.exp(move), tokens.numel())


def _symmetric_weights(checkpoint: Checkpoint, mode: str | None) -> Checkpoint | None:
    """Weights whose levels less their zero points fit no int8, rounded anew; ``None``: all fit."""
    found = {
        name: _rounded_anew(weight)
        for name, weight in checkpoint.integers.items()
        if not _fits(weight)
    }
    if not found:
        return None
    weights = checkpoint.scheme.weights
    scheme = dataclasses.replace(checkpoint.scheme, weights=weights and _symmetric(weights))
    return dataclasses.replace(checkpoint, scheme=scheme, integers={**checkpoint.integers, **found})


def _fits(weight: IntegerWeight) -> bool:
    """Whether an engine can hold it as it is: int8 by channel, or symmetric int4 by block."""
    if weight.zero is None:
        return True
    return weight.grid.group is None and bool((weight.centred.abs() <= TOP).all())


def _rounded_anew(weight: IntegerWeight) -> IntegerWeight:
    grid = _symmetric(weight.grid)
    return IntegerWeight.of(quantize(weight.dequantized, grid), grid)


def _symmetric(grid: Grid) -> Grid:
    return dataclasses.replace(grid, symmetric=True, zero=True)


def _symmetric_tokens(checkpoint: Checkpoint, mode: str | None) -> Checkpoint | None:
    """Tokens rounded symmetrically; ``None`` where they are already, or are not rounded so."""
    grid = checkpoint.scheme.activations
    if mode != "pertoken" or grid is None or grid == Grid(8, "token"):
        return None
    scheme = dataclasses.replace(checkpoint.scheme, activations=Grid(8, "token"), range="absmax")
    return dataclasses.replace(checkpoint, scheme=scheme, inputs={})


def _static(text: Callable[[], Tensor]) -> Callable[[Checkpoint, str | None], Checkpoint | None]:
    """Ranges for whole tensors, found on the text behind what changes are measured on."""

    def step(checkpoint: Checkpoint, mode: str | None) -> Checkpoint | None:
        scheme = checkpoint.scheme
        if mode != "static" or scheme.activations == Grid(8, "tensor"):
            return None
        how = scheme.range if scheme.is_static and scheme.range != "absmax" else DEFAULT_RANGE
        scheme = dataclasses.replace(scheme, activations=STATIC, range=how)
        # As the blocks before leave them: inputs of rounded weights, in float themselves.
        floats = dataclasses.replace(
            checkpoint, scheme=dataclasses.replace(checkpoint.scheme, activations=None)
        )
        simulation = Simulation(floats)
        tokens = text()[MEASURED:]
        inputs = ranges.find(
            simulation.model, tokens, scheme, lambda share, what: None, simulation.project
        )
        return dataclasses.replace(checkpoint, scheme=scheme, inputs=inputs)

    return step


def _as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """The same numbers as an engine holds them.

    Levels less their zero points. Scales of int4 blocks in float16.
    """

    def stored(weight: IntegerWeight) -> IntegerWeight:
        if weight.grid.group is not None:
            return dataclasses.replace(weight, scale=weight.scale.half().float())
        return dataclasses.replace(weight, integers=weight.centred.to(torch.int8), zero=None)

    scheme = checkpoint.scheme
    if scheme.is_static:
        scheme = dataclasses.replace(scheme, activations=STATIC)
    integers = {name: stored(weight) for name, weight in checkpoint.integers.items()}
    return dataclasses.replace(checkpoint, scheme=scheme, integers=integers)
