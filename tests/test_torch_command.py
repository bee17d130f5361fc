"""Bundles for torch behind the verbs, on this CPU: measured, scored, compared, and refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from slmq_edge import bounds, compare, devices, quantities, results, sides
from slmq_edge import golden as goldens
from slmq_edge.bench import feasible, matrix
from slmq_edge.cli import app
from slmq_edge.errors import MissingExtra, NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.profiles import cuda
from slmq_edge.remote.needs import require
from slmq_edge.remote.target import Target
from slmq_edge.reports import compare as compared
from slmq_edge.reports.profile import render
from slmq_edge.results import Run
from slmq_edge.runner import job, manifest, measure, on_torch, probe, runtimes
from slmq_edge.study.collect import Filed, Study
from slmq_edge.study.subjects import subjects
from slmq_edge.torch_runtime import reference
from slmq_edge.tracks import exported, machines
from slmq_edge.tracks.accuracy import results as evaluations
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.test_bench_plan import cells, read

QUICK = ("-p", "16", "-n", "6", "-r", "2", "--warmups", "1", "--power-seconds", "0", "--once")
GPU = "NVIDIA A800 80GB PCIe"


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def done(*arguments: object) -> Result:
    result = typed(*arguments)
    assert result.exit_code == 0, result.output or result.exception
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the built-in model, and the runs of the bundles that were made of two."""
    folder = tmp_path_factory.mktemp("torch")
    made = {"w4a8": ("w4a8", "--lm-head", "int8"), "w8a8": ("w8a8",), "full": ("fp32",)}
    patch = pytest.MonkeyPatch()
    patch.setattr(goldens, "MOST_NOISE_TOKENS", 2048)
    for name, words in made.items():
        flags = ("--method", "none", "--scheme", *words)
        done("quantize", "demo-llama", *flags, "-o", folder / name)
    for name in ("w4a8", "full"):
        done("profile", folder / name, "--runtime", "torch", *QUICK, "-o", folder / f"{name}.json")
    patch.undo()
    return folder


def _run(place: Path, name: str) -> Run:
    return results.load(place / f"{name}.json")


def test_a_checkpoint_is_measured_and_says_where_it_ran(place: Path) -> None:
    run = _run(place, "w4a8")
    assert (run.artifact.scheme_ran, run.artifact.runtime["kind"]) == ("w4a8", "torch")
    assert run.device.kind != "cuda"
    assert run.environment["torch"] == torch.__version__
    assert run.environment["gpu"] is None
    assert run.environment["session"]["operators"] == "reference"
    assert run.probe == {
        "operator": "int8 product, reference",
        "exact": True,
        "largest_error": 0,
        "graph": manifest.TORCH_WEIGHTS,
    }
    assert f"torch {torch.__version__} on a CPU, operators: reference" in render(run)
    assert run.artifact.kv_bytes_per_token == bounds.card_of(run).kv_bytes_per_token
    assert not bounds.card_of(run).on_gpu
    assert "torch_device" not in (run.options or {})


def test_its_bundle_is_made_once_and_only_of_this_checkpoint(place: Path) -> None:
    before = manifest.sha256(place / "w4a8-torch" / "bundle.json")
    said: list[str] = []
    found = exported.bundle_of(place / "w4a8", place, lambda *_: None, said.append)
    assert found == place / "w4a8-torch"
    assert "taken as it is" in said[0]
    assert manifest.sha256(found / "bundle.json") == before
    other = place / "other" / "w4a8"
    other.mkdir(parents=True)
    (other / "checkpoint.json").write_text("{}")
    with pytest.raises(UsageError, match=r"w4a8-torch is in the way: it is not .*other/w4a8"):
        exported.bundle_of(other, place, lambda *_: None, said.append)


