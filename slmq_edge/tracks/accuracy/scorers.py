"""Scorers by the name of their runtime: what ``--runtime`` takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.checkpoint import is_checkpoint
from slmq_edge.errors import UsageError, unknown
from slmq_edge.runner.manifest import BUNDLE_FILE, kind_of, read_bundle
from slmq_edge.runner.runtimes import FAMILIES, require
from slmq_edge.tracks.accuracy import bundled, inprocess
from slmq_edge.tracks.accuracy.sequences import Scorer
from slmq_edge.tracks.machines import Machine

TORCH, SIMULATED = "torch", "simulated"


@dataclass(frozen=True)
class Asked:
    """What is to score, and how.

    what: a bundle, a checkpoint, or a model by folder, built-in name or hub id. machine: where a
    bundle runs; None: here. dtype, revision: of a model. torch_device: of a model or a checkpoint,
    by default the CPU, or of a bundle for torch, see `runner.on_torch.chosen`. threads: of a
    bundle's runtime, or of torch in this process; None: one for every core, or torch's own choice.
    engines, allow_inexact: of a bundle, see ``bundled.Options``. folder: where journals are kept,
    so that a call that was interrupted is gone on from; None: none are. told: of a runner's events.
    """

    what: str
    machine: Machine | None = None
    dtype: str = "float32"
    torch_device: str | None = None
    revision: str | None = None
    threads: int | None = None
    engines: Path | None = None
    allow_inexact: bool = False
    folder: Path | None = None
    told: Callable[[Mapping[str, Any]], None] = lambda event: None


def open_scorer(asked: Asked, runtime: str | None = None) -> Scorer:
    """Load what scores, or find out that it can run.

    Args:
        asked: what.
        runtime: a key of ``SCORERS``; None: the one for what it is.

    Raises:
        UsageError: no such runtime, or none for this. SlmqError: what the scorer itself refuses.
    """
    name = runtime or runtime_of(asked.what)
    check_runtime(asked.what, name)
    if _is_bundle(asked.what) or SCORERS[name] is _bundle:
        return _bundle(asked, runtime)
    if asked.machine is not None:
        raise UsageError(f"--device is of bundles: {name} runs here")
    return SCORERS[name](asked, runtime)


def check_runtime(what: str, name: str) -> None:
    """Refuse a runtime that there is not, or that does not run this bundle; nothing is loaded.

    Raises:
        UsageError: says which does. Damaged: the bundle cannot be read.
    """
    if name not in SCORERS:
        raise UsageError(unknown("runtime", name, tuple(SCORERS)))
    if not _is_bundle(what):
        return
    kind = runtime_of(what)
    if name not in FAMILIES or (name == TORCH and kind != TORCH):
        raise UsageError(f"{what} is a bundle: --runtime {kind} runs it, {name} does not")
    require(Path(what), read_bundle(Path(what)), name)


def runtime_of(what: str) -> str:
    """The runtime of a bundle, a checkpoint or a model where none is asked for."""
    path = Path(what)
    if _is_bundle(what):
        kind = kind_of(read_bundle(path))
        return next((name for name, kinds in FAMILIES.items() if kind in kinds), kind)
    return SIMULATED if is_checkpoint(path) else TORCH


def _is_bundle(what: str) -> bool:
    return (Path(what) / BUNDLE_FILE).is_file()


def _torch(asked: Asked, runtime: str | None) -> Scorer:
    if is_checkpoint(Path(asked.what)):
        raise UsageError(
            f"{asked.what} is a checkpoint: --runtime {SIMULATED} scores it, and --runtime {TORCH} "
            f"what slmq-edge export --target {TORCH} makes of it"
        )
    _limit_threads(asked)
    found = inprocess.of_transformers(
        asked.what, asked.dtype, asked.torch_device or "cpu", asked.revision
    )
    return inprocess.InProcess(found, asked.folder)


def _simulated(asked: Asked, runtime: str | None) -> Scorer:
    _limit_threads(asked)
    found = inprocess.of_checkpoint(Path(asked.what), asked.torch_device or "cpu")
    return inprocess.InProcess(found, asked.folder)


def _limit_threads(asked: Asked) -> None:
    """Of torch, whose threads are the whole process's."""
    if asked.threads is not None:
        with contextlib.suppress(ImportError):  # the scorer says what is missing
            import torch

            torch.set_num_threads(asked.threads)


def _bundle(asked: Asked, runtime: str | None) -> Scorer:
    options = bundled.Options(
        asked.threads, asked.engines, asked.allow_inexact, runtime, asked.torch_device
    )
    return bundled.Bundled(Path(asked.what), asked.machine, options, asked.folder, asked.told)


# Runtime -> what opens a scorer of it.
SCORERS: dict[str, Callable[[Asked, str | None], Scorer]] = {
    **dict.fromkeys(FAMILIES, _bundle),
    TORCH: _torch,
    SIMULATED: _simulated,
}
