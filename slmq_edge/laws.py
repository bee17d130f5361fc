"""Seconds as a sum of costs, fitted on what was measured, and how far such a sum is off.

    seconds = mode * sum over f of cost_f * feature_f            cost_f >= 0
    fitted: least sum of (predicted / seconds - 1)^2, so that a small model counts like a large one

Features are whatever grows with the work: seconds that the bytes take at the full bandwidth,
layers (each launches the same kernels), 1 for every token. A power mode scales all of them, which
on one board was seen to fit better than any other form: its clocks pull on everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Features = Mapping[str, float]
ROUNDS = 100  # of fitting costs and modes in turn; they settle within ten


@dataclass(frozen=True)
class Point:
    """One measurement: what it took, of which model on which device, in which power mode."""

    features: Features
    seconds: float
    model: str
    device: str
    mode: str = ""


@dataclass(frozen=True)
class Law:
    """costs: of one unit of each feature, seconds. modes: times as long as in the fastest."""

    costs: Mapping[str, float]
    modes: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, features: Features, mode: str = "") -> float:
        """Predict. Raises KeyError for a mode that no point had."""
        total = sum(cost * features[name] for name, cost in self.costs.items())
        return total * (self.modes[mode] if self.modes else 1.0)


@dataclass(frozen=True)
class Off:
    """By what factor predictions were off, up or down: of half, and of nine in ten of the rows."""

    median: float
    ninetieth: float
    rows: int


def fit(points: Sequence[Point], names: Sequence[str]) -> Law:
    """The law of these features that fits best.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("a law needs points")
    modes = list(dict.fromkeys(point.mode for point in points))
    seconds = np.array([point.seconds for point in points])
    table = np.array([[point.features[name] for name in names] for point in points])
    which = np.array([modes.index(point.mode) for point in points])
    factors = np.ones(len(modes))
    for _ in range(ROUNDS if len(modes) > 1 else 0):
        costs = _non_negative(table * (factors[which] / seconds)[:, None])
        plain = table @ costs / seconds
        for index in range(len(modes)):
            shares = plain[which == index]
            factors[index] = shares.sum() / (shares**2).sum()
        factors /= factors.min()
    costs = _non_negative(table * (factors[which] / seconds)[:, None])
    found = {name: float(cost) for name, cost in zip(names, costs, strict=True)}
    if len(modes) == 1:
        return Law(found)
    return Law(found, {mode: float(one) for mode, one in zip(modes, factors, strict=True)})


def ratios(law: Law, points: Sequence[Point]) -> list[float]:
    """Predicted over measured seconds, of each point."""
    return [law.seconds(point.features, point.mode) / point.seconds for point in points]


def left_out(
    points: Sequence[Point], names: Sequence[str], key: Callable[[Point], str]
) -> list[float]:
    """Predicted over measured, each point by a law of those with another ``key``, in their order.

    What has no other, or whose mode no other has, is left out of the answer.
    """
    found = []
    for point in points:
        others = [other for other in points if key(other) != key(point)]
        if others and point.mode in {other.mode for other in others}:
            found += ratios(fit(others, names), [point])
    return found


def off(found: Sequence[float]) -> Off | None:
    """Sum up ratios; None where there are none."""
    if not found:
        return None
    factors = np.maximum(found, 1 / np.asarray(found))
    return Off(float(np.median(factors)), float(np.quantile(factors, 0.9)), len(factors))


def _non_negative(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Costs >= 0 that bring every row's sum nearest to 1, by trying which of them are not 0."""
    rows, count = table.shape
    best, costs = np.inf, np.zeros(count)
    for size in range(1, min(rows, count) + 1):
        for chosen in itertools.combinations(range(count), size):
            part = table[:, chosen]
            found = np.linalg.lstsq(part, np.ones(rows), rcond=None)[0]
            error = float(((part @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < best - 1e-12:
                best, costs = error, np.zeros(count)
                costs[list(chosen)] = found
    return costs
