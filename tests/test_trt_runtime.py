"""Engines behind the runner: what they compute, what memory they take, what they refuse.

TensorRT and CUDA are `fake_tensorrt`'s, whose engines compute the graph of `toy_trt`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.runner import golden, manifest
from slmq_edge.runner.trt import cache, cuda, engine
from tests import fake_tensorrt, toy_graph, toy_trt
from tests.fake_tensorrt import Cudart
from tests.toy_trt import KEPT, PROMPT, ROOM

RELEASES = ("8.5.2", "8.6.1", "10.3.0", "11.1.0")
TOKENS = np.random.default_rng(4).integers(0, toy_graph.VOCAB, 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_trt.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    return fake_tensorrt.install(patch=monkeypatch)


@pytest.fixture
def opened(made: Path, tmp_path: Path) -> Iterator[Callable[..., engine.Session]]:
    """Opens an engine that is built as its arguments say."""
    sessions: list[engine.Session] = []

    def open_it(bundle: Path = made, **built: Any) -> engine.Session:
        home = tmp_path / f"engines{len(sessions)}"
        toy_trt.write_engine(bundle, home, **built)
        found = cache.find(bundle, manifest.read_bundle(bundle), home)
        sessions.append(engine.open_engine(found))
        return sessions[-1]

    yield open_it
    for session in sessions:
        session.close()


def expected(tokens: Any = TOKENS) -> Any:
    return toy_graph.logits(toy_graph.weights(), tokens)


def continued(session: engine.Session, first: int, tokens: Any = TOKENS, room: int = 0) -> Any:
    """Logits of positions first - 1 on: a prompt, then a token at a time."""
    logits, state = session.prefill(tokens[None, :first], 1, room)
    rows = [logits[0]]
    for position in range(first, len(tokens)):
        logits, state = session.step(tokens[None, position : position + 1], state)
        rows.append(logits[0])
    return np.concatenate(rows)


# --- what is computed


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_computes_the_model(
    release: str, opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(release, patch=monkeypatch)
    session = opened()
    logits, _ = session.prefill(TOKENS[None])
    assert (logits.dtype, logits.shape) == (np.float32, (1, len(TOKENS), toy_graph.VOCAB))
    np.testing.assert_allclose(logits[0], expected(), atol=1e-4)
    np.testing.assert_allclose(continued(session, 7), expected()[6:], atol=1e-4)


@pytest.mark.parametrize("length", [1, PROMPT - 1, PROMPT, PROMPT + 1, 3 * PROMPT + 2])
@pytest.mark.parametrize("keep", [None, 1, KEPT, KEPT + 1, PROMPT + 3])
@pytest.mark.parametrize("piece", [None, 1, 5, 100])
def test_prompts_run_in_pieces_that_the_engine_takes(
    fake: Cudart,
    opened: Callable[..., engine.Session],
    length: int,
    keep: int | None,
    piece: int | None,
) -> None:
    logits, state = opened().prefill(TOKENS[None, :length], keep, piece=piece)
    kept = length if keep is None else min(keep, length)
    assert state.length == length
    assert logits.shape == (1, kept, toy_graph.VOCAB)
    np.testing.assert_allclose(logits[0], expected()[length - kept : length], atol=1e-4)


def test_caches_of_16_bits_are_read_as_such(
    fake: Cudart, opened: Callable[..., engine.Session], tmp_path: Path
) -> None:
    session = opened(toy_trt.write_bundle(tmp_path / "half", floats="float16"))
    assert session.kv_bytes_per_token == 2 * toy_graph.HEADS * toy_graph.HEAD_DIM * 2
    found = continued(session, 5)
    np.testing.assert_allclose(found, expected()[4:], atol=0.1)
    assert np.abs(found - expected()[4:]).max() > 1e-4  # it was rounded indeed


def test_the_golden_prompts_pass_and_another_models_do_not(
    fake: Cudart, opened: Callable[..., engine.Session], made: Path
) -> None:
    document = manifest.read_bundle(made)
    report = golden.check(
        opened(), golden.load(golden.golden_file(made, document)), golden.limits(document)
    )
    assert (report.positions_compared, report.greedy_compared) == (20, 10)
    with pytest.raises(SlmqError, match="golden check failed: mean KL in pieces"):
        golden.check(opened(), toy_graph.golden(toy_graph.weights(seed=1)), golden.limits(document))


def test_the_last_continuation_of_a_cache_counts(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    """As with ort: what is before the cache's length is still there."""
    session = opened()
    _, state = session.prefill(TOKENS[None, :5], 1)
    _, other = session.step(np.array([[9]]), state)
    session.step(np.array([[8]]), other)
    logits, _ = session.step(TOKENS[None, 5:6], state)
    np.testing.assert_allclose(logits[0, 0], expected()[5], atol=1e-4)


# --- rooms


