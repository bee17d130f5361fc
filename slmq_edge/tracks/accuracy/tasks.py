"""The questions: lm-eval's stock tasks, from the hub or with local rows in the dataset's place.

A local task is the same YAML: its prompt, its choices and its metrics are lm-eval's. What differs
is where the rows come from, and that splits which a question without examples does not need are
not there. `own` has questions of ours, which need no network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq_edge.errors import MissingExtra, UsageError, unknown
from slmq_edge.tracks.accuracy import own, questions
from slmq_edge.tracks.accuracy.fetching import hub, quiet
from slmq_edge.tracks.accuracy.questions import Folder, Row, Source

LABELS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Task:
    """A task of lm-eval's.

    folder: that of its YAML below lm_eval/tasks. names: lm-eval's names of it, ``*`` for each of
    several that make one task. files: folder, start and end of the name of its local file. split:
    the one that is scored. metrics: that are reported, the paper's first. row: a local row as the
    hub has it. changed: what local rows need changed in the YAML besides their dataset.
    """

    folder: str
    names: str
    files: tuple[str, str, str]
    split: str
    metrics: tuple[str, ...]
    row: Callable[[Row], dict[str, Any]]
    changed: Mapping[str, Any] = field(default_factory=dict)


def _arc(row: Row) -> dict[str, Any]:
    labels = list(LABELS[: len(row["choices"])])
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["answer"]],
    }


def _piqa(row: Row) -> dict[str, Any]:
    first, second = row["choices"]
    goal = {"id": row["id"], "goal": row["question"]}
    return {**goal, "sol1": first, "sol2": second, "label": row["answer"]}


def _hellaswag(row: Row) -> dict[str, Any]:
    of_row = {"id": row["id"], "query": row["question"], "choices": row["choices"]}
    return {**of_row, "label": str(row["answer"])}


def _mmlu(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "subject", "question", "choices", "answer")}


NORMED = ("acc_norm", "acc")
TASKS: dict[str, Task] = {
    # The cloze form: the text of each choice is scored, not its letter.
    "mmlu": Task(
        "mmlu/continuation", "mmlu_*_continuation", ("mmlu", "test", ".jsonl"), "test",
        ("acc", "acc_norm"), _mmlu,
    ),
    "arc_easy": Task("arc", "arc_easy", ("arc_easy", "test", ".jsonl"), "test", NORMED, _arc),
    "arc_challenge": Task(
        "arc", "arc_challenge", ("arc_challenge", "test", ".jsonl"), "test", NORMED, _arc
    ),
    "piqa": Task("piqa", "piqa", ("piqa", "validation", ".jsonl"), "validation", NORMED, _piqa),
    # Local rows are what process_docs makes of the hub's; made twice, half of them would change.
    "hellaswag": Task(
        "hellaswag", "hellaswag", ("hellaswag", "validation", ".jsonl"), "validation", NORMED,
        _hellaswag, {"process_docs": None},
    ),
    "wikitext2_documents": Task(
        "wikitext", "wikitext", ("wikitext2", "wiki.test", ".raw"), "test",
        ("word_perplexity", "byte_perplexity", "bits_per_byte"), dict,
    ),
}  # fmt: skip
WINDOWS = "wikitext2_windows"  # the papers' perplexity, which lm-eval does not have
NAMES = (*TASKS, WINDOWS)
SUITES: dict[str, tuple[str, ...]] = {
    "slmquant": NAMES,
    "wikitext2": ("wikitext2_documents", WINDOWS),
    "builtin": own.NAMES,
}
KNOWN = (*SUITES, *NAMES, *own.NAMES, own.TEXT)
TEXTS = (WINDOWS, own.WINDOWS, own.TEXT)  # that are cut into windows
_ALL = "asked"
# Whose first metric is a column of the paper's Tables 1 and 2.
PAPER = (*(name for name in NAMES if name != "wikitext2_documents"),)


@dataclass(frozen=True)
class Loaded:
    """Tasks that lm-eval can evaluate.

    document: of `TaskManager.load`. members: by our names of tasks, lm-eval's names of their
    parts. sources: by the same, where the rows came from.
    """

    document: Mapping[str, Any]
    members: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Source]


def named(words: str) -> tuple[str, ...]:
    """Names of tasks, each once, of a list like ``slmquant`` or ``piqa,wikitext2``.

    Raises:
        UsageError: one that is neither a task nor a suite; guesses.
    """
    found: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        if word not in KNOWN:
            raise UsageError(unknown("task", word, KNOWN))
        found.update(dict.fromkeys(SUITES.get(word, (word,))))
    if not found:
        raise UsageError(f"no tasks: known are {', '.join(KNOWN)}")
    return tuple(found)


def metrics(name: str) -> tuple[str, ...]:
    """That are reported of questions, the headline first."""
    return own.METRICS if name == own.QUESTIONS else TASKS[name].metrics


def require_lm_eval() -> None:
    """Raise MissingExtra where lm-eval is not installed."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval", "eval")


