"""`toy_graph`'s model as a bundle for TensorRT, and an engine of it that `fake_tensorrt` runs.

The graph has the ports of ``runner/trt/recipe.py``: caches are rooms, a token sees the slots up to
its own position, and a slot behind them that is not finite would show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slmq_edge.runner import manifest
from slmq_edge.runner.trt import cache
from slmq_edge.runner.trt.recipe import Port, Recipe
from tests import fake_tensorrt, toy_graph
from tests.toy_graph import HEAD_DIM, HEADS, HIDDEN, VOCAB

PROMPT, ROOM, KEPT = 6, 130, 4  # what the engine takes: pieces of 6, logits of 4
CONTEXT = 512
FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
INT8 = ("toy.o_proj.matmul",)


def recipe(floats: str = "float32") -> Recipe:
    past = (1, HEADS, "room", HEAD_DIM)
    kinds = ("key", "value")
    return Recipe(
        opset=19,
        tensorrt="8.5",
        floats=floats,
        activations="static",
        layers=1,
        kv_heads=HEADS,
        head_dim=HEAD_DIM,
        vocab=VOCAB,
        context_length=CONTEXT,
        inputs=(
            Port("input_ids", "int64", (1, "new")),
            Port("position_ids", "int64", (1, "new")),
            Port("logits_positions", "int64", ("kept",)),
            *(Port(f"past_key_values.0.{kind}", floats, past) for kind in kinds),
        ),
        outputs=(
            Port("logits", "float32", (1, "kept", VOCAB)),
            *(Port(f"present.0.{kind}", floats, past) for kind in kinds),
        ),
        int8=INT8,
        weight_only=(),
        weight_bytes=1000,
    )


def graph(w: dict[str, Any], floats: str = "float32") -> Any:
    node, real = helper.make_node, TensorProto.FLOAT
    nodes = [
        node("Gather", ["E", "input_ids"], ["x"]),
        node("Unsqueeze", ["position_ids", "axes_1_3"], ["positions"]),
    ]
    for kind, table in (("key", "K"), ("value", "V")):
        past = f"past_key_values.0.{kind}"
        nodes += [
            node("MatMul", ["x", table], [f"{kind}_flat"]),
            node("Reshape", [f"{kind}_flat", "heads"], [f"{kind}_heads"]),
            node("Transpose", [f"{kind}_heads"], [f"{kind}_turned"], perm=[0, 2, 1, 3]),
            node("Cast", [f"{kind}_turned"], [f"{kind}_new"], to=FLOATS[floats]),
            node("Shape", [f"{kind}_new"], [f"{kind}_shape"]),
            node("Expand", ["positions", f"{kind}_shape"], [f"{kind}_rows"]),
            node(
                "ScatterElements",
                [past, f"{kind}_rows", f"{kind}_new"],
                [f"present.0.{kind}"],
                axis=2,
            ),
            node("Cast", [f"present.0.{kind}"], [f"{kind}_all"], to=real),
        ]
    nodes += [
        node("Add", ["key_all", "value_all"], ["seen"]),
        node("Shape", ["past_key_values.0.key"], ["room_1"], start=2, end=3),
        node("Squeeze", ["room_1"], ["room"]),
        node("Range", ["zero", "room", "one_int"], ["slots"]),
        node("LessOrEqual", ["slots", "positions"], ["visible"]),
        node("Cast", ["visible"], ["mask"], to=real),
        node("MatMul", ["mask", "seen"], ["sums"]),
        node("Transpose", ["sums"], ["sum_heads"], perm=[0, 2, 1, 3]),
        node("Reshape", ["sum_heads", "merged"], ["sum_flat"]),
        node("Unsqueeze", ["position_ids", "minus_1"], ["position3"]),
        node("Cast", ["position3"], ["position"], to=real),
        node("Add", ["position", "one"], ["count"]),
        node("Div", ["sum_flat", "count"], ["mean"]),
        node("MatMul", ["mean", "O"], ["mixed"], name=INT8[0]),
        node("Tanh", ["mixed"], ["bent"]),
        node("Add", ["x", "bent"], ["hidden"]),
        node("Gather", ["hidden", "logits_positions"], ["kept"], axis=1),
        node("MatMul", ["kept", "H"], ["logits"]),
    ]
    constants = {
        **w,
        "axes_1_3": np.array([1, 3], np.int64),
        "heads": np.array([0, 0, HEADS, HEAD_DIM], np.int64),
        "merged": np.array([0, 0, HIDDEN], np.int64),
        "minus_1": np.array([-1], np.int64),
        "zero": np.array(0, np.int64),
        "one_int": np.array(1, np.int64),
        "one": np.array(1, np.float32),
    }
    types = {"int64": TensorProto.INT64, **FLOATS}
    ports = recipe(floats)
    inputs, outputs = (
        [helper.make_tensor_value_info(port.name, types[port.dtype], port.shape) for port in side]
        for side in (ports.inputs, ports.outputs)
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "toy", inputs, outputs, tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def write_bundle(folder: Path, *, floats: str = "float32", simulated: int = 0) -> Path:
    """Write a bundle; another ``simulated`` seed makes the golden check fail."""
    (folder / "trt").mkdir(parents=True)
    onnx.save(graph(toy_graph.weights(), floats), folder / manifest.TRT_GRAPH)
    (folder / manifest.TRT_RECIPE).write_text(json.dumps(recipe(floats).as_json()))
    np.savez(folder / "golden.npz", **toy_graph.golden(toy_graph.weights(simulated)))
    toy_graph.seal(folder)
    document = json.loads((folder / "bundle.json").read_text())
    document["runtime"] = {"kind": "trt", "name": "tensorrt", "minimum_version": "8.5"}
    document["lowering"]["integer_gemm"] = None
    document["lowering"]["activation_mode"] = "per tensor, static, symmetric"
    (folder / "bundle.json").write_text(json.dumps(document))
    return folder


def profile(new: tuple[int, int], kept: tuple[int, int]) -> dict[str, Any]:
    """A profile of the engine: input -> smallest, usual and largest shape."""
    sizes = {"new": new, "kept": kept, "room": (1, ROOM)}
    found = {}
    for port in recipe().inputs:
        ends = [
            [sizes[dim][end] if isinstance(dim, str) else dim for dim in port.shape]
            for end in (0, 1)
        ]
        found[port.name] = [ends[0], ends[1], ends[1]]
    return found


PROFILES = [profile((1, PROMPT), (1, KEPT)), profile((1, 1), (1, 1))]


def write_engine(bundle: Path, engines: Path | None = None, **changes: Any) -> Path:
    """Write what ``slmq-edge build`` would, for the TensorRT that is installed; return the plan.

    changes: of the sidecar; ``capturable``, ``profile_sharing`` and ``profiles``, of the plan.
    """
    document = manifest.read_bundle(bundle)
    home = cache.folder_of(bundle, engines)
    home.mkdir(parents=True, exist_ok=True)
    here = cache.machine()
    identity = cache.Identity(
        cache.content(document), PROMPT, ROOM, KEPT, "", here.tensorrt, here.cuda, here.sm, here.gpu
    )
    knobs = {
        name: changes.pop(name) for name in ("capturable", "profile_sharing") if name in changes
    }
    content = fake_tensorrt.plan_of(
        str((bundle / manifest.TRT_GRAPH).absolute()),
        here.tensorrt,
        changes.pop("profiles", PROFILES),
        **knobs,
    )
    name = cache.key(identity)
    plan = home / f"{name}.plan"
    plan.write_bytes(content)
    sidecar = {
        "format": cache.FORMAT,
        "version": cache.VERSION,
        "key": name,
        "identity": identity._asdict(),
        "plan_bytes": len(content),
        "plan_sha256": manifest.sha256(plan),
        "int8_missing": [],
        "scheme_ran": "W8A8",
        "built_at": 0.0,
        **changes,
    }
    cache.save(home, sidecar)
    return plan
