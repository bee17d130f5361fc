"""Which cells may start beside those that run. Pure.

What is timed here is alone here: quantizing, whose time is Track 3's, building and measuring. A
board does one cell at a time. A measurement on a board waits
for its board most of the time, and may run beside anything; an evaluation on one makes its
questions here, and counts as work of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from slmq_edge.bench.cells import Cell

OF_A_DEVICE = ("profile", "build")  # done on the machine that is measured
TIMED = ("quantize", *OF_A_DEVICE)


def is_quiet(cell: Cell) -> bool:
    """Whether it wants this machine for itself."""
    return cell.kind in TIMED and not cell.is_remote


def works_here(cell: Cell) -> bool:
    """Whether it takes this machine's time."""
    return not cell.is_remote or cell.kind not in TIMED


def may_start(cell: Cell, running: Sequence[Cell], jobs: int) -> bool:
    """Whether a cell may start beside these; ``jobs``: of this machine at a time."""
    if cell.is_remote and any(one.address == cell.address for one in running):
        return False
    if not works_here(cell):
        return True
    here = [one for one in running if works_here(one)]
    if is_quiet(cell):
        return not here
    return len(here) < jobs and not any(is_quiet(one) for one in here)
