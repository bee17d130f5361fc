"""Doubts about the machine: busy, hot, slowed down, in another mode, or silent about itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from slmq_edge.caveats.evidence import Caveat, Evidence, worked
from slmq_edge.profiles.board import STATE
from slmq_edge.runner.environment import computes_on_gpu

BUSY = 0.5  # other tasks per core at the start
CLOCK_SPREAD = 0.10  # of the highest that was seen behind a round
SWAP_BYTES = 64e6
SWAP_GROWTH_BYTES = 4e6
# 36.4.7 refuses large allocations with gigabytes free; 36.5.2 mended it (DEVICES.md 2.3).
ALLOCATES_BADLY = "36.4.7"
SENSORS = {  # of these kinds of machine, what is usually there
    "jetson": ("power", "total_rails", "gpu clock", "mode"),
    "cuda": ("power", "gpu_process_used"),
    "raspberrypi": ("throttling",),
}


def background_load(seen: Evidence) -> Caveat | None:
    load, cores = seen.environment.get("load_average"), seen.environment.get("cores")
    if load is None or not cores or load <= BUSY * cores:
        return None
    return Caveat(
        "background-load",
        f"{load:.1f} tasks were running on {cores} cores before we began (mean of the last "
        "minute): wait until the machine is quiet",
        {"load_average": load, "cores": cores},
    )


def fewer_cores_than_threads(seen: Evidence) -> Caveat | None:
    threads, cores = seen.workload["threads"], seen.environment.get("cores")
    if not cores or threads <= cores or computes_on_gpu(seen.environment):
        return None
    return Caveat(
        "fewer-cores-than-threads",
        f"{threads} threads shared {cores} cores: ask for {cores} (--threads)",
        {"threads": threads, "cores": cores},
    )


def governor_saves_power(seen: Evidence) -> Caveat | None:
    governor = seen.environment.get("governor")
    if governor in (None, "performance"):
        return None
    return Caveat(
        "governor",
        f"the frequency governor is '{governor}': set 'performance' for steady clocks",
        {"governor": governor},
    )


def throttled(seen: Evidence) -> Caveat | None:
    """Counters since boot that rose, or states that were on behind any round."""
    rose: dict[str, int] = {}
    for cause in sorted({name for one in seen.states for name in one.get("throttling") or {}}):
        stretches = _stretches(seen.states, cause)
        if cause.endswith(STATE):
            change = max((max(values) for values in stretches), default=0)
        else:
            change = sum(map(_rise, stretches))
        if change > 0:
            rose[cause] = change
    if not rose:
        return None
    said = ", ".join(f"{cause.removesuffix(STATE)} {count}" for cause, count in rose.items())
    return Caveat(
        "throttled",
        f"the machine slowed itself down during the run ({said}): cool it, feed it better, or "
        "measure in a lower power mode",
        {"rose": rose},
    )


def _stretches(states: tuple[Mapping[str, Any], ...], cause: str) -> list[list[int]]:
    """What a cause counted, process by process: in between, there may have been a reboot."""
    found: list[list[int]] = []
    for state in states:
        if not found or not worked(state):
            found.append([])
        count = (state.get("throttling") or {}).get(cause)
        if count is not None:
            found[-1].append(count)
    return [values for values in found if values]


def _rise(values: list[int]) -> int:
    """Each rise by itself: what a firmware remembers since boot, another may have it forget."""
    return sum(max(after - before, 0) for before, after in itertools.pairwise(values))


def mode_not_maximum(seen: Evidence) -> Caveat | None:
    """A power mode belongs to a figure; one that is not the fastest is worth a line."""
    fastest = (seen.environment.get("board") or {}).get("maximum_modes") or ()
    modes = [_mode(state) for state in seen.states]
    if not fastest or not modes:
        return None
    if None in modes:
        return Caveat(
            "mode-unknown",
            "this board has power modes and does not say in which it is: nvpmodel -q as root does",
            {"maximum_modes": list(fastest)},
        )
    if len(set(modes)) > 1:
        names = sorted({str(mode) for mode in modes})
        return Caveat(
            "mode-changed",
            f"the power mode changed during the run ({', '.join(names)}): measure again",
            {"modes": names},
        )
    if modes[0] in fastest:
        return None
    return Caveat(
        "mode-not-maximum",
        f"power mode {modes[0]}, where {fastest[0]} is the fastest of this board: set it by name "
        "(nvpmodel, then jetson_clocks), or quote the mode with the figure",
        {"mode": modes[0], "maximum_modes": list(fastest)},
    )


def clocks_unstable(seen: Evidence) -> Caveat | None:
    """Behind the rounds, not before loading: a clock at rest is no clock under work."""
    spreads: dict[str, float] = {}
    for domain, values in _clocks(tuple(filter(worked, seen.states))):
        if len(values) > 1 and max(values) > 0:
            spreads[domain] = 1 - min(values) / max(values)
    wide = {domain: spread for domain, spread in spreads.items() if spread > CLOCK_SPREAD}
    if not wide:
        return None
    said = ", ".join(f"{domain} by {spread:.0%}" for domain, spread in wide.items())
    return Caveat(
        "clocks-unstable",
        f"clocks differed behind the repetitions ({said}): fix them (jetson_clocks, governor "
        "performance) for figures that repeat",
        {"spread": wide},
    )


def _clocks(states: tuple[Mapping[str, Any], ...]) -> Iterator[tuple[str, list[float]]]:
    told = [state.get("clocks_hz") or {} for state in states]
    for domain in sorted({name for one in told for name in one}):
        yield domain, [one[domain] for one in told if one.get(domain) is not None]


def gpu_shared(seen: Evidence) -> Caveat | None:
    others = max(_system(seen, "gpu_processes"), default=0)
    if not others:
        return None
    return Caveat(
        "gpu-shared",
        f"{others:.0f} other processes were on the GPU: end them, or take them into account",
        {"gpu_processes": others},
    )


def swap_in_use(seen: Evidence) -> Caveat | None:
    used = _system(seen, "swap_used_bytes")
    if not used or (max(used) <= SWAP_BYTES and used[-1] - used[0] <= SWAP_GROWTH_BYTES):
        return None
    return Caveat(
        "swap-in-use",
        f"{max(used) / 1e6:.0f} MB of memory were swapped out ({(used[-1] - used[0]) / 1e6:+.0f} "
        "MB during the run): memory figures leave them out, and reading them back takes time",
        {"swap_used_bytes": max(used), "growth_bytes": used[-1] - used[0]},
    )


def _system(seen: Evidence, name: str) -> list[float]:
    told = [(state.get("system") or {}).get(name) for state in seen.states]
    return [value for value in told if value is not None]


def allocates_badly(seen: Evidence) -> Caveat | None:
    if seen.environment.get("l4t") != ALLOCATES_BADLY:
        return None
    return Caveat(
        "l4t-allocations",
        f"L4T {ALLOCATES_BADLY} refuses large allocations on the GPU with gigabytes free (NvMap "
        "error 12), the more the longer it is up: reboot before a run, or update to 36.5.2",
        {"l4t": ALLOCATES_BADLY},
    )


def sensor_missing(seen: Evidence) -> Caveat | None:
    """What this kind of machine usually tells, and this one does not."""
    profile = seen.environment.get("profile") or {}
    reasons = profile.get("reasons") or {}
    usual = SENSORS.get(str(profile.get("kind")), ())
    silent = {name: str(reasons[name]) for name in usual if name in reasons}
    if not silent:
        return None
    said = "; ".join(f"{name}: {reason}" for name, reason in silent.items())
    return Caveat(
        "sensor-missing", f"not told by this machine, and not guessed: {said}", {"reasons": silent}
    )


def _mode(state: Mapping[str, Any]) -> str | None:
    mode = state.get("mode")
    return str(mode["name"]) if isinstance(mode, dict) and "name" in mode else None
