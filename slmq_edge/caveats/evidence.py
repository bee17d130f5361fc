"""What doubts are drawn from, and what a doubt is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmq_edge.energy import Window
    from slmq_edge.results import Series

AT = "event"  # in a state: the event of the journal that it belongs to
LOAD = "load"
IMPLAUSIBLE = "implausible"  # the code of a figure beyond what its device can do


@dataclass(frozen=True)
class Caveat:
    """One doubt: a stable ``code``, the numbers behind it, and what to do about it."""

    code: str
    advice: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The parts of a run that doubts are drawn from; see `results.Run`."""

    series: Mapping[str, Series]
    environment: Mapping[str, Any]
    workload: Mapping[str, Any]
    golden: Mapping[str, Any]
    probe: Mapping[str, Any] | None
    states: tuple[Mapping[str, Any], ...] = ()
    power: Mapping[str, Window] | None = None


def worked(state: Mapping[str, Any]) -> bool:
    """Whether a state was seen behind a round; before loading, a machine is at rest."""
    return bool(state.get(AT) != LOAD)