def test_runs_are_compared_with_full_precision_in_the_same_runtime(place: Path) -> None:
    before, after = (sides.side(_run(place, name)) for name in ("full", "w4a8"))
    assert sides.precision(before.run) == "float16"
    found = compare.compare(before, after)
    assert found.score.value is not None
    words = ("-b", place / "full.json", "-c", place / "w4a8.json")
    assert f"torch {torch.__version__} on a CPU" in done("compare", *words).output
    assert compared.what_ran(after.run)["runtime"] == f"torch {torch.__version__} on a CPU"


def _on_gpu(run: Run, bytes_by_kind: Mapping[str, int]) -> Run:
    """The same as of a GPU: what a run there would say of itself."""
    memory = {phase: {**kinds, **bytes_by_kind} for phase, kinds in run.memory.items()}
    return dataclasses.replace(
        run,
        device=results.Device(GPU, "cuda", {}),
        environment={**run.environment, "gpu": GPU},
        memory=memory,
        device_memory={"weights": 5, "kv": 3, "rest": 2},
    )


def test_on_a_gpu_torchs_own_peak_is_scored(place: Path) -> None:
    peaks = ({"torch_peak_allocated": 900}, {"torch_peak_allocated": 300})
    names = ("full", "w4a8")
    runs = [_on_gpu(_run(place, n), kinds) for n, kinds in zip(names, peaks, strict=True)]
    before, after = map(sides.side, runs)
    kind, phases = quantities.scored_memory(before, after)
    assert (kind, phases) == ("torch_peak_allocated", ("prefill", "decode"))
    found, _ = quantities.peak(before, after)
    assert (found.baseline, found.candidate) == (((900,),), ((300,),))
    assert bounds.card_of(after.run).on_gpu
    text = render(after.run)
    assert "on a GPU" in text
    assert "keys and values  " in text
    assert "threads" not in text
    here, there = sides.side(_run(place, "w4a8")), after
    assert quantities.scored_memory(here, there)[0] is None  # a process's peak, and a GPU's


