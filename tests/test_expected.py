"""estimate: what it prints of a bundle on a device, what it refuses, and memory as measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.projection import ROOT
from slmq_edge import bounds, devices
from slmq_edge.anatomy import Anatomy
from slmq_edge.cli import app
from slmq_edge.errors import NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.expected import Request, estimate
from slmq_edge.results import Device, save
from slmq_edge.room import rooms
from slmq_edge.runner.manifest import BUNDLE_FORMAT, BUNDLE_VERSION
from slmq_edge.runner.measure import Workload
from tests import trt_bundle
from tests.shared import shared
from tests.test_cli import assert_one_line, slmq
from tests.test_compare import with_series
from tests.test_projection import measured

NANO = """
title = "Jetson Orin Nano 8GB"
kind = "jetson"
[detect]
[facts]
memory_bytes = { value = 8589934592, source = "t" }
bandwidth_bytes_per_second = { value = 102.4e9, source = "t" }
int8_dense_ops = { value = 33e12, source = "t" }
fp16_dense_flops = { value = 17e12, source = "t" }
"""
BARE = 'title = "Bare"\nkind = "cpu"\n[detect]\n[facts]\n'
SHAPE = {
    "hidden": 576, "ffn": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64,
    "vocab": 49152, "tied": True,
}  # fmt: skip
LINEARS, HEAD = 106_168_320, 49_152 * 576


@pytest.fixture(autouse=True)
def _sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets of which the tests know every number."""
    sheets = {"jetson-orin-nano-8gb": NANO, "bare": BARE, "jetson-tx2": NANO}
    real = devices.load

    def load(name: str) -> devices.Facts:
        return devices.parse(name, sheets[name]) if name in sheets else real(name)

    monkeypatch.setattr(devices, "load", load)


def manifest(kind: str, **fields: Any) -> dict[str, Any]:
    graph = f"{'trt' if kind == 'trt' else 'ort'}/model.onnx"
    return {
        "format": BUNDLE_FORMAT,
        "version": BUNDLE_VERSION,
        "model": {"name": "SmolLM-135M"},
        "anatomy": SHAPE,
        "method": "none",
        "scheme_requested": "w8a8",
        "runtime": {"kind": kind},
        "lowering": {
            "scheme_ran": "w8a8",
            "int8_gemm_share": 1.0,
            "activation_mode": "per token",
            "lm_head": "int8",
            "weight_storage_bits": {"linears": 8, "lm_head": 8, "embedding": 8},
            "kv_cache": "float16" if kind == "trt" else "float32",
        },
        "counts": {
            "parameters": LINEARS + HEAD,
            "linear_macs_per_token": LINEARS,
            "head_macs_per_token": HEAD,
        },
        "context_length": 512,
        "files": {graph: {"bytes": 7, "sha256": "0" * 64}},
        **fields,
    }


def bundle(folder: Path, kind: str = "trt", **fields: Any) -> Path:
    """A folder with a manifest, and for TensorRT a recipe: estimate reads nothing else."""
    if kind == "trt":
        sizes = {"layers": 30, "kv_heads": 3, "head_dim": 64, "vocab": 49152}
        trt_bundle.write(folder, trt_bundle.recipe(**sizes, weight_bytes=LINEARS + HEAD))
    else:
        (folder / "ort").mkdir(parents=True)
    found = manifest(kind, **fields)
    for path in folder.glob("trt/*"):
        found["files"][f"trt/{path.name}"] = {"bytes": path.stat().st_size, "sha256": "0" * 64}
    (folder / "bundle.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def asked(folder: Path, device: str = "jetson-orin-nano-8gb", **fields: Any) -> Request:
    return dataclasses.replace(Request(folder, device, 128, 64), **fields)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)])


