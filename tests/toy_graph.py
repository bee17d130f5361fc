"""A genuine causal decoder small enough to check by hand, and bundles made of it.

For tokens t_0 .. t_n with positions 0 .. n, embedding E and tables K, V, O, H::

    k_s = E[t_s] K,  v_s = E[t_s] V          cached, as [heads, head_dim]
    a_n = mean of k_s + v_s over s <= n      "attention"
    logits_n = (E[t_n] + tanh(a_n O)) H
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slmq_edge.runner.manifest import sha256

VOCAB, HIDDEN, HEADS, HEAD_DIM = 23, 8, 2, 4
CONTEXT = 512
ALL = 2**31 - 1


def weights(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    shapes = {
        "E": (VOCAB, HIDDEN),
        "K": (HIDDEN, HIDDEN),
        "V": (HIDDEN, HIDDEN),
        "O": (HIDDEN, HIDDEN),
        "H": (HIDDEN, VOCAB),
    }
    return {k: generator.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def logits(w: dict[str, Any], tokens: Any) -> Any:
    """The model in float64: int [T] -> [T, vocab]."""
    x = w["E"].astype(np.float64)[tokens]
    total = np.cumsum(x @ w["K"] + x @ w["V"], axis=0)
    mean = total / np.arange(1, len(tokens) + 1)[:, None]
    return (x + np.tanh(mean @ w["O"])) @ w["H"]


def golden(w: dict[str, Any], prompts: int = 2, length: int = 10, k: int = 6) -> dict[str, Any]:
    """The arrays of golden.npz."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, VOCAB, (prompts, length))
    all_logits = np.stack([logits(w, row) for row in tokens])
    logprobs = all_logits - np.log(np.exp(all_logits).sum(-1, keepdims=True))
    order = np.argsort(-all_logits, axis=-1)
    top = np.take_along_axis(all_logits, order, -1)
    targets = np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    greedy, margins = zip(*(_greedy(w, row, 5) for row in tokens), strict=True)
    return {
        "tokens": tokens.astype(np.int64),
        "top_ids": order[..., :k].astype(np.int32),
        "top_logprobs": np.take_along_axis(logprobs, order, -1)[..., :k].astype(np.float32),
        "target_logprobs": targets.astype(np.float32),
        "margins": (top[..., 0] - top[..., 1]).astype(np.float32),
        "greedy": np.array(greedy, np.int64),
        "greedy_margins": np.array(margins, np.float32),
    }


def _greedy(w: dict[str, Any], prompt: Any, count: int) -> tuple[list[int], list[float]]:
    tokens, chosen, margins = list(prompt), [], []
    for _ in range(count):
        last = logits(w, np.array(tokens))[-1]
        second, best = np.sort(last)[-2:]
        chosen.append(int(last.argmax()))
        margins.append(float(best - second))
        tokens.append(chosen[-1])
    return chosen, margins


