"""Sequences scored on the device: the arithmetic, the journal, and what is refused first."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from slmq_edge.errors import Damaged, SlmqError, UsageError
from slmq_edge.runner import journal, likelihood, manifest, ort, requests, scoring, work
from slmq_edge.runner.__main__ import main
from slmq_edge.tracks.accuracy.sequences import Order, Sequence
from tests import toy_graph

Logits = Callable[[NDArray[np.int64], int], Iterator[NDArray[np.float32]]]
VOCAB = toy_graph.VOCAB


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def texts(count: int, longest: int = 40, seed: int = 0) -> list[Sequence]:
    """Sequences of different lengths; every other one has a neighbour that ends otherwise."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count // 2):
        length = int(draw.integers(2, longest))
        tokens = tuple(int(token) for token in draw.integers(0, VOCAB, length))
        scored = int(draw.integers(1, length))
        found += [Sequence(tokens, scored)]
        found += [Sequence((*tokens[:-1], (tokens[-1] + 1) % VOCAB), scored)]
    return found


def toy(calls: list[tuple[int, ...]] | None = None) -> Logits:
    """The toy's logits, in pieces. calls: gets the number of rows and their length."""
    weights = toy_graph.weights()

    def logits(tokens: NDArray[np.int64], keep: int) -> Iterator[NDArray[np.float32]]:
        if calls is not None:
            calls.append(tokens.shape)
        out = np.stack([toy_graph.logits(weights, row)[-keep:] for row in tokens])
        for start in range(0, keep, 7):
            yield out[:, start : start + 7].astype(np.float32)

    return logits


def expected(sequence: Sequence) -> tuple[float, bool]:
    tokens = np.array(sequence.tokens)
    out = toy_graph.logits(toy_graph.weights(), tokens)[-sequence.scored - 1 : -1]
    out = out.astype(np.float32).astype(np.float64)
    targets = tokens[-sequence.scored :]
    logprobs = out - np.log(np.exp(out).sum(-1, keepdims=True))
    picked = logprobs[np.arange(len(targets)), targets]
    return float(picked.sum()), bool((out.argmax(-1) == targets).all())


# --- the arithmetic


def test_scores_are_sums_of_log_probabilities(tmp_path: Path) -> None:
    asked = texts(40)
    order = Order(asked)
    with journal.Journal(tmp_path / "log") as log:
        scoring.take(order.requests, 0, toy(), log)
    found = order.restored(*scoring.scores(journal.read(tmp_path / "log"), order.sequences))
    for sequence, score in zip(asked, found, strict=True):
        logprob, greedy = expected(sequence)
        assert score.logprob == pytest.approx(logprob, abs=1e-5)
        assert score.greedy == greedy


def test_greedy_is_the_first_of_equals() -> None:
    logits = np.array([[1, 5, 5, 0], [7, 0, 7, 7]], np.float32)
    first, both = np.array([[1, 0]]), np.array([[2, 0], [1, 2]])
    assert likelihood.log_probabilities(logits, first)[1].tolist() == [[True, True]]
    assert likelihood.log_probabilities(logits, both)[1].tolist() == [[False, True], [True, False]]
    logprobs, greedy = likelihood.score(iter([logits[:1], logits[1:]]), both)
    assert greedy == [False, False]
    exact = -math.log(2 + math.exp(-4) + math.exp(-5)) - math.log(3 + math.exp(-7))
    assert logprobs == pytest.approx([exact, exact], rel=1e-7)


@pytest.mark.parametrize("vocabulary", [23, 512, 50_000])
def test_a_score_does_not_depend_on_how_its_logits_come(vocabulary: int) -> None:
    """To the bit: pieces, blocks and neighbours change nothing."""
    draw = np.random.default_rng(1)
    logits = (draw.standard_normal((37, vocabulary)) * 9).astype(np.float32)
    targets = draw.integers(0, vocabulary, (3, 37))
    alone = [likelihood.score(iter([logits]), targets[row : row + 1])[0][0] for row in range(3)]
    for cuts in ([], [1], [5, 6, 30], list(range(1, 37))):
        pieces = np.split(logits, cuts)
        assert likelihood.score(iter(pieces), targets)[0] == alone


