"""Our harness against lm-eval's own Hugging Face model: the same questions, the same model."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs slmq-edge[eval]")

import torch
import yaml

from slmq_edge import models
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.tracks.accuracy import evaluation, fetching, tasks, windows
from slmq_edge.tracks.accuracy.evaluation import Asked
from slmq_edge.tracks.accuracy.questions import Folder, lines, pages, questions
from slmq_edge.tracks.accuracy.results import Evaluation
from tests.eval_scorers import Plain, model_of
from tests.shared import shared

LIMIT = 4  # of each task, and of each subject
# The first has questions longer than 512 tokens of a vocabulary of 512.
SUBJECTS = ("high_school_european_history", "anatomy", "astronomy")


@pytest.fixture(scope="module")
def stories() -> Path:
    return shared("models/stories260K")


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The shared slices, of MMLU three subjects."""
    place = tmp_path_factory.mktemp("data")
    for folder in sorted(shared("data").iterdir()):
        if folder.name != "mmlu":
            (place / folder.name).symlink_to(folder)
    (place / "mmlu").mkdir()
    rows = shared("data/mmlu/test.slice570.jsonl").read_text().splitlines(keepends=True)
    chosen = [row for row in rows if json.loads(row)["subject"] in SUBJECTS]
    (place / "mmlu" / "test.slice30.jsonl").write_text("".join(chosen))
    return Folder(place, slices=True)


@pytest.fixture(scope="module")
def found(stories: Path, slices: Folder) -> Evaluation:
    asked = Asked(tasks.named("slmquant"), slices, LIMIT)
    return evaluate(Plain(stories), stories, asked)


@pytest.fixture(scope="module")
def theirs(stories: Path, slices: Folder) -> Mapping[str, Any]:
    """What lm-eval says of its own model, asked with the same rows."""
    pytest.importorskip("accelerate", reason="lm-eval's own model imports it")
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    names = tuple(name for name in tasks.named("slmquant") if name in tasks.TASKS)
    loaded = tasks.load(names, tasks.files(names, slices))
    model = HFLM(
        pretrained=model_of(stories), tokenizer=models.read_tokenizer(stories), batch_size=8
    )
    with fetching.quiet():
        result: Mapping[str, Any] = evaluator.evaluate(model, loaded.document, limit=LIMIT)
    return result


def evaluate(scorer: Plain, folder: Path, asked: Asked) -> Evaluation:
    tokenizer = models.read_tokenizer(folder)
    these = evaluation.ready(asked)
    return evaluation.evaluate(scorer, tokenizer, these, lambda share, text: None)


@pytest.mark.filterwarnings("ignore")
def test_every_metric_is_that_of_lm_evals_own_model(
    found: Evaluation, theirs: Mapping[str, Any]
) -> None:
    compared = 0
    for task in found.tasks:
        if task.name == tasks.WINDOWS:
            continue
        several = len(task.stock) > 1
        place = tasks.group_of(task.name) if several else next(iter(task.stock))
        for metric in task.metrics:
            expected = theirs["results"][place]
            assert metric.value == pytest.approx(expected[f"{metric.name},none"], rel=1e-5)
            stderr = expected[f"{metric.name}_stderr,none"]
            assert metric.stderr == (None if stderr == "N/A" else pytest.approx(stderr))
            compared += 1
    assert compared == 13


@pytest.mark.filterwarnings("ignore")
def test_every_question_is_answered_as_by_lm_evals_own_model(
    found: Evaluation, theirs: Mapping[str, Any]
) -> None:
    compared = 0
    for task in found.tasks:
        samples = [one for part in task.stock for one in theirs["samples"].get(part, [])]
        for question, sample in zip(task.questions if samples else (), samples, strict=True):
            answers = [answer for (answer,) in sample["resps"]]
            of_text = question.target is None
            logprobs = answers if of_text else [answer[0] for answer in answers]
            assert question.logprobs == pytest.approx(logprobs, rel=1e-5)
            if not of_text:
                assert question.greedy == tuple(answer[1] for answer in answers)
                assert question.target == sample["target"]
                for name, value in question.values.items():
                    assert value == sample[name]
            compared += 1
    assert compared == (len(SUBJECTS) + 4) * LIMIT + 3  # the slice has 3 documents


