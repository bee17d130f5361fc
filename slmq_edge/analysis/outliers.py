"""Outliers: how far the largest of a tensor's values stand out, and in how many channels.

    absmax over median    max |t| / median |t|: what one scale for all has to span
    kurtosis              E (t - mean)^4 / (E (t - mean)^2)^2: 3 for a normal distribution
    absmax channels       the least share of channels in which nine rows of ten have their largest

Rows are tokens of an activation, or outputs of a weight; channels are inputs of a linear. Where few
channels hold the absmax of nearly every row, and so set its scale, they are what smoothing and
rotating are for. Of fewer rows than channels, the last is at most their ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slmq_edge.decoder import Decoder
from slmq_edge.quantization.streams import advance, embedded

MOST_ROWS = 0.9


@dataclass(frozen=True)
class Outliers:
    """As above; ``None`` where a median or a variance is 0."""

    absmax_over_median: float | None
    kurtosis: float | None
    absmax_channels: float


def outliers(t: Tensor) -> Outliers:
    """Of ``t`` [rows, channels], in float64."""
    magnitude = t.abs()
    median, largest = magnitude.flatten().median().item(), magnitude.max().item()
    centred = t.double() - t.double().mean()
    square = centred.square()
    variance = square.mean().item()
    rows = torch.bincount(magnitude.argmax(1)).sort(descending=True).values.cumsum(0)
    needed = int((rows < MOST_ROWS * len(t)).sum()) + 1
    return Outliers(
        absmax_over_median=largest / median if median else None,
        kurtosis=square.square().mean().item() / variance**2 if variance else None,
        absmax_channels=needed / t.shape[1],
    )


def of_weights(model: Decoder) -> dict[str, Outliers]:
    """Of the float weights [out, in] of the blocks' linears, by full name."""
    return {name: outliers(model.weights[f"{name}.weight"]) for name in model.anatomy.linears()}


def of_inputs(model: Decoder, tokens: Tensor) -> dict[str, Outliers]:
    """Of what the blocks' linears read, by full name, over ``tokens`` int64 [windows, length]."""
    found: dict[str, Outliers] = {}
    stream = embedded(model, tokens)
    for layer in range(model.anatomy.layers):
        for linears, x in _read(model, layer, stream):
            found |= dict.fromkeys(linears, outliers(x))
    return found


def _read(model: Decoder, layer: int, stream: Tensor) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """What linears of a block read together, [tokens, in]; the stream ends up behind the block."""
    seen: dict[tuple[str, ...], list[Tensor]] = {}

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        seen.setdefault(linears, []).append(inputs.flatten(0, -2))
        return model.project(inputs, linears)

    advance(model, layer, stream, project)
    for linears, parts in seen.items():
        yield linears, torch.cat(parts)