def graph(w: dict[str, Any]) -> Any:
    node = helper.make_node
    split = {"allowzero": 0}
    nodes = [
        node("Gather", ["E", "input_ids"], ["x"]),
        node("Shape", ["input_ids"], ["new"], start=1, end=2),
        node("Neg", ["new"], ["minus_new"]),
        node("Unsqueeze", ["attention_mask", "mask_axes"], ["mask4"]),
        node("Cast", ["mask4"], ["mask"], to=TensorProto.FLOAT),
    ]
    for kind, table in (("key", "K"), ("value", "V")):
        nodes += [
            node("MatMul", ["x", table], [f"{kind}_flat"]),
            node("Reshape", [f"{kind}_flat", "heads"], [f"{kind}_heads"], **split),
            node("Transpose", [f"{kind}_heads"], [f"{kind}_new"], perm=[0, 2, 1, 3]),
            node(
                "Concat",
                [f"past_key_values.0.{kind}", f"{kind}_new"],
                [f"present.0.{kind}"],
                axis=2,
            ),
        ]
    nodes += [
        node("Add", ["present.0.key", "present.0.value"], ["seen"]),
        node("Mul", ["seen", "mask"], ["masked"]),
        node("CumSum", ["masked", "two"], ["sums"]),
        node("Slice", ["sums", "minus_new", "all", "two_1"], ["sum"]),
        node("Transpose", ["sum"], ["sum_heads"], perm=[0, 2, 1, 3]),
        node("Reshape", ["sum_heads", "merged"], ["sum_flat"], **split),
        node("Cast", ["position_ids"], ["position"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["position", "minus_1"], ["position3"]),
        node("Add", ["position3", "one"], ["count"]),
        node("Div", ["sum_flat", "count"], ["mean"]),
        node("MatMul", ["mean", "O"], ["mixed"]),
        node("Tanh", ["mixed"], ["bent"]),
        node("Add", ["x", "bent"], ["hidden"]),
        node("Neg", ["logits_to_keep"], ["first"]),
        node("Slice", ["hidden", "first", "all", "one_1"], ["kept"]),
        node("MatMul", ["kept", "H"], ["logits"]),
    ]
    constants = {
        **w,
        "mask_axes": np.array([1, 3], np.int64),
        "heads": np.array([0, 0, HEADS, HEAD_DIM], np.int64),
        "merged": np.array([0, 0, HIDDEN], np.int64),
        "all": np.array([ALL], np.int64),
        "two": np.array(2, np.int64),
        "two_1": np.array([2], np.int64),
        "one_1": np.array([1], np.int64),
        "minus_1": np.array([-1], np.int64),
        "one": np.array(1, np.float32),
        "logits_to_keep": np.array([ALL], np.int64),
    }
    past, present = ["b", HEADS, "past", HEAD_DIM], ["b", HEADS, "total", HEAD_DIM]
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    info = helper.make_tensor_value_info
    inputs = [
        info("input_ids", integer, ["b", "seq"]),
        info("attention_mask", integer, ["b", "total"]),
        info("position_ids", integer, ["b", "seq"]),
        info("past_key_values.0.key", real, past),
        info("past_key_values.0.value", real, past),
        info("logits_to_keep", integer, [1]),  # an input with a default: overridable
    ]
    outputs = [
        info("logits", real, ["b", "kept", VOCAB]),
        info("present.0.key", real, present),
        info("present.0.value", real, present),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return _model(helper.make_graph(nodes, "toy", inputs, outputs, tensors))


def probe(zero_point: int = 128) -> Any:
    """MatMulInteger on uint8; another zero point stands in for a kernel that is not exact."""
    info = helper.make_tensor_value_info
    constants = {
        "a_zero": np.array(128, np.uint8),
        "b_zero": np.array(zero_point, np.uint8),
        "b": np.tile(np.array([0, 255], np.uint8), (64, 24)),
    }
    return _model(
        helper.make_graph(
            [
                helper.make_node("MatMulInteger", ["a", "b", "a_zero", "b_zero"], ["y"]),
                helper.make_node("Identity", ["b"], ["weights"]),
            ],
            "probe",
            [info("a", TensorProto.UINT8, ["m", 64])],
            [
                info("y", TensorProto.INT32, ["m", 48]),
                info("weights", TensorProto.UINT8, [64, 48]),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
    )


def _model(made: Any) -> Any:
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_bundle(folder: Path, *, zero_point: int = 128, simulated: int = 0) -> Path:
    """Write a bundle; another ``simulated`` seed makes the golden check fail."""
    (folder / "ort").mkdir(parents=True)
    onnx.save(graph(weights()), folder / "ort" / "model.onnx")
    onnx.save(probe(zero_point), folder / "ort" / "probe.onnx")
    np.savez(folder / "golden.npz", **golden(weights(simulated)))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write bundle.json for the files that are there."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "bundle.json"
    }
    document = {
        "format": "slmq-edge-bundle",
        "version": 1,
        "model": {"name": "toy", "origin": "test", "revision": None},
        "method": "none",
        "scheme_requested": "W8A8",
        "lowering": {
            "scheme_ran": "W8A8",
            "int8_gemm_share": 0.75,
            "weight_storage_bits": {"linears": 8, "lm_head": 32},
            "activation_mode": "per token",
            "lm_head": "float",
            "integer_gemm": {
                "operator": "MatMulInteger",
                "activation": "uint8",
                "weight": "uint8",
            },
            "context_length": CONTEXT,
        },
        "runtime": {"name": "onnxruntime", "minimum_version": "1.19"},
        "counts": {
            "parameters": 560,
            "linear_macs_per_token": 192,
            "head_macs_per_token": 184,
        },
        "golden": {
            "file": "golden.npz",
            "kl_limit": 1e-4,
            "perplexity_limit": 1e-3,
            "logit_noise": 1e-4,
        },
        "files": files,
    }
    (folder / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