def files(names: Sequence[str], data: Folder) -> dict[str, Path]:
    """The local file of every task, which must be there before anything else happens.

    Raises:
        NotFound, UsageError: one is not, or is not the only one.
    """
    places = {name: TASKS[name].files for name in names if name in TASKS}
    if WINDOWS in names:
        places[WINDOWS] = TASKS["wikitext2_documents"].files
    return {name: data.file(*place) for name, place in places.items()}


def load(names: Sequence[str], found: Mapping[str, Path] | None, begin: str = "") -> Loaded:
    """Load lm-eval's tasks, and ours.

    Args:
        names: of tasks.
        found: their local files; None: lm-eval's come from the hub.
        begin: what begins every question of ours.

    Raises:
        NotFound: the hub cannot be reached, or has no such rows.
        Damaged: a local file holds what is no question.
    """
    members: dict[str, tuple[str, ...]] = {}
    sources: dict[str, Source] = {}
    wanted: list[dict[str, Any]] = []
    chosen = [name for name in names if name in TASKS]
    with quiet():
        manager = _manager(chosen)
        for name in chosen:
            task = TASKS[name]
            parts = _stock(manager, task)
            if found is not None:
                sources[name] = questions.source_of(found[name])
                parts = _local(task, parts, found[name])
            members[name] = tuple(parts)
            tasks = [{"task": part, **changes} for part, changes in parts.items()]
            aggregated = [{"metric": metric, "weight_by_size": True} for metric in task.metrics]
            many = {"aggregate_metric_list": aggregated} if len(parts) > 1 else {}
            wanted.append({"group": _together(name), "task": tasks, **many})
        # Of a group within a group lm-eval does not hand the metrics down to its tasks.
        whole: list[Any] = [{"group": _ALL, "task": wanted}] if wanted else []
        if own.QUESTIONS in names:
            ours, sources[own.QUESTIONS] = own.task(begin)
            members[own.QUESTIONS] = (own.QUESTIONS,)
            whole.append(ours)
        with contextlib.nullcontext() if found is not None or not wanted else hub():
            document = manager.load(whole) if whole else {"tasks": {}}
    for name in chosen:
        config = document["tasks"][members[name][0]].config
        sources.setdefault(name, Source("hub", str(config.dataset_path)))
    return Loaded(document, members, sources)


def group_of(name: str) -> str:
    """What lm-eval calls the parts of a task together."""
    return f"{_ALL}::{_together(name)}"


def _together(name: str) -> str:
    return f"{name}, all"  # which is no name of lm-eval's own


def _manager(names: Sequence[str]) -> Any:
    """lm-eval's manager of these tasks alone: all that it has take seconds to look through."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.__file__).parent / "tasks"
    folders = dict.fromkeys(root / TASKS[name].folder for name in names)
    return TaskManager(include_defaults=False, include_path=list(folders))


def _stock(manager: Any, task: Task) -> dict[str, dict[str, Any]]:
    """lm-eval's names of the parts of a task, and nothing changed in them."""
    start, star, end = task.names.partition("*")
    names = [name for name in manager.all_subtasks if name.startswith(start) and star]
    return {name: {} for name in names if name.endswith(end)} or {task.names: {}}


def _local(task: Task, stock: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The parts of a task of which a local file has rows, and what is changed in them."""
    if task.files[2] == ".raw":
        rows: dict[str, list[dict[str, Any]]] = {task.names: questions.pages(file)}
    else:
        rows = {}
        for row in questions.questions(file):
            rows.setdefault(_part(task, row, stock, file), []).append(_as_hub(task, row, file))
    absent = dict.fromkeys(
        {"training_split", "validation_split", "test_split", "fewshot_split"}
        - {f"{task.split}_split"}
    )
    return {
        name: {"custom_dataset": _dataset(task.split, of_part), **absent, **task.changed}
        for name, of_part in rows.items()
    }


def _part(task: Task, row: Row, stock: Mapping[str, Any], file: Path) -> str:
    name = task.names.replace("*", str(row.get("subject")))
    if name not in stock:
        raise UsageError(
            f"{file}, question {row['id']}: lm-eval has no subject {row.get('subject')!r}"
        )
    return name


def _as_hub(task: Task, row: Row, file: Path) -> dict[str, Any]:
    try:
        return task.row(row)
    except (KeyError, ValueError, IndexError) as error:
        count = len(row["choices"])
        raise UsageError(
            f"{file}, question {row['id']}, has {count} choices: no question of {task.names}"
        ) from error


def _dataset(split: str, rows: list[dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(rows)}

    return dataset
