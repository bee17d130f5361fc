"""When each step would begin if all took what is expected: what a call of so long comes to."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.on_gpu.engine import CLOSING_SECONDS, choice
from benchmarks.on_gpu.record import DONE, DROPPED, RUNNING, WAITING
from benchmarks.on_gpu.steps import Step


def begins(steps: Sequence[Step], seconds: float) -> dict[str, float]:
    """Seconds into the call at which steps would begin, without those that would be dropped."""
    states = dict.fromkeys((step.id for step in steps), WAITING)
    ends: dict[str, float] = {}
    found: dict[str, float] = {}
    now = 0.0
    while True:
        for step in steps:
            if states[step.id] == WAITING and any(
                states[need] == DROPPED for need in step.cell.needs
            ):
                states[step.id] = DROPPED
        chosen = choice(steps, states, {name: end - now for name, end in ends.items()})
        if chosen is not None and now + chosen.seconds > seconds - CLOSING_SECONDS:
            states[chosen.id] = DROPPED
        elif chosen is not None:
            states[chosen.id], found[chosen.id] = RUNNING, now
            ends[chosen.id] = now + chosen.seconds
        elif ends:
            name = min(ends, key=lambda one: ends[one])
            now = ends.pop(name)
            states[name] = DONE
        else:
            return found
