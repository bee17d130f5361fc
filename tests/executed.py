"""Multiply-adds of a graph as it was written, by the shapes that pass through its nodes."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from slmq_edge.exporters import graph
from slmq_edge.runner.ort import LEVEL, Session

BY_MATRIX = ("MatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits")
ATTENTION = "GroupQueryAttention"
OF_ATTENTION = (".products", ".mixed_heads")  # names of its two products, where it is not fused


def macs(model: ir.Model, tokens: int, folder: Path) -> dict[str, int]:
    """``weights`` and ``attention``, of a prompt with all logits and one token more behind it.

    Nothing is optimized: every node that was written runs, and is recorded with its shapes.
    """
    graph.save(model, folder / "model.onnx")
    settings = {LEVEL: "ORT_DISABLE_ALL"}
    session = Session(folder / "model.onnx", 1, settings, folder)
    prompt = np.arange(1, tokens + 1, dtype=np.int64).reshape(1, -1) % 64
    _, cache = session.prefill(prompt, None, 1)
    session.step(prompt[:, :1], cache)
    events = json.loads(session.end_trace().read_text(encoding="utf-8"))
    found: dict[str, int] = collections.Counter()
    for event in events:
        about = event.get("args", {})
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if about["op_name"] == ATTENTION:
            (new, *_), mixed = _sizes(about["output_type_shape"][0])[1:], about["output_type_shape"]
            seen = tokens if new == tokens else tokens + new
            found["attention"] += 2 * math.prod(_sizes(mixed[0])) * seen
        elif about["op_name"] in BY_MATRIX:
            name = event["name"].removesuffix("_kernel_time")
            kind = "attention" if name.endswith(OF_ATTENTION) else "weights"
            width = _sizes(about["input_type_shape"][0])[-1]
            found[kind] += math.prod(_sizes(about["output_type_shape"][0])) * width
    return dict(found)


def _sizes(typed: dict[str, list[int]]) -> list[Any]:
    """The shape of ``{"float": [1, 2, 3]}``."""
    (sizes,) = typed.values()
    return sizes
