"""What is scored, and whoever scores it: sequences of tokens in, log-probabilities out."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slmq_edge.files import disk_errors
from slmq_edge.runner.requests import Requests

REQUESTS = ".npz"  # the file of requests beside a journal
# Told how many tokens are read, and of how many: these go at one speed, which sequences do not.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sequence:
    """Tokens, of which the last ``scored`` are scored, each given all tokens before it.

    The last token is read by nobody: of a context of n tokens, a sequence may have n + 1.
    """

    tokens: tuple[int, ...]
    scored: int

    def __post_init__(self) -> None:
        if not 1 <= self.scored < len(self.tokens):
            raise ValueError(f"{self.scored} of {len(self.tokens)} tokens cannot be scored")


@dataclass(frozen=True)
class Score:
    """logprob: natural logarithm, summed over the scored tokens.

    greedy: whether each of them is the most likely of its place, the first of equals.
    """

    logprob: float
    greedy: bool


class Scorer(Protocol):
    """A model on a runtime, on this machine or another."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What scores, JSON: whose scores may stand beside these, and be gone on from."""

    @property
    def context_length(self) -> int:
        """The most tokens that are read of a sequence."""

    def score(self, sequences: List[Sequence], progress: Progress) -> list[Score]:
        """Score all, and return the scores in the order given.

        A score depends on its sequence alone. Where the scorer was given a folder, what a call
        that was interrupted has scored is not scored again.

        Raises:
            UsageError: a sequence is longer than the context, or is no text of this vocabulary;
                nothing has been scored.
            SlmqError: the bundle is refused, or the scoring ended; what is scored is kept.
        """

    def forget(self) -> None:
        """The scores are written elsewhere: whatever was kept to go on from may go."""

    @property
    def tokens_before(self) -> int:
        """Of the last call's tokens, those that an interrupted one had read already."""


class Order:
    """Sequences as they are scored: the longest first, each once, alike ones side by side.

    The longest first: memory that does not suffice is missed at once, and an estimate of the time
    that is left does not grow.
    """

    def __init__(self, sequences: List[Sequence]) -> None:
        self._asked = sequences
        different = sorted(
            set(sequences), key=lambda one: (-len(one.tokens), one.scored, one.tokens)
        )
        self._at = {sequence: index for index, sequence in enumerate(different)}
        lengths = [len(sequence.tokens) for sequence in different]
        flat = (token for sequence in different for token in sequence.tokens)
        self.requests = Requests(
            tokens=_int32(np.fromiter(flat, np.int64, sum(lengths))),
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            scored=np.array([sequence.scored for sequence in different], np.int32),
        )
        self._read = np.cumsum([0, *(length - 1 for length in lengths)])

    @property
    def sequences(self) -> int:
        """That are different."""
        return self.requests.sequences

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the requests."""
        found = hashlib.sha256()
        for array in self.requests:
            found.update(array.tobytes())
        return found.hexdigest()

    @property
    def tokens(self) -> int:
        """That are read in all."""
        return int(self._read[-1])

    def read(self, sequences: int) -> int:
        """Tokens that are read of the first so many."""
        return int(self._read[sequences])

    def restored(self, logprobs: List[float], greedy: List[bool]) -> list[Score]:
        """The scores of what was asked for, in that order, from those of the requests."""
        found = [Score(*pair) for pair in zip(logprobs, greedy, strict=True)]
        return [found[self._at[sequence]] for sequence in self._asked]

    def write(self, path: Path) -> None:
        """Write the file of requests: the whole of it, or nothing."""
        with disk_errors(path):
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    np.savez(stream, **self.requests._asdict())
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise


class Kept:
    """Where the journals of a scorer lie: in a folder that stays, or nowhere for long."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._written: list[Path] = []

    @contextlib.contextmanager
    def journal(self, identity: Mapping[str, Any], order: Order) -> Iterator[Path]:
        """Yield the journal of these requests by this scorer; their file lies beside it."""
        if self._folder is None:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch) / "journal.jsonl"
            return
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        asked = json.dumps({**identity, "requests": order.digest}, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.jsonl"
        self._written += [path, path.with_suffix(REQUESTS), path.with_name(path.name + ".old")]
        try:
            yield path
        finally:
            if not path.exists():  # refused, or ended before anything was scored
                path.with_suffix(REQUESTS).unlink(missing_ok=True)
                self._tidy()

    def forget(self) -> None:
        """Remove what was written for this scorer, and the folder where nothing else is in it."""
        for path in self._written:
            path.unlink(missing_ok=True)
        self._written.clear()
        self._tidy()

    def _tidy(self) -> None:
        if self._folder is not None and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _int32(tokens: Any) -> Any:
    """The same numbers; one that has no room in 32 bits is no token: it becomes -1."""
    inside = (tokens >= 0) & (tokens <= np.iinfo(np.int32).max)
    return np.where(inside, tokens, -1).astype(np.int32)
