"""eval.json, the gap between several, and both as text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.metrics import Scores, slmq_perf
from slmq_edge.reports import eval as eval_report
from slmq_edge.reports import gap as gap_report
from slmq_edge.tracks.accuracy import gap
from slmq_edge.tracks.accuracy.questions import Source
from slmq_edge.tracks.accuracy.results import (
    BITS,
    MEAN,
    PERPLEXITY,
    Evaluation,
    Metric,
    Question,
    TaskResult,
    columns,
    combine,
    load,
    save,
)


def choice(index: int, right: bool, moved: float = 0.0) -> Question:
    """Two choices, of which the first is right; ``moved``: added to its log-probability."""
    logprobs = (-1.0 + moved, -2.0) if right else (-2.0 + moved, -1.0)
    return Question(str(index), logprobs, (right, False), 0, {"acc": float(right)})


def questions_task(name: str, answers: list[bool], moved: float = 0.0) -> TaskResult:
    asked = tuple(choice(index, right, moved) for index, right in enumerate(answers))
    return with_value(
        TaskResult(
            name=name,
            stock={name: "1.0"},
            source=Source("local", "test.jsonl", "ab" * 32),
            available=len(answers),
            cut=0,
            asked_sha256=f"{name} {len(answers)}",
            metrics=(Metric("acc", MEAN, 0.0, 0.05, len(answers), None, True),),
            questions=asked,
        )
    )


def text_task(name: str, logprobs: list[float], weight: float = 100.0) -> TaskResult:
    asked = tuple(
        Question(str(index), (value,), (), None, {"token_perplexity_2048": weight})
        for index, value in enumerate(logprobs)
    )
    count = len(logprobs)
    return with_value(
        TaskResult(
            name=name,
            stock={"papers' convention": "windows of 2048 tokens"},
            source=Source("local", "wiki.test.raw", "cd" * 32),
            available=count,
            cut=0,
            asked_sha256=f"{name} {count}",
            metrics=(Metric("token_perplexity_2048", PERPLEXITY, 1.0, None, count, None, True),),
            questions=asked,
        )
    )


def with_value(task: TaskResult) -> TaskResult:
    (metric,) = task.metrics
    above, below = columns(metric, task.questions)
    value = float(combine(metric.kind, above.sum(), below.sum()))
    return dataclasses.replace(task, metrics=(dataclasses.replace(metric, value=value),))


def evaluation(*found: TaskResult, **identity: Any) -> Evaluation:
    named = {"runtime": "torch", "model": {"name": "SmolLM-135M"}, "dtype": "float32"}
    return Evaluation(
        created="2026-01-02T03:04:05+00:00",
        identity=named | identity,
        ran={},
        environment={"lm_eval": "0.4.13"},
        seconds=2.0,
        sequences=10,
        tokens=1000,
        tasks=found,
    )


def half_wrong(count: int) -> list[bool]:
    return [index % 2 == 0 for index in range(count)]


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    found = evaluation(questions_task("piqa", half_wrong(6)), text_task("wiki", [-300.0, -280.0]))
    save(found, tmp_path / "eval.json")
    assert load(tmp_path / "eval.json") == found
    document = json.loads((tmp_path / "eval.json").read_text())
    assert document["tasks"][0]["questions"][1]["logprobs"] == [-2.0, -1.0]


def damaged(document: dict[str, Any], what: str) -> object:
    task = document["tasks"][0]
    match what:
        case "list":
            return []
        case "format":
            return {**document, "format": "slmq-edge-run"}
        case "version":
            return {**document, "version": 9}
        case "no version":
            del document["version"]
        case "deep":
            for _ in range(900):
                document["identity"] = {"model": document["identity"]}
        case "lacks":
            del task["asked_sha256"]
        case "kind":
            task["metrics"][0]["kind"] = "median"
        case "count":
            task["metrics"][0]["n"] = 7
        case "question":
            task["questions"][2]["values"] = {}
        case "empty":
            task["questions"] = []
        case "number":
            task["questions"][0]["logprobs"] = ["-1.0"]
    return document


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("list", Damaged, "not a JSON object"),
        ("format", Unsupported, "is no slmq-edge-eval: its format is 'slmq-edge-run'"),
        ("version", Unsupported, "version 9"),
        ("no version", Unsupported, "version None"),
        ("deep", Damaged, "is damaged"),
        ("lacks", Damaged, r"tasks\[0\].asked_sha256 is missing"),
        ("kind", Damaged, "acc is of kind 'median'"),
        ("count", Damaged, "acc is of 7 questions, not of all"),
        ("question", Damaged, "question 2 lacks acc"),
        ("empty", Damaged, "no metrics or no questions"),
        ("number", Damaged, "is str, expected float"),
    ],
)
def test_what_is_no_evaluation_is_refused(
    what: str, kind: type[SlmqError], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "eval.json"
    save(evaluation(questions_task("piqa", half_wrong(6))), path)
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), what)))
    with pytest.raises(kind, match=words):
        load(path)


def test_a_torn_file_and_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    save(evaluation(questions_task("piqa", half_wrong(6))), path)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(Damaged, match="is damaged"):
        load(path)
    with pytest.raises(NotFound, match="cannot be read"):
        load(tmp_path / "other.json")


def test_bits_and_perplexity_of_the_same_sums_agree() -> None:
    above, below = np.array(-300.0), np.array(100.0)
    assert combine(PERPLEXITY, above, below) == pytest.approx(np.exp(3))
    assert 2 ** combine(BITS, above, below) == pytest.approx(np.exp(3))


def test_a_model_against_itself_has_no_gap() -> None:
    one = evaluation(questions_task("piqa", half_wrong(50)), text_task("wiki", [-3.0, -2.0, -4.0]))
    found = gap.compare(one, one)
    for row in found.rows:
        assert (row.difference, row.low, row.high, row.loss) == (0, 0, 0, 0)
        assert not row.is_shown
    assert (found.rows[0].flips, found.rows[0].kl) == (0, 0)
    assert (found.rows[1].flips, found.rows[1].kl) == (None, None)
    assert found.notes == ()


def test_flips_are_seen_where_the_accuracy_stays() -> None:
    before = [True] * 50 + [False] * 50
    after = [False] * 10 + [True] * 50 + [False] * 40
    (row,) = gap.compare(
        evaluation(questions_task("piqa", before)), evaluation(questions_task("piqa", after))
    ).rows
    assert row.difference == 0
    assert (row.lost, row.won, row.flips) == (0.1, 0.1, 0.2)
    assert row.low < 0 < row.high


def test_kl_is_of_the_choices_probabilities() -> None:
    before, after = questions_task("piqa", [True]), questions_task("piqa", [True], moved=0.5)
    (row,) = gap.compare(evaluation(before), evaluation(after)).rows
    p = np.exp([-1.0, -2.0]) / np.exp([-1.0, -2.0]).sum()
    q = np.exp([-0.5, -2.0]) / np.exp([-0.5, -2.0]).sum()
    assert row.kl == pytest.approx(float((p * np.log(p / q)).sum()))


def test_perplexities_differ_relatively() -> None:
    before, after = text_task("wiki", [-300.0] * 20), text_task("wiki", [-303.0] * 20)
    (row,) = gap.compare(evaluation(before), evaluation(after)).rows
    rise = float(np.exp(0.03)) - 1
    assert [row.difference, row.loss] == pytest.approx([rise, rise])
    assert [row.low, row.high] == pytest.approx([rise, rise])  # paired: no noise
    assert row.is_shown


def test_one_question_does_not_tell_two_apart() -> None:
    for count, told in ((1, False), (2, True)):
        before, after = text_task("wiki", [-300.0] * count), text_task("wiki", [-303.0] * count)
        (row,) = gap.compare(evaluation(before), evaluation(after)).rows
        assert row.is_shown is told


def test_intervals_cover_what_they_promise() -> None:
    """Of 200 samples of 120 questions, some 95 % of intervals hold the true difference, -5 points.

    Answers are correlated, as two precisions of one model's are; an unpaired interval, with the
    variances added, would be more than twice as wide.
    """
    generator = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(200):
        before = generator.random(120) < 0.6
        changed = generator.random(120)
        after = np.where(before, changed >= 0.15, changed < 0.1)
        first, second = (questions_task("t", list(map(bool, side))) for side in (before, after))
        (row,) = gap.compare(evaluation(first), evaluation(second), draws=400).rows
        covered += row.low <= 0.6 * 0.85 + 0.4 * 0.1 - 0.6 <= row.high
        widths.append(row.high - row.low)
    assert 180 <= covered <= 199
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.6 * 0.4 / 120)
    assert np.mean(widths) < 0.65 * unpaired


def all_tasks(right: float, logprob: float, **identity: Any) -> Evaluation:
    names = ("mmlu", "arc_easy", "arc_challenge", "piqa", "hellaswag")
    answers = [index < 100 * right for index in range(100)]
    found = [questions_task(name, answers) for name in names]
    return evaluation(*found, text_task("wikitext2_windows", [logprob] * 5), **identity)


def test_slmq_perf_is_the_papers() -> None:
    before, after = all_tasks(0.6, -300.0), all_tasks(0.5, -310.0)
    found = gap.compare(before, after)
    expected = slmq_perf(
        Scores(0.5, 0.5, 0.5, 0.5, 0.5, np.exp(3.1)), Scores(0.6, 0.6, 0.6, 0.6, 0.6, np.exp(3.0))
    )
    assert found.perf == pytest.approx(expected)
    assert gap.compare(before, all_tasks(0.0, -310.0)).perf is None  # a ratio of nothing
    part = dataclasses.replace(after, tasks=after.tasks[1:])
    alone = gap.compare(before, part)
    assert alone.perf is None
    assert alone.notes == ("only the base has mmlu: not compared",)


def test_other_questions_are_refused() -> None:
    before = evaluation(questions_task("piqa", half_wrong(8)))
    with pytest.raises(SlmqError, match="piqa: not the same questions"):
        gap.compare(before, evaluation(questions_task("piqa", half_wrong(6))))
    with pytest.raises(SlmqError, match="no task in common: piqa against boolq"):
        gap.compare(before, evaluation(questions_task("boolq", half_wrong(8))))


def test_what_else_differs_is_said() -> None:
    base = questions_task("piqa", half_wrong(8))
    limited = dataclasses.replace(base.metrics[0], limit=8)
    task = dataclasses.replace(base, cut=3, available=20, metrics=(limited,))
    before = evaluation(task)
    after = dataclasses.replace(
        evaluation(task, model="SmolLM-360M"), environment={"lm_eval": "0.4.14"}
    )
    assert gap.compare(before, after).notes == (
        "not the same model: SmolLM-135M against SmolLM-360M",
        "lm_eval differs: 0.4.13 against 0.4.14",
        "not all questions: 8 of 20 of piqa",
        "longer than the context, and read without their start: 3 of piqa",
    )


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [("gap=0.5%", "gap", 0.005), ("flips=0.02", "flips", 0.02), ("kl = 1e-3", "kl", 0.001)],
)
def test_limits(text: str, name: str, value: float) -> None:
    found = gap.parse(text)
    assert found.what == name
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.5%", "NAME=VALUE"),
        ("gap=", "is no number"),
        ("gap=-1%", "is no number"),
        ("gap=half", "is no number"),
        ("flip=1%", "did you mean flips"),
    ],
)
def test_limits_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gap.parse(text)


def test_what_exceeds_a_limit_is_named() -> None:
    before, after = all_tasks(0.6, -300.0), all_tasks(0.59, -300.1, runtime="ort")
    gaps = [gap.compare(before, after, draws=50)]
    gap_report.require_within(gaps, [gap.parse("gap=1.1%"), gap.parse("flips=1.1%")])
    with pytest.raises(SlmqError, match=r"beyond --fail-on gap=0.5%: .*piqa acc loses 1.00 points"):
        gap_report.require_within(gaps, [gap.parse("gap=0.5%")])
    with pytest.raises(SlmqError, match=r"mmlu has flips above flips=0.5%"):
        gap_report.require_within(gaps, [gap.parse("flips=0.5%")])
    better = [gap.compare(after, before, draws=50)]
    gap_report.require_within(better, [gap.parse("gap=0")])
    texts = evaluation(text_task("wikitext2_windows", [-300.0]))
    with pytest.raises(SlmqError, match="texts have no flips"):
        gap_report.require_within([gap.compare(texts, texts)], [gap.parse("flips=1%")])


EVAL = """\
SmolLM-135M smoothquant w8a8 (ort on Jetson Orin Nano)

