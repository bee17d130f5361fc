"""A GPU's runs beside a CPU's of the same checkpoint: each against its own baseline, or not at all.

No GPU is here. What a run of one says is made by the real runner and the real assembly: torch's
modules on the CPU, under the adapter of a GPU whose NVML and whose counters of torch are stand-ins.
Nothing of it is a measurement of a GPU, and nothing of it is kept.
"""

from __future__ import annotations

import dataclasses
import os
import types
from pathlib import Path

import pytest

from slmq_edge import devices, export, quantities, quantize
from slmq_edge.across import across
from slmq_edge.assembly import assemble
from slmq_edge.compare import compare
from slmq_edge.errors import SlmqError
from slmq_edge.exporters import Wanted
from slmq_edge.profiles import Board, cuda
from slmq_edge.profiles.cuda import Cuda
from slmq_edge.quantities import MEMORY, SPEED, TORCH_PEAK
from slmq_edge.results import Device, Run, load, save
from slmq_edge.runner import job, journal, manifest, measure, on_torch
from slmq_edge.runner.runtimes import Place
from slmq_edge.scheme import SCHEMES
from slmq_edge.sides import side
from slmq_edge.tracks.machines import Local, of_facts
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.test_cli import slmq

NAME = "NVIDIA A800 80GB PCIe"
WORK = measure.Workload(8, 4, repetitions=5, warmups=1, threads=1)
PEAKS = {"fp32": 400 << 20, "w8a8": 200 << 20}
PROCESS = 900 << 20
Runs = dict[tuple[str, str], Run]


# Its runs take 18 s to make.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By place and scheme: a stand-in's torch, torch on this CPU, onnxruntime on this CPU."""
    folder = tmp_path_factory.mktemp("runs")
    found: Runs = {}
    for scheme in ("fp32", "w8a8"):
        request = quantize.Request(SCHEMES[scheme], "none")
        checkpoint = quantize.quantize(quantize.plan("demo-llama", request))
        for target in ("torch", "ort"):
            bundle = folder / f"{scheme}-{target}"
            export.export(checkpoint, bundle, Wanted(target))
            device, board = Local().device(Place(bundle, manifest.read_bundle(bundle), 1))
            found[target, scheme] = measured(bundle, device, board)
        found["gpu", scheme] = on_stand_in(folder / f"{scheme}-torch", PEAKS[scheme])
    return found


def measured(bundle: Path, device: Device, board: Board) -> Run:
    """A run of the runner's two halves, in this process."""
    log = bundle.with_suffix(f".{device.kind}.journal")
    asked = job.Job(bundle, log, WORK, device.kind, False, board=board, power_seconds=0)
    job.check(asked, lambda line: None)
    job.measure_job(asked, lambda line: None)
    return assemble(journal.read(log), device, manifest.read_bundle(bundle))


