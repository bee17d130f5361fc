"""Quantizing and running on a GPU: one call of under 9 minutes, without network, one results file.

Here, once, with the shared material beside the checkout; the folder (17 MB) goes along with the
checkout:

    python -m benchmarks.gpu --pack material

There, in the checkout's root, with the Python that has torch, triton and transformers. Nothing is
installed; links inside slmq_edge/ must have survived the copy:

    python3 -m benchmarks.gpu --material material -o "$OUT"

The same command goes on where a call ended: with the time that it has, and without what was done.
Where the machine is a fresh one, put the results.json of the call before into the new $OUT first.

What comes of it: results.json (whole after every step: machine, steps, every run.json and
manifest, rows, the paper's tables beside them) and log.txt. Both are all that need come home;

    python -m benchmarks.gpu --table results.json       the tables, as Markdown
    python -m benchmarks.gpu --unpack results.json -o folder
                                                        run.json files and manifests, which
                                                        compare, report study, report cost take

Measured is what users run: ``slmq-edge quantize --device cuda``, ``export --target torch``,
``profile --protocol paper``, each a process of its own. ``--toy`` does the same on a CPU with two
small layers: a rehearsal, whose figures mean nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu_w8a8 import ROOT
from benchmarks.on_gpu import foresight, machine, material, record, steps, table
from benchmarks.on_gpu.engine import Engine
from slmq_edge.bench.cells import with_needs
from slmq_edge.errors import SlmqError, UsageError

SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED", ROOT.parent / "shared"))
MINUTES = 8.5
NOT_ALL, INTERRUPTED = 3, 130  # exit codes: as slmq-edge bench has them


def main(
    folder: Annotated[
        Path, typer.Option("--material", help="Written by --pack, or the shared material.")
    ] = SHARED,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for results.json and log.txt.")
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for models, checkpoints, bundles: 17 GB.")
    ] = Path("/tmp/slmq-gpu"),
    minutes: Annotated[
        float, typer.Option(min=0.1, help="What is not done by then waits.")
    ] = MINUTES,
    device: Annotated[str, typer.Option(help="To quantize on: cuda or cpu.")] = "cuda",
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Steps that fit, and what they need.")
    ] = None,
    toy: Annotated[bool, typer.Option("--toy", help="Two small layers on a CPU.")] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the steps, when each would begin, and leave.")
    ] = False,
    pack: Annotated[
        Path | None, typer.Option(help="Write the material to carry, and leave.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option("--table", help="Print a results.json as Markdown, and leave.")
    ] = None,
    unpack: Annotated[
        Path | None, typer.Option(help="Write what a results.json holds to -o, and leave.")
    ] = None,
) -> None:
    """Quantize, export and profile the paper's models on the GPU of this machine."""
    if pack is not None:
        typer.echo(f"{pack}: {material.pack(folder, pack) / 1e6:.1f} MB")
        return
    if show is not None:
        typer.echo(table.markdown(with_figures(record.read(show))), nl=False)
        return
    if unpack is not None:
        for path in record.unpack(record.read(unpack), _needed(output)):
            typer.echo(path)
        return
    settings = steps.Settings(folder.absolute(), "cpu" if toy else device, toy=toy)
    chosen = _chosen(steps.steps(settings), only)
    if listed:
        begins = foresight.begins(chosen, minutes * 60)
        for step in chosen:
            at = f"at {begins[step.id]:4.0f} s" if step.id in begins else "  dropped"
            typer.echo(f"{at}  {step.seconds:5.0f} s  {step.lane:5}  {step.id}")
        return
    sys.exit(call(settings, chosen, _needed(output), work.absolute(), minutes * 60))


def call(
    settings: steps.Settings, chosen: list[steps.Step], out: Path, work: Path, seconds: float
) -> int:
    """Do what fits into the seconds; returns the exit code.

    Raises:
        SlmqError: material that is not whole, or results of something else in ``out``.
    """
    ends = time.monotonic() + seconds
    material.check(settings.material)
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    seen = machine.capture()
    if settings.device != "cpu" and not (seen["torch"] or {}).get("available"):
        raise SlmqError(
            f"--device {settings.device}: torch sees no CUDA device here "
            f"({(seen['torch'] or {}).get('error') or 'torch ' + str(seen['torch']['version'])})"
        )
    material.write_calibration(settings.material, work / steps.CALIBRATION)
    found = record.Record(out, _same(settings, seen))
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found.begin({"started": started, "seconds_given": seconds, "machine": seen, "ended": None})
    engine = Engine(chosen, work, out, found, ends, _say)
    signal.signal(signal.SIGTERM, _interrupted)
    ended = "interrupted"
    try:
        engine.carry_out()
        undone = [name for name, state in engine.states.items() if state != record.DONE]
        ended = f"{len(undone)} of {len(chosen)} steps were not done" if undone else "all was done"
        return NOT_ALL if undone else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _close(found, seen, ended, seconds - (ends - time.monotonic()))


def with_figures(document: dict[str, Any]) -> dict[str, Any]:
    """The document with ``rows``, ``costs`` and ``beside_the_paper``, made of its steps."""
    from benchmarks.on_gpu import figures, paper

    study = figures.studied(document)
    if study is None:
        return document
    seen = document["calls"][-1]["machine"] if document["calls"] else {}
    return {
        **document,
        "rows": figures.rows(study),
        "costs": figures.costs(study),
        "beside_the_paper": paper.beside(study, seen),
    }


def _close(found: record.Record, seen: dict[str, Any], ended: str, took: float) -> None:
    """What a call comes to. Figures that cannot be made cost nothing that was found."""
    found.end(ended=ended, seconds=round(took, 1), gpu_at_the_end=machine.gpu())
    try:
        found.document = with_figures(found.document)
    except Exception as error:  # our bug, behind minutes of a machine: it is told, they are kept
        found.end(figures_error=f"{type(error).__name__}: {error}")
        raise
    finally:
        found.save()
        _say(f"{ended}, after {took:.0f} s")


def _same(settings: steps.Settings, seen: dict[str, Any]) -> dict[str, Any]:
    return {
        "toy": settings.toy,
        "device": settings.device,
        "target": settings.target,
        "gpu": machine.name_of(seen),
        "material_sha256": material.digest(settings.material),
    }


def _chosen(found: list[steps.Step], only: str | None) -> list[steps.Step]:
    """Those that ``--only`` means, and what they need; all without it.

    Raises:
        UsageError: it fits none.
    """
    if only is None:
        return found
    fitting = [step.id for step in found if fnmatchcase(step.id, only)]
    if not fitting:
        raise UsageError(f"--only {only}: no step is called so; --list has all names")
    kept = {cell.id for cell in with_needs([step.cell for step in found], fitting)}
    return [step for step in found if step.id in kept]


def _needed(output: Path | None) -> Path:
    if output is None:
        raise UsageError("say where results go: -o FOLDER")
    return output


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlmqError as error:
        sys.exit(f"error: {error}")