task  metric                     value  stderr  questions  limit
piqa  acc *                    50.00 %  ± 5.00          8   none
wiki  token_perplexity_2048 *   18.174                  2   none

* the metric of the SLMQuant paper's Tables 1 and 2
! piqa: 3 longer than the context, read without their start
questions: local test.jsonl, local wiki.test.raw; lm-eval 0.4.13
scored 10 sequences, 1000 tokens, in 2.00 s (500 tok/s)
"""


def test_an_evaluation_as_text_is_exactly_this() -> None:
    ran = {"runtime": "ort", "method": "smoothquant", "scheme": "w8a8", "dtype": None}
    piqa = dataclasses.replace(questions_task("piqa", half_wrong(8)), cut=3)
    found = evaluation(piqa, text_task("wiki", [-300.0, -280.0]), device="Jetson Orin Nano", **ran)
    assert eval_report.terminal(found) == EVAL
    assert eval_report.markdown(found).splitlines()[2:5] == [
        "| task | metric | value | stderr | questions | limit |",
        "|---|---|---:|---:|---:|---:|",
        "| piqa | acc \\* | 50.00 % | ± 5.00 | 8 | none |",
    ]
    rows = eval_report.comma_separated(found).splitlines()
    assert rows[1].startswith("SmolLM-135M smoothquant w8a8 (ort on Jetson Orin Nano),piqa,acc,0.5")
    assert json.loads(eval_report.WRITERS["json"](found))["format"] == "slmq-edge-eval"


@pytest.mark.parametrize("format", gap_report.WRITERS)
def test_every_format_of_a_gap_says_what_was_compared(format: str) -> None:
    ran = {"runtime": "ort", "method": "smoothquant", "scheme": "w8a8", "dtype": None}
    found = gap.compare(all_tasks(0.6, -300.0), all_tasks(0.5, -310.0, **ran), draws=200)
    text = gap_report.WRITERS[format]([found]).replace("\\", "")
    assert "wikitext2_windows" in text
    assert "smoothquant" in text
    if format in ("terminal", "md"):
        assert "SmolLM-135M smoothquant w8a8 (ort) against SmolLM-135M float32 (torch)" in text
        assert "SLMQ_perf" in text
        assert "-10.00" in text
        assert "+10.52 %" in text
        assert "10.0 + 0.0" in text
    if format == "json":
        rows = json.loads(text)["gaps"][0]["rows"]
        assert rows[0]["difference"] == pytest.approx(-0.1)


def test_a_bundle_says_how_far_it_is_from_its_simulation() -> None:
    one = evaluation(questions_task("piqa", half_wrong(8)))
    ran = dataclasses.replace(one, ran={"report": {"mean_kl": 4.5e-8}})
    assert gap.compare(ran, one).golden_kl is None
    assert "simulation: mean KL 4.5e-08" in gap_report.terminal([gap.compare(one, ran)])


def test_a_difference_that_is_not_shown_is_marked() -> None:
    before = questions_task("piqa", [True] * 50 + [False] * 50)
    after = questions_task("piqa", [False] * 10 + [True] * 49 + [False] * 41)
    (found,) = [gap.compare(evaluation(before), evaluation(after))]
    assert "-1.00 ~" in gap_report.terminal([found])
