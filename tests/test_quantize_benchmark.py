"""The benchmark of quantizing, on a shortened model and a few tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from benchmarks import quantize
from tests.shared import shared


def test_a_method_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    shared("configs/SmolLM-135M")
    target = tmp_path / "results.json"
    quantize.main(
        shared=shared("."),
        shape=["SmolLM-135M"],
        method=["smoothquant"],
        scheme="w8a8",
        preset="fast",
        layers=1,
        windows=8,
        length=16,
        threads=1,
        output=target,
    )
    document = json.loads(target.read_text())
    (row,) = document["rows"]
    assert {"reading the model", "calibrating"} <= set(row["seconds_by_stage"])
    assert sum(row["seconds_by_stage"].values()) == pytest.approx(row["seconds"], rel=0.5)
    assert row["tokens"] == 8 * 16
    # A table of 49,152 x 576, one block, and the final norm.
    assert row["model_bytes"] == 4 * (28_311_552 + 3_540_096 + 576)
    assert row["host_peak_bytes"] > row["model_bytes"]
    assert row["host_peak_less_model_bytes"] == row["host_peak_bytes"] - row["model_bytes"]
    assert row["torch_peak_bytes"] is None
    assert document["environment"]["torch"]


def test_a_method_that_refuses_is_a_row_that_says_why(tmp_path: Path) -> None:
    trial = quantize.Trial(tmp_path, tmp_path, "smoothquant", "fp32", "fast", "cpu", 1)
    assert "use --method none" in quantize.in_process_of_its_own(trial)["error"]


def test_an_unknown_name_is_guessed() -> None:
    with pytest.raises(typer.BadParameter, match="did you mean SmolLM-135M"):
        quantize.main(shape=["SmolLM-136M"])
