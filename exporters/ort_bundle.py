"""A bundle's files for ONNX Runtime: graphs, the probes of their integers, clients' configs."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

from slmq_edge import parts
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.exporters import Wanted, flavours, genai, graph, linears, onnx, probe
from slmq_edge.exporters.bundle import CONFIGS, SESSION_OPTIONS, Written
from slmq_edge.exporters.flavours import Flavour
from slmq_edge.exporters.limits import ONNXRUNTIMES, needed_runtime
from slmq_edge.runner.manifest import GRAPH, GRAPH_FOLDER, PROBE, SIGNED_GRAPH, SIGNED_PROBE


def write(checkpoint: Checkpoint, folder: Path, wanted: Wanted) -> Written:
    """Write ``ort/``: the graph, and where that is faster on some CPU, its signed twin.

    Raises:
        Unsupported: the target cannot express the scheme.
    """
    flavour = flavours.FLAVOURS[wanted.target]
    (folder / GRAPH_FOLDER).mkdir()
    _write_for_other_clients(checkpoint, folder, flavour)
    model, lowering = onnx.write(checkpoint, flavour)
    graph.save(model, folder / GRAPH)
    weights = parts.sizes(graph.tensor_bytes(model))
    del model
    gc.collect()  # a graph is all cycles, and its weights are not needed twice
    graphs: dict[str, str | None] = {GRAPH: None}
    if lowering.integer_gemm is not None:
        graph.save(probe.write_probe(lowering.integer_gemm), folder / PROBE)
        graphs[GRAPH] = PROBE
    # A block's kernel has no signed form.
    by_rows = any(row.operator == linears.OPERATOR for row in lowering.linears)
    if by_rows and lowering.integer_gemm is not None and flavour == flavours.ORT:
        signed, _ = onnx.write(checkpoint, flavours.ORT_SIGNED)
        graph.save_beside(signed, folder / SIGNED_GRAPH, folder / GRAPH)
        signed_probe = probe.write_probe(lowering.integer_gemm, signed=True)
        graph.save(signed_probe, folder / SIGNED_PROBE)
        graphs[SIGNED_GRAPH] = SIGNED_PROBE
        del signed, signed_probe
        gc.collect()
    runtime = wanted.runtime or needed_runtime(checkpoint.scheme)
    section = {
        "kind": flavour.target,
        "profile": runtime,
        "minimum_version": ONNXRUNTIMES[runtime],
        "session_options": dict(SESSION_OPTIONS),
        "provider": flavour.provider.name,
        "provider_options": dict(flavour.provider.options),
    }
    return Written(checkpoint, lowering, flavour.floats, graphs, weights, section)


def _write_for_other_clients(checkpoint: Checkpoint, folder: Path, flavour: Flavour) -> None:
    """Write the configs that optimum reads beside the graph, and onnxruntime-genai's, for a CPU."""
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
