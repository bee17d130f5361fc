"""A bench as text: its cells before they run, what was refused, what became of them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence

from slmq_edge.bench.cells import PROGRAM, Cell
from slmq_edge.bench.folder import DONE, FAILED, SKIPPED, STATES, WAITING, Status

ESTIMATE = (
    "An estimate, from what such work took on two cores of an x86-64 server; cells that have run "
    "correct it."
)


def listing(
    cells: Sequence[Cell],
    expected: Mapping[str, float],
    total: float,
    done: Collection[str] = (),
) -> str:
    """Every cell with its command and its estimated time; what is done says so."""
    width = max(len(cell.id) for cell in cells)
    lines = []
    for cell in cells:
        seconds = expected.get(cell.id)
        time = DONE if cell.id in done else "?" if seconds is None else span(seconds)
        lines.append(f"{cell.id:<{width}}  {time:>7}  {shlex.join([PROGRAM, *cell.command])}")
    open_cells = sum(cell.id not in done for cell in cells)
    lines += ["", f"{counted(open_cells, 'cell')} to do, about {span(total)}. {ESTIMATE}"]
    return "\n".join(lines) + "\n"


def checked(
    cells: Sequence[Cell],
    refused: Mapping[str, str],
    waiting: Mapping[str, str],
    total: float,
) -> str:
    """What a plan leads to: how many cells, what cannot be made, and what waits for a machine."""
    kinds: dict[str, int] = {}
    for cell in cells:
        kinds[cell.kind] = kinds.get(cell.kind, 0) + 1
    lines = [
        f"{counted(len(cells), 'cell')}: "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    ]
    lines += [f"refused: {name}: {why}" for name, why in refused.items()]
    reasons: dict[str, list[str]] = {}
    for name, why in waiting.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        lines.append(f"would wait: {counted(len(names), 'cell')}, from {names[0]} on: {why}")
    lines.append(f"About {span(total)}. {ESTIMATE}")
    return "\n".join(lines) + "\n"


def summary(cells: Sequence[Cell], found: Mapping[str, Status]) -> str:
    """How many cells are in which state, and what is to be said of those that are not done."""
    states = [found[cell.id].state if cell.id in found else None for cell in cells]
    counts = [f"{states.count(name)} {name}" for name in STATES if states.count(name)]
    untried = states.count(None)
    counts += [f"{untried} not tried"] if untried else []
    lines = [f"{counted(len(cells), 'cell')}: {', '.join(counts)}"]
    for name in (FAILED, WAITING, SKIPPED):
        for cell in cells:
            status = found.get(cell.id)
            if status is not None and status.state == name:
                lines.append(f"{name}: {cell.id}: {status.error}")
    return "\n".join(lines) + "\n"


def counted(count: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{count} {what}{'' if count == 1 else plural}"


def span(seconds: float) -> str:
    """A time as people say it, in the largest unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
