"""The built-in world's own questions: no network, and the figures its documentation quotes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="needs slmq-edge[eval]")

from slmq_edge import builtin, models
from slmq_edge.builtin import measure, world
from slmq_edge.builtin.score import pairs, stream
from slmq_edge.cli import app
from slmq_edge.errors import Damaged, UsageError
from slmq_edge.tracks.accuracy import evaluation, harness, own, tasks
from slmq_edge.tracks.accuracy.evaluation import Asked
from slmq_edge.tracks.accuracy.questions import Folder
from slmq_edge.tracks.accuracy.results import Evaluation
from slmq_edge.tracks.accuracy.sequences import Sequence
from tests.eval_scorers import Plain

CHANCE = 0.25


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def evaluated(name: str, words: str, limit: int | None = None) -> Evaluation:
    folder = builtin.folder(name)
    tokenizer = models.read_tokenizer(folder)
    begin = harness.start(tokenizer)[1]
    these = evaluation.ready(Asked(tasks.named(words), None, limit), begin)
    return evaluation.evaluate(Plain(folder), tokenizer, these, lambda share, text: None)


@pytest.mark.parametrize(
    "name",
    [builtin.MODELS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in builtin.MODELS[1:])],
)
def test_they_score_what_their_documentation_says(name: str) -> None:
    found = evaluated(name, "builtin")
    folder = builtin.folder(name)
    plain, tokenizer = Plain(folder), models.read_tokenizer(folder)
    asked, text = found.tasks
    assert [task.name for task in found.tasks] == ["builtin_questions", "builtin_windows"]
    expected = measure.question_accuracy(plain.model, tokenizer, world.questions())
    assert asked.metric("acc").value == pytest.approx(expected, abs=1e-12)
    assert expected > CHANCE + 0.5
    expected = measure.perplexity(plain.model, tokenizer, world.heldout_documents())
    assert text.metric("token_perplexity_512").value == pytest.approx(expected, rel=1e-5)
    for question, answer in zip(world.questions()[:40], asked.questions, strict=False):
        assert (answer.id, answer.target) == (question.id, question.answer)
        scores = [
            plain._one(Sequence((*context, *end), len(end))).logprob
            for context, end in pairs(tokenizer, question)
        ]
        assert answer.logprobs == pytest.approx(scores, rel=1e-5)


def test_a_limit_and_the_source_are_stamped() -> None:
    found = evaluated("demo-llama", "builtin", limit=3)
    for task, available in zip(found.tasks, (300, 26), strict=True):
        assert (len(task.questions), task.available, task.cut) == (3, available, 0)
        assert task.source.origin == "built-in"
        assert task.source.sha256 is not None
        assert not any(metric.paper for metric in task.metrics)
        assert {metric.limit for metric in task.metrics} == {3}


def test_beside_lm_evals_own_tasks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A name is no part of another suite, and is taken with others from local files."""
    assert not set(own.NAMES) & set(tasks.named("slmquant"))
    place = tmp_path_factory.mktemp("data")
    (place / "piqa").mkdir()
    row = '{"question": "To dry paint,", "choices": ["wait", "run"], "answer": 0}\n'
    (place / "piqa" / "validation.jsonl").write_text(row)
    names = tasks.named("piqa,builtin_questions")
    loaded = tasks.load(names, tasks.files(names, Folder(place)))
    assert list(loaded.document["tasks"]) == ["piqa", "builtin_questions"]
    assert loaded.members == {"piqa": ("piqa",), "builtin_questions": ("builtin_questions",)}
    with pytest.raises(UsageError, match="did you mean builtin"):
        tasks.named("buildin")


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    """The built-in documents in a file have the built-in text's perplexity."""
    file, folder = tmp_path / "mine.jsonl", builtin.folder("demo-llama")
    rows = [json.dumps({"text": one}) for one in world.heldout_documents()]
    file.write_text("\n".join(rows))
    tokenizer = models.read_tokenizer(folder)
    names = tasks.named("text_windows,builtin_windows")
    these = evaluation.ready(Asked(names, None, 4, file))
    found = evaluation.evaluate(Plain(folder), tokenizer, these, lambda share, text: None)
    mine, theirs = found.tasks
    assert mine.metric("token_perplexity_512").value == theirs.metric("token_perplexity_512").value
    assert (mine.source.origin, mine.source.name) == ("local", "mine.jsonl")
    assert mine.asked_sha256 == theirs.asked_sha256
    file.write_text('{"text": " "}\n')
    with pytest.raises(Damaged, match=r"mine\.jsonl holds no text"):
        own.of_file(file)


@pytest.mark.parametrize("words", [("text_windows",), ("builtin", "--text", "x.txt")])
def test_a_text_and_its_task_go_together(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["eval", "demo-llama", "--tasks", *words])
    assert isinstance(done.exception, UsageError)
    assert "--text and --tasks text_windows go together" in str(done.exception)


class WithoutBos:
    """A tokenizer like Qwen2.5's, which begins texts with nothing."""

    bos_token_id, eos_token_id = None, 7

    def __call__(self, texts: list[str], add_special_tokens: bool, verbose: bool) -> WithoutBos:
        assert not add_special_tokens
        assert not verbose
        self.input_ids = [[len(text)] for text in texts]
        return self

    decode: Callable[[object, int], str] = staticmethod(lambda token: f"<{token}>")  # type: ignore


def test_without_bos_texts_begin_with_eos() -> None:
    assert stream(WithoutBos(), ["a", "bc"]) == [7, 1, 7, 2]
    assert harness.start(WithoutBos()) == (7, "<7>")
