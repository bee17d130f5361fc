"""The torch runtime behind the runner: its session, and a greedy step that is captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from slmq_edge import golden
from slmq_edge.errors import SlmqError
from slmq_edge.profiles.fake import Fake
from slmq_edge.runner import golden as runner_golden
from slmq_edge.runner import scoring
from slmq_edge.runner.measure import Workload, measure
from slmq_edge.torch_runtime import session as sessions
from slmq_edge.torch_runtime.captured import WARMUPS, Steps
from slmq_edge.torch_runtime.model import IntegerModel
from slmq_edge.torch_runtime.session import Past, Session
from tests import graphs
from tests.decoders import text_for
from tests.torch_models import ROTATED, checkpoint

NAME = "stories260K"
KEPT = "w8a8, kv 8"
GREEDY_FORMS = ("w8a8", "w4a8, int4 head", KEPT, "static, asymmetric", ROTATED, "fp32")
HEAVIER_FORMS = tuple(form for form in GREEDY_FORMS if form != KEPT)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A session sets torch's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def opened(form: str, floats: torch.dtype = torch.float32, name: str = NAME) -> Session:
    return sessions.of_checkpoint(checkpoint(name, form), floats, 1, "cpu")


def prompt(length: int = 20, rows: int = 1, name: str = NAME) -> Any:
    return text_for(name, rows, length).numpy()


def by_logits(session: Session, tokens: Any, count: int) -> Any:
    """Greedy tokens [batch, count] as a host chooses them."""
    logits, held = session.prefill(tokens, 1, count)
    found = [logits[:, -1].argmax(-1)[:, None]]
    for _ in range(count - 1):
        logits, held = session.step(found[-1], held)
        found.append(logits[:, -1].argmax(-1)[:, None])
    return np.concatenate(found, 1)


def by_device(session: Session, tokens: Any, count: int) -> Any:
    token, held = session.first(tokens, count)
    found = [token]
    for _ in range(count - 1):
        token, held = session.next(token, held)
        found.append(token)
    return np.concatenate(found, 1)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (NAME, KEPT),
        ("demo-qwen2", "w4a8"),
        *(
            pytest.param(name, form, marks=pytest.mark.slow)
            for name, form in (*((NAME, one) for one in HEAVIER_FORMS), ("demo-llama", ROTATED))
        ),
    ],
)
def test_the_runners_golden_check_passes(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 2, as a device checks it, of the artifact with float16."""
    monkeypatch.setattr(golden, "NOISE_MACS", 1.5e9)  # a tenth of what an export takes
    of = checkpoint(name, form)
    made = golden.record(of, None, floats=torch.float16)
    limits = runner_golden.Limits(
        made.limits["kl_limit"], made.limits["perplexity_limit"], made.limits["logit_noise"]
    )
    running = opened(form, torch.float16, name)
    report = runner_golden.check(running, made.arrays, limits)
    assert report.positions_compared == made.arrays["tokens"].size


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("form", GREEDY_FORMS)
def test_the_device_chooses_what_the_host_would(form: str, rows: int) -> None:
    running = opened(form)
    chosen = by_device(running, prompt(rows=rows), 24)
    assert chosen.dtype == np.int64
    assert chosen.shape == (rows, 24)
    assert np.array_equal(chosen, by_logits(running, prompt(rows=rows), 24))


def test_prefill_keeps_what_is_asked_for_and_pieces_change_little() -> None:
    running, tokens = opened("fp32"), prompt(40)
    whole, held = running.prefill(tokens)
    assert (whole.shape, whole.dtype) == ((1, 40, 512), np.float32)
    assert held.length == 40
    last, _ = running.prefill(tokens, 3)
    np.testing.assert_allclose(last, whole[:, -3:], atol=1e-4)
    pieces, _ = running.prefill(tokens, 30, 5, piece=7)
    np.testing.assert_allclose(pieces, whole[:, -30:], atol=1e-4)


def test_logits_of_texts_come_in_pieces_beside_the_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, tokens = opened("w8a8"), prompt(24, rows=2)
    whole, held = running.prefill(prompt(), 1, 4)
    monkeypatch.setattr(sessions, "MOST_LOGITS", 2 * 512 * 5)
    pieces = list(running.logits(tokens, 12))
    assert [piece.shape[1] for piece in pieces] == [5, 5, 2]
    apart, _ = opened("w8a8").prefill(tokens, 12)
    assert np.array_equal(np.concatenate(pieces, 1), apart)
    again, _ = running.step(whole.argmax(-1), held)
    assert np.isfinite(again).all()


