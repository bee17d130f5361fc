"""Steps as child processes, the most important first, until the minutes are over.

A quantization on the GPU runs beside an export on the CPU's cores, and says so; what is measured
runs alone. A step that is not expected to fit into what is left is dropped, and a shorter one
behind it taken; what is dropped, fails or does not end says why, and the others go on.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.record import (
    DONE,
    DROPPED,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Record,
    left_by,
)
from benchmarks.on_gpu.steps import ALONE, ON_CPU, ON_GPU, Step
from slmq_edge.bench import cells, child

TICK_SECONDS = 0.25
# Of the estimate, and at least: a step that takes longer hangs.
PATIENCE, LEAST_SECONDS = 4.0, 90.0
# An estimate is corrected by what was seen, within these.
FASTEST, SLOWEST = 0.3, 4.0
LAST_LINES, LOG_BYTES = 12, 200_000
SLACK_SECONDS = 10.0  # for which the GPU may wait for an export
CORES_FOR_THE_GPU = 2  # that an export leaves to whoever feeds the GPU
CLOSING_SECONDS = child.GRACE_SECONDS + 2  # for what still runs at the end to end
LOG = "log.txt"

Tell = Callable[[str], None]


@dataclass
class Engine:
    """One call. work: where artifacts are; out: where the log goes; ends: on ``clock``.

    beside: what ran beside a step. again: steps that an earlier call has done, and whose files are
    gone.
    """

    steps: Sequence[Step]
    work: Path
    out: Path
    record: Record
    ends: float
    tell: Tell
    clock: Callable[[], float] = time.monotonic
    states: dict[str, str] = field(default_factory=dict)
    running: dict[str, child.Child] = field(default_factory=dict)
    beside: dict[str, set[str]] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)

    def carry_out(self) -> None:
        """Do what fits. After Ctrl-C what runs is ended, and the record is whole."""
        self.states = settled(self.steps, self.record, self.work)
        done = (step.id for step in self.steps if self.record.state(step) == DONE)
        self.again = {name for name in done if self.states[name] == WAITING}
        try:
            while True:
                self._end_those_that_have()
                if self._start_one():
                    continue
                if not self.running:
                    break
                child.wait(list(self.running.values()), TICK_SECONDS)
        except BaseException:
            for name in list(self.running):
                self._stop(name, "the call was interrupted")
            raise

    @property
    def left(self) -> float:
        return self.ends - CLOSING_SECONDS - self.clock()

    def _by_id(self, name: str) -> Step:
        return next(step for step in self.steps if step.id == name)

    def _start_one(self) -> bool:
        """Start the first step that may; drop what does not fit. Whether anything changed."""
        for step in self.steps:
            if self.states[step.id] == WAITING and (why := self._hopeless(step)):
                self._drop(step, why)
                return True
        chosen = choice(self.steps, self.states, self._expected_left())
        if chosen is None:
            return False
        expected, left = self._expected(chosen), max(self.left, 0)
        if expected > left:
            self._drop(chosen, f"expected to take {expected:.0f} s, and {left:.0f} s were left")
        else:
            self._start(chosen)
        return True

    def _hopeless(self, step: Step) -> str | None:
        for need in step.cell.needs:
            if self.states[need] in (FAILED, STOPPED, DROPPED):
                return f"needs {need}, which was not done ({self.states[need]})"
        return None

    def _expected_left(self) -> dict[str, float]:
        """Of what runs."""
        now = self.clock()
        return {
            name: max(self._expected(self._by_id(name)) - (now - work.began), 0.0)
            for name, work in self.running.items()
        }

    def _expected(self, step: Step) -> float:
        return step.seconds * correction(step, self.record.entries)

    def _start(self, step: Step) -> None:
        variables: dict[str, str] = {}
        if step.lane == ON_CPU:
            cores = max(len(os.sched_getaffinity(0)) - CORES_FOR_THE_GPU, 1)
            variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cores)}
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        expected = self._expected(step)
        call = len(self.record.document["calls"]) - 1
        self._write(step, state=RUNNING, started=at, estimated_seconds=step.seconds, call=call)
        mark = f"gpu-{os.getpid()}"
        self.running[step.id] = child.start(self.work, step.cell, mark, at, step.module, variables)
        self.states[step.id] = RUNNING
        self.beside[step.id] = set(self.running) - {step.id}
        for other in self.beside[step.id]:
            self.beside[other].add(step.id)
        self.tell(f"{step.id}: begins, about {expected:.0f} s of {self.left:.0f} s that are left")

    def _end_those_that_have(self) -> None:
        for name, work in list(self.running.items()):
            step, code = self._by_id(name), child.ended_by(work)
            took = self.clock() - work.began
            allowed = max(PATIENCE * self._expected(step), LEAST_SECONDS)
            if code is not None:
                del self.running[name]
                self._settle(step, work, code, took)
            elif self.left < 0:
                self._stop(name, f"not done within the call: {took:.0f} s")
            elif took > allowed:
                self._stop(name, f"took more than {allowed:.0f} s: {PATIENCE:g} x its estimate")

    def _settle(self, step: Step, work: child.Child, code: int, took: float) -> None:
        self._keep_log(step, work)
        found: dict[str, Any] = {"seconds": round(took, 2), "beside": sorted(self.beside[step.id])}
        if code == 0 and is_there(step, self.work):
            self.again.discard(step.id)
            self.states[step.id] = DONE
            self._write(step, state=DONE, error=None, **found, **left_by(step, self.work))
            self.tell(f"{step.id}: done in {took:.0f} s")
            return
        words = last_lines(work)
        why = words[-1] if words else f"exit code {code}"
        if code == 0:
            why = f"it left no whole {step.output}"
        self.states[step.id] = FAILED
        self._write(step, state=FAILED, error=why, exit_code=code, last_lines=words, **found)
        self.tell(f"{step.id}: failed after {took:.0f} s: {why}")

    def _stop(self, name: str, why: str) -> None:
        """End a step that runs, as Ctrl-C would: quantizing keeps its finished blocks."""
        step, work = self._by_id(name), self.running.pop(name)
        child.interrupt([work])
        self._keep_log(step, work)
        self.states[name] = STOPPED
        took = round(self.clock() - work.began, 2)
        self._write(step, state=STOPPED, error=why, seconds=took, last_lines=last_lines(work))
        self.tell(f"{name}: {why}")

    def _drop(self, step: Step, why: str) -> None:
        self.states[step.id] = DROPPED
        self._write(step, state=DROPPED, error=why)
        self.tell(f"{step.id}: dropped: {why}")

    def _write(self, step: Step, **fields: Any) -> None:
        """To its entry; of one that was done before, and is made once more, beside what it has."""
        self.record.update(step, **({"again": fields} if step.id in self.again else fields))

    def _keep_log(self, step: Step, work: child.Child) -> None:
        """Add a step's words to the one log that comes home."""
        words = log_of(work)[-LOG_BYTES:]
        with (self.out / LOG).open("ab") as log:
            log.write(f"=== {step.id}\n".encode() + words + b"\n")


