"""Which sequences are to be scored: arrays in an ``.npz`` file, in the order in which they run.

========  ================================================================================
tokens    int32 [all]: of all sequences, one behind the other
offsets   int64 [sequences + 1]: sequence k is tokens[offsets[k] : offsets[k + 1]]
scored    int32 [sequences]: how many of its last tokens are scored, at least 1, not all
========  ================================================================================

The last token of a sequence is nobody's past and is not run; neighbours that differ in it alone
are one question.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np

from slmq_edge.errors import Damaged, UsageError

ARRAYS = {"tokens": "int32", "offsets": "int64", "scored": "int32"}
# What numpy and zipfile raise of a file that is no archive of arrays.
REFUSED = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
)

SHORTEST = 4  # tokens of a question in company: products of one row have kernels of their own
KEPT = 2  # positions whose logits are computed at least: one alone has a kernel of its own, too


class Question(NamedTuple):
    """read: int64 [length]. targets: int64 [sequences, scored], what may follow the last of it."""

    read: Any
    targets: Any

    @property
    def scored(self) -> int:
        """Positions whose logits are wanted."""
        return int(self.targets.shape[1])

    @property
    def kept(self) -> int:
        """Positions whose logits are computed."""
        return min(len(self.read), max(KEPT, self.scored))


class Requests(NamedTuple):
    """The arrays of a file of requests."""

    tokens: Any
    offsets: Any
    scored: Any

    @property
    def sequences(self) -> int:
        """How many there are."""
        return len(self.scored)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that are run."""
        return int(np.diff(self.offsets).max(initial=1)) - 1

    def left(self, done: int) -> int:
        """Tokens of the sequences from index ``done`` on that are run."""
        return int(self.offsets[-1] - self.offsets[done]) - (self.sequences - done)

    def sequence(self, index: int) -> Any:
        """Int32 [length]."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def load(path: Path) -> Requests:
    """Read a file of requests.

    Raises:
        Damaged: it is none, or its arrays do not fit each other.
    """
    try:
        # Opened here: of what is no archive, numpy leaves the file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            found = Requests(*(archive[name] for name in ARRAYS))
    except REFUSED as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    for name, array in zip(ARRAYS, found):
        if array.dtype != ARRAYS[name] or array.ndim != 1:
            raise Damaged(f"{path} is damaged: {name} is {array.dtype} {array.shape}")
    fits = len(found.offsets) == found.sequences + 1 and found.offsets[0] == 0
    if not fits or found.offsets[-1] != len(found.tokens):
        raise Damaged(f"{path} is damaged: its offsets are not those of its tokens")
    if not ((found.scored >= 1) & (found.scored < np.diff(found.offsets))).all():
        raise Damaged(f"{path} is damaged: a sequence is not longer than what is scored of it")
    return found


def check(requests: Requests, context_length: int, vocabulary: int | None = None) -> None:
    """Refuse sequences that the model cannot read, before any is scored.

    Raises:
        UsageError: one is too long, or holds no token of the vocabulary.
    """
    if requests.longest > context_length:
        raise UsageError(
            f"a sequence of {requests.longest + 1} tokens reads {requests.longest}: "
            f"the context holds {context_length}"
        )
    if requests.sequences and vocabulary is not None:
        for token in (int(requests.tokens.min()), int(requests.tokens.max())):
            if not 0 <= token < vocabulary:
                raise UsageError(f"token {token} is not in the vocabulary of {vocabulary}")


def questions(requests: Requests, first: int) -> Iterator[Question]:
    """Yield the questions of the sequences from ``first`` on."""
    while first < requests.sequences:
        read, scored = requests.sequence(first)[:-1], int(requests.scored[first])
        targets = [requests.sequence(first)[-scored:]]
        first += 1
        while first < requests.sequences and requests.scored[first] == scored:
            sequence = requests.sequence(first)
            if not np.array_equal(sequence[:-1], read):
                break
            targets.append(sequence[-scored:])
            first += 1
        yield Question(read.astype(np.int64), np.stack(targets).astype(np.int64))


def batches(asked: Iterator[Question], tokens: int) -> Iterator[list[Question]]:
    """Yield neighbours of one length, as many as read at most ``tokens``; others alone.

    As many positions are kept of each as of it alone: torch's product by a float head has other
    last bits where it is of more rows.
    """
    batch: list[Question] = []
    for question in asked:
        length = len(question.read)
        fits = length >= SHORTEST and length * (len(batch) + 1) <= tokens
        is_alike = batch and len(batch[0].read) == length and batch[0].kept == question.kept
        if batch and not (fits and is_alike):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch
