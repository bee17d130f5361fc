"""Teaching: the loop of ``distill``, and what is kept of it.

    loss = mean KL(p || p_q) + c sum |h - h_q|^2 / |h|^2        (``answers``)

While weights cross the edge between two levels to and fro, the student is noisier than any single
rounding of it. So, the further it has come, the stronger its latent values are drawn to the middle
of their cells (Nagel et al. 2022, Overcoming Oscillations, section 4.1; here decoupled from the
gradient, as AdamW decouples its decay). What did best on the windows held out is what is kept, the
start included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Task
from slmq_edge.quantization.answers import Judged, answers, judge
from slmq_edge.quantization.lean_adam import LeanAdam
from slmq_edge.quantization.lessons import Lessons
from slmq_edge.quantization.readback import Losses
from slmq_edge.quantization.sampling import Lesson
from slmq_edge.quantization.student import Student

STORED = "student"
# Seconds between two times that the state is kept, and the share of the time that it may take.
SECONDS, SHARE = 60.0, 0.02


@dataclass(frozen=True)
class Pace:
    """See ``distill.Settings``. rates: of the first step, by kind (``Student.learned``)."""

    epochs: int
    minutes: float | None
    rates: Mapping[str, float]
    settling: float
    blocks: float
    precision: torch.dtype

    def done(self, step: int, an_epoch: int, seconds: float) -> float:
        """The share of the way behind, after so many steps in so many seconds."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        return step / (self.epochs * an_epoch) if self.epochs else 1.0


@dataclass
class Course:
    """How far a student has come. kept: the best so far (``Student.snapshot``)."""

    step: int
    seconds: float
    start: Judged
    best: Judged
    kept: dict[str, Tensor]

    def judge(self, student: Student, held: Lesson) -> None:
        """Keep the student as it is, if it was never better."""
        now = judge(student, held)
        if now.divergence < self.best.divergence:
            self.best, self.kept = now, student.snapshot()


class Teaching:
    """A student, its lessons, and how far they have come together.

    held: windows to judge by. clock: seconds that pass.
    """

    def __init__(
        self,
        student: Student,
        lessons: Lessons,
        held: Lesson,
        pace: Pace,
        task: Task,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._student, self._lessons, self._held = student, lessons, held
        self._pace, self._task, self._clock = pace, task, clock
        self._learned = student.learned(pace.rates)
        self._optimizer = LeanAdam(self._learned)

    @property
    def _precision(self) -> AbstractContextManager[object]:
        lower = self._pace.precision
        if lower == torch.float32:
            return nullcontext()
        return torch.autocast(self._student.device.type, lower)

    def run(self) -> Course:
        """Teach to the end, from the start or from where an interrupted run has come.

        Raises:
            SlmqError: the loss became infinite or NaN, or was before any step.
        """
        self._task.progress(0.0, "distilling")
        course = self._resumed() or self._begun()
        an_epoch, losses = self._lessons.steps_per_epoch, Losses(self._student.device)
        begun = self._clock() - course.seconds
        stored = self._clock() + SECONDS
        done = self._pace.done(course.step, an_epoch, course.seconds)
        while done < 1.0:
            loss = self._step(course.step, done)
            course.step, course.seconds = course.step + 1, self._clock() - begun
            done = self._pace.done(course.step, an_epoch, course.seconds)
            if losses.add(loss, last=done >= 1.0):
                self._report(losses, course, min(1.0, done))
            if done >= 1.0 or course.step % an_epoch == 0:
                course.judge(self._student, self._held)
            if self._clock() >= stored:
                stored = self._stored(course)
        return course

    def _step(self, step: int, done: float) -> Tensor:
        """One step of all that is learned; the loss before it."""
        if self._lessons.writes(step):
            self._task.progress(min(1.0, done), "distilling, the model writes text")
        pace, lesson = self._pace, self._lessons.at(step)
        share = 0.5 * (1 + math.cos(math.pi * done))
        with self._precision:
            found = answers(self._student, lesson, pace.blocks)
        loss = found.divergence / lesson.tokens.numel() + pace.blocks * found.apart
        rates = {name: share * pace.rates[name.rpartition(".")[2]] for name in self._learned}
        self._optimizer.backward(loss, rates)
        self._student.settle(pace.settling * done * share * pace.rates["levels"])
        return loss

    def _report(self, losses: Losses, course: Course, done: float) -> None:
        if losses.failed is not None:
            raise SlmqError(
                f"distilling failed: the loss is {losses.read[losses.failed]}; "
                "try a smaller --weight-rate"
            )
        told = f"loss {losses.read[-1]:.4f}, held-out perplexity {course.best.perplexity:.4g}"
        self._task.progress(done, f"distilling, {told}")

    def _begun(self) -> Course:
        start = judge(self._student, self._held)
        if not math.isfinite(start.divergence):
            raise SlmqError(
                "distilling is impossible: before any step the rounded model is "
                f"{start.divergence} nats from the model; one of them is damaged"
            )
        return Course(0, 0.0, start, start, self._student.snapshot())

    def _resumed(self) -> Course | None:
        found = self._task.finished.load(STORED) if self._task.finished is not None else None
        if found is None:
            return None
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor
        step, seconds, *judged = parts["course"][""].tolist()
        with torch.no_grad():
            for name, tensor in self._learned.items():
                tensor.copy_(parts["learned"][name])
        self._optimizer.load(parts["optimizer"], int(step))
        return Course(int(step), seconds, Judged(*judged[:2]), Judged(*judged[2:]), parts["kept"])

    def _stored(self, course: Course) -> float:
        """Keep the state; when to keep it again."""
        begun = self._clock()
        if self._task.finished is not None:
            start, best = course.start, course.best
            figures = (
                course.step, course.seconds,
                start.divergence, start.log_perplexity, best.divergence, best.log_perplexity,
            )  # fmt: skip
            parts = {
                "course": {"": torch.tensor(figures, dtype=torch.float64)},
                "learned": self._learned,
                "optimizer": self._optimizer.state(),
                "kept": course.kept,
            }
            tensors = {
                f"{kind}/{name}": tensor.detach().cpu()
                for kind, part in parts.items()
                for name, tensor in part.items()
            }
            self._task.finished.save(STORED, tensors)
        now = self._clock()
        return now + max(SECONDS, (now - begun) / SHARE)
