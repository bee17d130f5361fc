"""Joules of a window, gross and above idle, and tokens for each of them.

With the power P_i of the whole device at the times t_i of arrival,

    gross = sum (P_i + P_{i+1}) / 2 (t_{i+1} - t_i)        trapezoid; or a counter's difference
    above idle = gross - P_idle t                          P_idle: the idle window's mean power

Gross joules are what a battery gives; those above idle are what the model added. A window of fewer
than `FEWEST` readings says nothing, and a rail that is only a part of the device is not the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FEWEST = 5  # readings
LEAST_COVERED = 0.9  # of a window, from the first reading that told to the last
IDLE = "idle"
WORK = ("prefill", "decode")


@dataclass(frozen=True)
class Window:
    """Raw readings of one phase; see `slmq_edge.runner.windows.Window`, from which it comes."""

    seconds: float
    rounds: int
    tokens: int
    stamps: tuple[float, ...]
    watts: Mapping[str, tuple[float | None, ...]]
    counter_joules: float | None
    total_rails: tuple[str, ...]


@dataclass(frozen=True)
class Energy:
    """Of one window. above_idle, idle_watts: None where idle was not measured.

    source: ``counter``, or the rails that were added up. samples: readings that counted.
    """

    gross_joules: float
    above_idle_joules: float | None
    idle_watts: float | None
    seconds: float
    tokens: int
    source: str
    samples: int

    @property
    def watts(self) -> float:
        return self.gross_joules / self.seconds

    @property
    def tokens_per_joule(self) -> float:
        return self.tokens / self.gross_joules

    @property
    def tokens_per_joule_above_idle(self) -> float | None:
        """None where it was not told, or where the work took no more than idling."""
        added = self.above_idle_joules
        return self.tokens / added if added is not None and added > 0 else None


def of(windows: Mapping[str, Window], phase: str) -> Energy | str:
    """The energy of ``prefill`` or ``decode``, or why there is none."""
    window = windows.get(phase)
    if window is None:
        return "not measured"
    found = joules(window)
    if isinstance(found, str):
        return found
    gross, source, samples = found
    if gross <= 0:
        return f"{source} read {gross:.3g} J over {window.seconds:.1f} s of work"
    resting = windows.get(IDLE)
    rest = joules(resting) if resting is not None else "not measured"
    idle_watts = None
    if resting is not None and not isinstance(rest, str) and rest[1] == source:
        idle_watts = rest[0] / resting.seconds
    above = None if idle_watts is None else gross - idle_watts * window.seconds
    return Energy(gross, above, idle_watts, window.seconds, window.tokens, source, samples)


def subject(environment: Mapping[str, object], source: str) -> str:
    """What the joules of a run are of, as its profile says, and where they were read."""
    profile = environment.get("profile")
    part = profile.get("energy_of") if isinstance(profile, Mapping) else None
    return source if part is None else f"{part}: {source}"


def joules(window: Window) -> tuple[float, str, int] | str:
    """Gross joules of a window, where they were read and how often; or why they are not told."""
    if len(window.stamps) < FEWEST or window.seconds <= 0:
        return f"{len(window.stamps)} readings in {window.seconds:.2f} s: {FEWEST} are needed"
    if window.counter_joules is not None:
        return window.counter_joules, "counter", len(window.stamps)
    if not window.total_rails:
        return "no rail of this board is the whole device"
    rails = [window.watts.get(rail, ()) for rail in window.total_rails]
    known = [
        (at, sum(parts))
        for at, *parts in zip(window.stamps, *rails, strict=False)
        if None not in parts
    ]
    if len(known) < FEWEST:
        return f"{len(known)} of {len(window.stamps)} readings told anything: {FEWEST} are needed"
    covered = known[-1][0] - known[0][0]
    if covered < LEAST_COVERED * window.seconds:
        return f"the readings cover {covered:.2f} of {window.seconds:.2f} s"
    # At the ends the mean power goes on.
    gross = trapezoid(known) * window.seconds / covered
    return gross, "+".join(window.total_rails), len(known)


def trapezoid(points: Sequence[tuple[float, float]]) -> float:
    """The integral of (seconds, watts), in joules."""
    return sum((p + q) / 2 * (b - a) for (a, p), (b, q) in itertools.pairwise(points))
