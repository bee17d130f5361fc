"""The command line: make what is run, run it, write JSON and Markdown."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu_w8a8 import ROOT
from benchmarks.peers import models, rounds
from benchmarks.peers.contestants import CONTESTANTS, DISTRIBUTIONS, Entry, entries, missing
from benchmarks.peers.process import Failed, environment
from benchmarks.peers.table import markdown as as_markdown
from benchmarks.quantize import SHARED
from slmq_edge.errors import unknown
from slmq_edge.runner.environment import capture

FORMAT, VERSION = "slmq-edge-peers", 1
PEERS = ROOT / ".venv-peers" / "bin" / "python"
VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""

Names = list[str] | None
Numbers = list[int] | None


def main(
    shared: Annotated[Path, typer.Option(help="Holds configs/, tokenizers/, data/.")] = SHARED,
    shape: Annotated[Names, typer.Option(help="Default: all.")] = None,
    contestant: Annotated[Names, typer.Option(help="Default: all.")] = None,
    threads: Annotated[Numbers, typer.Option(min=1, help="Default: 1 and 2.")] = None,
    depth: Annotated[Numbers, typer.Option(min=0, help="Default: 0, 512 and 2048.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of it.")] = 128,
    new: Annotated[int, typer.Option(min=1, help="Tokens decoded.")] = 64,
    count: Annotated[int, typer.Option("--rounds", min=1)] = 5,
    repetitions: Annotated[int, typer.Option(min=1, help="In a visit, per depth.")] = 2,
    peers_python: Annotated[Path, typer.Option(help="Has the peers' packages.")] = PEERS,
    ours_python: Annotated[
        list[Path] | None, typer.Option(help="Runs our bundles; repeatable. Default: this one.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Keeps what is made.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Where to write the table.")] = None,
) -> None:
    """Ours against llama.cpp, onnxruntime-genai and optimum; one JSON document on stdout."""
    shapes, names = tuple(shape or models.SHAPES), tuple(contestant or CONTESTANTS)
    _check("shape", shapes, models.SHAPES)
    _check("contestant", names, CONTESTANTS)
    plan = rounds.Plan(
        prompt, new, tuple(depth or (0, 512, 2048)), tuple(threads or (1, 2)), count, repetitions
    )
    if plan.context > models.POSITIONS:
        raise typer.BadParameter(f"depth, prompt and new tokens go beyond {models.POSITIONS}")
    for target in (output, markdown):
        if target is not None and not target.parent.is_dir():
            raise typer.BadParameter(f"{target.parent} is no folder")
    who = _entries(names, peers_python, tuple(ours_python or [Path(sys.executable)]))
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "environment": capture(),
        "plan": asdict(plan),
        "rows": [],
    }

    def saved(line: str) -> None:
        typer.echo(line, err=True)
        if output is not None:
            output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if markdown is not None:
            markdown.write_text(as_markdown(document), encoding="utf-8")

    with nullcontext(str(work)) if work else tempfile.TemporaryDirectory() as folder:
        for name in shapes:
            _shape(name, Path(folder) / name, who, plan, shared, peers_python, document, saved)
    saved("done")
    typer.echo(json.dumps(document, indent=1))


def _entries(names: tuple[str, ...], peers: Path, ours: tuple[Path, ...]) -> list[Entry]:
    here = Path(sys.executable)
    seats = {python: _versions(python) for python in (*ours, here, peers)}
    try:
        given = tuple((python, seats[python]) for python in dict.fromkeys(ours))
        return entries(names, given, (here, seats[here]), (peers, seats[peers]))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _versions(python: Path) -> dict[str, str]:
    """Versions of the distributions that an interpreter has; none where there is none."""
    wanted = sorted({name for needed in DISTRIBUTIONS.values() for name in needed})
    command = [str(python), "-c", VERSIONS, *wanted]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _shape(
    shape: str,
    folder: Path,
    who: list[Entry],
    plan: rounds.Plan,
    shared: Path,
    peers: Path,
    document: dict[str, Any],
    saved: Any,
) -> None:
    """Make what a shape's contestants run, then measure them; rows are added to the document."""
    rows: dict[str, dict[str, Any]] = {}
    running: dict[str, tuple[Entry, Path]] = {}
    calib = shared / "data" / "wikitext2" / "wiki.valid.raw"
    model = models.base(shared, shape, folder)
    for entry in who:
        row = rows[entry.label] = {
            "shape": shape,
            "label": entry.label,
            "contestant": entry.contestant.name,
            "bits": entry.contestant.bits,
            "versions": entry.versions,
        }
        document["rows"].append(row)
        reason = missing(entry.contestant, entry.versions)
        try:
            if reason is not None:
                raise Failed(reason)
            path = models.artifact(entry, model, calib, peers)
        except Failed as error:
            row["error"] = str(error)
        else:
            row["bytes"] = models.size(path)
            running[entry.label] = (entry, path)
        saved(f"{shape}, {entry.label}: {row.get('error', 'made')}")
    vocab = int(json.loads((model / "config.json").read_text("utf-8"))["vocab_size"])
    rounds.measure(rows, running, plan, vocab, lambda line: saved(f"{shape}, {line}"))


def _check(kind: str, given: tuple[str, ...], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            raise typer.BadParameter(unknown(kind, name, tuple(known)))


if __name__ == "__main__":
    try:
        typer.run(main)
    except Failed as error:
        sys.exit(str(error))