def choice(
    steps: Sequence[Step], states: Mapping[str, str], left: Mapping[str, float]
) -> Step | None:
    """The next step to start; ``None``: wait for one that runs.

    The first in order that is ready has the GPU. One that wants the machine for itself waits for
    what runs, and meanwhile no other takes the GPU, nor an export the CPU that would end behind it.

    left: of those that run, the seconds that they are expected to take yet.
    """
    by_id = {step.id: step for step in steps}
    busy = {by_id[name].lane for name in left}
    if ALONE in busy:
        return None
    ready = [
        step
        for step in steps
        if states[step.id] == WAITING and all(states[need] == DONE for need in step.cell.needs)
    ]
    limit = math.inf
    for step in ready:
        if step.lane == ALONE:
            if not busy:
                return step
            if ON_GPU not in busy:
                return None
            limit = max(left.values()) + SLACK_SECONDS
        elif step.lane not in busy and step.seconds <= limit:
            return step
    return None


def settled(steps: Sequence[Step], record: Record, work: Path) -> dict[str, str]:
    """Where every step stands when a call begins.

    What is done stays done; but where its output is not here any more and a step that is left needs
    it, it is made once more. What was killed just behind its end is taken as it lies. All else is
    tried again.
    """
    states = {}
    for step in steps:
        entry = record.entries.get(step.id, {})
        state = record.state(step)
        if state == RUNNING and is_there(step, work) and entry["command"] == [*step.cell.command]:
            record.update(step, state=DONE, error=None, seconds=None, **left_by(step, work))
            state = DONE
        states[step.id] = DONE if state == DONE else WAITING
    for step in reversed(steps):
        if states[step.id] == WAITING:
            for need in step.cell.needs:
                other = next(one for one in steps if one.id == need)
                if not is_there(other, work):
                    states[need] = WAITING
    return states


def is_there(step: Step, work: Path) -> bool:
    """Whether what a step leaves is there and whole."""
    if step.kind in ("quantize", "export", "profile"):
        return cells.is_whole(work, step.output)
    return (work / step.output).exists()


def correction(step: Step, entries: Mapping[str, Mapping[str, Any]]) -> float:
    """By how much estimates of steps like this one were off so far, 1 where none was done."""
    like = (step.kind, step.cell.of.get("method") if step.kind == "quantize" else None)
    ratios = [
        entry["seconds"] / entry["estimated_seconds"]
        for entry in entries.values()
        if entry.get("state") == DONE
        and entry.get("seconds")
        and entry.get("estimated_seconds")
        and (entry["kind"], entry.get("method") if entry["kind"] == "quantize" else None) == like
    ]
    if not ratios:
        return 1.0
    return float(min(max(statistics.median(ratios), FASTEST), SLOWEST))


def log_of(work: child.Child) -> bytes:
    """What a step has written."""
    with work.log.open("rb") as log:
        log.seek(work.log_start)
        return log.read()


def last_lines(work: child.Child) -> list[str]:
    lines = log_of(work).decode(errors="replace").replace("\r", "\n").splitlines()
    return [line.strip() for line in lines if line.strip()][-LAST_LINES:]
