"""From what a user named to eval.json: a tokenizer, a scorer where it is to run, the questions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge import models
from slmq_edge.checkpoint import CONFIG, is_checkpoint
from slmq_edge.models import TOKENIZER_FILES
from slmq_edge.prompts import bundle_tokenizer
from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import LOCAL, Target
from slmq_edge.runner import manifest
from slmq_edge.runner.manifest import BUNDLE_FILE
from slmq_edge.tracks.accuracy import scorers
from slmq_edge.tracks.accuracy.evaluation import Asked, Progress, Ready, cut, evaluate, ready
from slmq_edge.tracks.accuracy.results import Evaluation, NextTokens, save
from slmq_edge.tracks.accuracy.sequences import Scorer
from slmq_edge.tracks.machines import Machine

# Events of the runner -> what is being done from then on.
STAGES = {
    "upload": "sending",
    "begin": "probing integers",
    "probe": "checking golden prompts",
    "golden": "scoring",
}


@dataclass(frozen=True)
class Where:
    """The machine that scores; see `remote.run.Remote`."""

    target: Target
    reconnect_seconds: float
    deadline_seconds: float


def evaluate_on(
    where: Where,
    scored: scorers.Asked,
    runtime: str | None,
    asked: Asked,
    output: Path,
    progress: Progress,
    say: Callable[[str], None],
    *,
    against: str | None = None,
    force: bool = False,
) -> Evaluation:
    """Score, and write eval.json.

    Args:
        where: the machine.
        scored: what scores; its journals lie beside ``output``.
        runtime: of it; None: the one for what it is.
        asked: the questions.
        output: where eval.json goes; ``<stem>.journal`` beside it is a folder to go on from.
        progress: told a share (0..1) and what is being done.
        say: told a line now and then.
        against: a bundle, a checkpoint or a model, from whose next tokens the distance is taken.
        force: overwrite ``output``.

    Raises:
        SlmqError: the model, the machine or the questions are not as asked; one line says how.
    """
    from slmq_edge.tracks.accuracy.harness import start

    progress(0.0, "loading questions")
    tokenizer = tokenizer_of(scored.what, scored.revision)  # first: a misspelt model shows here
    these = ready(asked, start(tokenizer)[1])
    progress(0.0, "loading the model")

    def told(event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "note":
            say(event["text"])
        elif kind in STAGES:
            share = event["bytes"] / max(event["total_bytes"], 1) if kind == "upload" else 0.0
            progress(share, STAGES[kind])

    folder = output.with_name(f"{output.stem}.journal")
    with _machine(where, say) as machine:
        scorer = scorers.open_scorer(
            dataclasses.replace(scored, machine=machine, folder=folder, told=told), runtime
        )
        apart = None
        if against is not None:
            apart = _against(against, scored, scorer, these, tokenizer)
        found = evaluate(scorer, tokenizer, these, progress)
        if apart is not None:
            found = dataclasses.replace(found, next_tokens=tuple(apart(progress)))
        save(found, output, force)
        scorer.forget()
    return found


def _against(
    base: str, scored: scorers.Asked, scorer: Scorer, these: Ready, tokenizer: Any
) -> Callable[[Progress], Iterator[NextTokens]]:
    """Load what next tokens are held against, and return what compares them.

    Raises:
        SlmqError: it cannot be loaded, reads other tokens, or has too short a context.
    """
    from slmq_edge.tracks.accuracy import next_tokens

    length = scorer.context_length
    texts = cut(these, tokenizer, length)
    next_tokens.require_same_tokens(cut(these, tokenizer_of(base), length), texts)
    before = next_tokens.open_reader(
        scorers.Asked(
            base, threads=scored.threads, engines=None, allow_inexact=scored.allow_inexact
        )
    )
    next_tokens.require_room(before, texts)

    def compare(progress: Progress) -> Iterator[NextTokens]:
        after = next_tokens.of_scorer(scorer, scored)
        for text in texts:
            progress(0.0, "comparing next tokens")
            yield next_tokens.compare(
                before, after, text, lambda share: progress(share, "comparing next tokens")
            )

    return compare


def tokenizer_of(what: str, revision: str | None = None) -> Any:
    """The tokenizer of a bundle, a checkpoint or a model.

    Raises:
        NotFound: there is none. Damaged: a bundle's is not what its manifest says.
    """
    path = Path(what)
    if (path / BUNDLE_FILE).is_file():
        bundle = manifest.read_bundle(path)
        listed = bundle.get("files", {})
        names = [name for name in (CONFIG, *TOKENIZER_FILES) if name in listed]
        manifest.verify(path, {name: listed[name] for name in names})
        return bundle_tokenizer(path, bundle)
    if is_checkpoint(path):
        return models.read_tokenizer(path)
    return models.read_tokenizer(models.find(what, revision).folder)


@contextlib.contextmanager
def _machine(where: Where, say: Callable[[str], None]) -> Iterator[Machine | None]:
    if where.target.transport == LOCAL:
        yield None
        return
    with Remote(
        where.target,
        reconnect_seconds=where.reconnect_seconds,
        deadline_seconds=where.deadline_seconds,
        say=say,
    ) as machine:
        yield machine
