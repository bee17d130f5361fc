"""Does the ranking of methods on one device hold on another? Kendall's tau-b, and how surely.

    tau-b = (concordant - discordant) / sqrt((pairs - ties in a) (pairs - ties in b))

1: the same order; -1: the reverse (Kendall 1945). Two questions are asked of it:

* Do the repetitions suffice? The interval is of draws: the repetitions of every artifact are drawn
  with replacement (`intervals`), which ranks the methods anew on both devices.
* Do the methods suffice? p is the share of all orders of the second ranking that agree or disagree
  with the first at least as much. Three methods agree by chance alone with p = 1/3, four with 1/12.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slmq_edge.intervals import SEED, Draws, ends

Floats = NDArray[np.float64]
Said = Literal["transfers", "reversed", "inconclusive"]

FEWEST = 3  # methods, below which a ranking is none
EXACT = 8  # methods, up to which all orders are counted
ORDERS = 20_000  # of them, drawn where there are more
CHANCE = 0.05
_NEAR = 1e-9


@dataclass(frozen=True)
class Ranking:
    """What the methods of one place reach in one quantity; more is better.

    values: by method. draws: of what was repeated, [draws] each; None where nothing was. steady:
    whether no run says that its repetitions drifted.
    """

    place: str
    values: Mapping[str, float]
    draws: Mapping[str, Draws] | None
    steady: bool = True

    def order(self, methods: Sequence[str]) -> tuple[str, ...]:
        """The best first."""
        return tuple(sorted(methods, key=lambda method: -self.values[method]))


@dataclass(frozen=True)
class Transfer:
    """Of one quantity and two places; orders: of the methods that both have, the best first.

    tau: None with the ``reason`` why. low, high: None where nothing was repeated. p: of chance.
    """

    by: str
    places: tuple[str, str]
    orders: tuple[tuple[str, ...], tuple[str, ...]]
    tau: float | None
    low: float | None
    high: float | None
    p: float | None
    said: Said | None
    reason: str | None = None


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b; None where a side is all ties, or has fewer than two values."""
    first, second = np.asarray([a], np.float64), np.asarray([b], np.float64)
    found = _taus(_signs(first), _signs(second)) if len(a) > 1 else np.array([math.nan])
    return None if math.isnan(found[0]) else float(found[0])


def chance(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of orders of ``b`` with a tau-b as far from 0; exact up to `EXACT` values."""
    count = len(b)
    if count <= EXACT:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        generator = np.random.default_rng(SEED)
        drawn = generator.permuted(np.tile(np.arange(count), (ORDERS - 1, 1)), axis=1)
        orders = np.concatenate([np.arange(count)[None], drawn])  # with what was found
    values = np.asarray(b, np.float64)
    taus = np.abs(_taus(_signs(np.asarray([a], np.float64)), _signs(values[orders])))
    return float((taus >= taus[0] - _NEAR).mean())


def transfer(by: str, first: Ranking, second: Ranking) -> Transfer:
    """Compare how two places rank the methods that both have."""
    shared = [method for method in first.values if method in second.values]
    sides = first, second
    places = first.place, second.place
    orders = first.order(shared), second.order(shared)
    if len(shared) < FEWEST:
        why = f"{len(shared)} methods on both; a ranking needs {FEWEST}"
        return Transfer(by, places, orders, None, None, None, None, None, why)
    a, b = ([side.values[method] for method in shared] for side in sides)
    tau = kendall_tau(a, b)
    if tau is None:
        why = "all methods are equal on one of them"
        return Transfer(by, places, orders, None, None, None, None, None, why)
    p = chance(a, b)
    if first.draws is None or second.draws is None:
        return Transfer(by, places, orders, tau, None, None, p, None)
    columns = (np.stack([side.draws[m] for m in shared], axis=1) for side in sides if side.draws)
    taus = _taus(*map(_signs, columns))
    # A draw in which all are equal tells of no order.
    low, high = ends(np.nan_to_num(taus, nan=0.0))
    said = _said(low, high, p) if first.steady and second.steady else "inconclusive"
    return Transfer(by, places, orders, tau, low, high, p, said)


def _said(low: float, high: float, p: float) -> Said:
    if p > CHANCE or low <= 0 <= high:
        return "inconclusive"
    return "transfers" if low > 0 else "reversed"


def _signs(values: Floats) -> Floats:
    """[draws, methods] -> which of each pair is better, [draws, pairs]."""
    first, second = np.triu_indices(values.shape[1], k=1)
    return np.sign(values[:, first] - values[:, second])


def _taus(a: Floats, b: Floats) -> Floats:
    """[draws or 1, pairs] of both -> tau-b, [draws]; NaN where a side is all ties."""
    agreeing = (a * b).sum(axis=1)
    untied = np.sqrt((a != 0).sum(axis=1) * (b != 0).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(agreeing / untied, np.float64)
