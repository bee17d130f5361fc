"""What a host must know of a device before it sends anything."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, Mapping

from slmq_edge import profiles
from slmq_edge.profiles import Board
from slmq_edge.runner import environment
from slmq_edge.runner.agent import packages

BOOT_ID = "proc/sys/kernel/random/boot_id"


def probe(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this machine. JSON; units stand in the names.

    Request: ``profile``, the kind of adapter that reads mode, clocks and temperatures (cpu), and
    ``board``, what that must be told (`profiles.Board`'s fields).
    """
    adapter = profiles.load(
        str(request.get("profile", "cpu")), board_of(request.get("board") or {})
    )
    try:
        mode = adapter.mode()
        return {
            "python": platform.python_version(),
            "executable": sys.executable,
            "machine": platform.machine(),
            "packages": packages.of_user(),
            "disk_free_bytes": free_bytes(home),
            "cores": environment.cores(),
            "system": dict(adapter.system()),
            "mode": None if mode is None else {"name": mode.name, "id": mode.id},
            "clocks": dict(adapter.clocks()),
            "temperatures": dict(adapter.temperatures()),
            "throttling": dict(adapter.throttling()),
            "profile": dict(adapter.facts()),
            "uid": os.getuid(),
            "boot_id": boot_id(),
        }
    finally:
        adapter.close()


def board_of(fields: Mapping[str, Any]) -> Board:
    """Return a board from its fields as JSON, where every tuple is a list."""
    return Board(
        name=str(fields.get("name", "")),
        total_rails=tuple(tuple(rails) for rails in fields.get("total_rails", ())),
        maximum_modes=tuple(fields.get("maximum_modes", ())),
        power_source=fields.get("power_source"),
    )


def free_bytes(folder: Path) -> int:
    """Return what may still be written below ``folder``, which need not be there yet."""
    above = next(path for path in [folder, *folder.parents] if path.exists())
    return shutil.disk_usage(above).free


def boot_id(root: str = "/") -> str | None:
    """Return what the kernel calls its present run; None where it does not tell."""
    try:
        return (Path(root) / BOOT_ID).read_text(encoding="ascii").strip() or None
    except OSError:
        return None
