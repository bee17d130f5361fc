"""One question, any runtime: transformers, the simulation, the runner here and on a board."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slmq_edge import builtin, models
from slmq_edge import checkpoint as checkpoints
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.export import export
from slmq_edge.remote import follow
from slmq_edge.remote.run import Remote
from slmq_edge.runner import golden, journal, manifest, scoring
from slmq_edge.runner.agent import state
from slmq_edge.scheme import SCHEMES
from slmq_edge.tracks.accuracy import inprocess
from slmq_edge.tracks.accuracy.inprocess import InProcess
from slmq_edge.tracks.accuracy.scorers import Asked, open_scorer
from slmq_edge.tracks.accuracy.sequences import Order, Score, Scorer, Sequence
from slmq_edge.tracks.machines import Local
from tests import toy_graph, toy_trt
from tests.decoders import DECODERS, rounded, text_for
from tests.remote_client import local
from tests.shared import shared
from tests.supervised import gone, until
from tests.test_onnx_schemes import form_of
from tests.test_scoring import expected, texts
from tests.test_trt_profile import installed

Act = Callable[[], object]


def silent(done: int, total: int) -> None:
    pass


def cut_up(rows: torch.Tensor, seed: int = 0) -> list[Sequence]:
    """Questions of many lengths from texts int64 [rows, length], and the texts to their end."""
    draw = np.random.default_rng(seed)
    found = []
    for row in rows.tolist():
        length = int(draw.integers(4, len(row) + 1))
        found.append(Sequence(tuple(row[:length]), int(draw.integers(1, min(length, 9)))))
        found.append(Sequence(tuple(row), len(row) - 1))
    return found


# --- transformers' own model


def test_torch_is_transformers_own_log_softmax() -> None:
    from transformers import AutoModelForCausalLM

    folder = shared("models/stories260K")
    asked = cut_up(text_for("stories260K", 12, 96))
    found = open_scorer(Asked(str(folder))).score(asked, silent)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for sequence, score in zip(asked, found, strict=True):
        tokens = torch.tensor(sequence.tokens)
        with torch.no_grad():
            out = model(tokens[None]).logits[0, -sequence.scored - 1 : -1]
        targets = tokens[-sequence.scored :]
        each = torch.log_softmax(out, -1).gather(-1, targets[:, None])
        assert score.logprob == pytest.approx(each.double().sum().item(), abs=1e-5 * len(targets))
        assert score.greedy == bool((out.argmax(-1) == targets).all())
    assert {score.greedy for score in found} == {True, False}


def test_the_identity_says_what_scored() -> None:
    one = open_scorer(Asked("demo-llama")).identity
    assert one["runtime"] == "torch"
    assert one["model"]["name"] == "demo-llama"
    assert set(one["files"]) == {"config.json", "model.safetensors"}
    assert set(one["versions"]) == {"torch", "transformers"}
    assert set(one["machine"]) == {"machine", "cpu_model", "cpu_flags"}
    half = open_scorer(Asked("demo-llama", dtype="bfloat16")).identity
    assert half != one
    assert json.loads(json.dumps(one)) == one


def test_threads_are_torchs_in_this_process(tmp_path: Path) -> None:
    """Sums depend on them: another number is not gone on from."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            scorer = open_scorer(Asked("demo-llama", threads=threads, folder=tmp_path / "kept"))
            assert torch.get_num_threads() == scorer.identity["threads"] == threads
            scorer.score(cut_up(text_for("demo-llama", 2, 8)), silent)
    finally:
        torch.set_num_threads(before)
    assert len(list((tmp_path / "kept").glob("*.jsonl"))) == 2


def test_lower_precision_is_another_score() -> None:
    asked = cut_up(text_for("demo-llama", 8, 32))
    full, half = (
        open_scorer(Asked("demo-llama", dtype=dtype)).score(asked, silent)
        for dtype in ("float32", "bfloat16")
    )
    assert half != full
    for one, other in zip(full, half, strict=True):
        assert other.logprob == pytest.approx(one.logprob, rel=0.1, abs=0.5)


# --- the simulation


