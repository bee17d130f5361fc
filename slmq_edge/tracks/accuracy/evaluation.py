"""Ask all that a list of tasks asks, and let lm-eval make metrics of the answers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge.errors import SlmqError
from slmq_edge.tracks.accuracy import own, questions, tasks, windows
from slmq_edge.tracks.accuracy.fetching import quiet, wikitext_lines
from slmq_edge.tracks.accuracy.questions import Folder
from slmq_edge.tracks.accuracy.results import (
    BITS,
    MEAN,
    PERPLEXITY,
    Evaluation,
    Metric,
    Question,
    TaskResult,
    combine,
)
from slmq_edge.tracks.accuracy.sequences import Score, Scorer, Sequence
from slmq_edge.tracks.accuracy.tasks import WINDOWS, Loaded
from slmq_edge.tracks.accuracy.windows import Text

if TYPE_CHECKING:
    from slmq_edge.tracks.accuracy.harness import Harness

Progress = Callable[[float, str], None]
WEIGHTED = {"word_perplexity": PERPLEXITY, "byte_perplexity": PERPLEXITY, "bits_per_byte": BITS}
PACKAGES = ("lm_eval", "transformers", "tokenizers", "datasets")


@dataclass(frozen=True)
class Asked:
    """Which tasks; local files in ``data`` (``None``: the hub's); of each part the first ``limit``.

    Parts: MMLU has 57 subjects; limit counts questions, documents or windows. text: the file of
    `own.TEXT`.
    """

    names: tuple[str, ...]
    data: Folder | None
    limit: int | None
    text: Path | None = None


@dataclass(frozen=True)
class Ready:
    """Questions that are here. texts: that are cut into windows."""

    asked: Asked
    loaded: Loaded
    texts: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Windows:
    """A text's that are asked, of so many."""

    text: Text
    asked: tuple[Sequence, ...]
    available: int


def ready(asked: Asked, begin: str = "") -> Ready:
    """Read or fetch the questions: what can be wrong with them is found before a model is loaded.

    begin: what begins every question of ours: the text of a token (`harness.start`).

    Raises:
        NotFound: no such files, or the hub is out of reach.
        Damaged, UsageError: a file holds what is no question, or none of that task.
    """
    files = None if asked.data is None else tasks.files(asked.names, asked.data)
    loaded = tasks.load(asked.names, files, begin)
    texts: list[Text] = []
    if WINDOWS in asked.names:
        if files is None:
            lines, source = wikitext_lines()
        else:
            lines, source = questions.lines(files[WINDOWS]), questions.source_of(files[WINDOWS])
        texts.append(windows.wikitext(WINDOWS, lines, source))
    if own.WINDOWS in asked.names:
        texts.append(own.text())
    if asked.text is not None:
        texts.append(own.of_file(asked.text))
    return Ready(asked, loaded, tuple(texts))


def evaluate(scorer: Scorer, tokenizer: Any, these: Ready, progress: Progress) -> Evaluation:
    """Score every question; ``progress`` is told a share (0..1) and what is done.

    Raises:
        SlmqError: a question that the model cannot read, or scores that are no numbers.
    """
    from slmq_edge.tracks.accuracy.harness import Harness

    asked = these.asked
    progress(0.0, "reading questions")
    harness = Harness(tokenizer, scorer.context_length)
    with quiet():
        _ask(harness, these.loaded, asked.limit)
    of_texts = cut(these, tokenizer, scorer.context_length)
    windowed = [one for text in of_texts for one in text.asked]
    wanted = tuple(dict.fromkeys([*harness.asked, *windowed]))
    progress(0.0, "scoring")
    began = time.monotonic()
    scores = scorer.score(wanted, lambda done, total: progress(done / max(total, 1), "scoring"))
    seconds = time.monotonic() - began
    harness.scores = _finite(wanted, scores)
    found = {one.name: one for one in _of_lm_eval(harness, these.loaded, asked.limit)}
    for text in of_texts:
        found[text.text.task] = _of_windows(text, harness.scores, asked.limit)
    return Evaluation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=json.loads(json.dumps(scorer.identity)),
        # Of a runner alone; what is in this process has said all by its identity.
        ran=json.loads(json.dumps(getattr(scorer, "ran", {}))),
        environment={name: importlib.metadata.version(name) for name in PACKAGES},
        seconds=seconds,
        sequences=len(wanted),
        tokens=sum(len(one.tokens) - 1 for one in wanted),
        tasks=tuple(found[name] for name in asked.names),
        tokens_before=scorer.tokens_before,
    )


