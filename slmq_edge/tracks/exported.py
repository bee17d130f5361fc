"""A checkpoint where a bundle is measured: for torch, whose bundle is the same integers again.

The bundle lies beside what is measured of it, under the name that ``export`` gives it, and is made
once: the next command finds it, and that it is of the very same checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slmq_edge.errors import SlmqError, UsageError, unknown
from slmq_edge.files import CHECKPOINT_FILE
from slmq_edge.runner import manifest, on_torch
from slmq_edge.runner.manifest import TORCH
from slmq_edge.runner.measure import Workload
from slmq_edge.runner.measure import check_workload as check_workload_of_bundle
from slmq_edge.runner.runtimes import FAMILIES

Progress = Callable[[float, str], None]
Say = Callable[[str], None]
DIGEST = "checkpoint_sha256"  # of bundle.json: of the checkpoint.json that was exported


def place_of(checkpoint: Path, beside: Path) -> Path:
    """Where the bundle of a checkpoint lies for results in the folder ``beside``."""
    return beside / f"{checkpoint.absolute().name}-{TORCH}"


def check(
    folder: Path, runtime: str | None, is_remote: bool, torch_device: str | None = None
) -> None:
    """Refuse a checkpoint that cannot be run as it is, before its bundle is made.

    Raises:
        UsageError: says what runs it. MissingExtra, NotFound: torch, or that GPU, is not here.
    """
    if runtime is not None and runtime not in FAMILIES:
        raise UsageError(unknown("runtime", runtime, tuple(FAMILIES)))
    if runtime != TORCH:
        raise UsageError(
            f"{folder} is a checkpoint: --runtime {TORCH} runs it; for another runtime export it"
        )
    if is_remote:
        raise UsageError(
            f"{folder} is a checkpoint, which runs on this machine alone: export it for a board"
        )
    on_torch.chosen(torch_device, on_torch.module())


def check_workload(folder: Path, workload: Workload) -> None:
    """Refuse what cannot be measured on a checkpoint's bundle, before it is made.

    Raises:
        UsageError: see `measure.check_workload`. Damaged: the checkpoint describes no model.
    """
    from slmq_edge.checkpoint import described
    from slmq_edge.exporters.lowering import context_length

    shape, _ = described(folder)
    check_workload_of_bundle(workload, {"context_length": context_length(shape)})


def bundle_of(checkpoint: Path, beside: Path, progress: Progress, say: Say) -> Path:
    """The bundle for torch of a checkpoint: the one that is there, or a new one.

    Args:
        checkpoint: a folder of ``slmq-edge quantize``.
        beside: the folder for the bundle.
        progress: told a share (0..1) and what is being done, where one is made.
        say: told a line of what is taken or made.

    Raises:
        UsageError: something else lies there. SlmqError: what ``export`` refuses.
    """
    path = place_of(checkpoint, beside)
    if path.exists():
        if not _is_of(path, checkpoint):
            raise UsageError(
                f"{path} is in the way: it is not {checkpoint} for torch; move it, or have that by "
                f"slmq-edge export {checkpoint} --target {TORCH} -o OTHER"
            )
        say(f"{path} is {checkpoint} for torch already: taken as it is")
        return path
    from slmq_edge.checkpoint import load
    from slmq_edge.export import check_scheme, export
    from slmq_edge.exporters import Wanted
    from slmq_edge.files import check_output, check_space, folder_bytes

    check_output(path, force=False, folder=True)
    check_space(path, folder_bytes(checkpoint))
    wanted, found = Wanted(TORCH), load(checkpoint)
    check_scheme(found.scheme, wanted)
    export(found, path, wanted, progress=progress, keep=False, digest=digest_of(checkpoint))
    say(f"{path} is made of {checkpoint}, to be run by torch")
    return path


def digest_of(checkpoint: Path) -> str:
    """What a checkpoint is known by."""
    return manifest.sha256(checkpoint / CHECKPOINT_FILE)


def _is_of(path: Path, checkpoint: Path) -> bool:
    try:
        bundle = manifest.read_bundle(path)
    except SlmqError:
        return False
    same = bundle.get(DIGEST) == digest_of(checkpoint)
    return same and manifest.kind_of(bundle) == TORCH
