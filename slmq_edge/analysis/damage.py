"""Damage: what it costs to round one part of a model, where all else stays in float.

    KL(float || part rounded), mean over tokens       perplexity(part rounded) / perplexity(float)

A case says what is rounded, and before which block the stream is still the float model's. That
stream is moved on once, block by block, and every case goes on from its own block, so that one of
the last block costs a block and a head, not a model. Logits of a case are compared and let go.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import (
    Decoder,
    Operands,
    Project,
    block,
    embed,
    head_input,
    rotary_table,
    untouched,
)
from slmq_edge.quantization import Progress, readback
from slmq_edge.quantization.rounding import operands_of
from slmq_edge.simulation import Simulation, moved

Kind = Literal["both", "weights", "activations"]
# Logits that are held at a time, some of them in float64.
HELD_LOGITS = 2**22
# Before the lookup table, which a case may round too.
START = -1


@dataclass(frozen=True)
class Case:
    """What is rounded: names of linears, ``lm_head``, the table, or a block's ``self_attn``.

    The last stands for what attention multiplies. kind: of each linear, its weights, its input, or
    both. first: the first block that is not all float; ``START`` where the table is not.
    """

    parts: frozenset[str]
    kind: Kind
    first: int


@dataclass(frozen=True)
class Damage:
    """What a case costs.

    kl: mean KL divergence from the float model, nats a token; kl_error: its standard error, over
    windows. perplexity_ratio: to the float model's.
    """

    kl: float
    kl_error: float
    perplexity_ratio: float


class Partly:
    """A float model, any part of which can be rounded as a checkpoint of it is.

    model: as it was prepared, before its linears were rounded.
    """

    def __init__(self, model: Decoder, checkpoint: Checkpoint) -> None:
        table = model.weights[f"{names.EMBED}.weight"]
        scheme = checkpoint.scheme
        floats = dataclasses.replace(scheme, activations=None, mixed=None)
        checkpoint = moved(checkpoint, table.device)  # once, for both
        inputs_in_float = dataclasses.replace(checkpoint, scheme=floats)
        self.model = model
        self._rounded = Simulation(checkpoint, table.dtype, table.device)
        self._weights_alone = Simulation(inputs_in_float, table.dtype, table.device)
        self._operands = operands_of(scheme)

    def embed(self, tokens: Tensor, case: Case) -> Tensor:
        """The stream before the first block."""
        is_rounded = names.EMBED in case.parts and case.kind != "activations"
        return embed(self._rounded.model if is_rounded else self.model, tokens)

    def logits(self, stream: Tensor, case: Case, layer: int) -> Tensor:
        """Logits [batch, length, vocab] of the stream before a block."""
        shape = self.model.anatomy
        rotary = rotary_table(shape, stream.shape[1], stream.dtype, stream.device)
        project = self._project(case)
        for at in range(layer, shape.layers):
            operands = self._operands_of(case, at)
            stream = block(self.model, at, stream, rotary, project, operands)
        (out,) = project(head_input(self.model, stream), (names.HEAD,))
        return out

    def _operands_of(self, case: Case, layer: int) -> Operands:
        is_rounded = attention_of(layer) in case.parts and case.kind != "weights"
        return self._operands if is_rounded else untouched

    def _project(self, case: Case) -> Project:
        def multiply(inputs: Tensor, first: str, linear: str) -> Tensor:
            if linear not in case.parts:
                return self.model.linear(inputs, linear)
            if case.kind == "weights":
                return self._weights_alone.multiply(inputs, None, linear)
            x = self._rounded.rounded(inputs, first)
            if case.kind == "both":
                return self._rounded.multiply(inputs, x, linear)
            grid = self._rounded.checkpoint.scheme.input_grid(first)
            values = inputs if x is None or grid is None else x.values(grid).to(inputs.dtype)
            return self.model.linear(values, linear)

        def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
            return tuple(multiply(inputs, linears[0], linear) for linear in linears)

        return project


def attention_of(layer: int) -> str:
    """The part that stands for what a block's attention multiplies."""
    return f"model.layers.{layer}.self_attn"


