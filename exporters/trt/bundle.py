"""A bundle's files for TensorRT: the graph, and the recipe of its engine.

Which machine builds the engine is not known here; what is, is in ``trt/recipe.json``.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from slmq_edge import golden, parts
from slmq_edge.anatomy import Anatomy
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import Unsupported
from slmq_edge.exporters import Wanted, graph, limits
from slmq_edge.exporters.bundle import Written
from slmq_edge.exporters.floats import FLOAT16
from slmq_edge.exporters.lowering import Form, Lowering, lowering
from slmq_edge.exporters.trt import decoder, linears, lint
from slmq_edge.exporters.trt.convert import MEASURED, convert, finds_ranges
from slmq_edge.runner.manifest import TRT, TRT_GRAPH, TRT_RECIPE
from slmq_edge.runner.trt import commands
from slmq_edge.runner.trt.recipe import Port, Recipe

# Newer ones are for operators that are not used: 8.5 reads 17 at most, int4 needs 21.
OPSET, OPSET_OF_8, OPSET_OF_INT4 = 19, 17, 21
SCRIPT = f"{TRT}/build.sh"
ATTENTION = "standard operators, caches in rooms"
# Rule 14: of positions in int64, which TensorRT 8 makes int32, and so does what runs its engines.
EXPECTED = {14}
# Windows of text that ranges are found on.
CALIBRATED = 48


def write(checkpoint: Checkpoint, folder: Path, wanted: Wanted) -> Written:
    """Write ``trt/``: the graph of what TensorRT can express of a checkpoint, and its recipe.

    Raises:
        Unsupported: it cannot express the scheme, nor what is nearest to it; there is no text to
            find ranges on; or the lint finds an error in the graph, for one of the releases that it
            is for.
        SlmqError: an activation is infinite or NaN, or the text is too short.
    """
    (folder / TRT).mkdir()
    scheme = checkpoint.scheme
    limits.check(scheme, wanted.runtime, TRT)
    limits.check_widths(scheme, checkpoint.anatomy, TRT)
    mode = limits.activation_mode(scheme, wanted.activation_mode)
    has_text = checkpoint.prompts is not None or "tokenizer.json" in checkpoint.extras
    if finds_ranges(scheme, mode) and not has_text:
        raise Unsupported(
            "--activation-mode static finds ranges on text, and there is neither calibration text "
            "nor a tokenizer in what is exported: use --activation-mode pertoken"
        )

    @cache
    def text() -> Tensor:
        tokenizer = golden.tokenizer_for(checkpoint, folder)
        return golden.windows(checkpoint, tokenizer, MEASURED + CALIBRATED)

    checkpoint, changes = convert(checkpoint, mode, text)
    changes = tuple(dataclasses.replace(one, text=_named_text(checkpoint)) for one in changes)
    text.cache_clear()
    runtime = wanted.runtime or limits.needed_runtime(scheme, TRT)
    opset = OPSET_OF_8 if runtime.startswith("8.") else OPSET
    opset = OPSET_OF_INT4 if limits.has_int4(scheme) else opset
    written = decoder.write(checkpoint, opset)
    graph.save(written.model, folder / TRT_GRAPH)
    sizes = graph.tensor_bytes(written.model)
    form = Form(FLOAT16, linears.OPERATOR, "int8", ATTENTION, opset, graph.IR_VERSIONS[opset])
    report = lowering(written.multiplications, checkpoint, form, changes, scheme)
    recipe = _recipe(written, report, checkpoint.anatomy, opset, runtime, mode or "float")
    recipe = recipe._replace(weight_bytes=sum(sizes.values()))
    notes = _linted(folder / TRT_GRAPH, recipe)
    document = json.dumps(recipe.as_json(), indent=1)
    (folder / TRT_RECIPE).write_text(document + "\n", "utf-8")
    (folder / SCRIPT).write_text(commands.script(recipe), "utf-8")
    del written
    gc.collect()
    section = {
        "kind": TRT,
        "profile": runtime,
        "minimum_version": recipe.tensorrt,
        **({} if mode is None else {"activation_mode": mode}),
    }
    graphs: dict[str, str | None] = {TRT_GRAPH: None}
    return Written(checkpoint, report, FLOAT16, graphs, parts.sizes(sizes), section, notes)


def _named_text(checkpoint: Checkpoint) -> str:
    """What ``golden.windows`` takes its windows from."""
    if checkpoint.prompts is None or checkpoint.calibration is None:
        return "built-in world, held-out sentences"
    return str(checkpoint.calibration["text"])


def _recipe(
    written: decoder.Written,
    report: Lowering,
    shape: Anatomy,
    opset: int,
    runtime: str,
    activations: str,
) -> Recipe:
    return Recipe(
        opset=opset,
        tensorrt=limits.TENSORRTS[runtime],
        floats=FLOAT16.name,
        activations=activations,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab=shape.vocab,
        context_length=report.context_length,
        inputs=_ports(written.model.graph.inputs),
        outputs=_ports(written.model.graph.outputs),
        int8=written.int8,
        weight_only=written.weight_only,
        weight_bytes=0,
    )


def _linted(file: Path, recipe: Recipe) -> tuple[str, ...]:
    """A line for each rule that warns of the graph, in any release that it is for.

    Raises:
        Unsupported: an error.
    """
    read = lint.load(file)
    told: dict[int, str] = {}
    for version in lint.since(recipe.tensorrt):
        found = lint.check(read, version, recipe)
        for one in found:
            same = sum(other.rule == one.rule for other in found)
            place = f"{one.node}: " if one.node else ""
            text = f"TensorRT {version}, lint rule {one.rule}: {place}{one.what}; {one.advice}"
            told.setdefault(one.rule, text if same == 1 else f"{text} ({same} such)")
    return tuple(told[rule] for rule in sorted(set(told) - EXPECTED))


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(_port(value) for value in values)


def _port(value: ir.Value) -> Port:
    assert value.name is not None, "decoder.write names its ports"
    assert value.dtype is not None, "and types them"
    assert value.shape is not None, "and shapes them"
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return Port(value.name, value.dtype.numpy().name, dims)
