"""Checkpoint -> Bundle: write the graph, hold it to its simulation, pack what the device needs."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import __version__
from slmq_edge.checkpoint import CONFIG, Checkpoint
from slmq_edge.errors import MissingExtra, SlmqError, UsageError, unknown
from slmq_edge.exporters import TARGETS
from slmq_edge.exporters.limits import check_runtime
from slmq_edge.files import describe, new_folder
from slmq_edge.runner.manifest import (
    BUNDLE_FILE,
    BUNDLE_FORMAT,
    BUNDLE_VERSION,
    GRAPH,
    GRAPH_FOLDER,
    PROBE,
    SIGNED_GRAPH,
    SIGNED_PROBE,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmq_edge.exporters.flavours import Flavour
    from slmq_edge.exporters.lowering import Lowering
    from slmq_edge.golden import Draft, Golden
    from slmq_edge.runner.golden import GoldenReport
    from slmq_edge.scheme import Scheme

Progress = Callable[[float, str], None]

CONFIGS = (CONFIG, "generation_config.json")

# What could change the graph's numbers, by release or by machine, said aloud: the manifest carries
# it, the runner sets it, and every run shows it. A release that lacks an entry ignores it.
SESSION_OPTIONS = {
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "session.disable_quant_qdq": "1",  # never into kernels of less exact integers
    "session.qdq_matmulnbits_accuracy_level": "0",  # nor into ones that round activations unasked
    "session.set_denormal_as_zero": "0",
    "optimization.enable_gelu_approximation": "0",
    "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",  # float products stay float32
    "mlas.use_lut_gemm": "0",
}


def check_target(target: str, runtime: str | None = None) -> None:
    """Refuse an unknown target or runtime, or missing packages, before any work starts."""
    if target not in TARGETS:
        raise UsageError(unknown("target", target, tuple(TARGETS)))
    check_runtime(runtime)
    try:
        import onnx_ir  # noqa: F401  only asked whether it is there
    except ImportError as error:
        raise MissingExtra("onnx-ir", "onnx") from error


def check_scheme(scheme: Scheme, runtime: str | None = None, target: str = "ort") -> None:
    """Refuse what the target cannot express, before anything is quantized for it.

    runtime: which onnxruntime it is for, by name; ``None``: the oldest that can run it.

    Raises:
        Unsupported: names the part, the reason and what to do.
        UsageError: no such runtime.
        SlmqError: the onnxruntime that is installed here is older.
    """
    from slmq_edge.exporters import limits
    from slmq_edge.runner import ort

    limits.check(scheme, runtime, target)
    # It is run here too, to be checked: found out now, not behind a night of quantizing.
    with contextlib.suppress(MissingExtra):
        ort.check_runtime(limits.RUNTIMES[runtime or limits.needed_runtime(scheme)])


def export(
    checkpoint: Checkpoint,
    path: Path,
    force: bool = False,
    progress: Progress = lambda share, what: None,
    runtime: str | None = None,
    target: str = "ort",
    keep: bool = True,
) -> dict[str, Any]:
    """Write the bundle of a checkpoint for a target to ``path``, and return its manifest.

    runtime: which onnxruntime it is for, ``None`` for the oldest that can run it. keep: the
    checkpoint is needed after this; otherwise its tensors are let go before the graph is loaded.

    Raises:
        Unsupported: the runtime cannot run the scheme.
        SlmqError: the graph does not compute what the simulation computes; nothing is written.
    """
    import torch

    from slmq_edge import golden as goldens
    from slmq_edge import licenses, parts
    from slmq_edge.exporters import flavours, graph, linears, onnx, probe
    from slmq_edge.reports import card

    check_scheme(checkpoint.scheme, runtime, target)
    flavour = flavours.FLAVOURS[target]
    with new_folder(path, force) as folder:
        (folder / GRAPH_FOLDER).mkdir()
        for name, content in checkpoint.extras.items():
            (folder / name).write_bytes(content)
        _write_for_other_clients(checkpoint, folder, flavour)
        progress(0.0, "writing the graph")
        model, lowering = onnx.write(checkpoint, flavour)
        graph.save(model, folder / GRAPH)
        weights = parts.sizes(graph.tensor_bytes(model))
        del model
        gc.collect()  # a graph is all cycles, and its weights are not needed twice
        if lowering.integer_gemm is not None:
            graph.save(probe.write_probe(lowering.integer_gemm), folder / PROBE)
        # A block's kernel has no signed form.
        by_rows = any(row.operator == linears.OPERATOR for row in lowering.linears)
        if by_rows and lowering.integer_gemm is not None and flavour == flavours.ORT:
            signed, _ = onnx.write(checkpoint, flavours.ORT_SIGNED)
            graph.save_beside(signed, folder / SIGNED_GRAPH, folder / GRAPH)
            signed_probe = probe.write_probe(lowering.integer_gemm, signed=True)
            graph.save(signed_probe, folder / SIGNED_PROBE)
            del signed, signed_probe
            gc.collect()
        progress(0.3, "recording golden prompts")
        tokenizer = goldens.tokenizer_for(checkpoint, folder)
        floats = getattr(torch, flavour.floats.name)
        golden = goldens.record(
            checkpoint, tokenizer, lambda: _draft(folder / GRAPH, checkpoint), floats
        )
        _write_arrays(folder / goldens.FILE, golden)
        progress(0.8, "checking the graph against its simulation")
        if not keep:
            checkpoint.tensors.clear()
            checkpoint.integers.clear()
        verified = _verify(folder, golden)
        manifest = _manifest(checkpoint, flavour, lowering, golden, verified, runtime)
        manifest["weight_bytes"] = weights
        texts = tuple(name for name in checkpoint.extras if licenses.is_text(name))
        (folder / card.FILE).write_text(card.card(manifest, texts), "utf-8")
        manifest["files"] = describe(folder)
        (folder / BUNDLE_FILE).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        progress(1.0, "checking the graph against its simulation")
    return manifest


def _write_for_other_clients(checkpoint: Checkpoint, folder: Path, flavour: Flavour) -> None:
    """Write the configs that optimum reads beside the graph, and onnxruntime-genai's, for a CPU."""
    from slmq_edge.exporters import flavours, genai

    found = {name: checkpoint.extras[name] for name in CONFIGS if name in checkpoint.extras}
    for name, content in found.items():
        (folder / GRAPH_FOLDER / name).write_bytes(content)
    special = tuple(map(_object, found.values()))
    config = genai.config(checkpoint.anatomy, GRAPH, SESSION_OPTIONS, special)
    if config is not None and flavour == flavours.ORT:
        (folder / genai.FILE).write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object, empty where it is none: ``generate`` refuses such a config by its name."""
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _write_arrays(file: Path, golden: Golden) -> None:
    import numpy as np

    arrays: dict[str, Any] = golden.arrays
    np.savez_compressed(file, **arrays)


def _draft(graph: Path, checkpoint: Checkpoint) -> Draft | None:
    """Greedy guesses by the graph itself; ``None`` where no onnxruntime is installed.

    Of graph and model, one's mapped file is resident at a time.
    """
    import numpy as np

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


def _verify(folder: Path, golden: Golden) -> dict[str, Any] | None:
    """Run the golden check of every graph that this CPU multiplies exactly, whatever its target.

    ``None``: there is none, or no onnxruntime is installed.
    """
    from slmq_edge.runner import golden as check
    from slmq_edge.runner import ort, probe
    from slmq_edge.runner.memory import return_memory

    try:
        runtime = ort.load_onnxruntime()
    except MissingExtra:
        return None
    return_memory()  # what the simulation took
    probed = {GRAPH: folder / PROBE, SIGNED_GRAPH: folder / SIGNED_PROBE}
    graphs = [
        one
        for one, multiplying in probed.items()
        if (folder / one).exists()
        and (not multiplying.exists() or probe.largest_error(multiplying, 1, SESSION_OPTIONS) == 0)
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
    where = {"onnxruntime": runtime.__version__, "provider": ort.ON_CPU.name, "graphs": graphs}
    return {**where, **reports[0]._asdict()}


def _manifest(
    checkpoint: Checkpoint,
    flavour: Flavour,
    lowering: Lowering,
    golden: Golden,
    verified: dict[str, Any] | None,
    runtime: str | None,
) -> dict[str, Any]:
    """``bundle.json``, but for its weights' sizes and its files."""
    from slmq_edge.exporters.limits import RUNTIMES, needed_runtime

    runtime = runtime or needed_runtime(checkpoint.scheme)
    shape = checkpoint.anatomy
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
        "notes": list(checkpoint.notes),
        **({} if checkpoint.recipe is None else {"recipe": checkpoint.recipe}),
        "scheme_requested": checkpoint.scheme.name,
        "lowering": lowering.as_json(),
        "runtime": {
            "kind": flavour.target,
            "profile": runtime,
            "minimum_version": RUNTIMES[runtime],
            "session_options": dict(SESSION_OPTIONS),
            "provider": flavour.provider.name,
            "provider_options": dict(flavour.provider.options),
        },
        "context_length": lowering.context_length,
        "counts": {
            "parameters": shape.parameters,
            "linear_macs_per_token": shape.linear_macs_per_token,
            "head_macs_per_token": shape.head_macs_per_token,
        },
        "golden": golden.limits,
        "verified": verified,
    }
