"""A checkpoint in the precision that TensorRT multiplies in, and what that costs.

TensorRT's integers are symmetric, its static scales one a tensor (TENSORRT 2.2). What a scheme asks
beyond that is not dropped but found anew, and every such change is measured: on text that it was
not found on, against the simulation of what was asked for.

    weights        W_q - z where that fits -127..127 (as 4 bits do whose range holds 0): the same
                   numbers. Otherwise the nearest symmetric levels
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
from slmq_edge.errors import SlmqError
from slmq_edge.exporters.lowering import Change
from slmq_edge.exporters.trt.linears import TOP
from slmq_edge.golden import ROWS, kl_divergence
from slmq_edge.quantization import ranges
from slmq_edge.quantization.rounding import quantize
from slmq_edge.scheme import Grid, Range, Scheme
from slmq_edge.simulation import Simulation, token_log_probabilities

# Clipped ranges: what is left of absmax where nothing else was asked for.
DEFAULT_RANGE: Range = "mse"
# QuantizeLinear rounds down to -128, where no value within a range gets.
STATIC = Grid(8, "tensor", lowest=True)
# Windows of text; of fewer than twice as many, half, so that as many are left to find ranges on.
MEASURED = 8


def convert(
    checkpoint: Checkpoint, mode: str | None, text: Callable[[], Tensor]
) -> tuple[Checkpoint, tuple[Change, ...]]:
    """The checkpoint as TensorRT runs it, and what had to change, each change on top of the last.

    mode: of ``limits.activation_mode``. text: gives windows int64 [2 or more, length]; read only
    where something changes. What is expressible as it is comes back as it is.

    Raises:
        SlmqError: there are fewer windows; or an activation is infinite or NaN.
    """
    asked, changes = checkpoint, []
    for step in (_symmetric_weights, _symmetric_tokens, _static(text)):
        changed = step(checkpoint, mode)
        if changed is None:
            continue
        checkpoint, what = changed
        changes.append(measure(asked, checkpoint, _split(text())[0], what))
    return _as_stored(checkpoint), tuple(changes)


def _split(windows: Tensor) -> tuple[Tensor, Tensor]:
    """What changes are measured on, and what ranges are found on."""
    if len(windows) < 2:
        raise SlmqError(
            f"the calibration text makes {len(windows)} windows, and what TensorRT must change is "
            "found on one and measured on another: quantize with a longer text (--calib)"
        )
    count = min(MEASURED, len(windows) // 2)
    return windows[:count], windows[count:]


def measure(asked: Checkpoint, changed: Checkpoint, tokens: Tensor, what: str) -> Change:
    """The cost of a change over ``tokens`` int64 [windows, length], in float32."""
    kls, moves = [], []
    for window in torch.split(tokens, 1):
        reference, other = (Simulation(one).logits(window) for one in (asked, changed))
        # In float64, so not all positions of a large vocabulary at once.
        rows = (torch.split(x[0], ROWS) for x in (reference, other))
        kls.append(torch.cat([kl_divergence(*part) for part in zip(*rows, strict=True)]).mean())
        ours, theirs = (token_log_probabilities(x, window).mean() for x in (other, reference))
        moves.append(theirs - ours)
    kl, move = torch.stack(kls).mean().item(), torch.stack(moves).mean().item()
    return Change(what, kl, math.exp(move), tokens.numel())


# What a step made of a checkpoint, and what it is called; ``None``: there was nothing to do.
Changed = tuple[Checkpoint, str] | None


def _symmetric_weights(checkpoint: Checkpoint, mode: str | None) -> Changed:
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
    integers = {**checkpoint.integers, **found}
    return dataclasses.replace(checkpoint, scheme=scheme, integers=integers), "weights symmetric"


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


def _symmetric_tokens(checkpoint: Checkpoint, mode: str | None) -> Changed:
    """Tokens rounded symmetrically; ``None`` where they are already, or are not rounded so."""
    grid = checkpoint.scheme.activations
    if mode != "pertoken" or grid is None or grid == Grid(8, "token"):
        return None
    scheme = dataclasses.replace(checkpoint.scheme, activations=Grid(8, "token"), range="absmax")
    what = "activations per token, symmetric"
    return dataclasses.replace(checkpoint, scheme=scheme, inputs={}), what


def finds_ranges(scheme: Scheme, mode: str | None) -> bool:
    """Whether ranges are found, since those of the scheme are none, or not symmetric."""
    return mode == "static" and scheme.activations not in (Grid(8, "tensor"), STATIC)


def _static(text: Callable[[], Tensor]) -> Callable[[Checkpoint, str | None], Changed]:
    """Ranges for whole tensors, found on the text behind what changes are measured on."""

    def step(checkpoint: Checkpoint, mode: str | None) -> Changed:
        scheme = checkpoint.scheme
        if not finds_ranges(scheme, mode):
            return None
        how = scheme.range if scheme.is_static and scheme.range != "absmax" else DEFAULT_RANGE
        scheme = dataclasses.replace(scheme, activations=STATIC, range=how)
        # As the blocks before leave them: inputs of rounded weights, in float themselves.
        floats = dataclasses.replace(
            checkpoint, scheme=dataclasses.replace(checkpoint.scheme, activations=None)
        )
        simulation = Simulation(floats)
        tokens = _split(text())[1]
        inputs = ranges.find(
            simulation.model, tokens, scheme, lambda share, what: None, simulation.project
        )
        what = f"activations static, symmetric, range by {how}"
        return dataclasses.replace(checkpoint, scheme=scheme, inputs=inputs), what

    return step


def _as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """As an engine holds it: levels less their zero points, which are the same numbers.

    Scales of int4 blocks are float16 there. What lies below a static range, which a method may have
    clipped to -127, is -128.
    """

    def stored(weight: IntegerWeight) -> IntegerWeight:
        if weight.grid.group is not None:
            return dataclasses.replace(weight, scale=weight.scale.half().float())
        if weight.zero is None:
            return weight
        return dataclasses.replace(weight, integers=weight.centred.to(torch.int8), zero=None)

    scheme = checkpoint.scheme
    if scheme.is_static:
        scheme = dataclasses.replace(scheme, activations=STATIC)
    integers = {name: stored(weight) for name, weight in checkpoint.integers.items()}
    return dataclasses.replace(checkpoint, scheme=scheme, integers=integers)
