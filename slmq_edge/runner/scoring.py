"""Sequences scored: how likely the last tokens of each are, given all tokens before them.

    log p = sum_i (x_i[t_i] - max x_i - log sum_j exp(x_i[j] - max x_i))      natural logarithm

Requests come as arrays in an ``.npz`` file, in the order in which they are to be scored:

========  ================================================================================
tokens    int32 [all]: of all sequences, one behind the other
offsets   int64 [sequences + 1]: sequence k is tokens[offsets[k] : offsets[k + 1]]
scored    int32 [sequences]: how many of its last tokens are scored, at least 1, not all
========  ================================================================================

Every sequence runs alone and from its first token, so that its score depends on nothing but itself:
not on its neighbours, their order, or where an interrupted run went on. The last token is nobody's
past and is not run; neighbours that differ in it alone are one run.
"""

from __future__ import annotations

import math
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

import numpy as np

from slmq_edge.errors import Damaged, SlmqError, UsageError
from slmq_edge.profiles import Board
from slmq_edge.runner import checks, environment, journal, manifest, runtimes, work
from slmq_edge.runner.runtimes import Place

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
# So much is lost by a kill, at most: a memory card takes long to flush, and lines stay short.
FLUSH_SECONDS, FLUSH_SEQUENCES = 1.0, 1000
BLOCK_VALUES = 1 << 18  # logits that are looked at together: they fit a cache
DOING = {
    "begin": "probing integers",
    "probe": "checking golden prompts",
    "golden": "scoring",
    "scores": "scoring",
}
# What two processes must have in common for one to go on from the other's scores.
DECIDES = ("cpu_model", "cpu_flags", "machine", "numpy", "onnxruntime", *environment.OF_RUNTIME)

# Tokens int64 [length], how many positions -> logits float32 [positions, vocab], a piece at a time.
Logits = Callable[[Any, int], Iterator[Any]]


class Job(NamedTuple):
    """What to score, and how; see `job.Job` for what it shares with a measurement."""

    bundle: Path
    journal: Path
    requests: Path
    threads: int
    allow_inexact: bool
    engines: Path | None = None
    board: Board = Board()

    @property
    def unit(self) -> str:
        """See `work.Work`."""
        return "sequences"

    @property
    def doing(self) -> Mapping[str, str]:
        """See `work.Work`."""
        return DOING

    def files(self) -> Mapping[str, Path]:
        """See `work.Work`."""
        return {"requests": self.requests}

    def document(self) -> dict[str, Any]:
        """See `work.Work`."""
        return {
            work.TASK: work.SCORE,
            **self._asdict(),
            "bundle": str(self.bundle),
            "journal": str(self.journal),
            "requests": str(self.requests),
            "engines": None if self.engines is None else str(self.engines),
            "board": self.board._asdict(),
        }


def read(path: Path) -> Job:
    """Read a job file; a missing or misspelt field is refused."""
    fields = work.read(path)
    try:
        fields.pop(work.TASK, None)
        for name in ("bundle", "journal", "requests"):
            fields[name] = Path(fields[name])
        fields["engines"] = Path(fields["engines"]) if fields.get("engines") else None
        fields["board"] = Board.of(fields.get("board", {}))
        return Job(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} is not a job: {error}") from error


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


def log_probabilities(logits: Any, targets: Any) -> tuple[Any, Any]:
    """Log-probabilities of tokens, and whether they are the most likely (the first of equals).

    Args:
        logits: float32 [positions, vocab].
        targets: int [rows, positions]: tokens to look up in the same logits.

    Returns:
        float64 [rows, positions] and bool [rows, positions].
    """
    most = logits.max(axis=-1)
    # Steps that are lost in float32 are those of tokens too unlikely to show in the sum.
    total = np.exp(logits - most[:, None]).astype(np.float64).sum(axis=-1)
    at = np.take_along_axis(logits, targets.T, axis=-1).T.astype(np.float64)
    found = at - most.astype(np.float64) - np.log(total)
    return found, targets == logits.argmax(axis=-1)


def score(pieces: Iterator[Any], targets: Any) -> tuple[list[float], list[bool]]:
    """Sum up rows of targets, int [rows, positions], whose logits are the same.

    Args:
        pieces: float32 [some positions, vocab], one behind the other.
        targets: what follows each position.

    Returns:
        For each row the log-probability of all of it, and whether a greedy choice would be it.

    Raises:
        SlmqError: logits that are not finite.
    """
    rows, positions = targets.shape
    logprobs, greedy, start = np.zeros((rows, positions)), np.ones(rows, bool), 0
    for piece in pieces:
        end = start + len(piece)
        with np.errstate(invalid="ignore", over="ignore"):  # it is looked at below
            logprobs[:, start:end], most = _in_blocks(piece, targets[:, start:end])
        greedy &= most.all(axis=-1)
        start = end
        del piece  # before the next one is there
    if start != positions:
        raise SlmqError(f"logits for {start} positions, not {positions}")
    if not np.isfinite(logprobs).all():
        raise SlmqError("the logits of a sequence are not finite: slmq-edge profile checks bundles")
    return [math.fsum(row) for row in logprobs], [bool(one) for one in greedy]


