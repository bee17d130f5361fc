"""Checkpoint -> Bundle: write the graph, hold it to its simulation, pack what the device needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import __version__, record
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import MissingExtra, UsageError, unknown
from slmq_edge.exporters import ON_ONNXRUNTIME, TARGETS, Wanted
from slmq_edge.exporters.limits import check_mode, check_runtime
from slmq_edge.files import describe, new_folder
from slmq_edge.runner.manifest import BUNDLE_FILE, BUNDLE_FORMAT, BUNDLE_VERSION, TORCH, TRT

if TYPE_CHECKING:
    from slmq_edge.exporters.bundle import Maker, Written
    from slmq_edge.golden import Golden
    from slmq_edge.scheme import Scheme

Progress = Callable[[float, str], None]


def check_target(wanted: Wanted) -> None:
    """Refuse an unknown target, runtime or mode, or missing packages, before any work starts."""
    if wanted.target not in TARGETS:
        raise UsageError(unknown("target", wanted.target, tuple(TARGETS)))
    check_runtime(wanted.runtime, wanted.target)
    check_mode(wanted.activation_mode, wanted.target)
    if wanted.target == TORCH:
        return  # torch has quantized what is exported
    try:
        import onnx_ir  # noqa: F401  only asked whether it is there
    except ImportError as error:
        raise MissingExtra("onnx-ir", "onnx") from error


def check_scheme(scheme: Scheme, wanted: Wanted = ON_ONNXRUNTIME) -> None:
    """Refuse what the target cannot express, before anything is quantized for it.

    Raises:
        Unsupported: names the part, the reason and what to do.
        UsageError: no such runtime, or no such way to round activations.
        SlmqError: the onnxruntime that is installed here is older.
    """
    from slmq_edge.exporters import limits
    from slmq_edge.runner import ort

    limits.activation_mode(scheme, wanted.activation_mode, wanted.target)
    limits.check(scheme, wanted.runtime, wanted.target)
    if wanted.target in (TRT, TORCH):
        return
    # It is run here too, to be checked: found out now, not behind a night of quantizing.
    with contextlib.suppress(MissingExtra):
        ort.check_runtime(limits.ONNXRUNTIMES[wanted.runtime or limits.needed_runtime(scheme)])


def export(
    checkpoint: Checkpoint,
    path: Path,
    wanted: Wanted = ON_ONNXRUNTIME,
    force: bool = False,
    progress: Progress = lambda share, what: None,
    keep: bool = True,
    digest: str | None = None,
) -> dict[str, Any]:
    """Write the bundle of a checkpoint for a target to ``path``, and return its manifest.

    keep: the checkpoint is needed after this; otherwise its tensors are let go before the graph is
    loaded. digest: of the checkpoint.json that it was read with, where it was.

    Raises:
        Unsupported: the target or its runtime cannot run the scheme.
        SlmqError: the graph does not compute what the simulation computes; nothing is written.
    """
    import torch

    from slmq_edge import golden as goldens
    from slmq_edge import licenses
    from slmq_edge.reports import card

    check_scheme(checkpoint.scheme, wanted)
    with new_folder(path, force) as folder:
        for name, content in checkpoint.extras.items():
            (folder / name).write_bytes(content)
        progress(0.0, "writing the graph")
        maker = _maker(wanted.target)
        written = maker.write(checkpoint, folder, wanted)
        progress(0.3, "recording golden prompts")
        tokenizer = goldens.tokenizer_for(checkpoint, folder)
        floats = getattr(torch, written.floats.name)
        golden = goldens.record(
            written.checkpoint,
            tokenizer,
            lambda: maker.draft(checkpoint, folder, written),
            floats,
        )
        _write_arrays(folder / goldens.FILE, golden)
        progress(0.8, "checking the graph against its simulation")
        if not keep:
            for one in (checkpoint, written.checkpoint):
                one.tensors.clear()
                one.integers.clear()
        verified = maker.verify(folder, written, golden)
        manifest = _manifest(checkpoint, written, golden, verified)
        manifest["export"] = record.of_export(wanted)
        if digest is not None:
            manifest["checkpoint_sha256"] = digest
        texts = tuple(name for name in checkpoint.extras if licenses.is_text(name))
        (folder / card.FILE).write_text(card.card(manifest, texts), "utf-8")
        manifest["files"] = describe(folder)
        (folder / BUNDLE_FILE).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        progress(1.0, "checking the graph against its simulation")
    return manifest


def _maker(target: str) -> Maker:
    """What makes the bundles of a target; heavy to import."""
    from slmq_edge.exporters.bundle import Maker

    if target == TORCH:
        from slmq_edge.exporters import torch_bundle

        return Maker(torch_bundle.write, torch_bundle.draft, torch_bundle.verify)
    from slmq_edge.exporters import on_onnxruntime

    if target == TRT:
        from slmq_edge.exporters.trt import bundle

        return Maker(bundle.write, on_onnxruntime.draft, on_onnxruntime.verify)
    from slmq_edge.exporters import ort_bundle

    return Maker(ort_bundle.write, on_onnxruntime.draft, on_onnxruntime.verify)


def _write_arrays(file: Path, golden: Golden) -> None:
    import numpy as np

    arrays: dict[str, Any] = golden.arrays
    np.savez_compressed(file, **arrays)


def _manifest(
    checkpoint: Checkpoint, written: Written, golden: Golden, verified: dict[str, Any] | None
) -> dict[str, Any]:
    """``bundle.json``, but for its files; what was asked for is in ``checkpoint``."""
    shape, lowering = checkpoint.anatomy, written.lowering
    return {
        "format": BUNDLE_FORMAT,
        "version": BUNDLE_VERSION,
        "created_by": f"slmq-edge {__version__}",
        "model": checkpoint.source,
        "anatomy": shape.as_json(),
        "method": checkpoint.method,
        "settings": checkpoint.settings,
        "calibration": checkpoint.calibration,
        "cost": checkpoint.cost,
        "notes": [*checkpoint.notes, *written.notes],
        **({} if checkpoint.recipe is None else {"recipe": checkpoint.recipe}),
        "scheme_requested": checkpoint.scheme.label,
        "lowering": lowering.as_json(),
        "runtime": written.runtime,
        "context_length": lowering.context_length,
        "counts": {
            "parameters": shape.parameters,
            "linear_macs_per_token": shape.linear_macs_per_token,
            "head_macs_per_token": shape.head_macs_per_token,
        },
        "golden": golden.limits,
        "verified": verified,
        "weight_bytes": written.weights,
    }