def _ask(harness: Harness, loaded: Loaded, limit: int | None) -> None:
    """Let the harness note every sequence that lm-eval will ask for."""
    for task in loaded.document["tasks"].values():
        task.build_all_requests(limit=limit)
        ask = {
            "loglikelihood": harness.loglikelihood,
            "loglikelihood_rolling": harness.loglikelihood_rolling,
        }
        for kind, answer in ask.items():
            requests = [one for one in task.instances if one.request_type == kind]
            if requests:
                answer(requests)


def cut(these: Ready, tokenizer: Any, context_length: int) -> list[Windows]:
    """Every text's windows."""
    found = []
    for text in these.texts:
        whole = windows.sequences(text, tokenizer, context_length)
        found.append(Windows(text, tuple(whole[: these.asked.limit]), len(whole)))
    return found


def _finite(wanted: Several[Sequence], scores: Several[Score]) -> dict[Sequence, Score]:
    broken = sum(not math.isfinite(score.logprob) for score in scores)
    if broken:
        raise SlmqError(
            f"the model gave no number for {broken} of {len(wanted)} sequences: its logits overflow"
        )
    return dict(zip(wanted, scores, strict=True))


def _of_lm_eval(harness: Harness, loaded: Loaded, limit: int | None) -> Iterable[TaskResult]:
    """What lm-eval makes of the answers, by the names that the tasks have here."""
    if not loaded.members:
        return
    from lm_eval import evaluator

    with quiet():
        found = evaluator.evaluate(harness, loaded.document, limit=limit)
    assert found is not None, "one process"
    for name, parts in loaded.members.items():
        samples = [sample for part in parts for sample in found["samples"][part]]
        spoken = [_spoken(part, sample) for part in parts for sample in found["samples"][part]]
        # Of several parts, lm-eval's own mean over all questions.
        values = found["results"][parts[0] if len(parts) == 1 else tasks.group_of(name)]
        yield TaskResult(
            name=name,
            stock={part: str(found["versions"][part]) for part in parts},
            source=loaded.sources[name],
            available=sum(found["n-samples"][part]["original"] for part in parts),
            cut=sum(_is_cut(sample, harness.cut) for sample in samples),
            asked_sha256=sha256_of([sample["arguments"] for sample in samples]),
            metrics=tuple(
                Metric(
                    name=metric,
                    kind=WEIGHTED.get(metric, MEAN),
                    value=float(values[f"{metric},none"]),
                    stderr=_number(values[f"{metric}_stderr,none"]),
                    n=len(samples),
                    limit=limit,
                    paper=name in tasks.PAPER and place == 0,
                )
                for place, metric in enumerate(tasks.metrics(name))
            ),
            questions=tuple(spoken),
        )


def _spoken(part: str, sample: Mapping[str, Any]) -> Question:
    answers = [answer for (answer,) in sample["resps"]]
    doc, target = sample["doc"], sample["target"]
    is_text = not isinstance(answers[0], tuple)
    # Of a text lm-eval keeps (log-probability, weight); of a question, 0 or 1.
    values = {name: sample[name] for name in sample["metrics"]}
    return Question(
        id=str(doc.get("id", f"{part}/{sample['doc_id']}")),
        logprobs=tuple(float(answer if is_text else answer[0]) for answer in answers),
        greedy=() if is_text else tuple(bool(answer[1]) for answer in answers),
        target=None if is_text else int(target),
        values={name: float(one[1] if is_text else one) for name, one in values.items()},
    )


def _of_windows(found: Windows, scores: Mapping[Sequence, Score], limit: int | None) -> TaskResult:
    import numpy as np

    size, text = len(found.asked[0].tokens), found.text
    metric = windows.metric(size)
    answers = [scores[one] for one in found.asked]
    below = np.array([one.scored for one in found.asked], np.float64)
    above = np.array([answer.logprob for answer in answers])
    return TaskResult(
        name=text.task,
        stock={text.convention: f"windows of {size} tokens"},
        source=text.source,
        available=found.available,
        cut=0,
        asked_sha256=sha256_of([one.tokens for one in found.asked]),
        metrics=(
            Metric(
                name=metric,
                kind=PERPLEXITY,
                value=float(combine(PERPLEXITY, above.sum(), below.sum())),
                stderr=None,
                n=len(answers),
                limit=limit,
                paper=text.task in tasks.PAPER,
            ),
        ),
        questions=tuple(
            Question(str(index), (answer.logprob,), (), None, {metric: float(one.scored)})
            for index, (one, answer) in enumerate(zip(found.asked, answers, strict=True))
        ),
    )


def _is_cut(sample: Mapping[str, Any], cut: set[tuple[str, str]]) -> bool:
    return any(tuple(texts) in cut for texts in sample["arguments"])


def _number(value: Any) -> float | None:
    return None if isinstance(value, str) else float(value)


def sha256_of(asked: Any) -> str:
    """Of all that was asked: equal where the same was."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
