"""The calls that build an engine, made to NVIDIA's own bindings: TensorRT-RTX, with no GPU.

Its builder speaks as TensorRT 11 does; what it must be told besides is for which GPU it compiles,
and a timing cache makes it look for one. An engine cannot be loaded here, so that the rest is
tested with a stand-in.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.runner.trt import api, shapes, versions
from slmq_edge.runner.trt.recipe import Port, Recipe
from tests import trt_bundle

ELEVEN = versions.parse("11.4.1")
K, N = 64, 96


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("tensorrt_rtx", reason="the extra trt-check is not installed")
    made = api._config

    def for_a100(*arguments: Any) -> Any:
        config = made(*arguments)
        config.num_compute_capabilities = 1
        config.set_compute_capability(module.ComputeCapability.SM80, 0)
        return config

    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(api, "_config", for_a100)
    monkeypatch.setattr(api, "_timing", lambda config, saved: None)
    return module


def _graph(folder: Path, zero_point: int = 0) -> Path:
    """One product of int8 by int8, of so many tokens as there are."""
    constants = {
        "scale": np.float32(0.05),
        "zero": np.int8(zero_point),
        "weight": np.ones((K, N), np.int8),
        "scales": np.full(N, 0.01, np.float32),
        "zeros": np.zeros(N, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="x.quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="x.dequantize"),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="lin.matmul"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [1, "new", K])],
        [info("y", TensorProto.FLOAT, [1, "new", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _recipe() -> Recipe:
    return trt_bundle.recipe(
        inputs=(Port("x", "float32", (1, "new", K)),), int8=("lin.matmul",), floats="float32"
    )


def _build(graph: Path) -> api.Built:
    of = _recipe()
    return api.build(ELEVEN, of, graph, shapes.of(of), 64, b"", lambda text: None)


def test_a_graph_becomes_an_engine(rtx: Any, tmp_path: Path) -> None:
    built = _build(_graph(tmp_path))
    assert len(bytes(built.plan)) > K * N


def test_a_refused_node_is_named(rtx: Any, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"refuses QuantizeLinear x\.quantize: .*zero point"):
        _build(_graph(tmp_path, zero_point=3))


def test_what_is_no_graph_is_refused(rtx: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(Unsupported, match=r"refuses the graph: .*Failed to parse"):
        _build(tmp_path / "model.onnx")


def test_a_build_can_be_cancelled(
    rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT ends a build when its monitor says no."""
    asked: list[str] = []

    def no(monitor: api.Monitor, name: str, done: int) -> bool:
        asked.append(name)
        return False

    monkeypatch.setattr(api.Monitor, "step", no)
    with pytest.raises(SlmqError, match="built no engine"):
        _build(_graph(tmp_path))
    assert asked
