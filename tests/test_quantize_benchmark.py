"""The benchmark of quantizing, on a shortened model and a few tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import typer

from benchmarks import quantize
from slmq_edge import builtin
from slmq_edge import quantize as quantized
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.quantize import Plan
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
    of_gpu = ("torch_peak_bytes", "torch_reserved_bytes", "gpu_process_bytes", "gpu_board_bytes")
    assert [row[name] for name in of_gpu] == [None] * 4
    assert (row["energy_of"], row["compiled"]) == ("the processor packages", False)
    assert document["environment"]["torch"]


def test_distilling_is_cut_short_where_minutes_are_given(tmp_path: Path) -> None:
    calib = tmp_path / "text.txt"
    calib.write_text("Anna has a cat. " * 400)
    demo = builtin.folder("demo-llama")
    trial = quantize.Trial(demo, calib, "distill", "w4a8", "fast", "cpu", 1, 8, 16, minutes=0.001)
    row = quantize.measured(trial)
    assert (row["settings"]["minutes"], row["tokens"]) == (0.001, 8 * 16)
    assert row["seconds_by_stage"]["distilling"] > 0
    assert sum("tokens" in note for note in row["notes"]) == 1


def test_a_method_that_refuses_is_a_row_that_says_why(tmp_path: Path) -> None:
    trial = quantize.Trial(tmp_path, tmp_path, "smoothquant", "fp32", "fast", "cpu", 1)
    assert "use --method none" in quantize.in_process_of_its_own(trial)["error"]


def test_an_unknown_name_is_guessed() -> None:
    with pytest.raises(typer.BadParameter, match="did you mean SmolLM-135M"):
        quantize.main(shape=["SmolLM-136M"])


def test_a_gpu_that_is_not_there_is_found_before_a_model_is_made() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(typer.BadParameter, match="torch sees no CUDA device here"):
        quantize.main(device="cuda:0")


def test_a_row_of_a_gpu_has_all_of_its_memories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``quantize`` says of its cost on a GPU, here put in its mouth, is in the row."""
    done = quantized.quantize

    def on_gpu(planned: Plan) -> Checkpoint:
        found = done(planned)
        memory = {
            "torch_peak_allocated": 2,
            "torch_peak_reserved": 3,
            "gpu_process_peak_sampled": 4,
            "gpu_board_peak_sampled": None,
        }
        cost = found.cost | {"memory": found.cost["memory"] | memory, "sampled": {"readings": 9}}
        return dataclasses.replace(found, cost=cost | {"energy_of": "the GPU board"})

    monkeypatch.setattr(quantized, "quantize", on_gpu)
    calib = tmp_path / "text.txt"
    calib.write_text("Anna has a cat. " * 400)
    trial = quantize.Trial(builtin.folder("demo-llama"), calib, "none", "w8a8", "fast", "cpu", 1)
    row = quantize.measured(trial)
    assert (row["torch_peak_bytes"], row["torch_reserved_bytes"]) == (2, 3)
    assert (row["gpu_process_bytes"], row["gpu_board_bytes"]) == (4, None)
    assert (row["sampled"], row["energy_of"]) == ({"readings": 9}, "the GPU board")