def test_a_cache_can_be_stepped_from_again() -> None:
    running = opened("w8a8")
    first, begun = running.first(prompt(), 8)
    runs = []
    for _ in range(2):
        token, held, found = first, begun, []
        for _ in range(8):
            token, held = running.next(token, held)
            found.append(int(token[0, 0]))
        runs.append(found)
    assert runs[0] == runs[1]
    other, _ = running.next(np.array([[7]]), begun)  # not what was chosen
    fresh, held = opened("w8a8").prefill(np.append(prompt(), [[7]], 1))
    assert int(other[0, 0]) == int(fresh[0, -1].argmax())


def test_an_older_conversation_is_refused() -> None:
    running = opened("w8a8")
    _, old = running.first(prompt(), 4)
    running.first(prompt(), 4)
    with pytest.raises(ValueError, match="another prompt's"):
        running.next(np.array([[1]]), old)


def test_a_cache_that_becomes_too_small_is_outgrown() -> None:
    running = opened("fp32")
    long = by_device(running, prompt(), 60)
    _, held = running.prefill(prompt(), 1)  # in the room that is there
    running = opened("fp32")
    _, held = running.prefill(prompt(), 1)
    found = long[:, :1]
    for _ in range(59):
        logits, held = running.step(found[:, -1:], held)
        found = np.append(found, logits[:, -1].argmax(-1)[:, None], 1)
    assert np.array_equal(found, long)


def test_the_same_room_is_used_again_and_another_is_made() -> None:
    running = opened("w8a8")
    running.first(prompt(), 12)
    steps = running._steps
    running.first(prompt(), 10)  # 30 positions, as 32
    assert running._steps is steps
    running.prefill(prompt())  # no step follows: any room does
    assert running._steps is steps
    running.first(prompt(), 40)
    assert running._steps is not steps


def test_tokens_that_are_none_are_refused_before_a_gpu_sees_them() -> None:
    running = opened("w8a8")
    with pytest.raises(SlmqError, match="token 512 is none of a vocabulary of 512"):
        running.prefill(np.array([[1, 512]]))
    _, held = running.prefill(prompt(), 1)
    with pytest.raises(SlmqError, match="token -1 is none"):
        running.step(np.array([[-1]]), held)
    with pytest.raises(ValueError, match="one token at a time"):
        running.step(np.array([[1, 2]]), held)


def test_it_says_what_it_is() -> None:
    running = opened("w4a8, int4 head", torch.float16)
    facts = running.facts()
    assert facts["device"] == "cpu"
    assert (facts["floats"], facts["operators"]) == ("float16", "reference")
    assert facts["linears"] == facts["integer_linears"] == 5 * 7 + 1
    assert facts["cuda_graph"] is None
    assert running.device_memory() is None
    assert (running.batches, running.appends) == (True, True)
    assert (running.together, running.most_positions) == (None, None)
    assert running.kv_bytes_per_token == 2 * 5 * 4 * 8 * 2
    assert opened("fp32").facts()["integer_linears"] == 0


def test_the_runner_times_it_and_scores_with_it() -> None:
    running, events = opened("w8a8"), list[dict[str, Any]]()
    measure(running, prompt()[0], Workload(20, 5, 2, 1, 1), events.append, Fake())
    assert [event["event"] for event in events] == ["warmup", "repetition", "repetition"]
    assert all(len(event["decode_step_seconds"]) == 5 for event in events)
    tokens = prompt(96)
    alone = np.concatenate(list(running.logits(tokens, 5)), 1)
    whole, _ = running.prefill(tokens, 5)
    assert np.array_equal(alone, whole)
    assert isinstance(scoring.same_together(running.logits, tokens[0], 512, 128), bool)


