"""A bundle for TensorRT without a graph that anybody could run, and a GPU that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmq_edge.runner import manifest
from slmq_edge.runner.greedy import Greedy
from slmq_edge.runner.trt import cuda
from slmq_edge.runner.trt.recipe import Port, Recipe
from slmq_edge.runner.trt.shapes import Shapes
from tests import toy_graph

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
NAMES = tuple(f"model.layers.0.self_attn.{name}" for name in LINEARS)
MACS = dict(zip(NAMES, (64, 32, 32, 64), strict=True))
LIMITS = Shapes(prompt=512, context=512, kept=64)
ORIN = cuda.Device("Orin", "87", "12.6", None, True)
H200 = cuda.Device("NVIDIA H200", "90", "12.9", "575.57.08", False)
FREE, TOTAL = 6 * 10**9, 8 * 10**9  # bytes of the GPU


def recipe(**fields: Any) -> Recipe:
    shape = (1, toy_graph.HEADS, "room", toy_graph.HEAD_DIM)
    past = tuple(Port(f"past_key_values.0.{kind}", "float16", shape) for kind in ("key", "value"))
    present = tuple(Port(f"present.0.{kind}", "float16", shape) for kind in ("key", "value"))
    made = Recipe(
        opset=19,
        tensorrt="8.5",
        floats="float16",
        activations="pertoken",
        layers=1,
        kv_heads=toy_graph.HEADS,
        head_dim=toy_graph.HEAD_DIM,
        vocab=toy_graph.VOCAB,
        context_length=toy_graph.CONTEXT,
        inputs=(
            Port("input_ids", "int64", (1, "new")),
            Port("position_ids", "int64", (1, "new")),
            Port("logits_positions", "int64", ("kept",)),
            *past,
        ),
        outputs=(Port("logits", "float32", (1, "kept", toy_graph.VOCAB)), *present),
        int8=tuple(f"{name}.matmul" for name in NAMES),
        weight_only=(),
        weight_bytes=1_000_000,
    )
    return made._replace(**fields)


def rows(scheme: str = "w8a8") -> list[dict[str, Any]]:
    """Rows of a lowering report: the blocks' linears, and a head that stays float."""
    linears = [
        {"name": name, "part": "linear", "scheme": scheme, "integer": True, "macs_per_token": macs}
        for name, macs in MACS.items()
    ]
    head = {"name": "lm_head", "part": "head", "scheme": "fp16", "integer": False}
    return [*linears, {**head, "macs_per_token": 64}]


def write(folder: Path, of: Recipe | None = None, *, graph: bytes = b"a graph") -> Path:
    (folder / "trt").mkdir(parents=True)
    (folder / manifest.TRT_GRAPH).write_bytes(graph)
    text = json.dumps((of or recipe()).as_json())
    (folder / manifest.TRT_RECIPE).write_text(text, encoding="utf-8")
    np.savez(folder / "golden.npz", **toy_graph.golden(toy_graph.weights()))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write bundle.json for the files that are there."""
    files = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": manifest.sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "bundle.json"
    }
    document = {
        "format": manifest.BUNDLE_FORMAT,
        "version": manifest.BUNDLE_VERSION,
        "runtime": {"kind": "trt"},
        "model": {"name": "/home/somebody/models/toy"},
        "method": "smoothquant",
        "scheme_requested": "w8a8",
        "lowering": {"scheme_ran": "w8a8", "linears": rows()},
        "golden": {
            "file": "golden.npz",
            "kl_limit": 1e-4,
            "perplexity_limit": 1e-3,
            "logit_noise": 1e-4,
        },
        "context_length": toy_graph.CONTEXT,
        "files": files,
    }
    (folder / "bundle.json").write_text(json.dumps(document), encoding="utf-8")


def pretend(monkeypatch: pytest.MonkeyPatch, device: cuda.Device = ORIN) -> None:
    """Make the machine one with that GPU."""
    monkeypatch.setattr(cuda, "device", lambda: device)
    monkeypatch.setattr(cuda, "memory", lambda: (FREE, TOTAL))


class ToySession(Greedy):
    """`toy_graph`'s model behind the runner's Decoder, as an engine would be. appends: false."""

    appends = False

    def __init__(self, seed: int = 0) -> None:
        self._weights = toy_graph.weights(seed)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]:
        found = toy_graph.logits(self._weights, tokens[0])[None]
        return found[:, -(keep or tokens.shape[1]) :], tokens[0]

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        seen = np.concatenate([cache, tokens[0]])
        return toy_graph.logits(self._weights, seen)[None, -1:], seen
