"""How far the next-token distributions of two models lie apart, position by position.

    KL(base || other) = sum_t p(t) (log p(t) - log q(t))       p: base's, q: other's; in nats

Both read the same windows of a text, and at every position that is scored the sum runs over the
whole vocabulary, in float64. Logits do not travel: both models run in this process, a bundle after
the checks that come before a measurement.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.files import existing_bundle
from slmq_edge.runner import checks, journal, manifest, runtimes, scoring
from slmq_edge.tracks.accuracy import bundled, inprocess, scorers
from slmq_edge.tracks.accuracy.evaluation import Windows, sha256_of
from slmq_edge.tracks.accuracy.results import NextTokens, Window
from slmq_edge.tracks.accuracy.sequences import Scorer, Sequence
from slmq_edge.tracks.machines import Local

ROWS = 64  # positions that are compared at a time: of a large vocabulary, 25 MB each


@dataclass(frozen=True)
class Reader:
    """A model in this process: what it is, how long a text may be, its logits."""

    identity: Mapping[str, Any]
    context_length: int
    logits: scoring.Logits


def open_reader(asked: scorers.Asked) -> Reader:
    """Load a bundle, a checkpoint or a model.

    Raises:
        UsageError: it runs on another machine. SlmqError: it cannot be loaded, or is a bundle that
            does not pass its checks.
    """
    if asked.machine is not None:
        raise UsageError("next tokens are compared here: --against goes with no --device")
    scorer = scorers.open_scorer(asked)
    return of_scorer(scorer, asked)


def of_scorer(scorer: Scorer, asked: scorers.Asked) -> Reader:
    """The same model as a scorer's, which is not loaded once more where it is in this process."""
    if isinstance(scorer, inprocess.InProcess):
        model = scorer.model
        return Reader(model.identity, model.shape.max_positions, model.logits)
    return _of_bundle(asked)


def compare(
    base: Reader,
    other: Reader,
    of: Windows,
    progress: Callable[[float], None] = lambda share: None,
) -> NextTokens:
    """Compare two readers on the windows of a text.

    Raises:
        SlmqError: their vocabularies differ.
    """
    found = []
    for done, sequence in enumerate(of.asked):
        progress(done / len(of.asked))
        found.append(_window(base, other, sequence))
    progress(1.0)
    return NextTokens(
        task=of.text.task,
        base=dict(base.identity),
        asked_sha256=sha256_of([one.tokens for one in of.asked]),
        windows=tuple(found),
    )


def divergence(base: Any, other: Any) -> tuple[Any, Any]:
    """KL(base || other), float64 [positions], and whether the most likely tokens differ, bool.

    Args:
        base: logits, float [positions, vocab].
        other: the same of the other model.
    """
    import numpy as np

    log_p, log_q = (_log_softmax(one) for one in (base, other))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return kl, base.argmax(-1) != other.argmax(-1)


def _window(base: Reader, other: Reader, sequence: Sequence) -> Window:
    import numpy as np

    read = np.array([sequence.tokens[:-1]], np.int64)
    kl, changed, positions = 0.0, 0, 0
    sides = (_blocks(one.logits(read, sequence.scored)) for one in (base, other))
    for before, after in zip(*sides, strict=True):
        if before.shape != after.shape:
            sizes = " against ".join(str(one.shape[-1]) for one in (before, after))
            raise SlmqError(f"not the same vocabulary: {sizes} tokens")
        apart, differs = divergence(before, after)
        if not np.isfinite(apart).all():
            raise SlmqError("logits that are not finite: their distributions cannot be compared")
        kl += float(apart.sum())
        changed += int(differs.sum())
        positions += len(apart)
    return Window(positions, kl, changed)


def _blocks(pieces: Iterator[Any]) -> Iterator[Any]:
    """The positions of one row, ``ROWS`` at a time, in whatever pieces they come."""
    import numpy as np

    held: Any = None
    for piece in pieces:
        held = np.concatenate([held, piece[0]]) if held is not None and len(held) else piece[0]
        while len(held) >= ROWS:
            yield held[:ROWS]
            held = held[ROWS:]
    if held is not None and len(held):
        yield held


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _of_bundle(asked: scorers.Asked) -> Reader:
    """A bundle whose files, integers and golden prompts are as they should be."""
    folder = Path(asked.what)
    document = existing_bundle(folder)
    manifest.verify(folder, document.get("files", {}))
    machine = Local()
    threads = asked.threads or machine.cores()
    place = runtimes.Place(folder, document, threads, asked.engines, asked.torch_device)
    device, _ = machine.device(place)
    with (
        tempfile.TemporaryDirectory() as scratch,
        journal.Journal(Path(scratch) / "journal.jsonl") as log,
    ):
        session = checks.passed(place, asked.allow_inexact, log)
    length = scoring.limits(document)[0]
    most = length if session.most_positions is None else min(length, session.most_positions)
    identity = bundled.identity_of(folder, document, machine.seen)
    identity |= {"device": device.name, "threads": threads}
    return Reader(identity, most, session.logits)


def require_room(base: Reader, texts: Several[Windows]) -> None:
    """Refuse a base that cannot read windows as long as the other model's.

    Raises:
        SlmqError: names the text.
    """
    for of in texts:
        longest = max(len(one.tokens) for one in of.asked) - 1
        if longest > base.context_length:
            raise SlmqError(
                f"{of.text.task}: windows of {longest + 1} tokens are longer than the context of "
                f"the model they are held against, {base.context_length}"
            )


def require_same_tokens(base: Several[Windows], other: Several[Windows]) -> None:
    """Refuse models whose tokenizers read a text otherwise.

    Raises:
        SlmqError: names the text.
    """
    for one, two in zip(base, other, strict=True):
        if one.asked != two.asked:
            raise SlmqError(
                f"{one.text.task}: the model they are held against reads other tokens there, so "
                "that next tokens cannot be compared"
            )