def test_steep_logits_keep_their_precision() -> None:
    logits = np.array([[80.0, -80.0, 79.0]], np.float32)
    found, _ = likelihood.log_probabilities(logits, np.array([[1], [2]]))
    exact = -np.log(np.exp(np.array([0.0, -160.0, -1.0])).sum())
    assert found[:, 0] == pytest.approx([exact - 160, exact - 1], rel=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 3] = bad
    with pytest.raises(SlmqError, match="not finite"):
        likelihood.score(iter([logits]), np.zeros((1, 2), int))


def test_missing_logits_are_refused() -> None:
    with pytest.raises(SlmqError, match="logits for 1 positions, not 2"):
        likelihood.score(iter([np.zeros((1, 5), np.float32)]), np.zeros((1, 2), int))


# --- the order, and what runs together


def test_the_longest_come_first_and_nothing_twice(tmp_path: Path) -> None:
    asked = [*texts(30), *texts(30)]
    calls: list[tuple[int, ...]] = []
    order = Order(asked)
    with journal.Journal(tmp_path / "log") as log:
        scoring.take(order.requests, 0, toy(calls), log)
    assert calls == sorted(calls, reverse=True)
    assert len(calls) == 15  # pairs that differ in the last token are one run
    assert {rows for rows, _ in calls} == {1}
    assert order.sequences == 30
    assert order.tokens == sum(len(one.tokens) - 1 for one in set(asked))
    found = order.restored(*scoring.scores(journal.read(tmp_path / "log"), 30))
    assert found[:30] == found[30:]


def test_order_and_neighbours_change_no_bit(tmp_path: Path) -> None:
    asked, names = texts(24), itertools.count()

    def score(sequences: list[Sequence]) -> dict[Sequence, Any]:
        path, order = tmp_path / str(next(names)), Order(sequences)
        with journal.Journal(path) as log:
            scoring.take(order.requests, 0, toy(), log)
        found = order.restored(*scoring.scores(journal.read(path), order.sequences))
        return dict(zip(sequences, found, strict=True))

    together = score(asked)
    assert score(asked[::-1]) == together
    for sequence in asked:
        assert score([sequence]) == {sequence: together[sequence]}


@pytest.mark.parametrize("together", [16, 128])
def test_neighbours_of_one_length_may_run_together(together: int, tmp_path: Path) -> None:
    asked = [Sequence(one.tokens, min(one.scored, 2)) for one in texts(120, longest=24)]
    order = Order(asked)
    calls: list[tuple[int, ...]] = []
    for name, logits, tokens in (("alone", toy(), 0), ("together", toy(calls), together)):
        with journal.Journal(tmp_path / name) as log:
            scoring.take(order.requests, 0, logits, log, tokens)
    alone, batched = (
        scoring.scores(journal.read(tmp_path / name), order.sequences)
        for name in ("alone", "together")
    )
    assert alone == batched
    lengths = [length for rows, length in calls for _ in range(rows)]
    assert lengths == sorted((len(one.tokens) - 1 for one in asked[::2]), reverse=True)
    for rows, length in calls:
        assert rows == 1 or (rows * length <= together and length >= requests.SHORTEST)
    assert max(rows for rows, _ in calls) > 1


def test_company_does_not_change_how_many_positions_are_computed(tmp_path: Path) -> None:
    """Last bits of a logit may depend on how many others are computed beside it."""

    def touchy(tokens: NDArray[np.int64], keep: int) -> Iterator[NDArray[np.float32]]:
        for piece in toy()(tokens, keep):
            yield piece * np.float32(1 + keep * 1e-4)

    draw = np.random.default_rng(4)
    rows = draw.integers(0, VOCAB, (30, 9)).tolist()
    asked = [Sequence(tuple(row), 1 + place % 5) for place, row in enumerate(rows)]
    order = Order(asked)
    found = []
    for tokens in (0, 128):
        with journal.Journal(tmp_path / str(tokens)) as log:
            scoring.take(order.requests, 0, touchy, log, tokens)
        found.append(scoring.scores(journal.read(tmp_path / str(tokens)), order.sequences))
    assert found[0] == found[1]


