"""results.json: all that calls have found, whole on disk after every step, and taken up again.

A step's entry is written when it starts and when it has ended, with what it left: run.json of a
profile, the manifest of a checkpoint or bundle, as they were, so that `unpack` makes them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.steps import Step
from slmq_edge.errors import Damaged, SlmqError, Unsupported
from slmq_edge.files import CHECKPOINT_FILE, write_text_atomically
from slmq_edge.runner.manifest import BUNDLE_FILE

FILE, FORMAT, VERSION = "results.json", "slmq-edge-gpu", 1
WAITING, RUNNING, DONE, FAILED, STOPPED, DROPPED = STATES = (
    "waiting", "running", "done", "failed", "stopped", "dropped",
)  # fmt: skip
LEFT = "left"  # of an entry: the file that a step has left
# What makes two calls' results of one kind.
SAME = ("toy", "device", "target", "gpu", "material_sha256")


class Record:
    """The document, and its file. Steps of an earlier call that are done stay so."""

    def __init__(self, folder: Path, same: Mapping[str, Any]) -> None:
        """Take up the results in a folder, or begin there.

        same: of `SAME`, what must be equal for the results to be one call's as another's.

        Raises:
            SlmqError: they are of something else. Damaged, Unsupported: they cannot be read.
        """
        self._path = folder / FILE
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "same": dict(same),
            "calls": [],
            "steps": {},
        }
        if self._path.exists():
            self.document = read(self._path)
            _require_same(self._path, self.document["same"], same)

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.document["steps"]
        return found

    def state(self, step: Step) -> str:
        return str(self.entries.get(step.id, {}).get("state", WAITING))

    def begin(self, call: Mapping[str, Any]) -> None:
        """A new call: what an earlier one did not finish waits again."""
        self.document["calls"].append(dict(call))
        self.save()

    def update(self, step: Step, **fields: Any) -> None:
        """Add to a step's entry, which begins anew when it starts, and write all to disk."""
        first = {"kind": step.kind, **step.cell.of, "command": list(step.cell.command)}
        if fields.get("state") == RUNNING:
            self.entries.pop(step.id, None)
        self.entries.setdefault(step.id, first).update(fields)
        self.save()

    def end(self, **fields: Any) -> None:
        """What became of the call."""
        self.document["calls"][-1].update(fields)
        self.save()

    def save(self) -> None:
        text = json.dumps(self.document, indent=1, allow_nan=False) + "\n"
        write_text_atomically(self._path, text, force=True)


def read(path: Path) -> dict[str, Any]:
    """The document in a file.

    Raises:
        Damaged: it cannot be read. Unsupported: it is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Unsupported(f"{path} holds no results of benchmarks.gpu")
    if document.get("version") != VERSION:
        raise Unsupported(f"{path} has version {document.get('version')!r}, not {VERSION}")
    return document


def _require_same(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in SAME:
        if was.get(name) != now.get(name):
            raise SlmqError(
                f"{path} is of {name} {was.get(name)}, this call of {now.get(name)}: results of "
                "both do not go into one file, so give another folder with -o"
            )


def left_by(step: Step, work: Path) -> dict[str, Any]:
    """What a step that is done has to tell, by the name that its entry has it by."""
    path = work / step.output
    if step.kind == "model":
        return {}
    manifest = {"quantize": CHECKPOINT_FILE, "export": BUNDLE_FILE}.get(step.kind)
    file = path if manifest is None else path / manifest
    document = json.loads(file.read_text(encoding="utf-8"))
    return {LEFT: {"path": file.relative_to(work).as_posix(), "document": document}}


def unpack(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write what steps have left, as it was: run.json files, and manifests without their folders.

    All verbs that read results take them: ``slmq-edge compare``, ``report study``, ``report cost``.
    """
    found = []
    for entry in document["steps"].values():
        if LEFT in entry:
            path = folder / entry[LEFT]["path"]
            text = json.dumps(entry[LEFT]["document"], indent=1, allow_nan=False) + "\n"
            write_text_atomically(path, text, force=True)
            found.append(path)
    return found
