"""Which graphs a bundle holds, which runtime it is for, and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slmq_edge.errors import Damaged, SlmqError, UsageError
from slmq_edge.export import check_scheme, check_target, export
from slmq_edge.exporters import Wanted, onnx
from slmq_edge.runner import asked, manifest, ort
from slmq_edge.scheme import SCHEMES, WEIGHTS_8, Grid, scheme
from tests.artifacts import session
from tests.decoders import random_llama, random_qwen2, rounded
from tests.test_cli import assert_one_line, slmq

SIGNED = (manifest.SIGNED_GRAPH, manifest.SIGNED_PROBE)


@pytest.mark.parametrize(
    ("name", "head", "by_rows"),
    [
        ("w8a8", "float", True),
        ("w4a8-g32", "float", True),
        ("w4a8-b32", "int8", True),
        ("w4a8-b32", "float", False),
        ("w4a16-g32", "float", False),
        ("fp32", "float", False),
    ],
)
def test_a_signed_graph_is_there_where_a_product_has_that_form(
    name: str, head: str, by_rows: bool, tmp_path: Path
) -> None:
    found = export(rounded(random_qwen2(), scheme(name, head)), tmp_path / "bundle")
    model = tmp_path / "bundle" / manifest.GRAPH
    assert [file in found["files"] for file in SIGNED] == [by_rows] * 2
    assert (b"MatMulIntegerToFloat" in model.read_bytes()) == by_rows
    assert found["runtime"]["profile"] == "portable"
    assert found["runtime"]["minimum_version"] == "1.19"


def test_a_bundle_is_for_the_runtime_that_was_asked_for(tmp_path: Path) -> None:
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    found = export(checkpoint, tmp_path / "bundle", Wanted(runtime="modern"))
    assert found["runtime"]["minimum_version"] == "1.23"
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "ONNX Runtime 1.23 or later" in card


def test_a_runtimes_name_is_looked_at_before_a_model_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean modern"):
        check_target(Wanted(runtime="modem"))
    arguments = ("export", "HuggingFaceTB/SmolLM-135M", "--runtime", "portabel")
    done = slmq(*arguments, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert_one_line(done, 2, "unknown runtime 'portabel'", "did you mean portable")


def test_an_onnxruntime_too_old_to_check_the_bundle_is_found_out_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ort, "distributions", lambda: {"onnxruntime": "1.19.2"})
    check_scheme(SCHEMES["w8a8"])
    with pytest.raises(SlmqError, match=r"1\.19\.2 is too old.*1\.23"):
        check_scheme(SCHEMES["w8a8-b32"])


def test_weights_alone_may_lie_far_from_zero(tmp_path: Path) -> None:
    """MatMulNBits stores zero points that are levels; others are folded into floats."""
    grid = Grid(4, "channel", symmetric=False, group=32, zero=False)
    model = random_llama()
    for name in model.anatomy.linears():
        model.weights[f"{name}.weight"] = 1.0 + 0.01 * model.weights[f"{name}.weight"]
    checkpoint = rounded(model, replace(SCHEMES["w4a16-g32"], weights=grid, head=WEIGHTS_8))
    graph, report = onnx.write(checkpoint)
    assert {row.operator for row in report.linears if row.part == "linear"} == {"MatMul"}
    assert {row.memory_bits for row in report.linears if row.part == "linear"} == {32}
    session(graph, tmp_path)


def test_a_minimum_version_that_is_no_text_is_damage() -> None:
    with pytest.raises(Damaged, match="minimum_version is no text"):
        asked.minimum_version({"runtime": {"minimum_version": 7}})


def test_a_prompt_has_a_token(tmp_path: Path) -> None:
    model, _ = onnx.write(rounded(random_qwen2(), scheme("w8a8")))
    with pytest.raises(ValueError, match="at least one token"):
        session(model, tmp_path).prefill(np.zeros((1, 0), np.int64))
