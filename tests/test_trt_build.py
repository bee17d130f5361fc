"""From a bundle to an engine, with a TensorRT that is not there: API calls, checks, refusals."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.runner import manifest
from slmq_edge.runner.trt import api, cache, memory, outcome
from tests import fake_builder, trt_bundle
from tests.trt_bench import NAMES, Bench

RELEASES = ("8.5.2", "8.6.1", "10.0.1", "10.3.0", "10.16.2", "11.4.1")
MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


# --- what TensorRT is asked, release by release


@pytest.mark.parametrize("release", RELEASES)
def test_an_engine_is_built_on_every_release(bench: Bench, release: str) -> None:
    fake = bench.use(release)
    engine = bench.build(workspace_mib=256)
    asked = json.loads(engine.plan.read_bytes())
    assert asked["workspace"] == 256 * MIB
    assert asked["graph"] == str(bench.bundle / manifest.TRT_GRAPH)
    assert asked["cleared"] == ["TF32"]
    weak = release.startswith("8")
    assert asked["flags"] == (["FP16", "INT8"] if weak else [])
    strong = {"8": 1, "10": 2, "11": 0}[release.split(".")[0]]  # EXPLICIT_BATCH, STRONGLY_TYPED
    assert asked["creation"] == strong
    assert asked["features"] == (["PROFILE_SHARING_0806"] if release == "8.6.1" else [])
    assert [profile["input_ids"] for profile in asked["profiles"]] == [
        [[1, 1], [1, 128], [1, 512]],
        [[1, 1], [1, 1], [1, 1]],
    ]
    assert asked["profiles"][1]["past_key_values.0.key"][2] == [1, 2, 512, 4]
    assert asked["profiles"][0]["logits_positions"] == [[1], [1], [64]]
    assert engine.sidecar["identity"]["tensorrt"] == str(fake.release)
    assert engine.sidecar["identity"]["precision"] == ("fp16+int8" if weak else "")
    assert engine.sidecar["activation_bytes"] == 4096


def test_the_sidecar_says_what_came_of_it(bench: Bench) -> None:
    sidecar = bench.build().sidecar
    assert sidecar["int8"] == list(NAMES)
    assert sidecar["int8_missing"] == []
    assert sidecar["scheme_ran"] == "w8a8"
    assert sidecar["int8_gemm_share"] == pytest.approx(192 / 256)
    assert sidecar["profiles"] == ["prefill", "decode"]
    assert sidecar["layers"] == {"prefill": 4, "decode": 4}
    assert sidecar["products"]["decode"] == {"int8": 4, "float": 0, "untold": 0}
    assert sidecar["builder"] == "python"
    assert sidecar["golden"]["mean_kl"] < 1e-4
    assert sidecar["golden"]["greedy_compared"] == 10
    on_disk = json.loads((bench.home / f"{sidecar['key']}.json").read_text(encoding="utf-8"))
    assert on_disk == sidecar


def test_only_whole_files_are_left(bench: Bench) -> None:
    key = bench.build().key
    assert bench.names() == {
        f"{key}.plan",
        f"{key}.json",
        f"{key}.layers.json",
        "timing.cache",
    }
    told = json.loads((bench.home / f"{key}.layers.json").read_text(encoding="utf-8"))
    assert set(told) == {"prefill", "decode"}


def test_the_built_engine_is_the_one_that_is_found(bench: Bench) -> None:
    engine = bench.build()
    assert cache.find(bench.bundle, manifest.read_bundle(bench.bundle)) == engine


def test_other_shapes_are_another_engine(bench: Bench) -> None:
    assert bench.build().key != bench.build(context=256).key
    assert len(list(bench.home.glob("*.plan"))) == 2


def test_the_timing_cache_goes_from_build_to_build(bench: Bench) -> None:
    bench.build()
    assert (bench.home / "timing.cache").read_bytes() == b"+timed"
    bench.build(force=True)
    assert bench.fake.asked["timing"] == "+timed"
    bench.fake.refuses_timing = True  # as TensorRT does with another GPU's
    bench.build(force=True)
    assert bench.fake.asked["timing"] == ""
    assert (bench.home / "timing.cache").read_bytes() == b"+timed"


def test_engines_can_be_kept_elsewhere(bench: Bench, tmp_path: Path) -> None:
    engine = bench.build(engines=tmp_path / "disk" / "engines")
    assert engine.plan.parent == tmp_path / "disk" / "engines"
    assert not bench.home.exists()


# --- what became INT8


def _but(*floats: str, profile: int | None = None) -> Callable[[int, Any], str]:
    """Layer information in which some products take floats, in one profile or in all."""

    def text(index: int, names: Any) -> str:
        hit = profile in (None, index)
        kinds = {name: "Half" if hit and name in floats else "Int8" for name in names}
        return json.dumps({"Layers": [fake_builder.product(*pair) for pair in kinds.items()]})

    return text


@pytest.mark.parametrize("profile", [0, 1, None])
def test_a_product_that_is_no_int8_costs_the_label(bench: Bench, profile: int | None) -> None:
    bench.use("10.3.0", text=_but(NAMES[0], profile=profile))
    sidecar = bench.build().sidecar
    assert sidecar["int8_missing"] == [NAMES[0]]
    assert "gemm takes Half" in sidecar["int8_reasons"][NAMES[0]]
    assert sidecar["int8"] == list(NAMES[1:])
    assert sidecar["scheme_ran"] == "mixed"
    assert sidecar["int8_gemm_share"] == pytest.approx(128 / 256)


def test_when_none_is_int8_the_label_says_so(bench: Bench) -> None:
    bench.use("10.3.0", text=_but(*NAMES))
    assert bench.build().sidecar["scheme_ran"] == "w8a16"


@pytest.mark.parametrize(
    ("macs", "scheme"), [((950, 50), "w8a8"), ((949, 51), "mixed"), ((50, 950), "w8a16")]
)
def test_a_scheme_names_what_95_percent_run_by(macs: tuple[int, int], scheme: str) -> None:
    from slmq_edge.runner.trt.sidecar import scheme_ran

    rows = [
        {"name": name, "part": "linear", "scheme": "w8a8", "integer": True, "macs_per_token": n}
        for name, n in zip("ab", macs, strict=True)
    ]
    rows.append(
        {"name": "h", "part": "head", "scheme": "w8a8", "integer": True, "macs_per_token": 10**9}
    )
    bundle = {"lowering": {"linears": rows}}
    assert scheme_ran(bundle, {"b.matmul": "why"}).scheme == scheme
    assert scheme_ran(bundle, {}) == ("w8a8", 1.0)


def test_an_opaque_engine_has_no_label(bench: Bench) -> None:
    text = (Path(__file__).parent / "data" / "trt" / "8.6-foreign.json").read_text()
    bench.use("8.6.1", text=lambda index, names: text)
    sidecar = bench.build().sidecar
    assert sidecar["int8"] == []
    assert sidecar["scheme_ran"] == "w8a16"


# --- refusals, before anything is built


def test_no_workspace_is_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="--workspace is 0: it must be at least 1 MiB"):
        bench.build(workspace_mib=0)


def test_another_kind_of_bundle_is_refused(bench: Bench) -> None:
    path = bench.bundle / "bundle.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["runtime"]["kind"] = "ort"
    document["files"]["ort/model.onnx"] = document["files"]["trt/model.onnx"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(Unsupported, match="slmq-edge export --target trt"):
        bench.build()


def test_a_release_that_is_too_old_for_the_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, monkeypatch)
    bench.use("8.5.2")
    bench.bundle = trt_bundle.write(tmp_path / "int4", trt_bundle.recipe(tensorrt="10.0"))
    with pytest.raises(Unsupported, match=r"needs TensorRT 10\.0 or later, here is 8\.5\.2"):
        bench.build()


def test_changed_files_are_refused(bench: Bench) -> None:
    (bench.bundle / manifest.TRT_GRAPH).write_bytes(b"other!!")
    with pytest.raises(SlmqError, match=r"trt/model\.onnx has changed"):
        bench.build()
    assert bench.names() == set()


def test_a_folder_that_cannot_be_written_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SlmqError, match=r"cannot write .*; --engines names another folder"):
        bench.build(engines=tmp_path / "file" / "engines")


def test_a_broken_tensorrt_is_one_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open\n shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(SlmqError, match=r"cannot be loaded: libnvinfer\.so\.10: cannot open share"):
        bench.build()


def test_neither_tensorrt_nor_trtexec(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotFound, match=r"no trtexec on PATH.*; and this Python has no tensorrt"):
        bench.build()


# --- failures in the middle


@pytest.mark.parametrize(
    ("release", "message"),
    [
        ("8.5.2", "TensorRT 8.5.2 refuses Range /pos/Range: no way (and 1 more)"),
        ("10.3.0", "TensorRT 10.3.0 refuses MatMulInteger mmi: no way (and 1 more)"),
    ],
)
def test_the_parsers_errors_name_the_node(bench: Bench, release: str, message: str) -> None:
    fake = bench.use(release)
    error = types.SimpleNamespace(desc="no\n  way", name="mmi", operator="MatMulInteger")
    fake.errors = [error, error]
    fake.messages = [(1, 'While parsing node number 7 [Range -> "/pos/Range"]:')]
    with pytest.raises(Unsupported) as caught:
        bench.build()
    assert str(caught.value) == message
    assert bench.names() == set()


def test_an_operator_that_is_not_known_is_not_called_false(bench: Bench) -> None:
    """TensorRT's parser gives ``false`` as the reason."""
    error = types.SimpleNamespace(desc="false", name="dql", operator="DynamicQuantizeLinear")
    bench.fake.errors = [error]
    with pytest.raises(Unsupported, match=r"DynamicQuantizeLinear dql: not supported$"):
        bench.build()