@pytest.mark.parametrize("form", GREEDY_FORMS)
def test_replayed_steps_choose_the_same_tokens(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA graphs: whatever the host had a hand in would stay what it was."""
    made = graphs.on_cpu(monkeypatch)
    plain, running = opened(form), opened(form)
    monkeypatch.setattr(running, "_on_gpu", True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Stand-in")
    expected = by_device(plain, prompt(), 30)
    assert running.facts()["cuda_graph"] is None
    assert np.array_equal(by_device(running, prompt(), 30), expected)
    (graph,) = made
    assert graph.replays == 29
    assert np.array_equal(by_logits(running, prompt(), 30), expected)
    assert (len(made), graph.replays) == (1, 58)
    facts, memory = running.facts(), running.device_memory()
    assert (facts["cuda_graph"], facts["device"]) == ("replayed", "Stand-in")
    assert memory is not None
    assert memory["kv"] == running.kv_bytes_per_token * 56  # 50 positions, rounded up
    assert sum(memory.values()) == 10**9
    assert memory["weights"] == facts["integer_bytes"] + facts["float_bytes"]


def test_capturing_changes_nothing_and_runs_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.on_cpu(monkeypatch)
    model = IntegerModel.of(checkpoint(NAME, "w8a8, kv 8"), torch.float32)
    cache = model.cache(1, 24)
    model.prefill(torch.from_numpy(prompt(23)), cache, 1)
    before = [t[:, :, :23].clone() for b in cache.blocks for kept in b for t in kept.tensors]
    steps = Steps(model, cache)
    steps.token.fill_(5)
    calls, advance = [0], model.advance

    def counted(tokens: torch.Tensor, kept: Any) -> torch.Tensor:
        calls[0] += 1
        return advance(tokens, kept)

    monkeypatch.setattr(model, "advance", counted)
    steps.capture()  # with room for one step alone
    assert calls == [WARMUPS + 1]
    after = [t[:, :, :23] for b in cache.blocks for kept in b for t in kept.tensors]
    assert all(torch.equal(then, now) for then, now in zip(before, after, strict=True))
    assert (cache.length, int(cache.position), int(steps.token)) == (23, 23, 5)
    steps.run()
    assert (cache.length, int(cache.position), calls) == (24, 24, [WARMUPS + 1])
    with pytest.raises(SlmqError, match="the cache is full: it has room for 24 positions"):
        steps.run()


def test_all_captures_share_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS takes memory for every stream that it meets, and keeps it."""
    graphs.on_cpu(monkeypatch)
    model = IntegerModel.of(checkpoint(NAME, "fp32"), torch.float32)
    Steps(model, model.cache(1, 24)).capture()
    before = graphs.Stream.made
    for room in (32, 40):
        Steps(model, model.cache(1, room)).capture()
    assert graphs.Stream.made == before


def test_the_stand_in_sees_what_a_capture_would_not_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A position that the host chose is replayed as it was; a value read is refused."""
    graphs.on_cpu(monkeypatch)
    graph, buffer = torch.cuda.CUDAGraph(), torch.zeros(4)
    at = 0
    with torch.cuda.graph(graph):
        buffer.narrow(0, at, 1).fill_(1)
    assert not buffer.any()
    at = 2
    graph.replay()
    assert buffer.tolist() == [1, 0, 0, 0]
    with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph):
        buffer.sum().item()


def test_a_capture_that_fails_is_one_line_and_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.on_cpu(monkeypatch)
    running = opened("w8a8")
    monkeypatch.setattr(running, "_on_gpu", True)
    advance = running._model.advance

    def reading(tokens: torch.Tensor, kept: Any) -> torch.Tensor:
        found = advance(tokens, kept)
        assert float(found.sum()) == float(found.sum())
        return found

    monkeypatch.setattr(running._model, "advance", reading)
    with pytest.raises(SlmqError, match="cannot capture the decoding step in a CUDA graph") as seen:
        running.first(prompt(), 4)
    assert "\n" not in str(seen.value)
    assert "not permitted" in str(seen.value)


def test_memory_that_a_gpu_has_not_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    running = opened("w8a8")

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(running._model, "cache", full)
    with pytest.raises(SlmqError, match="does not hold a prompt of 20 tokens and room for 4 more"):
        running.prefill(prompt(), 1, 4)


def test_a_pass_computes_logits_and_leaves_them_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, kept, waits = opened("w8a8"), list[torch.Tensor](), list[object]()
    logits = running._model.logits

    def computed(hidden: torch.Tensor) -> torch.Tensor:
        kept.append(logits(hidden))
        return kept[-1]

    monkeypatch.setattr(running._model, "logits", computed)
    monkeypatch.setattr(running, "_on_gpu", True)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    assert (running.forward(prompt()), running.forward(prompt(), 3)) == (20, 3)
    assert waits == 2 * [running._model.device]  # the pass is timed, not its launches
    assert [found.shape for found in kept] == [(1, 20, 512), (1, 3, 512)]
    whole, _ = running.prefill(prompt())
    assert np.array_equal(kept[0].numpy(), whole)


def test_logits_that_a_gpu_has_no_memory_for_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    running = opened("w8a8")

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(running._model, "logits", full)
    for ask in (running.prefill, lambda t: running.first(t, 4), lambda t: [*running.logits(t, 5)]):
        with pytest.raises(SlmqError, match="the GPU's memory does not hold a prompt's logits"):
            ask(prompt())


def test_a_session_is_on_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sessions.device_here().type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sessions.device_here().type == "cuda"


def test_what_a_caller_holds_is_two_numbers() -> None:
    _, held = opened("w8a8").prefill(prompt(), 1)
    assert held == Past(20, 1)