def test_company_is_tried_first() -> None:
    tokens = np.arange(40, dtype=np.int64) % VOCAB

    def shy(tokens: NDArray[np.int64], keep: int) -> Iterator[NDArray[np.float32]]:
        for piece in toy()(tokens, keep):
            yield piece * (1 + 1e-6) if len(tokens) > 1 else piece

    assert scoring.company(toy(), tokens, 512, 5000, 128) == 128
    assert scoring.company(shy, tokens, 512, 5000, 128) == 0
    calls: list[tuple[int, ...]] = []
    assert scoring.company(toy(calls), tokens, 20, 5000, 128) == 128
    assert max(length for _, length in calls) == 16
    calls.clear()
    assert scoring.company(toy(calls), tokens, 512, 2047, 128) == 0  # not worth the trial
    assert calls == []


def test_what_is_left_to_read() -> None:
    order = Order(texts(20))
    for done in (0, 7, 20):
        assert order.requests.left(done) == order.tokens - order.read(done)


# --- requests


def _requests(path: Path, **changed: Any) -> Path:
    arrays = {**Order([Sequence((1, 2, 3), 1), Sequence((4, 5), 1)]).requests._asdict(), **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_requests_go_through_a_file(tmp_path: Path) -> None:
    order = Order(texts(10))
    order.write(tmp_path / "asked.npz")
    found = requests.load(tmp_path / "asked.npz")
    for name in requests.ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(order.requests, name))
    first = (tmp_path / "asked.npz").read_bytes()
    Order(texts(10)[::-1]).write(tmp_path / "asked.npz")
    assert (tmp_path / "asked.npz").read_bytes() == first


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": None},
        {"tokens": np.zeros(5, np.int64)},
        {"tokens": np.zeros((5, 1), np.int32)},
        {"tokens": np.zeros(4, np.int32)},
        {"offsets": np.array([0, 5])},
        {"offsets": np.array([0, 6, 5])},
        {"offsets": np.array([1, 3, 5])},
        {"scored": np.array([0, 1], np.int32)},
        {"scored": np.array([3, 1], np.int32)},
        {"tokens": np.array([object()] * 5)},
    ],
)
def test_damaged_requests_are_refused_by_name(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"asked\.npz is damaged"):
        requests.load(_requests(tmp_path / "asked.npz", **changed))


def test_what_is_no_archive_is_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (b"", b"PK\x03\x04 and no more", (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "asked.npz").write_bytes(content)
        with pytest.raises(Damaged, match=r"asked\.npz is damaged"):
            requests.load(tmp_path / "asked.npz")
    with pytest.raises(Damaged, match=r"none\.npz is damaged"):
        requests.load(tmp_path / "none.npz")


def test_a_sequence_is_one_token_longer_than_the_context() -> None:
    requests.check(Order([Sequence((1,) * 9, 8)]).requests, 8)
    with pytest.raises(UsageError, match="of 10 tokens reads 9: the context holds 8"):
        requests.check(Order([Sequence((1,) * 10, 1)]).requests, 8)
    requests.check(Order([]).requests, 8, 5)
    for token in (-1, 5, 1 << 40):
        with pytest.raises(UsageError, match="is not in the vocabulary of 5"):
            requests.check(Order([Sequence((0, token), 1)]).requests, 8, 5)


@pytest.mark.parametrize("scored", [0, 3, -1])
def test_what_is_no_sequence_is_a_bug(scored: int) -> None:
    with pytest.raises(ValueError, match="cannot be scored"):
        Sequence((1, 2, 3), scored)


# --- the journal


def test_a_journal_is_an_unbroken_row(tmp_path: Path) -> None:
    def events(*firsts: int) -> list[dict[str, Any]]:
        return [
            {"event": "scores", "first": first, "logprobs": [-1.0, -2.0], "greedy": [True, False]}
            for first in firsts
        ]

    assert scoring.scores(events(0, 2), 4) == ([-1.0, -2.0] * 2, [True, False] * 2)
    for broken in ((0, 3), (1,), (0, 0)):
        with pytest.raises(Damaged, match="do not follow"):
            scoring.scores(events(*broken), 9)
    with pytest.raises(Damaged, match="4 scores of 3"):
        scoring.scores(events(0, 2), 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"first": 0, "logprobs": [-1.0], "greedy": [1]},
        {"first": True, "logprobs": [-1.0], "greedy": [True]},
        {"first": 0, "logprobs": [True], "greedy": [True]},
        {"first": 0, "logprobs": [float("nan")], "greedy": [True]},
        {"first": 0, "logprobs": [-1.0]},
    ],
)
def test_what_is_no_event_of_scores(fields: dict[str, Any]) -> None:
    line = json.dumps({"event": "scores", **fields}).encode()
    assert journal.parse_event(line) is None


