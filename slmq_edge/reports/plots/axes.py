"""Axes: from values to places, and the round numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

# Of what is drawn, how much is left free at either end.
FREE = 0.07
# Ticks at most.
MOST = 6
# No figure is farther from 0, and no two that differ are nearer to each other, than these.
LARGEST, SMALLEST = 1e100, 1e-100
# Figures that differ by less, of their size, stand in one place.
SAME = 1e-9


def drawable(value: float | None) -> TypeGuard[float]:
    """Whether a figure is there, finite, and not so large that arithmetic on it is not."""
    return value is not None and abs(value) <= LARGEST


@dataclass(frozen=True)
class Axis:
    """low, high: the values at its ends. start, end: their places. log: places go by powers."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, at = (self._scaled(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        """Round numbers between the ends, both included."""
        return decades(self.low, self.high) if self.log else steps(self.low, self.high)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def around(
    values: Iterable[float], start: float, end: float, log: bool = False, free: float = FREE
) -> Axis:
    """An axis that has room for all values, of which there is one at least.

    Of a logarithmic one they are positive.
    """
    listed = list(values)
    low, high = min(listed), max(listed)
    if log:
        below, above = math.log10(low), math.log10(high)
        extra = max(free * (above - below), SAME) if above - below > SAME else math.log10(2)
        return Axis(10 ** (below - extra), 10 ** (above + extra), start, end, log)
    differ = high - low > max(SAME * abs(high), SAME * abs(low), SMALLEST)
    extra = free * (high - low) if differ else 0.1 * abs(high) if abs(high) > SMALLEST else 1.0
    return Axis(low - extra, high + extra, start, end, log)


def steps(low: float, high: float, most: int = MOST) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two values: ``most`` or fewer."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    sizes = [unit * share for share in (1, 2, 2.5, 5, 10, 20)]
    for size in sizes:
        first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
        if last - first < most:
            return [float(f"{count * size:.12g}") for count in range(first, last + 1)]
    raise AssertionError("the last size is above the span")


def decades(low: float, high: float, most: int = MOST) -> list[float]:
    """Powers of ten between two positive values, and 2 and 5 times them where that is few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for shares in ((1, 2, 5), (1, 3), (1,)):
        found = [
            float(f"{share}e{power}")
            for power in range(first, last + 1)
            for share in shares
            if low * (1 - 1e-9) <= float(f"{share}e{power}") <= high * (1 + 1e-9)
        ]
        if len(found) <= most:
            break
    else:
        found = found[:: math.ceil(len(found) / most)]
    # Within half a decade there may be none or one: then as on a linear axis.
    return found if len(found) > 1 else steps(low, high, most)


def tick_text(value: float) -> str:
    """A round number, short: 0.25, 1500, 20 k, 3 M, 1e-05."""
    size = abs(value)
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if 1e4 <= size < 1e12 and size >= unit:
            return f"{value / unit:.6g}{name}"
    return f"{value:.6g}"