def test_limit_and_source_are_stamped_on_every_row(found: Evaluation) -> None:
    assert [task.name for task in found.tasks] == list(tasks.NAMES)
    for task in found.tasks:
        assert task.source.origin == "local"
        assert ".slice" in task.source.name
        for metric in task.metrics:
            asked = min(LIMIT * len(task.stock), task.available)
            assert (metric.limit, metric.n, len(task.questions)) == (LIMIT, asked, asked)
    mmlu = found.task("mmlu")
    assert mmlu is not None
    assert list(mmlu.stock) == [f"mmlu_{subject}_continuation" for subject in sorted(SUBJECTS)]
    assert (mmlu.available, len(mmlu.questions)) == (30, 3 * LIMIT)
    assert mmlu.cut > 0
    assert mmlu.questions[0].id.startswith("anatomy/")


def test_windows_are_the_papers_perplexity(found: Evaluation, stories: Path) -> None:
    """exp of the mean of the losses that transformers itself computes, window by window."""
    text = "\n\n".join(lines(shared("data/wikitext2/wiki.test.slice.raw")))
    tokens = models.read_tokenizer(stories)(text, verbose=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        losses = [
            model_of(stories)(tokens[:, at : at + 512], labels=tokens[:, at : at + 512]).loss
            for at in range(0, LIMIT * 512, 512)
        ]
    task = found.task(tasks.WINDOWS)
    assert task is not None
    (metric,) = task.metrics
    assert metric.name == "token_perplexity_512"
    assert metric.value == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)
    assert task.available == tokens.shape[1] // 512


def test_windows_of_a_longer_context_have_2048_tokens() -> None:
    assert windows.metric(windows.length(131072)) == "token_perplexity_2048"
    assert windows.length(2048) == 2048


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_local_task_is_lm_evals_yaml_with_other_rows(name: str, slices: Folder) -> None:
    import lm_eval

    task = tasks.TASKS[name]
    loaded = tasks.load((name,), tasks.files((name,), slices))
    part = loaded.members[name][0]
    config = loaded.document["tasks"][part].config
    root = Path(lm_eval.__file__).parent / "tasks" / task.folder
    stock: dict[str, Any] = {}
    for file in sorted(root.glob("*yaml"), key=lambda file: not file.name.startswith("_")):
        found = yaml.load(file.read_text(), Loader=Functions)
        includes = str(found.get("include", ""))
        if found.get("task") == part:
            below = yaml.load((root / includes).read_text(), Loader=Functions) if includes else {}
            stock = {**below, **found}
    assert stock, "the stock YAML"
    for field in ("doc_to_text", "doc_to_choice", "doc_to_target", "description", "output_type"):
        if not isinstance(stock.get(field), Function):
            assert getattr(config, field) == stock.get(field, getattr(config, field))
    assert config.metric_list == stock.get("metric_list")
    assert config.num_fewshot is None


class Function(str):
    """A ``!function`` of a YAML."""


class Functions(yaml.SafeLoader):
    """YAML whose functions are names."""


Functions.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def test_prompts_are_what_lm_eval_prints_of_the_hubs_rows(tmp_path: Path) -> None:
    """Of one row of each task, to the letter; hellaswag's blanks are kept."""
    row = {"id": 7, "question": "To dry paint,", "choices": ["wait", " hurry "], "answer": 0}
    for task in ("arc_easy", "piqa", "hellaswag", "mmlu"):
        folder, stem, suffix = tasks.TASKS[task].files
        (tmp_path / folder).mkdir()
        subject = {"subject": "anatomy"} if task == "mmlu" else {}
        (tmp_path / folder / f"{stem}{suffix}").write_text(json.dumps({**row, **subject}) + "\n")
    names = ("arc_easy", "piqa", "hellaswag", "mmlu")
    loaded = tasks.load(names, tasks.files(names, Folder(tmp_path)))
    told = {}
    for name, task in loaded.document["tasks"].items():
        with fetching.quiet():
            task.build_all_requests()
        told[name] = [one.args for one in task.instances]
    asked = "Question: To dry paint,\nAnswer:"
    both = [(asked, " wait"), (asked, "  hurry ")]
    about = "The following are questions (with answers) about anatomy.\n\n"
    assert told == {
        "arc_easy": both,
        "piqa": both,
        "hellaswag": [("To dry paint,", " wait"), ("To dry paint,", "  hurry ")],
        "mmlu_anatomy_continuation": [(about + text, choice) for text, choice in both],
    }


