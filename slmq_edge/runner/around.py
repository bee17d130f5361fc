"""What the machine is like around the timed parts: clocks, heat, throttling, mode, memory, load.

Nothing is read while time is taken. A clock that is read after a round is that of its last
milliseconds, before the governor has noticed that the work is over.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping

from slmq_edge.profiles import Profile

WARMER = 3.0  # kelvin above the start: as cool as it gets in a reasonable time
STEP_SECONDS = 0.5


def snapshot(profile: Profile) -> dict[str, Any]:
    """Read all of it once. mode: ``{"name", "id"}`` or None; units as `Profile` has them."""
    seen: dict[str, Any] = {  # in this order: what changes soonest first, the mode by a process
        "clocks_hz": dict(profile.clocks()),
        "throttling": dict(profile.throttling()),
        "temperatures_celsius": dict(profile.temperatures()),
        "system": dict(profile.system()),
    }
    mode = profile.mode()
    seen["mode"] = None if mode is None else {"name": mode.name, "id": mode.id}
    return seen


def hottest(temperatures: Mapping[str, float | None]) -> float | None:
    """Degrees of the warmest zone; None where no zone tells."""
    known = [value for value in temperatures.values() if value is not None]
    return max(known) if known else None


def cool_down(
    profile: Profile,
    begun: Mapping[str, float | None],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> float:
    """Wait until every zone is within `WARMER` of what it was; return the seconds that took.

    seconds: the longest wait. Zones that do not tell, then or now, are not waited for.
    """
    started = clock()
    while clock() - started < seconds and _too_warm(begun, profile.temperatures()):
        sleep(STEP_SECONDS)
    return clock() - started


def _too_warm(begun: Mapping[str, float | None], now: Mapping[str, float | None]) -> bool:
    for zone, value in now.items():
        before = begun.get(zone)
        if before is not None and value is not None and value > before + WARMER:
            return True
    return False
