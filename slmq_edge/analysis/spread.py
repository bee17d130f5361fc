"""Spread of a tensor that comes in parts, of which none has to be kept.

Sums of powers in float64, the extremes, the channels' largest, and a histogram of log2 |x| that is
eight times as fine as the one that is written: quantiles are read off it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from slmq_edge.analysis.distributions import CHANNEL_SHARES, PER_OCTAVE, SHARES, Spread
from slmq_edge.errors import SlmqError

# Bins of an octave while counting, and the octaves: |x| from 2^-24 to 2^24.
FINE, LOWEST, HIGHEST = 8 * PER_OCTAVE, -24, 24
# Values that are counted at a time.
AT_ONCE = 2**22


class Spreading:
    """Adds up parts [..., channels] of a tensor; ``spread`` says what has come together."""

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self._powers = torch.zeros(4, dtype=torch.float64, device=device)
        # The first is of all that is below the octaves.
        self._counts = torch.zeros(1 + FINE * (HIGHEST - LOWEST), dtype=torch.int64, device=device)
        self._low = torch.full((channels,), math.inf, dtype=torch.float64, device=device)
        self._high = torch.full((channels,), -math.inf, dtype=torch.float64, device=device)

    def add(self, part: Tensor) -> None:
        """One part [..., channels] more, of any float dtype."""
        rows = part.detach().flatten(0, -2)
        for some in torch.split(rows, max(1, AT_ONCE // rows.shape[1])):
            torch.minimum(self._low, some.amin(0).double(), out=self._low)
            torch.maximum(self._high, some.amax(0).double(), out=self._high)
            power = some.double()
            square = power.square()
            sums = (power.sum(), square.sum(), (square * power).sum(), square.square().sum())
            self._powers += torch.stack(sums)
            # The logarithm of 0 is far below.
            place = (some.abs().float().log2() * FINE).floor() - (FINE * LOWEST - 1)
            # What is no number is told of by the sums.
            bins = place.nan_to_num(0.0).clamp(0, len(self._counts) - 1).long().flatten()
            self._counts += torch.bincount(bins, minlength=len(self._counts))

    def spread(self) -> Spread:
        """Of all that was added, which is something.

        Raises:
            SlmqError: not all of it is finite.
        """
        if not self._powers.isfinite().all():
            raise SlmqError(
                "weights, or what linears read, are not finite: the model is damaged, or its "
                "numbers are beyond float32"
            )
        counts = self._counts.cpu()
        total = int(counts.sum())
        first, second, third, fourth = (self._powers / total).tolist()
        variance = second - first**2
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        low, high = self._low.min().item(), self._high.max().item()
        absmax = max(abs(low), abs(high))
        # Of what is all but constant, nothing may be left of the difference of its powers.
        square = 0.0 if low == high else max(variance, 0.0) ** 2
        coarse = counts[1:].view(-1, FINE // PER_OCTAVE).sum(1)
        filled = coarse.nonzero()[:, 0].tolist() or [0, -1]
        return Spread(
            count=total,
            min=low,
            max=high,
            mean=first,
            kurtosis=central / square if square else None,
            quantiles=_quantiles(counts, SHARES, absmax),
            channels=_exact(torch.maximum(self._low.abs(), self._high.abs()), CHANNEL_SHARES),
            below=int(counts[0]),
            first=PER_OCTAVE * LOWEST + filled[0],
            counts=tuple(coarse[filled[0] : filled[-1] + 1].tolist()),
        )


def spread_of(tensor: Tensor) -> Spread:
    """Of a tensor [rows, channels] that is there."""
    adding = Spreading(tensor.shape[-1], tensor.device)
    adding.add(tensor)
    return adding.spread()


def _quantiles(counts: Tensor, shares: Iterable[str], absmax: float) -> Mapping[str, float]:
    """Of |x|: from the bin in which a share is reached, between its ends in equal ratios."""
    reached = counts.cumsum(0)
    total = int(reached[-1])
    found = {}
    for share in shares:
        needed = float(share) * total
        place = int((reached < needed).sum())
        if place == 0:
            found[share] = 0.0
            continue
        inside = (needed - int(reached[place - 1])) / int(counts[place])
        value = 2.0 ** (LOWEST + (place - 1 + inside) / FINE)
        found[share] = min(value, absmax)
    return found


def _exact(values: Tensor, shares: Iterable[str]) -> Mapping[str, float]:
    listed = values.cpu().double()
    return {share: torch.quantile(listed, float(share)).item() for share in shares}