def as_the_hub_has_them(data: Folder) -> Mapping[str, list[dict[str, Any]]]:
    """A local question or text of each task, in the columns of the hub's dataset."""
    files = tasks.files(tasks.NAMES, data)

    def first(name: str) -> dict[str, Any]:
        return questions(files[name])[0]

    labels = ["1", "2", "3", "4"]  # some of ARC's are numbers
    arc, piqa, swag, mmlu = map(first, ("arc_easy", "piqa", "hellaswag", "mmlu"))
    about, _, context = swag["question"].rpartition(". ")
    activity, _, start = about.partition(": ")
    return {
        "allenai/ai2_arc": [
            {
                "question": arc["question"],
                "choices": {"text": arc["choices"], "label": labels},
                "answerKey": labels[arc["answer"]],
            }
        ],
        "baber/piqa": [
            {
                "goal": piqa["question"],
                "sol1": piqa["choices"][0],
                "sol2": piqa["choices"][1],
                "label": piqa["answer"],
            }
        ],
        "Rowan/hellaswag": [
            {
                "activity_label": activity,
                "ctx_a": f"{start}.",
                "ctx_b": context.lower(),
                "endings": swag["choices"],
                "label": str(swag["answer"]),
            }
        ],
        "cais/mmlu": [{name: mmlu[name] for name in ("question", "subject", "choices", "answer")}],
        "EleutherAI/wikitext_document_level": pages(files["wikitext2_documents"])[:1],
        "Salesforce/wikitext": [{"text": line} for line in lines(files[tasks.WINDOWS])],
    }


def test_the_hubs_rows_ask_what_local_rows_ask(
    stories: Path, slices: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = as_the_hub_has_them(slices)

    def load_dataset(path: str, name: str | None = None, split: str | None = None, **_: Any) -> Any:
        whole = datasets.Dataset.from_list(rows[path])
        splits = dict.fromkeys(("train", "validation", "test", "dev"), whole)
        return splits if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(fetching, "_is_reached", lambda: True)
    names = ("arc_easy", "piqa", "hellaswag", "wikitext2_documents", tasks.WINDOWS)
    plain = Plain(stories)
    there = evaluate(plain, stories, Asked(names, None, 1))
    here = evaluate(plain, stories, Asked(names, slices, 1))
    for one, other in zip(there.tasks, here.tasks, strict=True):
        assert (one.source.origin, one.source.sha256) == ("hub", None)
        assert one.asked_sha256 == other.asked_sha256, one.name
        assert one.metrics == other.metrics
    loaded = tasks.load(("mmlu",), None)
    assert len(loaded.members["mmlu"]) == 57
    assert "asked::mmlu, all" in loaded.document["groups"]


def test_local_questions_need_no_network(
    stories: Path, slices: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    found = evaluate(Plain(stories), stories, Asked(("piqa", tasks.WINDOWS), slices, 1))
    assert len(found.tasks) == 2


def test_without_network_or_files_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match=r"out of reach.*--data-dir FOLDER"):
        tasks.load(("piqa",), None)
    with pytest.raises(NotFound, match="--data-dir FOLDER"):
        fetching.wikitext_lines()
    assert datasets.config.HF_HUB_OFFLINE  # as it was


def test_wikitext_is_cut_into_the_hubs_62_documents() -> None:
    """https://huggingface.co/datasets/EleutherAI/wikitext_document_level: 62 and 60 rows."""
    whole = shared("data/wikitext2/wiki.test.raw")
    assert len(pages(whole)) == 62
    assert len(pages(shared("data/wikitext2/wiki.valid.raw"))) == 60
    assert "\n".join(page["page"] for page in pages(whole)) == whole.read_text()[2:]
    assert len(lines(whole)) == 4358  # rows of Salesforce/wikitext, of which 1,467 are blank
    assert lines(whole)[:2] == ["", " = Robert Boulter = \n"]


def test_a_choice_longer_than_the_context_is_refused(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    row = {"question": "q", "choices": ["a", "b " * 600], "answer": 0}
    (tmp_path / "piqa" / "validation.jsonl").write_text(json.dumps(row))
    with pytest.raises(SlmqError, match=r"a choice has \d+ tokens and the model reads 512: 'b b"):
        evaluate(Plain(stories), stories, Asked(("piqa",), Folder(tmp_path), None))


def test_a_model_whose_logits_overflow_is_refused(stories: Path, slices: Folder) -> None:
    class Overflows(Plain):
        def score(self, sequences: Any, progress: Any) -> Any:
            scores = super().score(sequences, progress)
            return [dataclasses.replace(scores[0], logprob=math.nan), *scores[1:]]

    with pytest.raises(SlmqError, match="no number for 1 of 4 sequences"):
        evaluate(Overflows(stories), stories, Asked(("arc_easy",), slices, 1))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a JSON object"),
        ('{"choices": ["a", "b"], "answer": 0}', "no 'question'"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "fewer than two"),
        ('{"question": "q", "choices": ["a", ""], "answer": 0}', "no text"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "'answer' is 2"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "'answer' is True"),
    ],
)
def test_a_row_that_is_no_question_is_named(row: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"question": "q", "choices": ["a", "b"], "answer": 1}\n' + row + "\n")
    with pytest.raises(Damaged, match=r"test\.jsonl, line 2: ") as told:
        questions(file)
    assert words in str(told.value)


