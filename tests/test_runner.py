"""On the device: files, integers and golden prompts are checked, then time is taken."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.profiles.fake import Fake, FakeClock
from slmq_edge.runner import golden, job, manifest, measure, ort, probe, windows
from slmq_edge.runner.greedy import Greedy
from slmq_edge.runner.measure import Workload
from tests import toy_graph

BOUNDS = golden.Limits(kl_limit=1e-4, perplexity_limit=1e-3, logit_noise=1e-4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def session(bundle: Path) -> ort.Session:
    return ort.open_bundle(bundle, manifest.read_bundle(bundle), threads=1)


# --- the session


def test_prefill_and_steps_compute_the_model(session: ort.Session) -> None:
    tokens = np.arange(9, dtype=np.int64) * 5 % toy_graph.VOCAB
    expected = toy_graph.logits(toy_graph.weights(), tokens)
    whole, _ = session.prefill(tokens[None])
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole[0], expected, atol=1e-4)
    last, cache = session.prefill(tokens[None, :4], keep=1)
    assert last.shape == (1, 1, toy_graph.VOCAB)
    np.testing.assert_allclose(last[0, 0], expected[3], atol=1e-4)
    for position in range(4, 9):
        logits, cache = session.step(tokens[None, position : position + 1], cache)
        np.testing.assert_allclose(logits[0, 0], expected[position], atol=1e-4)
    assert cache.length == 9


def test_prefill_takes_batches(session: ort.Session) -> None:
    tokens = np.arange(12, dtype=np.int64).reshape(3, 4)
    logits, cache = session.prefill(tokens, keep=2)
    assert logits.shape == (3, 2, toy_graph.VOCAB)
    logits, _ = session.step(tokens[:, :1], cache)
    assert logits.shape == (3, 1, toy_graph.VOCAB)


def test_the_graph_itself_keeps_only_the_last_logits(
    session: ort.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_keeps", False)
    whole, _ = session.prefill(np.arange(4, dtype=np.int64)[None], keep=1)
    monkeypatch.undo()
    kept, _ = session.prefill(np.arange(4, dtype=np.int64)[None], keep=1)
    np.testing.assert_array_equal(whole, kept)
    assert kept.base is None or kept.base.shape[1] == 1  # not a slice of all positions


def test_several_tokens_never_follow_a_cache(session: ort.Session) -> None:
    _, cache = session.prefill(np.zeros((1, 2), np.int64))
    with pytest.raises(ValueError, match="one token at a time"):
        session.step(np.zeros((1, 2), np.int64), cache)


def test_kv_bytes_per_token(session: ort.Session) -> None:
    assert session.kv_bytes_per_token == 2 * toy_graph.HEADS * toy_graph.HEAD_DIM * 4


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.20.0"}, "both installed"),
        ({"onnxruntime": "1.18.1"}, "onnxruntime 1.18.1 is too old"),
        ({"onnxruntime-gpu": "1.9"}, "onnxruntime-gpu 1.9 is too old"),
    ],
)
def test_wrong_runtimes_are_refused(installed: dict[str, str], message: str) -> None:
    with pytest.raises(SlmqError, match=message):
        ort.check_runtime("1.19", installed)


@pytest.mark.parametrize("version", ["1.19", "1.19.0", "1.31.1", "2.0"])
def test_new_enough_runtimes_are_accepted(version: str) -> None:
    ort.check_runtime("1.19", {"onnxruntime": version})


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SlmqError, match=r"pip install 'slmq-edge\[cpu\]'"):
        ort.load_onnxruntime()


def test_a_graph_that_onnxruntime_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(SlmqError, match=r"refuses .*model\.onnx") as caught:
        ort.Session(tmp_path / "model.onnx", 1, {})
    assert "\n" not in str(caught.value)


# --- the manifest


def _verify(folder: Path) -> None:
    manifest.verify(folder, manifest.read_bundle(folder)["files"])


def test_a_whole_bundle_verifies(bundle: Path) -> None:
    _verify(bundle)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "golden.npz").unlink()
    with pytest.raises(Damaged, match=r"golden\.npz is missing"):
        _verify(copy)


def test_a_truncated_file_is_named(copy: Path) -> None:
    graph = copy / "ort" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"ort/model\.onnx is truncated"):
        _verify(copy)


def test_one_changed_bit_is_found(copy: Path) -> None:
    graph = copy / "ort" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(Damaged, match=r"ort/model\.onnx has changed"):
        _verify(copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..\\x", "", "c:x", "."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Damaged):
        manifest.verify(tmp_path, {name: {"bytes": 0, "sha256": "0" * 64}})


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "bundle" / "file").symlink_to(tmp_path / "secret")
    entry = {"bytes": 1, "sha256": manifest.sha256(tmp_path / "secret")}
    with pytest.raises(Damaged, match="leads out"):
        manifest.verify(tmp_path / "bundle", {"file": entry})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", Damaged),
        ("[]", Damaged),
        ('{"format": "other", "version": 1}', Unsupported),
        ('{"format": "slmq-edge-bundle", "version": 2}', Unsupported),
        ('{"format": "slmq-edge-bundle", "version": true}', Unsupported),
        ('{"format": "slmq-edge-bundle"}', Unsupported),
        (None, NotFound),
    ],
)
def test_unknown_manifests_are_refused(
    tmp_path: Path, text: str | None, error: type[SlmqError]
) -> None:
    if text is not None:
        (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(error, match=r"bundle\.json"):
        manifest.read_bundle(tmp_path)


# --- golden prompts


@pytest.mark.parametrize("k", [1, 6, toy_graph.VOCAB])
def test_the_artifact_passes_against_its_own_simulation(session: ort.Session, k: int) -> None:
    report = golden.check(session, toy_graph.golden(toy_graph.weights(), k=k), BOUNDS)
    assert abs(report.mean_kl) < 1e-8
    assert abs(report.mean_kl_with_past) < 1e-8
    assert report.perplexity == pytest.approx(report.reference_perplexity, rel=1e-5)
    assert (report.positions_compared, report.greedy_compared) == (20, 10)


def test_another_model_fails_and_the_figure_is_named(session: ort.Session) -> None:
    arrays = toy_graph.golden(toy_graph.weights(seed=1))
    with pytest.raises(SlmqError, match=r"mean KL is .*, the limit is 0\.0001"):
        golden.check(session, arrays, BOUNDS)


class Altered(Greedy):
    """A session whose logits are changed at one kind of call."""

    def __init__(self, session: ort.Session, call: str, change: Any) -> None:
        self._session, self._call, self._change = session, call, change

    appends = False

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]:
        logits, cache = self._session.prefill(tokens, keep, room)
        return (self._change(logits) if self._call == "prefill" else logits), cache

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        logits, cache = self._session.step(tokens, cache)
        return (self._change(logits) if self._call == "step" else logits), cache


def _one_nan(logits: Any) -> Any:
    logits = logits.copy()
    logits[0, -1, 3] = np.nan
    return logits


@pytest.mark.parametrize("call", ["prefill", "step"])
@pytest.mark.parametrize("change", [_one_nan, lambda x: x * np.nan, lambda x: -x])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_wrong_or_missing_numbers_fail(session: ort.Session, call: str, change: Any) -> None:
    arrays = toy_graph.golden(toy_graph.weights())
    with pytest.raises(SlmqError, match="golden check failed"):
        golden.check(Altered(session, call, change), arrays, BOUNDS)


def test_a_flat_shift_of_logits_is_no_error(session: ort.Session) -> None:
    arrays = toy_graph.golden(toy_graph.weights())
    golden.check(Altered(session, "prefill", lambda logits: logits + 1), arrays, BOUNDS)


def test_choices_within_the_noise_are_not_compared(session: ort.Session) -> None:
    arrays = toy_graph.golden(toy_graph.weights())
    report = golden.check(session, arrays, BOUNDS._replace(logit_noise=1e6))
    assert report.positions_below_margin == report.positions_compared
    assert report.greedy_compared == 0


def test_a_wrong_greedy_token_is_refused(session: ort.Session) -> None:
    arrays = toy_graph.golden(toy_graph.weights())
    arrays["greedy"][1, 4] = (arrays["greedy"][1, 4] + 1) % toy_graph.VOCAB
    with pytest.raises(SlmqError, match="greedy token 4 of prompt 1"):
        golden.check(session, arrays, BOUNDS)


def test_lumped_kl_is_a_lower_bound_of_the_full_one() -> None:
    generator = np.random.default_rng(3)
    p, q = generator.dirichlet(np.ones(30)), generator.dirichlet(np.ones(30))
    order = np.argsort(-p)
    full = float((p * np.log(p / q)).sum())
    values = []
    for k in (1, 5, 29, 30):
        top = order[:k]
        values.append(golden.lumped_kl(np.log(p[top]), np.log(q[top]), k == 30))
    assert values[0] > 0
    assert all(b - a > -1e-12 for a, b in itertools.pairwise(values))
    assert values[3] == pytest.approx(full)


@pytest.mark.parametrize(("name", "value"), [("margins", None), ("tokens", np.zeros((2, 3)))])
def test_golden_files_of_another_shape_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    arrays = toy_graph.golden(toy_graph.weights())
    arrays[name] = value if value is not None else arrays[name][:, :3]
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(Damaged, match=rf"golden\.npz is damaged.*{name}"):
        golden.load(tmp_path / "golden.npz")


# --- integers


def test_an_exact_kernel_is_exact(bundle: Path) -> None:
    report = probe.run(bundle, manifest.read_bundle(bundle), threads=1)
    assert report is not None
    assert (report.operator, report.exact, report.largest_error) == ("MatMulInteger", True, 0)
    probe.refuse_inexact(report, allowed=False)


def test_an_inexact_kernel_is_caught(tmp_path: Path) -> None:
    folder = toy_graph.write_bundle(tmp_path / "bundle", zero_point=127)
    report = probe.run(folder, manifest.read_bundle(folder), threads=1)
    assert report is not None
    assert not report.exact
    assert report.largest_error == 127 * 64  # one unit of zero point, at an extreme, K times
    with pytest.raises(SlmqError, match="off by up to 8128"):
        probe.refuse_inexact(report, allowed=False)
    probe.refuse_inexact(report, allowed=True)


def test_floats_need_no_probe(bundle: Path) -> None:
    document = manifest.read_bundle(bundle)
    document["lowering"]["integer_gemm"] = None
    assert probe.run(bundle, document, threads=1) is None


def test_the_probes_activations_would_saturate_16_bits() -> None:
    extreme = np.full((64, 1), 127)  # the largest int8 weight
    raw = [np.abs(a.astype(int)[:, :2] @ extreme[:2]).max() for a in probe.activations((2, 64))]
    assert max(raw) > 2**15


# --- timing


def _events() -> list[dict[str, Any]]:
    return []


class Timed(Greedy):
    """A decoder whose steps take as long as it is told."""

    def __init__(self, clock: FakeClock, prefill_seconds: float, step_seconds: float) -> None:
        self._clock, self._times = clock, (prefill_seconds, step_seconds)
        self.lengths: list[int] = []

    appends = False

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]:
        assert keep == 1
        self.lengths.append(tokens.shape[1])
        self._clock.advance(self._times[0])
        return np.eye(5, dtype=np.float32)[None, 2:3], 0

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        assert tokens[0, 0] == (2 + cache) % 5  # greedy: what the last logits chose
        self._clock.advance(self._times[1] * (cache + 1))
        return np.eye(5, dtype=np.float32)[None, None, (3 + cache) % 5], cache + 1


def test_timing_is_exact() -> None:
    clock, events = FakeClock(), _events()
    decoder = Timed(clock, prefill_seconds=0.5, step_seconds=0.25)
    profile = Fake(memory=[{"peak": 1}, {"peak": 2}, {"peak": 3}])
    work = Workload(4, 3, repetitions=2, warmups=1, threads=1)
    measure.measure(decoder, np.arange(4), work, events.append, profile, clock)
    assert [(e["event"], e["index"]) for e in events] == [
        ("warmup", 0),
        ("repetition", 0),
        ("repetition", 1),
    ]
    for event in events:
        assert event["prefill_seconds"] == 0.5
        assert event["decode_seconds"] == 1.5
        assert event["decode_step_seconds"] == (0.25, 0.5, 0.75)
    assert events[0]["memory"] == {"prefill": {"peak": 1}, "decode": {"peak": 2}}
    assert profile.resets == 6  # before every phase
    assert decoder.lengths == [4, 4, 4]


def test_only_missing_repetitions_are_taken() -> None:
    clock, events = FakeClock(), _events()
    work = Workload(4, 1, repetitions=5, warmups=0, threads=1)
    decoder = Timed(clock, 1, 1)
    measure.measure(decoder, np.arange(4), work, events.append, Fake(), clock, missing=(1, 4))
    assert [event["index"] for event in events] == [1, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens": 0},
        {"new_tokens": 0},
        {"repetitions": 0},
        {"warmups": -1},
        {"threads": 0},
        {"prompt_tokens": toy_graph.CONTEXT},
    ],
)
def test_impossible_workloads_are_refused(bundle: Path, wrong: dict[str, Any]) -> None:
    work = Workload(4, 4, 1, 0, 1)._replace(**wrong)
    with pytest.raises(UsageError):
        measure.check_workload(work, manifest.read_bundle(bundle))


def test_prompts_are_golden_tokens_over_again(bundle: Path) -> None:
    tokens = toy_graph.golden(toy_graph.weights())["tokens"].reshape(-1)
    prompt = golden.prompt_tokens(bundle / "golden.npz", 45)
    np.testing.assert_array_equal(prompt, np.concatenate([tokens, tokens, tokens[:5]]))


def test_nothing_is_measured_without_a_check(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("")
    work = job.Job(bundle, path, Workload(4, 4, 1, 0, 1), "fake", False)
    with pytest.raises(SlmqError, match="has not passed its golden check"):
        job.measure_job(work, lambda line: None)
    assert path.read_text() == ""


def test_windows_of_a_run_that_goes_on_begin_warm(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs for the first time in a process compiles, and takes memory."""
    path = tmp_path / "journal"
    work = job.Job(bundle, path, Workload(4, 2, 1, 0, 1), "fake", False, power_seconds=0.01)
    assert job.check(work, lambda line: None)
    job.measure_job(work, lambda line: None)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if json.loads(x)["event"] not in ("power", "end")))
    seen: list[str] = []
    first, of_work = ort.Session.first, windows.of_work

    def read(self: ort.Session, tokens: Any, room: int) -> tuple[Any, Any]:
        seen.append("first")
        return first(self, tokens, room)

    def watched(*asked: Any) -> Any:
        seen.append("windows")
        return of_work(*asked)

    monkeypatch.setattr(ort.Session, "first", read)
    monkeypatch.setattr(windows, "of_work", watched)
    monkeypatch.setattr(windows, "has_meter", lambda profile: True)
    job.measure_job(work, lambda line: None)
    assert seen[:2] == ["first", "windows"]
