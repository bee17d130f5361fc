"""Sequences scored: how likely the last tokens of each are, given all tokens before them.

Every sequence is read from its first token, and its score depends on nothing but itself: not on its
neighbours, their order, or where an interrupted run went on. Short ones of one length, which need
no padding, run together where this machine computes the same in company as alone, to the bit: that
is tried on the golden prompts, behind their check. A batch reads the weights once for all of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

import numpy as np

from slmq_edge.errors import Damaged, UsageError
from slmq_edge.profiles import Board
from slmq_edge.runner import (
    checks,
    environment,
    golden,
    journal,
    manifest,
    requests,
    runtimes,
    work,
)
from slmq_edge.runner.likelihood import score
from slmq_edge.runner.requests import KEPT, Question, Requests
from slmq_edge.runner.runtimes import Place

# So much is lost by a kill, at most: a memory card takes long to flush, and lines stay short.
FLUSH_SECONDS, FLUSH_SEQUENCES = 1.0, 1000
TOGETHER = 128  # tokens: so many keep a CPU's cores as busy as more
WORTH = 16  # batches: of fewer, the trial takes longer than it saves
DOING = {
    "begin": "probing integers",
    "probe": "checking golden prompts",
    "golden": "scoring",
    "scores": "scoring",
}
# What two processes must have in common for one to go on from the other's scores.
DECIDES = ("cpu_model", "cpu_flags", "machine", "numpy", "onnxruntime", *environment.OF_RUNTIME)

# Tokens int64 [rows, length], how many positions -> logits float32 [rows, positions, vocab], a
# piece of the positions at a time.
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
    torch_device: str | None = None

    def on(self, torch_device: str) -> Job:
        """See `work.Work`."""
        return self._replace(torch_device=torch_device)

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
        return {work.TASK: work.SCORE, **work.described(self), "requests": str(self.requests)}


def read(path: Path) -> Job:
    """Read a job file; a missing or misspelt field is refused."""

    def made(fields: dict[str, Any]) -> Job:
        return Job(**{**fields, "requests": Path(fields["requests"])})

    return work.parse(path, made)


def take(
    asked: Requests,
    done: int,
    logits: Logits,
    log: journal.Journal,
    together: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Score all sequences from index ``done`` on, in order, into events ``scores`` of a journal.

    Args:
        asked: the sequences.
        done: how many of them are scored already.
        logits: computes them.
        log: where the scores go.
        together: tokens that may run as a batch; 0: each question runs alone.
        clock: seconds, monotonic.

    Raises:
        SlmqError: logits that are not finite, or a disk that is full; what is in the journal stays.
    """
    logprobs: list[float] = []
    greedy: list[bool] = []
    first, since = done, clock()
    for batch in requests.batches(requests.questions(asked, done), together):
        for found, most in _answers(batch, logits):
            logprobs += found
            greedy += most
        end = first + len(logprobs)
        enough = len(logprobs) >= FLUSH_SEQUENCES or clock() - since >= FLUSH_SECONDS
        if enough or end == asked.sequences:
            log.append({"event": "scores", "first": first, "logprobs": logprobs, "greedy": greedy})
            first, logprobs, greedy, since = end, [], [], clock()


def _answers(batch: list[Question], logits: Logits) -> Iterator[tuple[list[float], list[bool]]]:
    """The scores of each question of a batch."""
    keep = batch[0].kept
    pieces = logits(np.stack([question.read for question in batch]), keep)
    if len(batch) == 1:
        (question,) = batch
        yield score(_behind(pieces, keep - question.scored), question.targets)
        return
    whole = np.concatenate(list(pieces), axis=1)
    for rows, question in zip(whole, batch):
        yield score(iter([rows[-question.scored :]]), question.targets)


def _behind(pieces: Iterator[Any], unwanted: int) -> Iterator[Any]:
    """The positions of a single row behind the first few, [positions, vocab] at a time."""
    for piece in pieces:
        rows = piece[0, unwanted:]
        unwanted -= piece.shape[1] - len(rows)
        if len(rows):
            yield rows
        del piece, rows  # before the next one is there


def company(
    logits: Logits, tokens: Any, context_length: int, left: int, together: int = TOGETHER
) -> int:
    """How many tokens may run as a batch: ``together``, or 0.

    Args:
        logits: computes them, of one row or of several.
        tokens: int64 [any], to make texts of.
        context_length: of the model.
        left: tokens that are to be read.
        together: asked for.
    """
    if left < WORTH * together:
        return 0
    return together if same_together(logits, tokens, context_length, together) else 0


def same_together(logits: Logits, tokens: Any, context_length: int, together: int) -> bool:
    """Whether texts in company have the logits that they have alone, to the bit.

    Looked at are the first, the last and one in the middle, of many short texts to two long ones.
    See `company` for the arguments.
    """
    for length, keep in ((requests.SHORTEST, KEPT), (16, 16), (together // 2, KEPT)):
        if length > context_length:
            continue
        texts = np.resize(tokens, (together // length, length))
        whole = np.concatenate(list(logits(texts, keep)), axis=1)
        for row in (0, len(texts) // 2, -1):
            alone = np.concatenate(list(logits(texts[row][None], keep)), axis=1)
            if not np.array_equal(whole[row], alone[0]):
                return False
    return True


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
    place = Place(job.bundle, bundle, job.threads, job.engines, job.torch_device)
    asked = requests.load(job.requests)
    requests.check(asked, *limits(bundle))
    here = runtimes.of(place).check(place)
    began = environment.capture(job.board.root, of_runtime=here)
    wanted = workload(job.requests, asked.sequences, job.threads)
    same = {name: began[name] for name in DECIDES}
    there = job.journal.exists()
    events, anew = checks.continued(job.journal, job.bundle, wanted, job.allow_inexact, same)
    done = len(scores(events, asked.sequences)[0])
    if there:
        text = anew or f"resuming: {done} of {asked.sequences} sequences are there already"
        echo(checks.note(text, done))
    if any(event["event"] == "end" for event in events):
        return
    manifest.verify(job.bundle, bundle.get("files", {}))
    with journal.Journal(job.journal, echo) as log:
        log.append(checks.begin(job.bundle, wanted, job.allow_inexact, began, job.board))
        session = checks.passed(
            place, job.allow_inexact, log, lambda session: _fits(asked, session.most_positions)
        )
        tokens = golden.load(golden.golden_file(job.bundle, bundle))["tokens"]
        together = 0
        if session.batches:
            together = company(session.logits, tokens, limits(bundle)[0], asked.left(done))
        take(asked, done, session.logits, log, together)
        log.append(
            {
                "event": "end",
                "load_average": environment.load_average(job.board.root),
                "session": {**session.facts(), "batches": bool(together)},
                "profile": {},
            }
        )


def workload(file: Path, sequences: int, threads: int) -> dict[str, Any]:
    """What decides the scores of a bundle, as ``begin`` has it."""
    return {
        work.TASK: work.SCORE,
        "requests_sha256": manifest.sha256(file),
        "sequences": sequences,
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


def _fits(asked: Requests, most: int | None) -> None:
    """Refuse a sequence longer than what was built takes; None: as long as the context."""
    if most is not None and asked.longest > most:
        raise UsageError(
            f"a sequence of {asked.longest + 1} tokens reads {asked.longest}: this engine "
            f"holds {most}; slmq-edge build BUNDLE --context {asked.longest}"
        )