def test_scores_are_written_every_second_and_at_the_end(tmp_path: Path) -> None:
    order, ticks = Order(texts(40)), itertools.count(step=0.3)
    with journal.Journal(tmp_path / "log") as log:
        scoring.take(order.requests, 0, toy(), log, clock=lambda: next(ticks))
    counts = [journal.taken(event) for event in journal.read(tmp_path / "log")]
    assert sum(counts) == order.sequences
    assert max(counts) <= 10 * 2  # a tick for each run: four of them are more than a second
    assert len(counts) > 1


def test_an_interrupted_row_goes_on_where_it_stopped(tmp_path: Path) -> None:
    order, path, ran = Order(texts(60)), tmp_path / "log", 0

    def dies(tokens: NDArray[np.int64], keep: int) -> Iterator[NDArray[np.float32]]:
        nonlocal ran
        ran += 1
        if ran == 9:
            raise KeyboardInterrupt
        return toy()(tokens, keep)

    ticks = itertools.count(step=10.0)
    with journal.Journal(path) as log, pytest.raises(KeyboardInterrupt):
        scoring.take(order.requests, 0, dies, log, clock=lambda: next(ticks))
    done = len(scoring.scores(journal.read(path), order.sequences)[0])
    assert done == 16
    calls: list[tuple[int, ...]] = []
    with journal.Journal(path) as log:
        scoring.take(order.requests, done, toy(calls), log)
    assert len(calls) == 30 - 8
    whole = tmp_path / "whole"
    with journal.Journal(whole) as log:
        scoring.take(order.requests, 0, toy(), log)
    found = [scoring.scores(journal.read(file), order.sequences) for file in (path, whole)]
    assert found[0] == found[1]


# --- the session