def test_a_bundle_for_tensorrt_on_a_jetson(tmp_path: Path) -> None:
    found = estimate(asked(bundle(tmp_path / "b")))
    assert (found.scheme, found.target, found.card.on_gpu) == ("w8a8", "trt", True)
    assert found.card.read_bytes == LINEARS + HEAD
    assert found.card.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    prefill, decode = found.cells
    ceiling = bounds.lowest(found.ceilings.decode)
    assert ceiling is not None
    assert decode.low is not None
    assert decode.per_second is not None
    assert decode.high is not None
    assert 0 < decode.low < decode.per_second < decode.high < (ceiling.per_second or 0)
    assert prefill.per_second is not None
    assert "none is of slmq-edge's own engines" in found.basis
    assert "extrapolated to 138 MB" in found.basis
    running, building = found.rooms
    assert running.parts["KV cache, twice"] == 2 * 23_040 * 192
    assert building.needed > running.needed
    # 8 GiB, of which firmware and system keep a part
    assert running.available == building.available
    assert 6.0e9 < (running.available or 0) < 7.2e9


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    trt = folder / "trt" / "recipe.json"
    recipe = json.loads(trt.read_text())
    trt.write_text(json.dumps({**recipe, "weight_bytes": 10**9}))
    running, building = estimate(asked(folder)).rooms
    assert (running.fits, building.fits) == (True, False)
    done = run(folder, "--device", "jetson-orin-nano-8gb")
    assert done.exit_code == 0, done.output
    assert "does NOT fit" in done.stdout


