"""The verbs on a bundle for TensorRT, in real child processes, on `fake_tensorrt`'s engines."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from typer.testing import CliRunner

from slmq_edge import assembly, results
from slmq_edge.cli import app
from slmq_edge.compare import DEVICE, compare
from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.reports.compare import terminal
from slmq_edge.reports.profile import render
from slmq_edge.results import Run
from slmq_edge.runner import environment, journal, manifest, resume, runtimes
from slmq_edge.runner.measure import Workload
from slmq_edge.runner.runtimes import Place
from slmq_edge.tracks import inference
from tests import fake_tensorrt, toy_graph, toy_trt
from tests.fake_tensorrt import Cudart
from tests.test_inference import Listener

WORK = Workload(prompt_tokens=8, new_tokens=7, repetitions=3, warmups=1, threads=1)
ROOT = Path(__file__).resolve().parents[1]
SITE = (
    "import os\n"
    "if 'FAKE_TENSORRT' in os.environ:\n"
    "    from tests import fake_tensorrt\n"
    "    fake_tensorrt.install(os.environ['FAKE_TENSORRT'])\n"
)


def installed(patch: pytest.MonkeyPatch, site: Path) -> Cudart:
    """The fakes, here and in every child."""
    (site / "sitecustomize.py").write_text(SITE)
    patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    patch.setenv("FAKE_TENSORRT", "10.3.0")
    return fake_tensorrt.install("10.3.0", patch=patch)


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Cudart:
    return installed(monkeypatch, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_trt.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def bundle(made: Path, tmp_path: Path, fake: Cudart) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "bundle"))
    toy_trt.write_engine(folder)
    return folder


@pytest.fixture(scope="module")
def usual(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the bundle, with an engine as it should be."""
    home = tmp_path_factory.mktemp("usual")
    with pytest.MonkeyPatch.context() as patch:
        installed(patch, tmp_path_factory.mktemp("site"))
        toy_trt.write_engine(made, home / "engines")
        output = home / "run.json"
        return inference.profile(
            made, WORK, output, Listener(), inference.Options(engines=home / "engines")
        )


def measured(bundle: Path, listener: Any = None, **options: Any) -> Run:
    output = bundle.parent / "run.json"
    asked = inference.Options(**options)
    return inference.profile(bundle, WORK, output, listener or Listener(), asked, force=True)


# --- profile


def test_a_bundle_is_measured_on_its_engine(bundle: Path) -> None:
    listener = Listener()
    run = measured(bundle, listener, runtime="trt")
    assert [event["event"] for event in listener.events] == (
        ["begin", "probe", "golden", "load", "warmup"] + ["repetition"] * 3 + ["end"]
    )
    assert results.load(bundle.parent / "run.json") == run
    assert (run.device.name, run.device.kind) == ("Fake Orin", "cuda")
    key = next((bundle / "engines").glob("*.plan")).stem
    for name, value in (("tensorrt", "10.3.0"), ("gpu", "Fake Orin"), ("cuda", "12.6")):
        assert run.environment[name] == value
    assert run.environment["engine"] == run.environment["session"]["engine"] == key
    assert run.environment["session"]["cuda_graph"] == "replayed"
    assert run.golden["positions_compared"] == 20
    assert run.probe is None
    assert run.artifact.scheme_ran == "W8A8"
    size = (bundle / manifest.TRT_GRAPH).stat().st_size
    assert run.artifact.weights_bytes == size
    assert run.device_memory is not None
    assert list(run.device_memory) == ["engine", "activations", "kv", "io", "rest"]
    assert run.device_memory["kv"] == 2 * 64 * run.artifact.kv_bytes_per_token


def test_what_is_printed_of_it(usual: Run) -> None:
    text = " ".join(render(usual).split())
    assert text.startswith("toy on Fake Orin ")
    assert "Memory on the device, at most engine (weights, kernels) " in text
    assert "keys and values, twice 8.19 kB inputs and outputs " in text
    assert "int8 products 1 of 1 in engine " in text
    assert "CUDA graph replayed" in text
    assert " threads " not in text  # TensorRT has none of ours