@pytest.mark.parametrize("name", ["stories260K", "demo-qwen2"])
def test_an_unquantized_simulation_is_the_model(name: str, tmp_path: Path) -> None:
    asked = cut_up(text_for(name, 8, 64))
    checkpoints.save(rounded(DECODERS[name](), SCHEMES["fp32"]), tmp_path / "checkpoint")
    folder = name if name.startswith("demo") else str(shared("models/stories260K"))
    simulated = open_scorer(Asked(str(tmp_path / "checkpoint")))
    assert simulated.identity["runtime"] == "simulated"
    found, exact = simulated.score(asked, silent), open_scorer(Asked(folder)).score(asked, silent)
    for sequence, one, other in zip(asked, found, exact, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-5 * sequence.scored)
        assert one.greedy == other.greedy


# --- bundles


@dataclasses.dataclass(frozen=True)
class Made:
    """A checkpoint, the bundle of it, and questions that the model knows how to read."""

    checkpoint: Path
    bundle: Path
    asked: list[Sequence]


@pytest.fixture(scope="module", params=["w8a8", "w4a8-b32"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["demo-llama", "demo-qwen2"])
def made(
    request: pytest.FixtureRequest, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    name, folder = request.param, tmp_path_factory.mktemp("made")
    quantized = form_of(DECODERS[name](), SCHEMES[scheme])
    text = text_for(name, 64, 96)
    quantized = dataclasses.replace(quantized, prompts=text)
    checkpoints.save(quantized, folder / "checkpoint")
    export(quantized, folder / "bundle")
    return Made(folder / "checkpoint", folder / "bundle", cut_up(text[:24]))


def test_a_bundle_scores_what_its_simulation_does(made: Made) -> None:
    """Within what the golden prompts are held to: the mean log-probability of a token."""
    simulated = open_scorer(Asked(str(made.checkpoint))).score(made.asked, silent)
    scorer = open_scorer(Asked(str(made.bundle), threads=1))
    assert scorer.identity["runtime"] == "ort"
    found = scorer.score(made.asked, silent)
    limit = golden.limits(manifest.read_bundle(made.bundle)).perplexity_limit
    for part in (slice(None, None, 2), slice(1, None, 2)):
        tokens = sum(sequence.scored for sequence in made.asked[part])
        ours, theirs = (
            math.fsum(score.logprob for score in scores[part]) / tokens
            for scores in (found, simulated)
        )
        assert abs(math.expm1(ours - theirs)) <= limit
    same = sum(one.greedy == other.greedy for one, other in zip(found, simulated, strict=True))
    assert same >= len(found) - 1  # a flipped rounding may decide between two that are as likely


def test_company_order_and_padding_change_no_bit(made: Made) -> None:
    whole = [one.tokens for one in made.asked[1::2]]
    alike = [Sequence(row[k : k + 20], 1 + k % 4) for row in whole for k in range(0, 70, 11)]
    scorers: list[Scorer] = [
        open_scorer(Asked(str(made.bundle), threads=1)),
        open_scorer(Asked(str(made.checkpoint))),
    ]
    for scorer in scorers:
        asked = made.asked[:6] + alike
        assert Order(asked).tokens > scoring.WORTH * scoring.TOGETHER
        together = scorer.score(asked, silent)
        assert scorer.score(asked[::-1], silent) == together[::-1]
        for part in (slice(0, 1), slice(3, 5), slice(7, 8), slice(9, 13)):
            assert scorer.score(asked[part], silent) == together[part]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_several_threads_score_no_simulation_in_company(made: Made, one_thread: None) -> None:
    assert inprocess.of_checkpoint(made.checkpoint).together == inprocess.TOGETHER
    torch.set_num_threads(2)
    assert inprocess.of_checkpoint(made.checkpoint).together == 0


def test_a_simulation_in_company_is_the_same(made: Made, one_thread: None) -> None:
    model = inprocess.of_checkpoint(made.checkpoint)
    row = made.asked[1].tokens
    asked = [Sequence(row[k : k + 9], 1 + k % 6) for k in range(80)]
    calls: list[int] = []

    def logits(tokens: Any, keep: int) -> Iterator[Any]:
        calls.append(len(tokens))
        return model.logits(tokens, keep)

    alone, company = (
        InProcess(dataclasses.replace(model, logits=logits, together=together), None)
        for together in (0, 32)
    )
    found = alone.score(asked, silent)
    assert set(calls) == {1}
    assert company.score(asked, silent) == found
    assert 8 in calls  # it was tried, at least


# --- the runner, here


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


class Listener:
    """Remembers events, and does something once: at an event of scores."""

    def __init__(self, at: int = 0, act: Act = lambda: None) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._at, self._act = at, act

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "scores" and len(self.of("scores")) == self._at:
            self._act()

    def of(self, name: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def scored(self) -> list[int]:
        """Indices of all that was scored."""
        return [
            k for e in self.of("scores") for k in range(e["first"], e["first"] + len(e["greedy"]))
        ]

    def notes(self) -> str:
        return " | ".join(event["text"] for event in self.of("note"))


def assert_right(asked: list[Sequence], found: list[Score]) -> None:
    for sequence, score in zip(asked, found, strict=True):
        assert score.logprob == pytest.approx(expected(sequence)[0], abs=1e-4)


def interrupt() -> None:
    raise KeyboardInterrupt


# Enough work to be ended in the middle of: at once here; on a board, which is asked now and then.
MANY, LONG = texts(12_000, longest=12), texts(24_000, longest=14)


def test_a_toy_is_scored_and_leaves_nothing(toy: Path, tmp_path: Path) -> None:
    told, asked, seen = Listener(), texts(240), []
    folder = tmp_path / "kept"
    scorer = open_scorer(Asked(str(toy), threads=1, folder=folder, told=told))
    found = scorer.score(asked, lambda done, total: seen.append((done, total)))
    assert_right(asked, found)
    assert [event["event"] for event in told.events] == (
        ["begin", "probe", "golden", "scores", "end"]
    )
    tokens = Order(asked).tokens
    assert seen[0] == (0, tokens)
    assert seen[-1] == (tokens, tokens)
    assert seen == sorted(seen)
    assert told.events[-1]["session"] == {"batches": True}
    assert len(list(folder.iterdir())) == 2
    scorer.forget()
    assert not folder.exists()


def test_what_is_scored_is_not_scored_again(toy: Path, tmp_path: Path) -> None:
    def score(told: Listener) -> list[Score]:
        asked = Asked(str(toy), threads=1, folder=tmp_path / "kept", told=told)
        return open_scorer(asked).score(texts(40), silent)

    first, second = Listener(), Listener()
    assert score(first) == score(second)
    assert len(first.scored()) == 40
    assert second.events == []


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_resumed_is_not_resumed_to_the_bit(how: str, toy: Path, tmp_path: Path) -> None:
    def scorer(told: Listener, name: str) -> Scorer:
        return open_scorer(Asked(str(toy), threads=1, folder=tmp_path / name, told=told))

    def kill() -> None:
        os.kill(first.of("begin")[0]["pid"], signal.SIGKILL)

    first = Listener(1, kill if how == "killed" else interrupt)
    with pytest.raises(SlmqError if how == "killed" else KeyboardInterrupt) as caught:
        scorer(first, "kept").score(MANY, silent)
    if how == "killed":
        assert "ended by SIGKILL" in str(caught.value)
        assert "sequences are kept in" in str(caught.value)
    (log,) = (tmp_path / "kept").glob("*.jsonl")
    kept = sum(journal.taken(event) for event in journal.read(log))
    assert 0 < kept < len(set(MANY))

    second, progress = Listener(), []
    found = scorer(second, "kept").score(MANY, lambda done, total: progress.append(done))
    assert f"resuming: {kept} of {len(set(MANY))} sequences" in second.notes()
    assert second.scored() == list(range(kept, len(set(MANY))))
    assert Order(MANY).read(kept) in progress
    assert scorer(Listener(), "whole").score(MANY, silent) == found


def test_in_this_process_too(tmp_path: Path) -> None:
    asked = cut_up(text_for("demo-llama", 30, 24))
    calls = 0

    def scorer(last: int) -> InProcess:
        model = inprocess.of_transformers("demo-llama")

        def logits(tokens: Any, keep: int) -> Iterator[Any]:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt
            return model.logits(tokens, keep)

        return InProcess(dataclasses.replace(model, logits=logits), tmp_path / "kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "FLUSH_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            scorer(11).score(asked, silent)
    assert calls == 12
    progress: list[int] = []
    resumed = scorer(10_000)
    found = resumed.score(asked, lambda done, total: progress.append(done))
    runs = len({(one.tokens[:-1], one.scored) for one in asked})
    assert calls == 12 + runs - 11  # the one in which it was interrupted is done again
    assert progress[0] >= Order(asked).read(11)
    assert resumed.score(asked, silent) == found
    assert calls == 12 + runs - 11
    assert InProcess(inprocess.of_transformers("demo-llama"), None).score(asked, silent) == found
    resumed.forget()
    assert not (tmp_path / "kept").exists()


def test_a_damaged_journal_is_refused_by_name(toy: Path, tmp_path: Path) -> None:
    asked = Asked(str(toy), threads=1, folder=tmp_path / "kept")
    open_scorer(asked).score(texts(40), silent)
    (log,) = (tmp_path / "kept").glob("*.jsonl")
    log.write_bytes(b"garbage\n" + log.read_bytes())
    with pytest.raises(Damaged, match=rf"{log.name} is damaged in line 1"):
        open_scorer(asked).score(texts(40), silent)


def test_another_scorer_has_another_journal(toy: Path, tmp_path: Path) -> None:
    for threads in (1, 2):
        scorer = open_scorer(Asked(str(toy), threads=threads, folder=tmp_path / "kept"))
        scorer.score(texts(40), silent)
        scorer.score(texts(10, seed=1), silent)
    assert len(list((tmp_path / "kept").glob("*.jsonl"))) == 4
    assert scorer.score([], silent) == []


# --- on a board


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A device's folder; it is asked often, and what still runs there is ended."""
    monkeypatch.setattr(follow, "WAITS", ())
    monkeypatch.setattr(follow, "LONGEST_WAIT", 0.1)
    made = tmp_path / "device"
    yield made
    for folder in made.glob("runs/*"):
        now = state.read(folder)
        if now["state"] == "running":
            os.kill(now["pid"], signal.SIGKILL)
            until(functools.partial(gone, [now["pid"]]), "the supervisor is gone")


def running(home: Path) -> state.State:
    (folder,) = (home / "runs").iterdir()
    return state.read(folder)


def on_board(machine: Remote, toy: Path, folder: Path, told: Listener) -> Scorer:
    return open_scorer(Asked(str(toy), machine, threads=1, folder=folder, told=told))


def test_a_board_scores_the_same(toy: Path, home: Path, tmp_path: Path) -> None:
    told, asked = Listener(), texts(40)
    here = open_scorer(Asked(str(toy), threads=1)).score(asked, silent)
    with Remote(local(home)) as machine:
        scorer = on_board(machine, toy, tmp_path / "kept", told)
        assert scorer.identity["versions"]["onnxruntime"]
        assert scorer.score(asked, silent) == here
        other = scorer.score(texts(10, seed=1), silent)
        assert len(list((home / "runs").iterdir())) == 2
        uploads = len(told.of("upload"))
        assert scorer.score(asked, silent) == here  # it is here already
        assert len(told.of("begin")) == 2
        assert len(told.of("upload")) == uploads
        scorer.forget()
    assert_right(texts(10, seed=1), other)
    assert list((home / "runs").iterdir()) == []
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("which", ["runner", "pid"])
def test_a_board_that_loses_its_job_goes_on(
    which: str, toy: Path, home: Path, tmp_path: Path
) -> None:
    """A runner that is killed is gone on from when asked; a lost supervisor, by itself."""
    first = Listener(1, lambda: os.kill(running(home)[which], signal.SIGKILL))
    with Remote(local(home)) as machine:
        scorer = on_board(machine, toy, tmp_path / "kept", first)
        if which == "runner":
            text = r"here: killed while scoring: .* [1-9]\d* sequences are kept"
            with pytest.raises(SlmqError, match=text):
                scorer.score(LONG, silent)
            assert running(home)["kept"] >= 1
    second = Listener()
    with Remote(local(home)) as machine:
        scorer = on_board(machine, toy, tmp_path / "kept", first if which == "pid" else second)
        found = scorer.score(LONG, silent)
        scorer.forget()
    assert first.scored() + second.scored() == list(range(len(set(LONG))))
    assert len(first.of("begin") + second.of("begin")) == 2
    if which == "runner":
        assert open_scorer(Asked(str(toy), threads=1)).score(LONG, silent) == found


def test_ctrl_c_leaves_a_board_at_work(toy: Path, home: Path, tmp_path: Path) -> None:
    first, second = Listener(1, interrupt), Listener()
    with Remote(local(home)) as machine, pytest.raises(KeyboardInterrupt):
        on_board(machine, toy, tmp_path / "kept", first).score(LONG, silent)
    assert "goes on by itself" in first.notes()
    with Remote(local(home)) as machine:
        found = on_board(machine, toy, tmp_path / "kept", second).score(LONG, silent)
    # It may have ended before it was asked for again.
    assert re.search("following the job|are there already", second.notes())
    both = [*first.scored(), *second.scored()]
    assert both == sorted(set(both))
    assert len(found) == len(LONG)


def test_a_refusal_there_is_one_here(home: Path, tmp_path: Path) -> None:
    wrong = toy_graph.write_bundle(tmp_path / "wrong", simulated=1)
    with Remote(local(home)) as machine:
        scorer = on_board(machine, wrong, tmp_path / "kept", Listener())
        with pytest.raises(SlmqError, match=r"here: .*golden check failed"):
            scorer.score(texts(40), silent)
    assert list((home / "runs").iterdir()) == []


# --- TensorRT


def test_an_engine_scores_what_onnxruntime_does(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = texts(40, longest=24)
    here = open_scorer(Asked(str(toy), threads=1)).score(asked, silent)
    (tmp_path / "site").mkdir()
    installed(monkeypatch, tmp_path / "site")
    bundle = toy_trt.write_bundle(tmp_path / "bundle")
    toy_trt.write_engine(bundle)
    scorer = open_scorer(Asked(str(bundle)))
    assert scorer.identity["runtime"] == "trt"
    found = scorer.score(asked, silent)
    for one, other in zip(here, found, strict=True):
        assert other.logprob == pytest.approx(one.logprob, abs=1e-3)
    with pytest.raises(UsageError, match=r"this engine holds \d+; slmq-edge build"):
        scorer.score([Sequence((1,) * 200, 1)], silent)


# --- second zero


def test_what_does_not_fit_is_refused_before_anything_runs(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(Local, "run", never)
    fits = Sequence((1, 2, 3), 1)
    for scorer in (open_scorer(Asked(str(toy))), open_scorer(Asked("demo-llama"))):
        length = scorer.context_length
        with pytest.raises(UsageError, match=f"the context holds {length}"):
            scorer.score([fits, Sequence((1,) * (length + 2), 1)], silent)
    vocabulary = models.read_anatomy(builtin.folder("demo-llama")).vocab
    with pytest.raises(UsageError, match=f"token {vocabulary} is not in the vocabulary of"):
        scorer.score([fits, Sequence((1, vocabulary), 1)], silent)


def test_the_whole_context_is_read() -> None:
    scorer = open_scorer(Asked("demo-llama"))
    length = scorer.context_length
    (found,) = scorer.score([Sequence((1,) * (length + 1), 1)], silent)
    assert math.isfinite(found.logprob)


@pytest.mark.parametrize(
    ("runtime", "error", "text"),
    [
        ("torhc", UsageError, r"unknown runtime 'torhc' \(did you mean torch\?\)"),
        ("torch", UsageError, "is a bundle: --runtime ort runs it, torch does not"),
        ("simulated", UsageError, "is a bundle: --runtime ort runs it"),
        ("trt", UsageError, "is a bundle for ort, which --runtime trt does not run"),
    ],
)
def test_a_bundle_on_the_wrong_runtime(
    runtime: str, error: type[SlmqError], text: str, toy: Path
) -> None:
    with pytest.raises(error, match=text):
        open_scorer(Asked(str(toy)), runtime)


def test_other_wrong_requests(tmp_path: Path, home: Path, toy: Path) -> None:
    with pytest.raises(NotFound, match=r"did you mean demo-llama\?"):
        open_scorer(Asked("demo-lama"))
    with pytest.raises(UsageError, match="is no checkpoint"):
        open_scorer(Asked("demo-llama"), "simulated")
    with pytest.raises(NotFound, match="no bundle at"):
        open_scorer(Asked(str(tmp_path / "nothing")), "ort")
    with pytest.raises(UsageError, match=r"unknown dtype 'float31' \(did you mean float32\?\)"):
        open_scorer(Asked("demo-llama", dtype="float31"))
    with pytest.raises(UsageError, match="torch has no device cudda here"):
        open_scorer(Asked("demo-llama", torch_device="cudda"))
    with Remote(local(home)) as machine, pytest.raises(UsageError, match="--device is of bundles"):
        open_scorer(Asked("demo-llama", machine))
    checkpoints.save(rounded(DECODERS["demo-llama"](), SCHEMES["fp32"]), tmp_path / "made")
    with pytest.raises(UsageError, match="is a checkpoint: --runtime simulated scores it"):
        open_scorer(Asked(str(tmp_path / "made")), "torch")
    document = json.loads((toy / "bundle.json").read_text())
    document["runtime"]["minimum_version"] = "99.0"
    other = toy_graph.write_bundle(tmp_path / "other")
    (other / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(SlmqError, match="it needs 99"):
        open_scorer(Asked(str(other), threads=1)).score(texts(4), silent)
