"""What a host must know of a device before it sends anything."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, Mapping

from slmq_edge import profiles
from slmq_edge.errors import Damaged
from slmq_edge.profiles import Board
from slmq_edge.runner import around, environment, look
from slmq_edge.runner.agent import packages, state


def probe(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this machine as `look.look` does, and its state as `around.snapshot` does.

    Of our own: python, executable, packages (distribution -> version), disk_free_bytes, cores,
    uid, boot_id, and the adapter's facts as profile.

    Request: ``profile``, the kind of adapter that reads that state (cpu), and ``board``, what it
    must be told (the fields of `profiles.Board`).
    """
    try:
        board = Board.of(request.get("board") or {})
    except (TypeError, AttributeError) as error:
        raise Damaged(f"no board: {error}") from error
    adapter = profiles.load(str(request.get("profile", "cpu")), board)
    try:
        return {
            **look.look(board.root),
            "python": platform.python_version(),
            "executable": sys.executable,
            "packages": packages.of_user(),
            "disk_free_bytes": free_bytes(home),
            "cores": environment.cores(),
            "uid": os.getuid(),
            "boot_id": state.boot_id(),
            "profile": dict(adapter.facts()),
            **around.snapshot(adapter),
        }
    finally:
        adapter.close()


def free_bytes(folder: Path) -> int:
    """Return what may still be written below ``folder``, which need not be there yet."""
    above = next(path for path in [folder, *folder.parents] if path.exists())
    return shutil.disk_usage(above).free
