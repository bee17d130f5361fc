"""The inference track: run a bundle on a machine, this one or a board, and lose nothing.

The journal lies next to the output until run.json is written, so that a run that was killed is
taken up again where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge import bounds
from slmq_edge.assembly import artifact_of, assemble
from slmq_edge.errors import UsageError
from slmq_edge.files import check_output, existing_bundle
from slmq_edge.results import Run, save
from slmq_edge.runner import job, journal, measure, runtimes
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks.machines import JETSON, Local, Machine, Progress

__all__ = ["Local", "Machine", "Options", "Progress", "profile"]


@dataclass(frozen=True)
class Options:
    """How a bundle is measured; see `runner.job.Job` for the seconds and ``again``.

    runtime: what the bundle must be for, a key of `runtimes.FAMILIES`; None: whatever it is.
    engines: where engines for TensorRT are; None: in the bundle's folder. power_source: where
    rails are read, where that is asked for. torch_device: of a bundle for torch, see
    `runner.on_torch.chosen`.
    """

    allow_inexact: bool = False
    runtime: str | None = None
    engines: Path | None = None
    power_seconds: float = 2.0
    cool_down_seconds: float = 0.0
    power_source: str | None = None
    again: bool = True
    torch_device: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What decides figures, and no path; ``torch_device`` where it was asked for."""
        found = dataclasses.asdict(self)
        left_out = ("engines", "runtime", *(() if self.torch_device else ("torch_device",)))
        return {name: value for name, value in found.items() if name not in left_out}


def admitted(bundle: Path, workload: Workload, options: Options) -> dict[str, Any]:
    """Return the manifest of a bundle that may be measured so, by all that needs no machine.

    Raises:
        SlmqError: no bundle, one for something else, one that lacks what run.json and its bounds
            are made of at the end, or a text longer than its context.
    """
    document = existing_bundle(bundle)
    if options.runtime is not None:
        runtimes.require(bundle, document, options.runtime)
    runtimes.of(_place(bundle, document, workload, options))
    measure.check_workload(workload, document)
    artifact_of(document, "", 0)
    bounds.card(document, workload)
    return document


def profile(
    bundle: Path,
    workload: Workload,
    output: Path,
    progress: Progress,
    options: Options = Options(),
    *,
    force: bool = False,
    machine: Machine | None = None,
) -> Run:
    """Check and measure a bundle, and write ``output`` (run.json).

    Args:
        bundle: the folder that was exported.
        workload: how many tokens, repetitions, threads.
        output: where run.json goes; the journal is ``<stem>.journal.jsonl`` beside it.
        progress: told of every event of the journal, and of our own: ``note`` (text, done), and
            before anything runs ``device`` (device, bundle, workload, seen).
        options: how.
        force: overwrite ``output``.
        machine: where it runs; None: here.

    Raises:
        SlmqError: the request, the bundle, its check or the child failed; one line says how.
    """
    check_output(output, force)
    document = admitted(bundle, workload, options)
    where = Local() if machine is None else machine
    place = _place(bundle, document, workload, options)
    device, board = where.device(place)
    if options.power_source is not None and device.kind != JETSON:
        raise UsageError(f"--power-source is of a Jetson, and {device.name} is none: leave it out")
    progress(
        {
            "event": "device",
            "device": device,
            "bundle": document,
            "workload": workload,
            "seen": where.seen,
        }
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_name(f"{output.stem}.journal.jsonl")
    work = job.Job(
        bundle.absolute(),
        log.absolute(),
        workload,
        device.kind,
        options.allow_inexact,
        place.engines,
        board._replace(power_source=options.power_source),
        options.power_seconds,
        options.cool_down_seconds,
        options.again,
        options.torch_device,
    )
    where.run(work, progress)
    run = assemble(journal.read(log), device, document, workload.repetitions)
    run = dataclasses.replace(run, options=options.as_json())
    save(run, output, force)
    log.unlink()
    where.forget()
    return run


def _place(
    bundle: Path, document: Mapping[str, Any], workload: Workload, options: Options
) -> runtimes.Place:
    engines = None if options.engines is None else options.engines.absolute()
    return runtimes.Place(bundle, document, workload.threads, engines, options.torch_device)