def _in_blocks(logits: Any, targets: Any) -> tuple[Any, Any]:
    """See `log_probabilities`; of many positions, a few at a time."""
    size = max(1, BLOCK_VALUES // logits.shape[-1])
    starts = range(0, len(logits), size)
    found = [log_probabilities(logits[k : k + size], targets[:, k : k + size]) for k in starts]
    logprobs, most = zip(*found)
    return np.concatenate(logprobs, axis=1), np.concatenate(most, axis=1)


def alike(requests: Requests, first: int) -> int:
    """The index behind the neighbours of sequence ``first`` that differ in the last token alone."""
    read, scored = requests.sequence(first)[:-1], requests.scored[first]
    index = first + 1
    while index < requests.sequences and requests.scored[index] == scored:
        if not np.array_equal(requests.sequence(index)[:-1], read):
            break
        index += 1
    return index


def take(
    requests: Requests,
    done: int,
    logits: Logits,
    log: journal.Journal,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Score all sequences from index ``done`` on, in order, into events ``scores`` of a journal.

    clock: seconds, monotonic.

    Raises:
        SlmqError: logits that are not finite, or a disk that is full; what is in the journal stays.
    """
    logprobs: list[float] = []
    greedy: list[bool] = []
    first, since = done, clock()
    while first + len(logprobs) < requests.sequences:
        begin = first + len(logprobs)
        end = alike(requests, begin)
        scored = int(requests.scored[begin])
        targets = np.stack([requests.sequence(k)[-scored:] for k in range(begin, end)])
        read = requests.sequence(begin)[:-1].astype(np.int64)
        found, most = score(logits(read, scored), targets.astype(np.int64))
        logprobs += found
        greedy += most
        enough = len(logprobs) >= FLUSH_SEQUENCES or clock() - since >= FLUSH_SECONDS
        if enough or end == requests.sequences:
            log.append({"event": "scores", "first": first, "logprobs": logprobs, "greedy": greedy})
            first, logprobs, greedy, since = end, [], [], clock()


def scores(events: checks.Events, count: int) -> tuple[list[float], list[bool]]:
    """Return what a journal holds of ``count`` sequences: log-probabilities, and greedy or not.

    Raises:
        Damaged: it is no unbroken row from the first sequence on.
    """
    logprobs: list[float] = []
    greedy: list[bool] = []
    for event in events:
        if event["event"] != "scores":
            continue
        follows = event["first"] == len(logprobs)
        if not follows or len(event["logprobs"]) != len(event["greedy"]):
            raise Damaged(f"the journal's scores do not follow {len(logprobs)} others")
        logprobs += [float(value) for value in event["logprobs"]]
        greedy += event["greedy"]
    if len(logprobs) > count:
        raise Damaged(f"the journal holds {len(logprobs)} scores of {count} sequences")
    return logprobs, greedy


def run(job: Job, echo: Callable[[str], object]) -> None:
    """Check the bundle as a measurement does, and score what its journal lacks.

    Raises:
        SlmqError: the bundle does not pass, a sequence does not fit, or the disk is full.
    """
    bundle = manifest.read_bundle(job.bundle)
    place = Place(job.bundle, bundle, job.threads, job.engines)
    requests = load(job.requests)
    check(requests, *limits(bundle))
    here = runtimes.of(place).check(place)
    began = environment.capture(job.board.root, of_runtime=here)
    asked = workload(job.requests, requests.sequences, job.threads)
    same = {name: began[name] for name in DECIDES}
    there = job.journal.exists()
    events, anew = checks.continued(job.journal, job.bundle, asked, job.allow_inexact, same)
    done = len(scores(events, requests.sequences)[0])
    if there:
        text = anew or f"resuming: {done} of {requests.sequences} sequences are there already"
        echo(checks.note(text, done))
    if any(event["event"] == "end" for event in events):
        return
    manifest.verify(job.bundle, bundle.get("files", {}))
    with journal.Journal(job.journal, echo) as log:
        log.append(checks.begin(job.bundle, asked, job.allow_inexact, began, job.board))
        session = checks.passed(
            place, job.allow_inexact, log, lambda session: _fits(requests, session.most_positions)
        )
        take(requests, done, session.logits, log)
        log.append(
            {
                "event": "end",
                "load_average": environment.load_average(job.board.root),
                "session": dict(session.facts()),
                "profile": {},
            }
        )


def workload(requests: Path, count: int, threads: int) -> dict[str, Any]:
    """What decides the scores of a bundle, as ``begin`` has it."""
    return {
        work.TASK: work.SCORE,
        "requests_sha256": manifest.sha256(requests),
        "sequences": count,
        "threads": threads,
    }


def limits(bundle: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return a bundle's context length, and its vocabulary where it says.

    Raises:
        Damaged: it has no context length.
    """
    described = manifest.described(bundle)
    length, anatomy = described.get("context_length"), described.get("anatomy")
    if type(length) is not int:
        raise Damaged("bundle.json is damaged: it has no context_length")
    vocabulary = anatomy.get("vocab") if isinstance(anatomy, dict) else None
    return length, vocabulary if type(vocabulary) is int else None


def _fits(requests: Requests, most: int | None) -> None:
    """Refuse a sequence longer than what was built takes; None: as long as the context."""
    if most is not None and requests.longest > most:
        raise UsageError(
            f"a sequence of {requests.longest + 1} tokens reads {requests.longest}: this engine "
            f"holds {most}; slmq-edge build BUNDLE --context {requests.longest}"
        )