def test_a_cache_of_another_prompt_is_no_longer_one(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    session = opened()
    _, first = session.prefill(TOKENS[None, :5], 1)
    session.prefill(TOKENS[None, :5], 1)
    with pytest.raises(ValueError, match="another prompt's"):
        session.step(np.array([[1]]), first)
    with pytest.raises(ValueError, match="one prompt at a time"):
        session.prefill(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="one token"):
        session.step(np.zeros((1, 2), np.int64), first)


def test_rooms_grow_with_what_is_in_them(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    """More steps than were announced: 64 positions, then 128, then all that the engine takes."""
    session, tokens = opened(), np.resize(TOKENS, ROOM)
    sizes = []
    _, state = session.prefill(tokens[None, :3], 1)
    for position in range(3, ROOM):
        logits, state = session.step(tokens[None, position : position + 1], state)
        sizes.append(session.device_memory()["kv"])
        np.testing.assert_allclose(logits[0, 0], expected(tokens)[position], atol=1e-4)
    by_position = 2 * session.kv_bytes_per_token
    assert sizes[0] == 64 * by_position
    assert sizes[-1] >= ROOM * by_position  # two sets, whose tensors begin at 256 bytes
    assert len(set(sizes)) == 3
    with pytest.raises(SlmqError, match=rf"131 positions .* hold \({ROOM}\): .* --context 131"):
        session.step(np.array([[0]]), state)
    with pytest.raises(SlmqError, match="slmq-edge build BUNDLE --context 140"):
        session.prefill(tokens[None, :10], 1, ROOM)


def test_a_growing_room_leaves_older_caches_behind(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    session, tokens = opened(), np.resize(TOKENS, 70)
    _, state = session.prefill(tokens[None, :64], 1)
    session.step(tokens[None, 64:65], state)
    with pytest.raises(ValueError, match="another prompt's"):
        session.step(tokens[None, 64:65], state)


# --- CUDA graphs


def test_steps_are_replayed_from_the_second_of_a_kind_on(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    session = opened()
    assert session.facts()["cuda_graph"] is None
    continued(session, 4, TOKENS[:8], room=8)  # four steps, two from each side
    assert fake.launches == 2
    continued(session, 4, TOKENS[:8], room=8)
    assert fake.launches == 6  # the same rooms: the same graphs
    continued(session, 4, TOKENS[:8], room=100)
    assert fake.launches == 8  # other rooms
    assert session.facts()["cuda_graph"] == "replayed"
    assert len(fake.graphs) == 2  # the other two are gone


def test_captured_and_enqueued_steps_compute_the_same(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    captured, plain = opened(), opened(capturable=False)
    np.testing.assert_array_equal(continued(captured, 4), continued(plain, 4))
    assert captured.facts()["cuda_graph"] == "replayed"
    reason = plain.facts()["cuda_graph"]
    assert reason.startswith("not used: TensorRT cannot run the engine: the stream is capturing")
    assert not any(fake.captures.values())  # nothing is left in capture


def test_contexts_that_cannot_share_a_profile_capture_nothing(
    opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_tensorrt.install("8.6.1", patch=monkeypatch)
    session = opened()
    np.testing.assert_allclose(continued(session, 4), expected()[3:], atol=1e-4)
    assert fake.launches == 0
    assert session.facts()["cuda_graph"] == f"not used: {engine.ONE_CONTEXT}"
    sharing = opened(profile_sharing=True)
    np.testing.assert_allclose(continued(sharing, 4), expected()[3:], atol=1e-4)
    assert sharing.facts()["cuda_graph"] == "replayed"


def test_a_context_that_gets_no_profile_is_one_line(
    opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(context: Any, profile_index: int, stream_handle: int) -> bool:
        context._engine.error(f"profile {profile_index} is odd")
        raise RuntimeError("Error in set optimization profile async.")

    fake_tensorrt.install(patch=monkeypatch)
    monkeypatch.setattr(fake_tensorrt.Context, "set_optimization_profile_async", refused)
    with pytest.raises(SlmqError, match="gives no context a profile: profile 1 is odd"):
        opened()


@pytest.mark.parametrize("release", ["8.5.2", "10.3.0"])
def test_an_engine_of_one_profile_does_both(
    release: str, opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(release, patch=monkeypatch)
    session = opened(profiles=toy_trt.PROFILES[:1])
    np.testing.assert_allclose(continued(session, 4), expected()[3:], atol=1e-4)
    replayed = session.facts()["cuda_graph"] == "replayed"
    assert replayed == (release == "10.3.0")


@pytest.mark.parametrize("version", [11020, 11040, 12060, 13000])
def test_graphs_are_made_by_every_cuda(
    version: int, opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_tensorrt.install(cuda=Cudart(version), patch=monkeypatch)
    continued(opened(), 4)
    assert fake.launches > 0
    name = "cudaGraphInstantiateWithFlags" if version >= 11040 else "cudaGraphInstantiate"
    assert name in fake.calls
    assert cuda.device().cuda == f"{version // 1000}.{version % 1000 // 10}"


# --- memory


def test_memory_is_counted_by_what_it_is_for(
    fake: Cudart, opened: Callable[..., engine.Session]
) -> None:
    session = opened()
    assert session.device_memory()["kv"] == 0
    session.prefill(TOKENS[None, :5], 1)
    parts = session.device_memory()
    taken = {name: count for name, count in parts.items() if name not in ("engine", "rest")}
    assert sum(taken.values()) == fake.bytes()
    assert parts["activations"] == fake_tensorrt.ACTIVATION_BYTES
    assert parts["kv"] == 2 * 64 * session.kv_bytes_per_token
    assert parts["engine"] == session._loaded.plan_bytes
    before = parts["io"]
    session.prefill(TOKENS[None])
    rows = (KEPT - 1) * toy_graph.VOCAB * 4
    assert session.device_memory()["io"] == before + rows  # logits of more positions


def test_what_else_the_device_gave_is_the_rest(
    fake: Cudart, opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    fake.cudaMalloc({}, 10_000)
    rest = session.device_memory()["rest"]
    assert rest == 10_000 - session._loaded.plan_bytes  # which this fake takes no memory for


def test_a_board_that_shares_its_memory_tells_no_rest(
    opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(cuda=Cudart(integrated=True), patch=monkeypatch)
    assert "rest" not in opened().device_memory()


def test_all_memory_is_given_back(fake: Cudart, opened: Callable[..., engine.Session]) -> None:
    session = opened()
    continued(session, 4)
    session.prefill(TOKENS[None])
    session.close()
    assert (fake.bytes(), fake.bytes("host"), fake.graphs, fake.captures) == (0, 0, {}, {})
    session.close = lambda: None  # type: ignore[method-assign]  # the fixture's


def test_too_little_memory_is_one_line(
    opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(cuda=Cudart(total=12_000), patch=monkeypatch)
    session = opened()
    with pytest.raises(SlmqError, match=r"the GPU has no 0 MB for keys and values: .*--context N"):
        session.prefill(TOKENS[None, :5], 1)
    assert session.device_memory()["kv"] == 0


def test_logits_that_do_not_fit_leave_those_that_do(
    opened: Callable[..., engine.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_tensorrt.install(patch=monkeypatch)
    session = opened()
    session.prefill(TOKENS[None, :5], 1)
    before = fake.bytes(), fake.bytes("host")
    fake.total = fake.bytes()
    with pytest.raises(SlmqError, match="the GPU has no 0 MB for inputs and outputs"):
        session.prefill(TOKENS[None, :5])
    assert (fake.bytes(), fake.bytes("host")) == before
    logits, _ = session.prefill(TOKENS[None, :5], 1)
    np.testing.assert_allclose(logits[0], expected()[4:5], atol=1e-4)


# --- refusals


def test_a_machine_without_cuda_or_gpu_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = Cudart()
    nothing.devices = 0
    fake_tensorrt.install(cuda=nothing, patch=monkeypatch)
    with pytest.raises(NotFound, match=r"no GPU .*no CUDA-capable device .*cudaErrorNoDevice"):
        cuda.device()

    def missing(name: str, *_: Any) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(NotFound, match=r"libcudart\.so of CUDA 11, 12 or 13"):
        cuda.device()


def test_the_device_is_described(fake: Cudart) -> None:
    fake.cudaMalloc({}, 1000)
    found = cuda.device()
    assert found._replace(driver=None) == cuda.Device("Fake Orin", "87", "12.6", None, False)
    assert not fake.has_context
    assert cuda.memory() == ((1 << 28) - 1000, 1 << 28)
    assert fake.has_context


def test_an_engine_of_another_release_is_refused(
    made: Path, fake: Cudart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = toy_trt.write_engine(made, tmp_path)
    found = cache.find(made, manifest.read_bundle(made), tmp_path)
    fake_tensorrt.install("10.16.2", patch=monkeypatch)
    with pytest.raises(SlmqError, match=r"10\.16\.2 refuses .*the plan is of TensorRT 10\.3\.0"):
        engine.open_engine(found)
    with pytest.raises(SlmqError, match=r"built with TensorRT 10\.3\.0; this machine has .*10\.16"):
        cache.find(made, manifest.read_bundle(made), tmp_path)
    assert plan.exists()


def test_an_engine_of_another_recipe_is_refused(made: Path, fake: Cudart, tmp_path: Path) -> None:
    toy_trt.write_engine(made, tmp_path)
    found = cache.find(made, manifest.read_bundle(made), tmp_path)
    half = found._replace(recipe=toy_trt.recipe("float16"))
    with pytest.raises(Damaged, match=r"past_key_values\.0\.key is float32, .* says float16"):
        engine.open_engine(half)
    fewer = found.recipe._replace(outputs=found.recipe.outputs[1:])
    with pytest.raises(Damaged, match="the engine has besides logits"):
        engine.open_engine(found._replace(recipe=fewer))


def test_a_library_that_the_driver_is_too_old_for_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, old = Cudart(13000), Cudart(12040)
    new.devices = 0
    libraries = {"libcudart.so.13": new.library(), "libcudart.so.12": old.library()}
    monkeypatch.setattr(ctypes, "CDLL", libraries.__getitem__)
    assert cuda.device().cuda == "12.4"
    old.devices = 0

    def opened(name: str) -> Any:
        if name not in libraries:
            raise OSError(name)
        return libraries[name]

    monkeypatch.setattr(ctypes, "CDLL", opened)
    with pytest.raises(NotFound, match="no CUDA-capable device"):
        cuda.device()