@torch.no_grad()
def measure(
    model: Decoder,
    checkpoint: Checkpoint,
    tokens: Tensor,
    cases: Sequence[Case],
    progress: Progress,
) -> tuple[float, dict[Case, Damage]]:
    """The perplexity of the float model on ``tokens`` int64 [windows, length], and every damage.

    Progress is told by multiply-adds, so that what is left can be foretold.
    """
    partly = Partly(model, checkpoint)
    by_first = defaultdict(list)
    for case in cases:
        by_first[case.first].append(case)
    shape = model.anatomy
    head = shape.layers * shape.head_macs_per_token / shape.linear_macs_per_token
    together = max(1, HELD_LOGITS // (shape.vocab * tokens.shape[1]))
    device = model.weights[f"{names.EMBED}.weight"].device
    chunks = torch.split(tokens.to(device), together)
    total = len(chunks) * sum(shape.layers - max(case.first, 0) + head for case in cases)
    done, found, exact = 0.0, defaultdict[Case, list[Tensor]](list), list[Tensor]()
    for here in chunks:
        stream = embed(model, here)
        plain = Case(frozenset(), "both", 0)
        reference = _Reference(partly.logits(stream, plain, 0), here)
        exact.append(reference.log_probabilities)
        rotary = rotary_table(shape, stream.shape[1], stream.dtype, stream.device)
        for layer in range(START, shape.layers + 1):
            for case in by_first[layer]:
                before = partly.embed(here, case) if layer == START else stream
                found[case].append(reference.compare(partly.logits(before, case, max(layer, 0))))
                done += shape.layers - max(layer, 0) + head
                place = min(max(layer, 0) + 1, shape.layers)
                progress(done / total, f"measuring damage, block {place} of {shape.layers}")
            if START < layer < shape.layers:
                stream = block(model, layer, stream, rotary)
    summaries = [_summary(torch.cat(found[case], dim=1)) for case in cases]
    log_probability, *read = readback.numbers(torch.cat(exact).mean(), *summaries)
    by_case = zip(*[iter(read)] * 3, strict=True)
    return math.exp(-log_probability), {
        case: _damage(log_probability, *one) for case, one in zip(cases, by_case, strict=True)
    }


class _Reference:
    """What the float model says of ``tokens`` [windows, length], to compare other logits with.

    With p its probabilities and u other logits, KL = sum p log p - sum p u + logsumexp(u).
    """

    def __init__(self, logits: Tensor, tokens: Tensor) -> None:
        logs = torch.log_softmax(logits.double(), -1)
        self._targets = tokens[:, 1:, None]
        self.log_probabilities = logs[:, :-1].gather(-1, self._targets)[..., 0].mean(1)
        self._p = logs.exp()
        self._negative_entropy = (self._p * logs).sum(-1)

    def compare(self, logits: Tensor) -> Tensor:
        """Mean KL and mean log-probability of the next token, [2, windows]."""
        other = logits.double()
        norm = torch.logsumexp(other, -1)
        kl = self._negative_entropy - torch.linalg.vecdot(self._p, other) + norm
        targets = other[:, :-1].gather(-1, self._targets)[..., 0] - norm[:, :-1]
        return torch.stack([kl.mean(1), targets.mean(1)])


def _summary(by_window: Tensor) -> Tensor:
    """Of ``compare`` [2, windows]: mean KL, its standard error, mean log-probability."""
    kls, others = by_window
    error = kls.std() / math.sqrt(len(kls)) if len(kls) > 1 else torch.zeros_like(kls[0])
    return torch.stack([kls.mean(), error, others.mean()])


def _damage(log_probability: float, kl: float, error: float, other: float) -> Damage:
    """log_probability: the float model's mean; other: the case's."""
    return Damage(
        # Of what changes nothing, float64's own noise may be below zero.
        kl=max(0.0, kl),
        kl_error=error,
        perplexity_ratio=math.exp(log_probability - other),
    )