def test_an_input_that_tensorrt_ignores_is_an_error(bench: Bench) -> None:
    bench.fake.messages = [(2, "ModelImporter.cpp:459: Unused Input: position_ids")]
    with pytest.raises(Unsupported, match="ignores the input position_ids"):
        bench.build()


def test_a_build_that_fails_says_what_tensorrt_said(bench: Bench) -> None:
    bench.fake.fails = True
    with pytest.raises(SlmqError) as caught:
        bench.build()
    assert str(caught.value) == (
        "TensorRT 10.3.0 built no engine: Error Code 10: no implementation for node x"
    )
    assert bench.names() == set()


def test_a_gpu_that_tensorrt_cannot_use_is_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def builder(logger: Any) -> Any:
        logger.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(bench.fake.module, "Builder", builder)
    with pytest.raises(SlmqError, match="has no builder here: CUDA initialization failure"):
        bench.build()


def test_a_bug_of_ours_keeps_its_traceback(bench: Bench) -> None:
    def bug(config: Any) -> None:
        raise ZeroDivisionError

    bench.fake.during_build = bug
    with pytest.raises(ZeroDivisionError):
        bench.build()


def test_ctrl_c_cancels_the_build_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor's answer to TensorRT becomes no; that of the main thread is KeyboardInterrupt."""
    started, answers = threading.Event(), []

    def long(config: Any) -> None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 1000)
        for step in range(1000):
            answers.append(monitor.step_complete("Building", step))
            started.set()
            if not answers[-1]:
                return
            threading.Event().wait(0.01)
        raise AssertionError("nobody cancelled")

    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if timeout != api.GRACE:
            started.wait(5)
            raise KeyboardInterrupt
        join(thread, timeout)

    bench.fake.during_build = long
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.build()
    assert answers[0] is True
    assert answers[-1] is False
    assert bench.names() == set()