def test_an_engine_that_lost_a_product_loses_its_label(bundle: Path) -> None:
    toy_trt.write_engine(
        bundle, int8_missing=[toy_trt.INT8[0]], scheme_ran="w8a16", int8_gemm_share=0.25
    )
    run = measured(bundle)
    assert (run.artifact.scheme_ran, run.artifact.int8_gemm_share) == ("w8a16", 0.25)
    assert run.caveats[0].code == "int8-missing"
    assert "1 of the 1 products" in run.caveats[0].advice
    assert "int8 products  0 of 1" in render(run)


def test_an_engine_that_is_not_captured_says_so(bundle: Path) -> None:
    toy_trt.write_engine(bundle, capturable=False)
    run = measured(bundle)
    assert "no-cuda-graph" in [caveat.code for caveat in run.caveats]
    assert "the stream is capturing" in render(run)


def test_an_interrupted_run_is_resumed_on_the_same_engine(bundle: Path) -> None:
    def kill(events: list[Mapping[str, Any]]) -> None:
        os.kill(events[0]["pid"], signal.SIGKILL)

    long = WORK._replace(new_tokens=100, repetitions=30)
    once = inference.Options(again=False)  # a busy machine is not steady
    output = bundle.parent / "run.json"
    with pytest.raises(SlmqError, match="ended by SIGKILL"):
        inference.profile(bundle, long, output, Listener(at=3, act=kill), once)
    kept = journal.read(bundle.parent / "run.journal.jsonl")
    log = (bundle.parent / "run.journal.jsonl").read_bytes()
    taken = sum(event["event"] == "repetition" for event in kept)
    assert 3 <= taken < 30
    listener = Listener()
    run = inference.profile(bundle, long, output, listener, once)
    assert f"resuming: {taken} of 30" in listener.notes()
    assert listener.count("repetition") == 30 - taken
    assert run.device_memory is not None

    (bundle.parent / "run.journal.jsonl").write_bytes(log)
    toy_trt.write_engine(bundle, bundle.parent / "other", built_at=1.0)
    other = json.loads(json.dumps(dict(kept[0]["environment"])))
    here = environment.capture(of_runtime={**other, "engine": "another"})
    asked = kept[0]["bundle_sha256"], long.asked(), False, environment.identity(here)
    assert "(engine)" in str(resume.other(kept, *asked))


def test_a_journal_that_ends_early_keeps_what_the_engine_is(bundle: Path) -> None:
    """Killed behind the last repetition: there is no event ``end``."""
    listener = Listener()
    toy_trt.write_engine(
        bundle, int8_missing=[toy_trt.INT8[0]], scheme_ran="mixed", int8_gemm_share=0.5
    )
    measured(bundle, listener)
    events = [event for event in listener.events if event["event"] != "end"]
    device = results.Device("x", "cuda", {})
    run = assembly.assemble(events, device, manifest.read_bundle(bundle))
    assert run.artifact.scheme_ran == "mixed"
    assert run.environment["session"]["cuda_graph"] is None


def test_engines_may_lie_elsewhere(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "engines", tmp_path / "kept")
    with pytest.raises(NotFound, match=r"no engine for .*: slmq-edge build"):
        measured(bundle)
    assert measured(bundle, engines=tmp_path / "kept").device_memory


# --- refusals, in second 0


def _refused(bundle: Path, message: str, work: Workload = WORK, **options: Any) -> Listener:
    listener, output = Listener(), bundle.parent / "never" / "run.json"
    with pytest.raises(SlmqError, match=message):
        inference.profile(bundle, work, output, listener, inference.Options(**options))
    assert listener.count("load") == 0
    return listener


