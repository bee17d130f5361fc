"""Questions and texts that need no network: the built-in world's own, and anybody's text.

    builtin_questions    300 sentences with four ends, which only who was told of that world knows
    builtin_windows      its held-out documents, each begun with BOS, in windows of 512 tokens
    text_windows         the documents of a file, each begun with BOS, in windows of 2048 tokens

The built-in ones mean something of the built-in models alone, whose documentation quotes the same
two figures.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from slmq_edge import calibration
from slmq_edge.builtin import world
from slmq_edge.builtin.score import stream
from slmq_edge.errors import Damaged
from slmq_edge.tracks.accuracy import windows
from slmq_edge.tracks.accuracy.questions import Source, source_of
from slmq_edge.tracks.accuracy.windows import Text

QUESTIONS, WINDOWS = "builtin_questions", "builtin_windows"
NAMES = (QUESTIONS, WINDOWS)
TEXT = "text_windows"
METRICS = ("acc", "acc_norm")
VERSION = 1
WINDOW = 512


def rows() -> list[dict[str, Any]]:
    """id, question, choices, answer: the index of the right one."""
    return [
        {
            "id": one.id,
            "question": one.question,
            "choices": list(one.choices),
            "answer": one.answer,
        }
        for one in world.questions()
    ]


def task(begin: str) -> tuple[Any, Source]:
    """The questions as a task of lm-eval's, each begun with BOS, and where they come from."""
    from lm_eval.api.task import ConfigurableTask

    asked = rows()

    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(asked)}

    made = ConfigurableTask(
        config={
            "task": QUESTIONS,
            "custom_dataset": dataset,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": lambda row: begin + row["question"],
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": metric} for metric in METRICS],
            "metadata": {"version": VERSION},
        }
    )
    return made, _source("questions", asked)


def text() -> Text:
    """The held-out documents."""
    documents = world.heldout_documents()
    return Text(
        WINDOWS,
        _source("held-out documents", [{"text": one} for one in documents]),
        "built-in world",
        WINDOW,
        lambda tokenizer: stream(tokenizer, documents),
    )


def of_file(path: Path) -> Text:
    """Plain text, or JSONL whose rows have a ``text`` field, as ``--calib`` takes it.

    Raises:
        NotFound, Damaged: no such file, no such text, or none at all.
    """
    documents = [one for one in calibration.read_text(path, "--text").documents if one.strip()]
    if not documents:
        raise Damaged(f"{path} holds no text")
    return Text(
        TEXT,
        source_of(path),
        "documents begun with BOS",
        windows.WINDOW,
        lambda tokenizer: stream(tokenizer, documents),
    )


def _source(name: str, found: list[dict[str, Any]]) -> Source:
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    return Source("built-in", f"{name} of the built-in world", digest)
