"""Doubt is data: what makes a measurement less than certain travels with it.

A new doubt is a function from `Evidence` to a `Caveat` or None, and a line in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable

from slmq_edge.caveats import artifact, machine, repetitions
from slmq_edge.caveats.evidence import AT, IMPLAUSIBLE, Caveat, Evidence, worked

__all__ = ["AT", "CHECKS", "IMPLAUSIBLE", "Caveat", "Evidence", "doubts", "worked"]

# The gravest first.
CHECKS: tuple[Callable[[Evidence], Caveat | None], ...] = (
    artifact.inexact_integers,
    artifact.products_left_floats,
    repetitions.inconclusive,
    machine.throttled,
    machine.mode_not_maximum,
    artifact.steps_not_replayed,
    machine.background_load,
    machine.gpu_shared,
    machine.fewer_cores_than_threads,
    machine.clocks_unstable,
    machine.swap_in_use,
    machine.allocates_badly,
    machine.governor_saves_power,
    repetitions.few_repetitions,
    repetitions.slow_first_repetition,
    repetitions.unstable_repetitions,
    repetitions.measured_again,
    artifact.golden_mostly_unclear,
    repetitions.resumed,
    machine.sensor_missing,
)


def doubts(seen: Evidence) -> tuple[Caveat, ...]:
    return tuple(caveat for check in CHECKS if (caveat := check(seen)) is not None)