def test_an_evaluation_of_a_checkpoint_joins_its_bundles_runs(place: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs slmq-edge[eval]")
    asked = ("--tasks", "builtin", "--limit", "6")
    done("eval", place / "w4a8", "--runtime", "torch", *asked, "-o", place / "w4a8-eval.json")
    done("eval", "demo-llama", "--runtime", "torch", *asked, "-o", place / "model-eval.json")
    found = [evaluations.load(place / f"{name}-eval.json") for name in ("model", "w4a8")]
    model, bundle = (dict(one.identity) for one in found)
    assert (model["runtime"], model["dtype"]) == ("torch", "float32")
    assert (bundle["runtime"], bundle["scheme"]) == ("torch", "w4a8")
    assert bundle["versions"]["torch"] == torch.__version__
    assert (
        "builtin_questions"
        in done("gap", place / "model-eval.json", place / "w4a8-eval.json").output
    )
    study = Study(
        runs=(Filed("w4a8.json", _run(place, "w4a8")),),
        evaluations=tuple(Filed(name, one) for name, one in zip("ab", found, strict=True)),
        manifests=(),
        analyses=(),
    )
    by_runtime = {one.runtime: one for one in subjects(study)}
    assert set(by_runtime) == {"transformers", "torch"}
    assert by_runtime["torch"].is_artifact
    assert not by_runtime["transformers"].is_artifact
    assert len(by_runtime["torch"].runs) == len(by_runtime["torch"].evaluations) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("profile", "w8a8"), "is a checkpoint: --runtime torch runs it"),
        (("profile", "w8a8", "--runtime", "ort"), "is a checkpoint: --runtime torch runs it"),
        (("profile", "w8a8", "--runtime", "torch", "--device", "ssh://b"), "on this machine alone"),
        (("profile", "w8a8", "--runtime", "torhc"), "did you mean torch?"),
        (("profile", "w8a8", "--runtime", "torch", "-p", "9999"), "the context holds"),
        (
            ("profile", "w8a8", "--runtime", "torch", "--torch-device", "cuda:99"),
            "device cuda:99: torch",
        ),
        (("eval", "w8a8", "--runtime", "torch", "--torch-device", "gpu"), "unknown torch device"),
        (("profile", "w4a8-torch", "--torch-device", "gpu"), "unknown torch device 'gpu'"),
        (("profile", "w4a8-torch", "--runtime", "ort"), "export the model again with --target ort"),
        (("profile", "w4a8-torch", "--device", "ssh://b.invalid"), "all of slmq-edge is installed"),
        (("eval", "w4a8-torch", "--runtime", "simulated", "-t", "builtin"), "torch runs it"),
        (("eval", "w4a8-torch", "--runtime", "ort"), "--runtime ort does not run"),
        (("eval", "w8a8", "-t", "builtin", "--torch-device", "cuda:9"), "cuda:9: torch sees"),
        (("lint", "w4a8-torch"), "not for TensorRT"),
        (("inspect", "w4a8-torch", "--run"), "is for torch"),
        (("build", "w4a8-torch"), "torch"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    place: Path, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    verb, folder, *words = arguments
    output = ("-o", tmp_path / "x.json") if verb in ("profile", "eval") else ()
    result = typed(verb, place / folder, *words, *output)
    assert isinstance(result.exception, SlmqError), result.output
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert [*tmp_path.iterdir()] == []  # nothing was made before it was refused


def _place(place: Path, device: str | None = None) -> runtimes.Place:
    folder = place / "w4a8-torch"
    return runtimes.Place(folder, manifest.read_bundle(folder), 1, None, device)


def test_integers_that_are_not_exact_are_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reference.products

    def saturating(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Sums that stop at what 16 bits hold."""
        return real(x, w).clamp(-(2**15), 2**15)

    monkeypatch.setattr(reference, "products", saturating)
    found = runtimes.of(_place(place)).probe(_place(place))
    assert found is not None
    assert not found.exact
    with pytest.raises(SlmqError, match=r"int8 product, reference is not exact here.*torch"):
        probe.refuse_inexact(found, allowed=False)
    probe.refuse_inexact(found, allowed=True)


def test_full_precision_has_no_integers_to_probe(place: Path) -> None:
    folder = place / "full-torch"
    found = runtimes.Place(folder, manifest.read_bundle(folder), 1)
    assert runtimes.of(found).probe(found) is None


def fake_torch(gpus: int) -> Any:
    found = SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus)
    return SimpleNamespace(cuda=found, version=SimpleNamespace(cuda="12.4"), __version__="2.9.0")


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        (None, 0, "cpu"),
        (None, 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_the_device_is_the_one_asked_for_or_a_gpu_where_there_is_one(
    asked: str | None, gpus: int, expected: str
) -> None:
    assert on_torch.chosen(asked, fake_torch(gpus)) == expected


@pytest.mark.parametrize(
    ("asked", "gpus", "error", "said"),
    [
        ("cuda", 0, NotFound, "sees no GPU here"),
        ("cuda:1", 1, NotFound, "sees 1 GPU here"),
        ("cuda:2", 2, NotFound, "sees 2 GPUs here"),
        ("cudda", 1, UsageError, "did you mean cuda"),
        ("cuda:", 1, UsageError, "unknown torch device"),
        ("cpu:0", 1, UsageError, "unknown torch device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    asked: str, gpus: int, error: type[SlmqError], said: str
) -> None:
    with pytest.raises(error, match=said):
        on_torch.chosen(asked, fake_torch(gpus))


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
    [
        (None, {}, {}),
        ("cuda", {}, {}),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "3"}, {}),
        ("cuda:1", {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "2,5"}, {"CUDA_VISIBLE_DEVICES": "5"}),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "5"}, {}),  # to be refused, not another's
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": ""}, {}),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-aa11"}, {"CUDA_VISIBLE_DEVICES": "GPU-aa11"}),
    ],
)
def test_a_job_on_one_of_several_gpus_sees_that_one_alone(
    device: str | None,
    environment: dict[str, str],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert on_torch.visible(device, environment) == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    work = measure.Workload(8, 4, 1, 0, 1)
    asked = job.Job(tmp_path, tmp_path / "j.jsonl", work, "cuda", False, torch_device=device)
    task, variables = machines._on_its_gpu(asked)
    assert task.torch_device == ("cuda" if expected else device)
    assert {name: variables.get(name) for name in expected} == expected
    assert job.read(_written(asked, tmp_path / "job.json")) == asked


def _written(asked: job.Job, path: Path) -> Path:
    path.write_text(json.dumps(asked.document()))
    return path


def test_a_gpu_is_described_without_computing_on_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeNvml([FakeGpu(), FakeGpu(uuid="GPU-2222")]).library()
    seen: list[Mapping[str, str]] = []

    class Told(cuda.Cuda):
        def __init__(self, environment: Mapping[str, str]) -> None:
            seen.append(environment)
            super().__init__("/", library, environment)

    monkeypatch.setattr(on_torch, "Cuda", Told)
    monkeypatch.setattr(on_torch, "module", lambda: fake_torch(2))
    found = runtimes.of(_place(place)).check(_place(place, "cuda:1"))
    assert found["gpu"] == GPU
    assert (found["torch"], found["cuda"], found["driver"]) == ("2.9.0", "12.4", "550.54.15")
    assert seen[0]["CUDA_VISIBLE_DEVICES"] == "1"
    device, _ = machines.of_facts(devices.load("generic-x86_64"), found["gpu"])
    assert device.kind == "cuda"
    assert "gpu" not in runtimes.of(_place(place)).check(_place(place, "cpu"))


def test_other_bundles_take_no_torch_device(place: Path) -> None:
    document = manifest.read_bundle(place / "w4a8-torch")
    other = {**document, "runtime": {**document["runtime"], "kind": "ort"}}
    with pytest.raises(UsageError, match="--torch-device is of bundles for torch"):
        runtimes.of(runtimes.Place(place, other, 1, None, "cpu"))


def test_the_runner_alone_does_not_run_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board is sent the runner, and no modules of torch."""
    monkeypatch.setattr(on_torch, "RUNTIME", "slmq_edge.no_such_package")
    with pytest.raises(Unsupported, match="all of slmq-edge is installed"):
        runtimes.of(_place(place)).check(_place(place))
    with pytest.raises(Unsupported, match="board: a bundle for torch runs where"):
        require(Target("board", "ssh", "b"), {"packages": {"torch": "2.9"}}, _place(place))


def test_without_torch_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"slmq-edge\[quantize\]"):
        runtimes.of(_place(place)).check(_place(place))


PLAN = """
[matrix]
models = ["demo-llama"]
methods = ["none"]
schemes = ["w8a8"]
targets = ["ort", "torch"]
devices = ["local", "ssh://me@board"]
[profile]
torch_device = "cuda"
[[except]]
scheme = "fp32"
"""


def test_a_plan_says_the_device_to_bundles_for_torch_alone(tmp_path: Path) -> None:
    found = cells(tmp_path, PLAN)
    here = {name: cell for name, cell in found.items() if name.endswith("-local")}
    (ort,) = (cell for name, cell in here.items() if "-ort-" in name)
    (on_gpu,) = (cell for name, cell in here.items() if "-torch-" in name)
    assert "--torch-device" not in ort.command
    assert not ort.gpu
    assert on_gpu.command[on_gpu.command.index("--torch-device") + 1] == "cuda"
    assert on_gpu.gpu
    whole = matrix.cells_of(read(tmp_path, PLAN), None)
    refused = feasible.check(whole).refused
    assert [name for name in refused if "torch" in name] == [
        name
        for name in found
        if "-torch-" in name and not name.endswith("-local") and name.startswith("profile")
    ]