def test_the_text_and_the_json_say_projected(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    text = run(folder, "--device", "jetson-orin-nano-8gb").stdout
    assert text.splitlines()[0] == (
        "SmolLM-135M, w8a8 (trt) on Jetson Orin Nano 8GB: projected, not measured"
    )
    assert "Memory for building its engine, about" in text
    document = json.loads(run(folder, "--device", "jetson-orin-nano-8gb", "--json").stdout)
    assert document["format"] == "slmq-edge-estimate"
    assert document["origin"] == "projected"
    assert {cell["origin"] for cell in document["cells"]} == {"projected"}
    assert [room["fits"] for room in document["rooms"]] == [True, True]


def test_without_figures_of_a_runtime_there_are_bounds_and_no_guess(tmp_path: Path) -> None:
    found = estimate(asked(bundle(tmp_path / "b", "ort")))
    assert [cell.per_second for cell in found.cells] == [None, None]
    assert "no figures of target ort on jetson-orin-nano-8gb" in found.basis
    bound = bounds.lowest(found.ceilings.decode)
    assert bound is not None
    assert bound.limit == "memory bandwidth"
    (running,) = found.rooms
    assert running.fits
    assert running.parts["copy while loading"] == HEAD
    text = run(tmp_path / "b", "--device", "jetson-orin-nano-8gb").stdout
    assert "  prefill and decode  n/a: no figures of target ort" in text


def test_another_runtime_by_name_in_a_mode_of_its_rows(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    as_peer = asked(folder, family="llama.cpp-cuda-orin-nano")
    found = estimate(as_peer)
    assert found.mode == "MAXN_SUPER"
    (_, decode), (_, mine) = found.cells, estimate(asked(folder)).cells
    assert (decode.per_second or 0) < (mine.per_second or 0)
    assert "slmq-edge" not in found.basis


def test_runs_of_the_board_say_more_than_published_rows(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", "ort")
    paths = []
    for weights in (10**8, 4 * 10**8):
        device = dataclasses.replace(measured(weights).device, name="bare")
        there = measured(weights, device=device)
        told = {**there.environment, "memory_total_bytes": 16 * 10**9}
        paths.append(tmp_path / f"{weights}-run.json")
        save(dataclasses.replace(there, environment=told), paths[-1])
    done = run(folder, "--device", "bare", "--fit", paths[0], "--fit", paths[1], "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["basis"] == "fitted on 2 runs measured on bare"
    (_, decode) = document["cells"]
    card = document["card"]
    step = (card["read_bytes"] + card["kv_bytes_per_token"] * card["depth"]) / 10e9 + 0.002
    assert decode["per_second"] == pytest.approx(1 / step)
    assert document["rooms"][0]["available"] == 16 * 10**9 - 500 * 10**6
    done = run(folder, "--device", "bare", "--fit", paths[0], "--family", "mlc-orin")
    assert isinstance(done.exception, UsageError)
    one = run(folder, "--device", "bare", "--fit", paths[0])
    assert "at least two bundles" in str(one.exception)


@pytest.mark.parametrize("told", [None, 10**9])
def test_what_may_come_out_of_a_cache_is_not_cut_to_the_memory(
    told: int | None, tmp_path: Path
) -> None:
    """Runs that were faster than the memory, on the processor of a Jetson."""
    runs = []
    for weights in (10**8, 2 * 10**8):
        run = measured(weights, device=Device("jetson-orin-nano-8gb", "jetson", {}))
        step = bounds.card_of(run).bytes_per_token / 500e9 + 1e-6
        run = with_series(run, decode_seconds=(64 * step,) * 3)
        runs.append(dataclasses.replace(run, environment={**run.environment, "cache_bytes": told}))
    folder = bundle(tmp_path / "b", "ort")
    found = estimate(asked(folder, runs=tuple(runs)))
    decode = found.cells[1].per_second or 0.0
    assert decode == pytest.approx(1 / (found.card.bytes_per_token / 500e9 + 1e-6), rel=1e-6)
    memory = found.ceilings.decode[0].per_second
    assert (memory is None) == (told is not None)


@pytest.mark.parametrize(
    ("device", "fields", "error", "said"),
    [
        ("bare", {}, Unsupported, "sheet of bare has no bandwidth_bytes_per_second: name a"),
        ("raspbery-pi-5", {}, NotFound, r"did you mean raspberry-pi-5\?"),
        ("a800-80gb-pcie", {}, Unsupported, "is a GPU: name the machine's own sheet"),
        ("raspberry-pi-5", {"prompt_tokens": 500}, UsageError, "the context holds 512"),
        ("jetson-tx2", {"family": "mlc-orin"}, UsageError, "mlc-orin is not of jetson-tx2"),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_one_line(
    device: str, fields: dict[str, Any], error: type[SlmqError], said: str, tmp_path: Path
) -> None:
    folder = bundle(tmp_path / "b", "ort")
    with pytest.raises(error, match=said):
        estimate(asked(folder, device, **fields))


def test_a_bundle_for_tensorrt_is_refused_where_no_gpu_is(tmp_path: Path) -> None:
    done = slmq("estimate", bundle(tmp_path / "b"), "--device", "raspberry-pi-5", cwd=tmp_path)
    assert_one_line(done, 1, "raspberry-pi-5 has no GPU")
    (tmp_path / "smollm-w8a8").mkdir()
    missing = tmp_path / "smollm-w8a"
    done = slmq("estimate", missing, "--device", "raspberry-pi-5", cwd=tmp_path)
    assert_one_line(done, 1, "no bundle at", "did you mean smollm-w8a8?")


def test_a_device_of_several_sizes_is_told_what_is_needed(tmp_path: Path) -> None:
    sheet = NANO.replace("memory_bytes = { value = 8589934592", "memory_gone = { value = 1")
    facts = devices.parse("jetson-orin-nano-8gb", sheet).as_json()
    found = manifest("ort")
    card = bounds.card(found, Workload(128, 64, 1, 0, 1))
    assert bounds.fact(facts, "memory_bytes") == (None, False)
    (one,) = rooms(tmp_path, found, card, 192, "jetson", None)
    assert (one.available, one.fits) == (None, None)
    assert one.needed > 100 * 10**6


# Held against what was measured.

CASES = {  # head's bytes a weight, all weights' bits, prompt
    "SmolLM-135M": ("SmolLM-135M", 8, 8),
    "SmolLM2-360M": ("SmolLM2-360M", 8, 8),
    "SmolLM2-360M-8k": ("SmolLM2-360M", 8, 8),
    "Qwen2.5-0.5B": ("Qwen2.5-0.5B", 8, 8),
    "Qwen2.5-0.5B-w4a8-b128": ("Qwen2.5-0.5B", 4, 8),
    "Qwen3-0.6B-fp32": ("Qwen3-0.6B", 32, 32),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_for_running_is_near_the_measured_peaks(case: str, tmp_path: Path) -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "sizes.json").read_text())["rows"]
    (row,) = (one for one in rows if one["case"] == case)
    name, bits, head = CASES[case]
    config = json.loads(shared(f"configs/{name}/config.json").read_text())
    shape = Anatomy.from_config(config)
    ran = {4: "w4a8-b128", 8: "w8a8", 32: "fp32"}[bits]
    found = manifest("ort", anatomy=shape.as_json())
    found["lowering"] |= {
        "scheme_ran": ran,
        "weight_storage_bits": {"linears": bits, "lm_head": head, "embedding": head},
    }
    found["counts"] |= {
        "linear_macs_per_token": shape.linear_macs_per_token,
        "head_macs_per_token": shape.head_macs_per_token,
    }
    card = bounds.card(found, Workload(row["prompt"], 32, 1, 0, 1))
    (room,) = rooms(tmp_path, found, card, row["prompt"] + 32, "cpu", 25e9, True)
    peaks = [kinds["cpu_peak_rss"] for kinds in row["memory"].values()]
    assert room.needed == pytest.approx(max(peaks), rel=0.15)
