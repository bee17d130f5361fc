"""Checkpoint -> Bundle: write the graph, hold it to its simulation, pack what the device needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import __version__, record
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import MissingExtra, SlmqError, UsageError, unknown
from slmq_edge.exporters import ON_ONNXRUNTIME, TARGETS, Wanted
from slmq_edge.exporters.limits import check_mode, check_runtime
from slmq_edge.files import describe, new_folder
from slmq_edge.runner.manifest import BUNDLE_FILE, BUNDLE_FORMAT, BUNDLE_VERSION, TRT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmq_edge.exporters.bundle import Written
    from slmq_edge.golden import Draft, Golden
    from slmq_edge.runner.golden import GoldenReport
    from slmq_edge.scheme import Scheme

Progress = Callable[[float, str], None]


def check_target(wanted: Wanted) -> None:
    """Refuse an unknown target, runtime or mode, or missing packages, before any work starts."""
    if wanted.target not in TARGETS:
        raise UsageError(unknown("target", wanted.target, tuple(TARGETS)))
    check_runtime(wanted.runtime, wanted.target)
    check_mode(wanted.activation_mode, wanted.target)
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
    if wanted.target == TRT:
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
) -> dict[str, Any]:
    """Write the bundle of a checkpoint for a target to ``path``, and return its manifest.

    keep: the checkpoint is needed after this; otherwise its tensors are let go before the graph is
    loaded.

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
        written = _writer(wanted.target)(checkpoint, folder, wanted)
        progress(0.3, "recording golden prompts")
        tokenizer = goldens.tokenizer_for(checkpoint, folder)
        floats = getattr(torch, written.floats.name)
        golden = goldens.record(
            written.checkpoint,
            tokenizer,
            lambda: _draft(folder / written.graph, checkpoint),
            floats,
        )
        _write_arrays(folder / goldens.FILE, golden)
        progress(0.8, "checking the graph against its simulation")
        if not keep:
            for one in (checkpoint, written.checkpoint):
                one.tensors.clear()
                one.integers.clear()
        verified = _verify(folder, written.graphs, golden)
        manifest = _manifest(checkpoint, written, golden, verified)
        manifest["export"] = record.of_export(wanted)
        texts = tuple(name for name in checkpoint.extras if licenses.is_text(name))
        (folder / card.FILE).write_text(card.card(manifest, texts), "utf-8")
        manifest["files"] = describe(folder)
        (folder / BUNDLE_FILE).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        progress(1.0, "checking the graph against its simulation")
    return manifest


def _writer(target: str) -> Callable[[Checkpoint, Path, Wanted], Written]:
    """What writes the graphs of a target; heavy to import."""
    if target == TRT:
        from slmq_edge.exporters.trt import bundle

        return bundle.write
    from slmq_edge.exporters import ort_bundle

    return ort_bundle.write


def _write_arrays(file: Path, golden: Golden) -> None:
    import numpy as np

    arrays: dict[str, Any] = golden.arrays
    np.savez_compressed(file, **arrays)


def _draft(graph: Path, checkpoint: Checkpoint) -> Draft | None:
    """Greedy guesses by the graph itself; ``None`` where no onnxruntime is installed.

    Of graph and model, one's mapped file is resident at a time.
    """
    import numpy as np

    from slmq_edge.exporters.bundle import SESSION_OPTIONS
    from slmq_edge.runner import memory, ort

    try:
        # Weights are read from the file where they lie: slower, and no copy beside the model.
        settings = {**SESSION_OPTIONS, "session.disable_prepacking": "1"}
        session = ort.Session(graph, threads=1, settings=settings)
    except MissingExtra:
        return None
    of_graph = memory.of_folder(graph.parent)
    of_model = memory.of_addresses(tensor.data_ptr() for tensor in checkpoint.tensors.values())

    def guess(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        if count == 0:
            return tokens[:0]
        memory.let_go(of_model)
        logits, cache = session.prefill(tokens[None], 1, count)
        found = [int(logits[0, -1].argmax())]
        while len(found) < count:
            logits, cache = session.step(np.array([found[-1:]]), cache)
            found.append(int(logits[0, -1].argmax()))
        memory.let_go(of_graph)
        return np.array(found, np.int64)

    return guess


def _verify(
    folder: Path, written: Mapping[str, str | None], golden: Golden
) -> dict[str, Any] | None:
    """Run the golden check of every graph that this CPU multiplies exactly, whatever its target.

    ``None``: there is none, or no onnxruntime is installed.
    """
    from slmq_edge.exporters.bundle import SESSION_OPTIONS
    from slmq_edge.runner import asked, ort, probe
    from slmq_edge.runner import golden as check
    from slmq_edge.runner.memory import return_memory

    try:
        runtime = ort.load_onnxruntime()
    except MissingExtra:
        return None
    return_memory()  # what the simulation took
    graphs = [
        graph
        for graph, integers in written.items()
        if integers is None or probe.largest_error(folder / integers, 1, SESSION_OPTIONS) == 0
    ]
    if not graphs:
        return None
    limits = check.Limits(*(golden.limits[name] for name in check.Limits._fields))
    try:
        reports: list[GoldenReport] = [
            check.check(ort.Session(folder / one, 1, SESSION_OPTIONS), golden.arrays, limits)
            for one in graphs
        ]
    except SlmqError as error:
        raise SlmqError(
            f"the exported graph does not compute what its simulation computes: {error} "
            "Nothing was written; this is a bug of ours or of onnxruntime "
            f"{runtime.__version__}, please report it."
        ) from error
    where = {"onnxruntime": runtime.__version__, "provider": asked.ON_CPU.name, "graphs": graphs}
    return {**where, **reports[0]._asdict()}


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