def on_stand_in(bundle: Path, peak: int) -> Run:
    """What a GPU that has held so many bytes would have written."""
    counters = types.SimpleNamespace(
        reset_peak_memory_stats=lambda: None,
        max_memory_allocated=lambda: peak,
        max_memory_reserved=lambda: 2 * peak,
    )
    device, board = of_facts(devices.load("generic-x86_64"), NAME)
    nvml = FakeNvml([FakeGpu(processes=[(os.getpid(), PROCESS)])])

    def adapter(kind: str, board: Board) -> Cuda:
        assert kind == device.kind == "cuda"
        return Cuda("/", nvml.library(), {})

    def said(where: str, torch: object) -> dict[str, str]:
        return {"torch": "2", "cuda": "13.0", "gpu": NAME, "driver": "580.1"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_profile", adapter)
        patch.setattr(on_torch, "described", said)
        patch.setattr(cuda, "_torch", lambda: types.SimpleNamespace(cuda=counters))
        return measured(bundle, device, board)


def test_what_a_gpu_says_is_in_its_run(runs: Runs) -> None:
    run = runs["gpu", "w8a8"]
    assert (run.device.name, run.device.kind) == ("a800-80gb-pcie", "cuda")
    assert run.environment["gpu"] == NAME
    assert run.artifact.runtime["kind"] == "torch"
    for phase in ("prefill", "decode"):
        assert run.memory[phase][TORCH_PEAK] == PEAKS["w8a8"]
        assert run.memory[phase]["gpu_process_used"] == PROCESS


def test_of_torch_on_one_gpu_its_own_peak_is_scored(runs: Runs) -> None:
    compared = compare(runs["gpu", "fp32"], runs["gpu", "w8a8"])
    assert compared.score.memory == f"largest {TORCH_PEAK} over prefill and decode"
    assert compared.row(MEMORY).ratio == 2
    assert compared.score.value is not None
    # The process's, of which half is CUDA's own, stands beside it.
    assert compared.row("memory.decode.gpu_process_used").ratio == 1


def test_a_gpu_is_not_held_against_a_cpus_memory(runs: Runs) -> None:
    compared = compare(runs["ort", "w8a8"], runs["gpu", "w8a8"])
    assert compared.row(MEMORY).ratio is None
    assert "has its model in a device's memory" in str(compared.row(MEMORY).reason)
    assert compared.score.value is None
    assert compared.row(SPEED).across is not None, "a ratio between machines is called so"


def test_torch_on_a_cpu_counts_the_process_as_all_there_do(runs: Runs) -> None:
    found = runs["torch", "w8a8"]
    assert found.device.kind == "cpu"
    assert found.device_memory is None
    assert not any("torch" in kind for kinds in found.memory.values() for kind in kinds)
    compared = compare(runs["torch", "fp32"], found)
    assert compared.score.memory == "largest cpu_peak_rss over prefill and decode"


def test_every_place_has_its_own_baseline_and_kind_of_memory(runs: Runs) -> None:
    with pytest.raises(SlmqError, match="--mixed-baselines"):
        across(runs.values())
    (matrix,) = across(runs.values(), mixed=True).matrices
    assert matrix.mixed is not None
    places = {place.name: place for place in matrix.places}
    assert len(places) == 3
    for name, place in places.items():
        (cell,) = place.cells
        assert place.side.run.environment.get(
            "gpu"
        ) == cell.comparison.candidate.run.environment.get("gpu")
        assert cell.comparison.score.value is not None, name
    by_runtime = {(place.kind, place.runtime): place for place in matrix.places}
    assert by_runtime["cuda", "torch"].precision == "float16"
    assert by_runtime["cpu", "torch"].precision == "float16"
    assert by_runtime["cpu", "ort"].precision == "float32"
    kinds = {key: place.cells[0].comparison.score.memory for key, place in by_runtime.items()}
    assert TORCH_PEAK in str(kinds["cuda", "torch"])
    assert (
        kinds["cpu", "torch"]
        == kinds["cpu", "ort"]
        == "largest cpu_peak_rss over prefill and decode"
    )


def test_a_candidate_without_a_baseline_in_its_place_is_set_aside(runs: Runs) -> None:
    listed = [runs["gpu", "w8a8"], runs["ort", "fp32"], runs["ort", "w8a8"]]
    found = across(listed)
    (matrix,) = found.matrices
    assert [place.kind for place in matrix.places] == ["cpu"]
    assert any("no run in full precision" in line for line in found.aside)


def test_two_runtimes_that_name_parts_of_a_device_otherwise_are_not_compared(runs: Runs) -> None:
    def holding(run: Run, **parts: int) -> Run:
        memory = {phase: {"cpu_peak_rss": 1} for phase in ("prefill", "decode")}
        return dataclasses.replace(run, device_memory=parts, memory=memory)

    torch = holding(runs["gpu", "w8a8"], weights=100, kv=10, rest=5)
    trt = holding(runs["gpu", "w8a8"], engine=100, kv=10, rest=500)
    peak, told = quantities.peak(side(torch), side(trt))
    assert (peak.baseline, told) == (None, None)
    assert "other parts of a device's memory" in str(peak.reason)
    shared = holding(runs["gpu", "w8a8"], weights=100, kv=10)
    peak, told = quantities.peak(side(torch), side(shared))
    assert peak.baseline == ((110,),), "a board that shares its memory tells no rest"


def test_the_verb_shows_both_side_by_side_and_says_what_they_are(
    runs: Runs, tmp_path: Path
) -> None:
    paths = []
    for (place, scheme), run in runs.items():
        if place != "torch":
            paths.append(tmp_path / f"{place}-{scheme}.json")
            save(run, paths[-1])
            assert load(paths[-1]) == run
    refused = slmq("compare", *paths, cwd=tmp_path)
    assert refused.returncode == 1
    assert "--mixed-baselines" in refused.stderr
    done = slmq("compare", *paths, "--mixed-baselines", "--format", "md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a800-80gb-pcie (torch)" in done.stdout
    assert "(ort)" in done.stdout
    assert "float16" in done.stdout
    assert "float32" in done.stdout
