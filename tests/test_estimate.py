"""What is said to be needed, against what was measured; and what is said of it, and when."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge import checkpoint, estimate, models, presets
from slmq_edge.anatomy import Anatomy
from slmq_edge.calibration import Calibration, Size, Text
from slmq_edge.commands import making
from slmq_edge.errors import SlmqError
from slmq_edge.export import export
from slmq_edge.exporters import Wanted, limits
from slmq_edge.files import folder_bytes
from slmq_edge.quantization import Task, distill, teaching
from slmq_edge.quantization.finished import Finished
from slmq_edge.quantize import Request
from slmq_edge.scheme import SCHEMES, scheme
from tests.decoders import random_llama, random_qwen2, rounded
from tests.shared import shared

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
ROWS = [
    pytest.param(document["layers"], row, id=f"{file.stem}-{row['method']}")
    for file in sorted(RESULTS.glob("quantize-*.json"))
    for document in [json.loads(file.read_text())]
    for row in document["rows"]
]


def anatomy(name: str, layers: int | None = None) -> Anatomy:
    shape = models.read_anatomy(shared(f"configs/{name}"))
    return shape if layers is None else replace(shape, layers=layers)


@pytest.mark.parametrize(("layers", "row"), ROWS)
def test_memory_is_within_40_percent_of_what_was_measured(
    layers: int | None, row: dict[str, Any]
) -> None:
    shape = anatomy(row["shape"], layers)
    assert shape.parameters * 4 == row["model_bytes"]
    length = presets.preset("fast", row["method"]).length or 128
    size = Size(row["tokens"] // length, length)
    said = estimate.quantizing(shape, scheme(row["scheme"]), row["method"], size, row["settings"])
    assert said == pytest.approx(row["host_peak_bytes"], rel=0.4)


@pytest.mark.parametrize(("precision", "peak"), [("w8a8", 1_097_000_000), ("fp32", 1_692_000_000)])
def test_memory_of_exporting_too(precision: str, peak: int) -> None:
    """Peaks of ``export --method none`` at this shape, one thread, onnxruntime 1.23.2."""
    said = estimate.exporting(anatomy("SmolLM-135M"), scheme(precision))
    assert said == pytest.approx(peak, rel=0.4)


@pytest.mark.parametrize("method", ["gptq", "omniquant", "spinquant"])
def test_more_tokens_take_more_memory_and_spilled_ones_none(method: str) -> None:
    shape, settings = anatomy("SmolLM-135M"), {"rounding": "gptq"}

    def needed(windows: int, spilled: bool = False) -> int:
        size = Size(windows, 2048)
        return estimate.quantizing(shape, scheme("w4a8"), method, size, settings, spilled)

    streams = 64 * 2048 * shape.hidden * 4
    assert needed(128) >= needed(64) + streams
    assert needed(128, spilled=True) == needed(64, spilled=True) < needed(64)


@pytest.mark.parametrize("precision", SCHEMES)
@pytest.mark.parametrize("make", [random_qwen2, random_llama])
def test_what_is_written_is_no_more_than_was_said(
    precision: str, make: Any, tmp_path: Path
) -> None:
    head = {"w8": "int8", "w4": "int4"}.get(precision[:2], "float")
    made = rounded(make(), scheme(precision, head, "int8" if precision == "w4a8-b32" else "float"))
    checkpoint.save(made, tmp_path / "checkpoint")
    said = estimate.written(made.anatomy, made.scheme)
    assert folder_bytes(tmp_path / "checkpoint") <= said
    if precision in ("w4a16-g32", "w4a8-b32", "fp32"):
        export(made, tmp_path / "bundle")
        assert folder_bytes(tmp_path / "bundle") <= said


@pytest.mark.parametrize("precision", ["w4a8", "w8a8", "w8a16", "fp32"])
def test_for_tensorrt_four_bits_are_eight_beside_integers(precision: str, tmp_path: Path) -> None:
    made = rounded(random_qwen2(), scheme(precision))
    export(made, tmp_path / "bundle", Wanted("trt"))
    stored = limits.on_disk(made.scheme, "trt")
    assert folder_bytes(tmp_path / "bundle") <= estimate.written(made.anatomy, stored)
    assert limits.on_disk(made.scheme, "ort") == made.scheme
    eights = stored.weights is not None and stored.weights.bits == 8
    assert eights == (precision != "fp32")


def test_disk_follows_the_bits() -> None:
    shape = anatomy("Qwen2.5-0.5B")
    bytes_of = {name: estimate.written(shape, scheme(name)) for name in ("fp32", "w8a8", "w4a8")}
    linears = shape.linear_macs_per_token
    assert bytes_of["fp32"] - bytes_of["w8a8"] == pytest.approx(3 * linears, rel=0.05)
    assert bytes_of["w8a8"] - bytes_of["w4a8"] == linears / 2
    table = shape.vocab * shape.hidden
    whole = estimate.written(shape, scheme("w8a8", "int8"))
    assert bytes_of["w8a8"] - whole == pytest.approx(3 * table, rel=0.05)
    assert estimate.unfinished(shape, scheme("w4a8"), "gptq", {}) == linears
    assert estimate.unfinished(shape, scheme("w4a8"), "smoothquant", {}) == 0


def test_distilling_takes_what_learns_and_its_start() -> None:
    shape, size = anatomy("Qwen2.5-0.5B"), Size(256, 256)
    linears = shape.linear_macs_per_token

    def needed(precision: str = "w4a8", spilled: bool = False, **settings: Any) -> int:
        grids = scheme(precision)
        return estimate.quantizing(shape, grids, "distill", size, settings, spilled)

    plain = needed()
    assert shape.parameters * 4 + 9 * linears < plain < 24e9 / 2
    assert needed(spilled=True) == plain - 256 * 256 * shape.hidden * 4
    assert needed(batch=2) < plain < needed("w4a8-g32")
    assert needed(start="gptq") == plain
    # Its activations are the whole model's, kept for one long window.
    size = Size(16, 2048)
    assert needed(start="spinquant", batch=1) > needed(batch=1)


def test_a_students_state_is_no_more_than_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of an interrupted run, and its next beside it while that is written."""
    monkeypatch.setattr(teaching, "SECONDS", 0.0)
    model = random_llama()
    windows = torch.randint(model.anatomy.vocab, (6, 8))
    task = Task(
        scheme("w4a8-g32"),
        distill.Settings(epochs=2, batch=2),
        Calibration(Text("a text", ()), windows),
        finished=Finished(tmp_path / "kept", {}),
    )
    shape = model.anatomy
    prepared = distill.prepare(model, task)
    prepared.round_linears(prepared.model, task)
    stored = (tmp_path / "kept" / f"{teaching.STORED}.safetensors").stat().st_size
    said = estimate.unfinished(shape, task.scheme, "distill", {})
    assert said / 4 < stored < said / 2 + 100_000  # names and figures


def test_a_small_need_is_not_worth_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    making.planned("demo-llama", Request(scheme("w8a8"), "smoothquant", windows=8), tmp_path / "c")
    assert capsys.readouterr().err == ""


def test_short_memory_is_a_line_and_a_short_disk_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(scheme("w8a8"), "smoothquant", windows=8)
    monkeypatch.setattr(making, "available_bytes", lambda: 300_000_000)
    making.planned("demo-llama", request, tmp_path / "c")
    said = capsys.readouterr().err
    assert said.startswith("note: needs about 4")
    assert said.endswith("of disk; only 300 MB of memory are free\n")
    monkeypatch.setattr(making, "disk_bytes", lambda found, target: 10**18)
    with pytest.raises(SlmqError, match="not enough disk space"):
        making.planned("demo-llama", request, tmp_path / "c")


def test_a_large_need_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    making.say_needs(1_234_000_000, 410_000_000)
    said = capsys.readouterr().err
    assert said.startswith("note: needs about 1.23 GB of memory and 410 MB of disk")
    making.say_needs(None, 2_000_000_000)
    assert capsys.readouterr().err == "note: needs about 2.00 GB of disk\n"