def test_rows_that_the_task_does_not_have_are_named(tmp_path: Path) -> None:
    three = {"id": 5, "question": "q", "choices": ["a", "b", "c"], "answer": 0}
    for task, row in (("piqa", three), ("mmlu", {**three, "subject": "anatomie"})):
        folder, stem, suffix = tasks.TASKS[task].files
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{stem}{suffix}").write_text(json.dumps(row))
    with pytest.raises(UsageError, match="question 5, has 3 choices"):
        tasks.load(("piqa",), tasks.files(("piqa",), Folder(tmp_path)))
    with pytest.raises(UsageError, match="question 5: lm-eval has no subject 'anatomie'"):
        tasks.load(("mmlu",), tasks.files(("mmlu",), Folder(tmp_path)))


def test_names_of_tasks() -> None:
    assert tasks.named("slmquant") == tasks.NAMES
    assert tasks.named("piqa, wikitext2,piqa") == (
        "piqa",
        "wikitext2_documents",
        "wikitext2_windows",
    )
    with pytest.raises(UsageError, match="did you mean hellaswag"):
        tasks.named("helaswag")
    with pytest.raises(UsageError, match="no tasks"):
        tasks.named(" , ")


def test_files_are_the_only_ones_or_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder of questions"):
        tasks.files(("piqa",), Folder(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="no questions of piqa"):
        tasks.files(("piqa",), Folder(tmp_path))
    place = tmp_path / "piqa"
    place.mkdir()
    with pytest.raises(NotFound, match=r"validation\.jsonl is read"):
        tasks.files(("piqa",), Folder(tmp_path))
    (place / "validation_a.jsonl").touch()
    (place / "validation.slice9.jsonl").touch()
    assert tasks.files(("piqa",), Folder(tmp_path))["piqa"].name == "validation_a.jsonl"
    sliced = tasks.files(("piqa",), Folder(tmp_path, slices=True))
    assert sliced["piqa"].name == "validation.slice9.jsonl"
    (place / "validation_b.jsonl").touch()
    with pytest.raises(UsageError, match="several files of piqa"):
        tasks.files(("piqa",), Folder(tmp_path))
    (place / "validation.jsonl").touch()
    assert tasks.files(("piqa",), Folder(tmp_path))["piqa"].name == "validation.jsonl"
