"""A cell: one verb, run once, and what it leaves on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.files import manifest_of
from slmq_edge.remote.target import LOCAL

PROGRAM = "slmq-edge"
ENGINES = "engines"


@dataclass(frozen=True)
class Cell:
    """One verb's work.

    command: the verb and its words; paths in it start at the bench's folder. needs: cells that come
    first. outputs: files or folders, likewise. of: its names on the axes of the matrix. device:
    the name of the machine that it measures, ``local`` for all that is done here. address: as
    ``--device`` takes it. gpu: needs an NVIDIA GPU here.
    """

    id: str
    kind: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    of: Mapping[str, str]
    device: str = LOCAL
    address: str = LOCAL
    gpu: bool = False

    @property
    def is_remote(self) -> bool:
        return self.address != LOCAL

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "command": [PROGRAM, *self.command],
            "needs": list(self.needs),
            "outputs": list(self.outputs),
            "of": dict(self.of),
            "device": self.device,
            "address": self.address,
            "gpu": self.gpu,
        }

    @staticmethod
    def from_json(value: Any, where: str) -> Cell:
        """A cell of bench.json.

        Raises:
            Damaged: it is none.
        """
        try:
            found = {key: str(value[key]) for key in ("id", "kind", "device", "address")}
            lists = {key: tuple(value[key]) for key in ("command", "needs", "outputs")}
            of, gpu = dict(value["of"]), bool(value["gpu"])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{where} is damaged: a cell without {error}") from error
        texts = [*found.values(), *(text for one in lists.values() for text in one), *of.values()]
        is_sound = all(isinstance(text, str) for text in texts)
        paths = [Path(str(path)) for path in (found["id"], *lists["outputs"])]
        is_inside = not any(path.is_absolute() or ".." in path.parts for path in paths)
        if not is_sound or not is_inside or lists["command"][:1] != (PROGRAM,):
            raise Damaged(f"{where} is damaged: {found['id']!r} is no cell")
        return Cell(
            found["id"],
            found["kind"],
            lists["command"][1:],
            lists["needs"],
            lists["outputs"],
            of,
            found["device"],
            found["address"],
            gpu,
        )


def identities(cells: Sequence[Cell]) -> dict[str, str]:
    """What must be the same for a cell's result to be kept: its command, and those it rests on.

    cells: none before what it needs.
    """
    found: dict[str, str] = {}
    for cell in cells:
        text = json.dumps([cell.command, [found[need] for need in cell.needs]])
        found[cell.id] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def with_needs(cells: Sequence[Cell], chosen: Iterable[str]) -> tuple[Cell, ...]:
    """The chosen cells and all that they rest on, in the order given."""
    wanted = set(chosen)
    for cell in reversed(cells):
        if cell.id in wanted:
            wanted.update(cell.needs)
    return tuple(cell for cell in cells if cell.id in wanted)


def is_whole(folder: Path, output: str) -> bool:
    """Whether an output is there, and what a verb writes at its very end is readable.

    A folder's files have the sizes that its manifest says; their hashes are read by whoever uses
    them.
    """
    path = folder / output
    try:
        if path.suffix == ".json":
            document = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(document, dict) and "format" in document
        if path.is_dir() and path.name == ENGINES:
            return any(_is_built(plan) for plan in path.glob("*.plan"))
        files = manifest_of(path)[2]["files"]
        return all((path / name).stat().st_size == said["bytes"] for name, said in files.items())
    except (OSError, ValueError, KeyError, TypeError, SlmqError):
        return False


def _is_built(plan: Path) -> bool:
    """Whether an engine has the sidecar that is written behind it, and has not failed its check."""
    sidecar = plan.with_suffix(".json")
    if not sidecar.is_file():
        return False
    document = json.loads(sidecar.read_text(encoding="utf-8"))
    return isinstance(document, dict) and not document.get("golden_error")
