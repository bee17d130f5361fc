"""What ran, from onnxruntime's own record: equal to what was counted when the graph was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import Damaged
from slmq_edge.export import export
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.runner import manifest, profiled
from slmq_edge.scheme import scheme
from tests.decoders import random_llama, rounded


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built-in model, rotated: some of its multiply-adds are float."""
    folder = tmp_path_factory.mktemp("profiled") / "bundle"
    settings = {"steps": 0, "rounding": "nearest"}
    wanted = scheme("w8a8", "int8")
    request = Request(wanted, "spinquant", windows=8, length=32, settings=settings)
    export(quantize(plan("demo-llama", request)), folder)
    return folder


def test_the_share_seen_is_the_share_counted(bundle: Path) -> None:
    document = manifest.read_bundle(bundle)
    counted = document["lowering"]["int8_gemm_share"]
    assert 0.5 < counted < 0.95
    steps = profiled.run(bundle, document, threads=1)
    assert steps["decode"].integer_share == pytest.approx(counted, rel=0.01)
    rows = document["lowering"]["linears"]
    assert steps["decode"].macs == pytest.approx(sum(one["macs_per_token"] for one in rows))
    by_name = {one.name: one for one in steps["decode"].operators}
    gemm = by_name["MatMulIntegerToFloat"]
    assert gemm.calls == 4 * document["anatomy"]["layers"] + 1
    assert (gemm.provider, gemm.integer) == ("CPUExecutionProvider", True)
    assert all(one.seconds > 0 for one in steps["decode"].operators)
    # A prompt of 16 tokens is 16 times as much, but for the head, which has one row.
    head = document["counts"]["head_macs_per_token"]
    turned = document["anatomy"]["hidden"] ** 2
    assert steps["prefill"].macs == 16 * steps["decode"].macs - 15 * (head + turned)


@pytest.mark.parametrize("precision", ["w8a8", "w4a8-b32", "w4a16"])
def test_products_of_attention_are_not_products_by_weights(precision: str, tmp_path: Path) -> None:
    """A head that the fused kernel does not take: attention is made of MatMul as well."""
    checkpoint = rounded(random_llama(), scheme(precision))
    document = export(checkpoint, tmp_path / "bundle")
    assert document["lowering"]["attention"] == "standard operators"
    step = profiled.run(tmp_path / "bundle", document, threads=1)["decode"]
    assert step.integer_share == document["lowering"]["int8_gemm_share"]
    assert step.macs == sum(one["macs_per_token"] for one in document["lowering"]["linears"])


def kernel(name: str, at: int, inputs: list[Any], output: list[int], constants: int) -> Any:
    arguments = {
        "op_name": name,
        "provider": "CPUExecutionProvider",
        "parameter_size": str(constants),
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    return {"cat": "Node", "name": f"x{at}_kernel_time", "ts": at, "dur": 2, "args": arguments}


def around(start: int, length: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": length, "args": {}}


def test_events_are_summed_run_by_run() -> None:
    events = [
        kernel("MatMul", 11, [[1, 3, 8]], [1, 3, 5], 0),  # its weight is packed away
        kernel("MatMul", 13, [[1, 2, 3, 4], [1, 2, 4, 3]], [1, 2, 3, 3], 0),  # two activations
        kernel("MatMul", 15, [[4, 4], [6, 4, 7]], [6, 4, 7], 64),  # a constant on the left
        kernel("MatMulInteger", 17, [[2, 8], [8, 3]], [2, 3], 24),
        around(10, 20),
        kernel("Softmax", 41, [[1, 3]], [1, 3], 0),
        around(40, 5),
        {"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 1, "args": {}},
    ]
    first, second = profiled.steps_of(events)
    found = {one.name: one for one in first.operators}
    assert found["MatMul"].calls == 3
    assert found["MatMul"].macs == 3 * 5 * 8 + 6 * 4 * 7 * 4
    assert found["MatMul"].seconds == pytest.approx(6e-6)
    assert found["MatMulInteger"].macs == 2 * 3 * 8
    assert first.integer_share == 48 / (48 + 120 + 672)
    assert [(one.name, one.macs) for one in second.operators] == [("Softmax", 0)]
    assert second.integer_share == 0.0


def test_what_the_record_does_not_say_the_bundle_says() -> None:
    def said(integer: bool) -> dict[str, Any]:
        rows = [{"operator": "MatMulNBits", "integer": integer}]
        return {"lowering": {"linears": rows}}

    assert "MatMulNBits" in profiled.integer_operators(said(True))
    assert "MatMulNBits" not in profiled.integer_operators(said(False))
    assert set(profiled.integer_operators({"lowering": {}})) == set(profiled.INTEGER_GEMMS)
    arguments = kernel("MatMulNBits", 0, [[2, 8], [3, 1, 4]], [2, 3], 12)["args"]
    assert profiled.macs_of(arguments) == 2 * 3 * 8


def test_a_record_that_is_none_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"events": []}))
    with pytest.raises(Damaged, match="not a list of events"):
        profiled.read(tmp_path / "record.json")
    (tmp_path / "record.json").write_text("[{")
    with pytest.raises(Damaged, match="cannot be read"):
        profiled.read(tmp_path / "record.json")