def test_a_machine_without_tensorrt_or_gpu_is_refused_first(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Cudart()
    nothing.devices = 0
    fake_tensorrt.install(cuda=nothing, patch=monkeypatch)
    assert _refused(bundle, "no GPU that CUDA can use").events == []
    fake_tensorrt.install(None, patch=monkeypatch)
    assert _refused(bundle, "tensorrt").events == []
    assert not (bundle.parent / "never").exists()


def test_an_engine_built_elsewhere_is_refused_first(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install("10.16.2", patch=monkeypatch)
    listener = _refused(bundle, r"built with TensorRT 10\.3\.0; .*10\.16\.2: slmq-edge build")
    assert listener.events == []


def test_no_speed_of_wrong_numbers(tmp_path: Path, fake: Cudart) -> None:
    bundle = toy_trt.write_bundle(tmp_path / "bundle", simulated=1)
    toy_trt.write_engine(bundle)
    listener = _refused(bundle, "golden check failed: mean KL")
    assert listener.count("probe") == 1


def test_a_text_longer_than_the_engine_takes_is_refused_before_the_check(bundle: Path) -> None:
    work = WORK._replace(prompt_tokens=toy_trt.ROOM)
    listener = _refused(bundle, r"make 137: this engine holds 130; .*--context 137", work)
    assert listener.count("golden") == 0


def test_the_runtime_asked_for_must_be_the_bundles(bundle: Path, tmp_path: Path) -> None:
    _refused(bundle, r"is a bundle for trt, which --runtime ort does not run", runtime="ort")
    _refused(bundle, r"unknown runtime 'tr' \(did you mean trt\?\); known: ort, trt", runtime="tr")
    on_cpu = toy_graph.write_bundle(tmp_path / "cpu")
    _refused(on_cpu, r"export the model again with --target trt", runtime="trt")
    _refused(on_cpu, r"--engines is of bundles for TensorRT", engines=tmp_path)


def test_a_kind_that_is_not_known_is_refused(bundle: Path) -> None:
    document = {**manifest.read_bundle(bundle), "runtime": {"kind": "tflite"}}
    with pytest.raises(UsageError, match=r"unknown runtime 'tflite'.*ort, ort-cuda, trt"):
        runtimes.of(Place(bundle, document, 1))


def test_asking_leaves_nothing_on_the_device(bundle: Path, fake: Cudart) -> None:
    place = Place(bundle, manifest.read_bundle(bundle), 1)
    fake.cudaMalloc({}, 1000)  # of torch, say, in the same process
    runtimes.of(place).check(place)
    assert not fake.has_context
    assert fake.bytes() == 1000


# --- comparisons


def test_device_memory_is_compared_with_its_like(usual: Run) -> None:
    assert usual.device_memory is not None
    larger = {name: 2 * count for name, count in usual.device_memory.items()}
    twice = dataclasses.replace(usual, device_memory=larger)
    compared = compare(twice, usual)
    assert compared.score.memory == f"largest {DEVICE}, all parts that both tell of"
    assert compared.row("peak_memory").ratio == 2.0
    assert compared.row("device_memory.kv").ratio == 2.0
    assert compared.row("memory.decode.cpu_peak_rss").ratio == 1.0
    assert "device: engine" in terminal(compared)
    assert "runtime trt 10.3.0" in " ".join(terminal(compared).split())


def test_only_parts_that_both_tell_of_are_compared(usual: Run) -> None:
    """A board whose GPU shares the machine's memory has no rest."""
    assert usual.device_memory is not None
    parts = {name: 3 * count for name, count in usual.device_memory.items() if name != "rest"}
    more = {**usual.device_memory, "rest": 10**9}
    work = dataclasses.replace(usual.workload, threads=9)
    compared = compare(
        dataclasses.replace(usual, device_memory=parts, workload=work),
        dataclasses.replace(usual, device_memory=more),
    )
    assert compared.row("peak_memory").ratio == 3.0
    assert compared.row("device_memory.rest").ratio is None
    assert not [note for note in compared.notes if "threads" in note]


def test_device_memory_is_never_compared_with_the_process(usual: Run, tmp_path: Path) -> None:
    on_gpu = usual
    cpu = toy_graph.write_bundle(tmp_path / "cpu")
    on_cpu = inference.profile(cpu, WORK, tmp_path / "cpu.json", Listener())
    assert on_cpu.device_memory is None
    assert on_cpu.environment["tensorrt"] is None
    assert "session" not in on_cpu.environment
    for pair, side in (((on_cpu, on_gpu), "candidate"), ((on_gpu, on_cpu), "baseline")):
        compared = compare(*pair)
        memory = [row for row in compared.rows if "memory" in row.key]
        assert len(memory) > 8
        assert {row.ratio for row in memory} == {None}
        assert f"the {side} has its model in a device's memory" in str(
            compared.row("peak_memory").reason
        )
        assert compared.score.value is None
        assert not [note for note in compared.notes if "tensorrt" in note or "gpu" in note]


def test_runs_without_device_memory_still_load(usual: Run) -> None:
    document = json.loads(results.to_json(usual))
    del document["device_memory"]
    assert results.from_document(document, "old").device_memory is None
    document["device_memory"] = {"kv": "much"}
    with pytest.raises(SlmqError, match=r"device_memory\.kv is str"):
        results.from_document(document, "wrong")


# --- generate


def _with_tokenizer(bundle: Path) -> Path:
    """Word n is token n."""
    words = {f"w{index}": index for index in range(toy_graph.VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(bundle / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (bundle / "tokenizer_config.json").write_text(json.dumps(config))
    document = json.loads((bundle / "bundle.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = bundle / name
        entry = {"bytes": path.stat().st_size, "sha256": manifest.sha256(path)}
        document["files"][name] = entry
    document["anatomy"] = {"vocab": toy_graph.VOCAB}
    (bundle / "bundle.json").write_text(json.dumps(document))
    return bundle


def _expected(tokens: list[int], count: int) -> list[int]:
    text = list(tokens)
    for _ in range(count):
        text.append(int(toy_graph.logits(toy_graph.weights(), np.array(text))[-1].argmax()))
    return text[len(tokens) :]


def test_text_is_generated_by_the_engine(bundle: Path) -> None:
    _with_tokenizer(bundle)
    arguments = ["generate", str(bundle), "--prompt", "w3 w1 w4 w1 w5 w9 w2 w6", "-n", "20"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    expected = _expected([3, 1, 4, 1, 5, 9, 2, 6], 20)
    assert done.stdout.split() == [f"w{token}" for token in expected]
    assert "20 new tokens" in done.stderr


def test_text_without_an_engine_is_refused_at_once(bundle: Path) -> None:
    shutil.rmtree(bundle / "engines")
    done = CliRunner().invoke(app, ["generate", str(bundle), "--prompt", "w1"])
    assert isinstance(done.exception, NotFound)
    assert "slmq-edge build" in str(done.exception)  # and not that there is no tokenizer


def test_text_is_cut_to_what_the_engine_holds(bundle: Path) -> None:
    _with_tokenizer(bundle)
    done = CliRunner().invoke(app, ["generate", str(bundle), "--prompt", "w1 w2", "-n", "200"])
    assert done.exit_code == 0, done.output
    assert (
        f"--max-new-tokens 200 is cut to {toy_trt.ROOM - 2}: the context holds 130" in done.stderr
    )
    assert len(done.stdout.split()) == toy_trt.ROOM - 2


def test_the_papers_pass_is_one_of_an_engine_that_takes_it_whole(bundle: Path) -> None:
    """Logits of as many positions as were built for; a prompt in pieces is refused."""
    paper = WORK._replace(prompt_tokens=128, new_tokens=2, protocol="paper")
    output = bundle.parent / "run.json"
    with pytest.raises(UsageError, match=r"engine takes 6 at once; .*--prompt 128"):
        inference.profile(bundle, paper, output, Listener())
    shutil.rmtree(bundle / "engines")
    whole = [toy_trt.profile((1, 128), (1, toy_trt.KEPT)), toy_trt.PROFILES[1]]
    toy_trt.write_engine(bundle, profiles=whole)
    run = inference.profile(bundle, paper, output, Listener())
    assert run.environment["forward_logits"] == toy_trt.KEPT
    assert len(run.series["forward_seconds"].values) == 100
