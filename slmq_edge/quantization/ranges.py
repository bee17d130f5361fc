"""Ranges of static activations: one for every input that linears share, found by calibration.

    absmax       the least and the greatest value that any token had
    percentile   the values that 99.99 % of all magnitudes lie within
    mse          the absmax range, shrunk by 1.00, 0.99 .. 0.21, that loses the least squares

Percentile and squares are read off a histogram of each input's values over its absmax range, so
that two passes over the text are enough, whatever its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slmq_edge.decoder import Decoder, logits
from slmq_edge.quantization import Progress
from slmq_edge.quantization.rounding import Extent, Steps, quantize, steps
from slmq_edge.scheme import Grid, Scheme

BINS = 4096
PERCENTILE = 0.9999
BATCH = 8


@dataclass
class Histogram:
    """Counts float64 [bins] of values between low and high."""

    low: float
    high: float
    counts: Tensor

    @property
    def centres(self) -> Tensor:
        """The middle of every bin, float64 [bins]."""
        edges = torch.linspace(self.low, self.high, len(self.counts) + 1, dtype=torch.float64)
        return (edges[1:] + edges[:-1]) / 2


def find(model: Decoder, tokens: Tensor, scheme: Scheme, progress: Progress) -> dict[str, Steps]:
    """Scale and zero point [1] for the input of every linear, by the first that reads it.

    tokens: int64 [windows, length].
    """
    assert scheme.activations is not None, "static activations have a grid"
    ranges = _absmax(model, tokens, progress)
    if scheme.range != "absmax":
        counted = _histograms(model, tokens, ranges, progress)
        narrow = {"percentile": _percentile, "mse": _least_squares}[scheme.range]
        ranges = {name: narrow(found, scheme.activations) for name, found in counted.items()}
    return {name: _stored(steps(found, scheme.activations)) for name, found in ranges.items()}


def _stored(found: Steps) -> Steps:
    def flat(t: Tensor) -> Tensor:
        return t.reshape(1).to("cpu", torch.float32)

    return Steps(flat(found.scale), None if found.zero is None else flat(found.zero))


def _watch(
    model: Decoder,
    tokens: Tensor,
    see: Callable[[str, Tensor], None],
    progress: Progress,
) -> None:
    """Show ``see`` every input of every linear, named by the first linear that reads it."""

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        see(linears[0], inputs)
        return model.project(inputs, linears)

    with torch.no_grad():
        for start in range(0, len(tokens), BATCH):
            logits(model, tokens[start : start + BATCH], project)
            progress(min(1.0, (start + BATCH) / len(tokens)), "finding ranges")


def _absmax(model: Decoder, tokens: Tensor, progress: Progress) -> dict[str, Extent]:
    found: dict[str, Extent] = {}

    def see(name: str, x: Tensor) -> None:
        low, high = x.amin(), x.amax()
        if name in found:
            low = torch.minimum(low, found[name].low)
            high = torch.maximum(high, found[name].high)
        found[name] = Extent(low, high)

    _watch(model, tokens, see, progress)
    return found


def _histograms(
    model: Decoder, tokens: Tensor, ranges: dict[str, Extent], progress: Progress
) -> dict[str, Histogram]:
    found = {
        name: Histogram(float(r.low), float(r.high), torch.zeros(BINS, dtype=torch.float64))
        for name, r in ranges.items()
    }

    def see(name: str, x: Tensor) -> None:
        one = found[name]
        counts = torch.histc(x.float(), BINS, min=one.low, max=one.high)
        one.counts += counts.to("cpu", torch.float64)

    _watch(model, tokens, see, progress)
    return found


def _percentile(found: Histogram, grid: Grid) -> Extent:
    magnitudes, order = found.centres.abs().sort()
    share = found.counts[order].cumsum(0) / found.counts.sum()
    within = magnitudes[int((share < PERCENTILE).sum())]
    limits = torch.tensor([found.low, found.high], dtype=torch.float64)
    low, high = limits.clamp(-within, within)
    return Extent(low[None], high[None])


def _least_squares(found: Histogram, grid: Grid) -> Extent:
    whole = Extent(*(torch.tensor([end], dtype=torch.float64) for end in (found.low, found.high)))
    centres = found.centres

    def loss(percent: int) -> float:
        clipped = whole.clipped(percent / 100, percent / 100)
        errors = quantize(centres, grid, clipped).values(grid) - centres
        return float((found.counts * errors.square()).sum())

    share = min(range(100, 20, -1), key=loss) / 100
    return whole.clipped(share, share)
