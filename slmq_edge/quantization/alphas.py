"""The alpha of every feed: the one that leaves the least error behind its half of the block.

A block adds twice to the stream: attention behind the first norm, the MLP behind the second, and
each norm feeds the linears of its own half. So each half is searched alone,

    alpha = argmin mean (half(x) - rounded half(x; alpha))^2

with weights, inputs and operands of attention rounded as the scheme says. A half costs half of a
block: two alphas of a block cost no more than one that both feeds share, and fit better.

x is the float stream. The rounded one would be another for every choice made before, and would
need a second stream; what is to be compared here is a single half's own loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.anatomy import ATTENTION_FEED, FEEDS, Feed
from slmq_edge.calibration import Size
from slmq_edge.decoder import (
    Decoder,
    Operands,
    Project,
    attention_half,
    mlp_half,
    untouched,
)
from slmq_edge.quantization import Progress, readback
from slmq_edge.quantization.ranges import extent_of
from slmq_edge.quantization.rounding import operands_of, rounded
from slmq_edge.quantization.smoothquant import default_alpha, smooth_feed
from slmq_edge.quantization.streams import embedded, rotary_for
from slmq_edge.scheme import Scheme

ALPHAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
# Of the calibration windows: a feed has one alpha to find, and thousands of tokens to find it by.
SIZE = Size(windows=8, length=512)


def search(
    model: Decoder,
    absmax: Mapping[str, Tensor],
    tokens: Tensor,
    scheme: Scheme,
    progress: Progress,
) -> dict[str, float]:
    """The best alpha by name of norm; where several are, the scheme's default goes first.

    absmax: of ``feed_absmax``. tokens: int64 [windows, length], of which a few are used.
    """
    default = default_alpha(scheme)
    candidates = sorted({default, *ALPHAS}, key=lambda alpha: (alpha != default, alpha))
    operands = operands_of(scheme)
    halves = [
        (layer, feed, model.anatomy.block(layer, feed.norm))
        for layer in range(model.anatomy.layers)
        for feed in FEEDS
    ]
    progress(0.0, "searching alpha")
    with torch.no_grad():
        stream = embedded(model, _few(tokens))
        rotary = rotary_for(model, stream)
        # No choice bears on another: all losses are read at once, in the end.
        losses = stream.new_empty(len(halves), len(candidates))
        for place, (layer, feed, _) in enumerate(halves):
            target = _half(model, layer, feed, stream, rotary, model.project, untouched)
            for column, alpha in enumerate(candidates):
                smoothed = _smoothed(model, layer, feed, absmax, alpha)
                project = _rounded_project(smoothed, scheme)
                out = _half(smoothed, layer, feed, stream, rotary, project, operands)
                losses[place, column] = functional.mse_loss(out, target)
            stream = target
            progress((place + 1) / len(halves), "searching alpha")
    rows = zip(*[iter(readback.numbers(losses))] * len(candidates), strict=True)
    found = {}
    for (_, _, norm), row in zip(halves, rows, strict=True):
        errors = dict(zip(candidates, row, strict=True))
        found[norm] = min(errors, key=errors.__getitem__)
    return found


def _few(tokens: Tensor) -> Tensor:
    """Beginnings of windows spread over the text."""
    count = min(SIZE.windows, len(tokens))
    chosen = torch.linspace(0, len(tokens) - 1, count, dtype=torch.float64).round().long()
    return tokens[chosen, : SIZE.length]


def _half(
    model: Decoder,
    layer: int,
    feed: Feed,
    stream: Tensor,
    rotary: tuple[Tensor, Tensor],
    project: Project,
    operands: Operands,
) -> Tensor:
    """The stream behind the half of a block that starts at a feed's norm."""
    if feed == ATTENTION_FEED:
        return attention_half(model, layer, stream, rotary, project, operands)
    return mlp_half(model, layer, stream, project)


def in_words(found: Mapping[str, float]) -> str:
    """One line of what was chosen, block by block."""
    pairs = zip(*([iter(found.values())] * len(FEEDS)), strict=True)
    return "alpha of attention/mlp by block: " + " ".join(f"{a:.2f}/{m:.2f}" for a, m in pairs)


def _smoothed(
    model: Decoder, layer: int, feed: Feed, absmax: Mapping[str, Tensor], alpha: float
) -> Decoder:
    weights = dict(model.weights)
    shape = model.anatomy
    smooth_feed(shape, layer, feed, weights, absmax[shape.block(layer, feed.norm)], alpha)
    return replace(model, weights=weights)


def _rounded_project(model: Decoder, scheme: Scheme) -> Project:
    """Round weights and inputs to nearest, as the artifact will, and multiply the floats."""
    weights_grid = scheme.weights
    assert weights_grid is not None, "default_alpha() sees to it"

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        grid = scheme.input_grid(linears[0])
        static = grid is not None and grid.per == "tensor"
        found = extent_of(inputs, scheme.range, grid) if grid is not None and static else None
        x = rounded(inputs, grid, found)
        return tuple(
            functional.linear(
                x,
                rounded(model.weights[f"{name}.weight"], weights_grid),
                model.weights.get(f"{name}.bias"),
            )
            for name in linears
        )

    return project