def test_logits_of_a_text_come_in_pieces(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ort.open_bundle(bundle, manifest.read_bundle(bundle), 1)
    tokens = np.arange(30, dtype=np.int64) % VOCAB
    exact = toy_graph.logits(toy_graph.weights(), tokens)
    monkeypatch.setattr(ort, "PIECE", 8)
    for appends in (True, False):
        monkeypatch.setattr(ort.Session, "appends", appends)
        for keep in (1, 6, 7, 21, 30):
            pieces = list(session.logits(tokens[None], keep))
            assert max(piece.shape[1] for piece in pieces) <= (8 if appends else 30)
            found = np.concatenate(pieces, axis=1)
            np.testing.assert_allclose(found[0], exact[-keep:], atol=1e-4)


# --- the job, in a process


def _job(bundle: Path, folder: Path, asked: list[Sequence], **others: Any) -> Path:
    folder.mkdir(exist_ok=True)
    Order(asked).write(folder / "asked.npz")
    job = scoring.Job(bundle, folder / "journal.jsonl", folder / "asked.npz", 1, False)
    work.write(job._replace(**others), folder / "job.json")
    assert scoring.read(folder / "job.json") == job._replace(**others)
    return folder / "job.json"


def _events(file: Path) -> list[dict[str, Any]]:
    return journal.read(file.with_name("journal.jsonl"))


def test_a_job_is_checked_then_scored(bundle: Path, tmp_path: Path) -> None:
    asked = texts(20)
    file = _job(bundle, tmp_path, asked)
    assert main([str(file)]) == 0
    assert [event["event"] for event in _events(file)] == (
        ["begin", "probe", "golden", "scores", "end"]
    )
    order = Order(asked)
    found = order.restored(*scoring.scores(_events(file), order.sequences))
    for sequence, score in zip(asked, found, strict=True):
        assert score.logprob == pytest.approx(expected(sequence)[0], abs=1e-4)


def test_a_finished_job_runs_no_more(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _job(bundle, tmp_path, texts(20))
    assert main([str(file)]) == 0
    before = file.with_name("journal.jsonl").read_bytes()
    capsys.readouterr()
    assert main([str(file)]) == 0
    assert "20 of 20 sequences are there already" in capsys.readouterr().out
    assert file.with_name("journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["requests", "threads", "environment"])
def test_a_journal_of_something_else_is_put_aside(
    what: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(_job(bundle, tmp_path, texts(20)))]) == 0
    log = tmp_path / "journal.jsonl"
    asked, others = texts(20), {}
    if what == "requests":
        asked = texts(22, seed=1)
    elif what == "threads":
        others = {"threads": 2}
    else:
        log.write_bytes(log.read_bytes().replace(b'"onnxruntime": "', b'"onnxruntime": "0.'))
    kept = log.read_bytes()
    assert main([str(_job(bundle, tmp_path, asked, **others))]) == 0
    assert "starting anew" in capsys.readouterr().out
    assert (tmp_path / "journal.jsonl.old").read_bytes() == kept
    assert sum(journal.taken(event) for event in journal.read(log)) == len(asked)


def test_another_kernel_or_power_mode_scores_the_same(bundle: Path, tmp_path: Path) -> None:
    file = _job(bundle, tmp_path, texts(20))
    assert main([str(file)]) == 0
    log = file.with_name("journal.jsonl")
    lines = log.read_bytes().replace(b'"kernel": "', b'"kernel": "other ').splitlines(True)
    log.write_bytes(b"".join(lines[:-1]))  # without its end
    assert main([str(file)]) == 0
    names = [event["event"] for event in _events(file)]
    assert names.count("scores") == 1
    assert names[-1] == "end"


def test_a_killed_job_scores_nothing_twice(bundle: Path, tmp_path: Path) -> None:
    asked = texts(12_000, longest=12)
    file = _job(bundle, tmp_path / "killed", asked)
    command = [sys.executable, "-m", "slmq_edge.runner", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        for line in runner.stdout:
            if json.loads(line)["event"] == "scores":
                os.kill(runner.pid, signal.SIGKILL)
                break
        runner.stdout.read()
    done = sum(journal.taken(event) for event in _events(file))
    assert 0 < done < len(set(asked)), [event["event"] for event in _events(file)]
    with file.with_name("journal.jsonl").open("ab") as stream:
        stream.write(b'{"event": "scor')
    assert main([str(file)]) == 0
    events = _events(file)
    found = scoring.scores(events, len(set(asked)))  # it refuses what is there twice
    assert [event["event"] for event in events].count("begin") == 2
    whole = _job(bundle, tmp_path / "whole", asked)
    assert main([str(whole)]) == 0
    again = scoring.scores(_events(whole), len(set(asked)))
    differ = [index for index in range(len(found[0])) if found[0][index] != again[0][index]]
    assert differ == [], f"of {len(found[0])}, {done} were scored before"
    assert again == found


def test_what_does_not_fit_is_refused_first(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _job(bundle, tmp_path, [Sequence((1,) * (toy_graph.CONTEXT + 2), 1)])
    assert main([str(file)]) == 1
    assert f"the context holds {toy_graph.CONTEXT}" in capsys.readouterr().err
    assert not file.with_name("journal.jsonl").exists()


def test_a_wrong_bundle_scores_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = toy_graph.write_bundle(tmp_path / "wrong", simulated=1)
    file = _job(wrong, tmp_path / "run", texts(20))
    assert main([str(file)]) == 1
    assert "golden check failed" in capsys.readouterr().err
    assert sum(journal.taken(event) for event in _events(file)) == 0


def test_an_unknown_task_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _job(bundle, tmp_path, texts(20))
    file.write_text(file.read_text().replace('"score"', '"scores"'))
    assert main([str(file)]) == 1
    assert "unknown task 'scores' (did you mean score?)" in capsys.readouterr().err
    file.write_text("[]")
    assert main([str(file)]) == 1
    file.write_text('{"task": "score", "bundle": "x"}')
    assert main([str(file)]) == 1
    assert "is not a job" in capsys.readouterr().err