def test_progress_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(config: Any) -> None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 4)
        monitor.phase_start("Tactics", "Building engine", 50)
        monitor.step_complete("Tactics", 11)
        threading.Event().wait(0.4)
        monitor.phase_finish("Tactics")

    monkeypatch.setattr(api, "LONG_AGO", 0.1)
    bench.fake.during_build = slow
    bench.build()
    assert "building for TensorRT 10.3.0 on Orin (sm_87)" in bench.told
    assert any("Building engine 0/4, Tactics 12/50" in text for text in bench.told)


# --- memory


def test_a_build_asks_first_and_force_overrules(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: memory.Free(1, 0, 1, True))
    with pytest.raises(SlmqError, match="too little memory to build here"):
        bench.build()
    assert bench.fake.asked == {}  # TensorRT was not even started
    assert bench.build(force=True).sidecar["scheme_ran"] == "w8a8"


# --- the table


def test_the_table_of_a_build(bench: Bench) -> None:
    bench.use("10.3.0", text=_but(NAMES[0], profile=1))
    text = outcome.render(bench.build())
    assert "3 of 4; not seen as int8: model.layers.0.self_attn.q_proj.matmul (decode: " in text
    assert "mixed, 50.0 % of the multiply-adds in int8" in text
    assert "TensorRT 10.3.0, Orin (sm_87), CUDA 12.6" in text
    assert "golden check   mean KL " in text
