"""What a device is: one TOML sheet per board (`sheet`), and which sheet a machine's is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from slmq_edge import profiles
from slmq_edge.devices.detection import (
    UNKNOWN_JETSON,
    is_integrated,
    match,
    match_gpu,
    mode_name,
    release,
)
from slmq_edge.devices.jetpack import L4t, l4t
from slmq_edge.devices.sheet import Fact, Facts, PowerMode, parse
from slmq_edge.errors import NotFound, unknown

__all__ = [
    "UNKNOWN_JETSON",
    "Fact",
    "Facts",
    "L4t",
    "PowerMode",
    "board",
    "detect",
    "detect_here",
    "gpus",
    "is_integrated",
    "known",
    "l4t",
    "load",
    "mode_name",
    "of_gpu",
    "parse",
    "release",
]


def known() -> tuple[str, ...]:
    sheets = resources.files(__name__).joinpath("facts").iterdir()
    return tuple(sorted(s.name.removesuffix(".toml") for s in sheets if s.name.endswith(".toml")))


@cache
def load(name: str) -> Facts:
    """Read a device's sheet.

    Raises:
        NotFound: there is none of this name; guesses what was meant.
    """
    if name not in known():
        raise NotFound(unknown("device", name, known()))
    text = resources.files(__name__).joinpath("facts", f"{name}.toml").read_text("utf-8")
    return parse(name, text)


def detect(seen: Mapping[str, Any]) -> Facts:
    """Return the sheet of a machine from what `runner.look.look` saw there.

    Of a Jetson, in the power mode that it is in, and with the best mode that it has as the one
    without limits. A Jetson that no sheet describes is `UNKNOWN_JETSON`, without facts. A machine
    with GPUs of their own is the machine all the same: for those, `gpus`.

    Raises:
        NotFound: the architecture has no sheet.
    """
    return match(seen, [load(name) for name in known()])


def detect_here(root: str = "/", machine: str | None = None) -> Facts:
    """Return the sheet of this machine.

    Args:
        root: where /proc, /sys and /etc are.
        machine: what ``uname -m`` says; by default, asked.

    Raises:
        NotFound: the architecture has no sheet.
    """
    from slmq_edge.runner.look import look

    return detect({**look(root), **({"machine": machine} if machine else {})})


def of_gpu(
    name: str, compute_capability: str | None = None, memory_bytes: int | None = None
) -> Facts | None:
    """Return the sheet of a GPU by the name that it has for itself; None where there is none."""
    sheets = [load(sheet) for sheet in known()]
    return match_gpu(name, sheets, compute_capability, memory_bytes)


def gpus(seen: Mapping[str, Any]) -> tuple[tuple[str, Facts | None], ...]:
    """Return name and sheet of every GPU that is a board of its own; a Jetson's is none."""
    named = [gpu for gpu in seen.get("gpus") or () if gpu.get("name")]
    return tuple(
        (gpu["name"], of_gpu(gpu["name"], gpu.get("compute_capability"), gpu.get("memory_bytes")))
        for gpu in named
        if not is_integrated(gpu["name"])
    )


def board(facts: Facts) -> profiles.Board:
    """Return what an adapter must be told of its machine."""
    return profiles.Board(facts.name, facts.power.total_rails, facts.power.maximum_modes)
