"""Distill: teach the rounded model to answer as the model does, all of it at once.

    argmin over u, t, a, c of  KL(p || p_q),   p = softmax(logits of the model), p_q of the rounded

A small model can afford what a large one cannot: to move every weight, end to end, against its own
full precision. ``student`` has what is learned. It begins at a rounding (``start``), to nearest in
searched ranges or as another method leaves it; learns by Adam, rates falling along a cosine, from
the text and from text that the model itself writes (``lessons``), which there is no end of; and is
judged on windows held out (``teaching``). No labels are used, and nothing of it is left at run
time: the result is a checkpoint like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from slmq_edge.anatomy import Anatomy
from slmq_edge.calibration import Calibration, Size
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder
from slmq_edge.errors import Unsupported, UsageError, unknown
from slmq_edge.quantization import (
    Prepared,
    RoundLinears,
    Task,
    method,
    round_searched,
    round_to_nearest,
)
from slmq_edge.quantization.lessons import Lessons, Split, heard, split, written
from slmq_edge.quantization.student import BIASES, GAINS, LEVELS, SHARES, Linear, Student
from slmq_edge.quantization.teaching import Course, Pace, Teaching
from slmq_edge.scheme import Scheme, require_weights
from slmq_edge.settings import option

CALIBRATION = Size(windows=128, length=512)

CLIPPED = "clipped"
STARTS = (CLIPPED, "gptq", "smoothquant", "omniquant", "spinquant")
# What of its start's own settings is not as it comes: nothing is left to rotate at run time.
START_SETTINGS: dict[str, dict[str, Any]] = {"spinquant": {"online": False}}
# Starts whose integers are more than their steps say: learning begins with them.
CHOSEN_INTEGERS = ("gptq", "spinquant")
TEXT, OWN, BOTH = LEARN_FROM = ("text", "own", "both")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What is learned from where, and how fast.

    start: the rounding to begin with; ``None``: smoothquant where activations are rounded, clipped
    otherwise. learn_from: the windows of the text, as many that the model writes itself, or half
    and half; of the text, own takes first tokens alone, and static ranges. epochs: passes over the
    windows, or, if given, minutes: how long to learn. batch: windows a step. weight_rate: in levels
    a step; scale_rate: of the logarithms of scales; gain_rate: of gains and biases, as shares; a
    rate of 0 leaves alone. settling: how fast, in the end, latent values are drawn to their levels,
    as a share of the weight_rate. blocks: weight of the distance between the blocks' streams.
    held_out: share of the windows to judge by. precision: of products while learning, auto:
    bfloat16 on a GPU.
    """

    start: Literal["clipped", "gptq", "smoothquant", "omniquant", "spinquant"] | None = None
    learn_from: Literal["text", "own", "both"] = "both"
    epochs: int = 12
    minutes: float | None = None
    batch: int = 4
    weight_rate: float = 0.01
    scale_rate: float = 0.002
    gain_rate: float = 2e-3
    settling: float = 0.3
    blocks: float = 0.0
    held_out: float = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.start not in (None, *STARTS):
            raise UsageError(unknown("--start", self.start, STARTS))
        if self.learn_from not in LEARN_FROM:
            raise UsageError(unknown("--learn-from", self.learn_from, LEARN_FROM))
        if self.precision not in ("auto", *PRECISIONS):
            raise UsageError(unknown("precision", self.precision, ("auto", *PRECISIONS)))
        if self.epochs < 0:
            raise UsageError(f"--epochs counts passes over the text, and cannot be {self.epochs}")
        if self.minutes is not None and not 0.0 < self.minutes < math.inf:
            raise UsageError(f"--minutes is a number above 0, not {self.minutes}")
        least = 2 if self.learn_from == BOTH else 1
        if self.batch < least:
            raise UsageError(f"--set batch counts windows, at least {least}, not {self.batch}")
        for name in ("weight_rate", "scale_rate", "gain_rate", "settling", "blocks"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{option(name)} is a number from 0, not {getattr(self, name)}")
        if not any((self.weight_rate, self.scale_rate, self.gain_rate)):
            raise UsageError("with all three rates 0 distill learns nothing: keep one")
        if not 0.0 < self.held_out < 1.0:
            raise UsageError(f"--set held_out is a share between 0 and 1, not {self.held_out}")
        if self.seed < 0:
            raise UsageError(f"--seed is a whole number from 0, not {self.seed}")

    def begins(self, scheme: Scheme) -> str:
        """The start, decided."""
        return self.start or (CLIPPED if scheme.activations is None else "smoothquant")

    @property
    def own(self) -> int:
        """Windows of a batch that the model writes."""
        return {TEXT: 0, OWN: self.batch, BOTH: self.batch // 2}[self.learn_from]

    def pace(self, device: torch.device) -> Pace:
        """How learning goes on a device."""
        lower = "bfloat16" if device.type == "cuda" else "float32"
        precision = PRECISIONS[lower if self.precision == "auto" else self.precision]
        rates = {LEVELS: self.weight_rate, SHARES: self.scale_rate}
        rates |= {GAINS: self.gain_rate, BIASES: self.gain_rate}
        return Pace(self.epochs, self.minutes, rates, self.settling, self.blocks, precision)


def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
    """Refuse what the start refuses.

    Raises:
        Unsupported: the scheme rounds nothing, or not what the start is about.
    """
    require_weights(scheme, "distill")
    start = settings.begins(scheme)
    if start != CLIPPED:
        try:
            method(start).check(shape, scheme, _settings(start))
        except Unsupported as error:
            raise Unsupported(f"--start {start}: {error}") from error


def _settings(start: str) -> Any:
    """The start's own settings."""
    return method(start).Settings(**START_SETTINGS.get(start, {}))


def prepare(model: Decoder, task: Task) -> Prepared:
    """The model as the start prepares it; it is rounded by learning.

    Raises:
        Unsupported, UsageError: as ``check`` says, or there are too few windows to hold one out.
    """
    settings: Settings = task.settings
    check(model.anatomy, task.scheme, settings)
    task = replace(task, calibration=_calibration(model, task))
    assert task.calibration is not None, "distill.CALIBRATION"
    parts = split(task.calibration.tokens, settings.held_out)
    start = settings.begins(task.scheme)
    if start == CLIPPED:
        return Prepared(model, Distilled(task, parts, round_searched, None))
    own = _settings(start)
    begun = method(start).prepare(model, replace(task, settings=own))
    plain = begun.round_linears is round_to_nearest
    rounds = round_searched if plain else begun.round_linears
    return Prepared(begun.model, Distilled(task, parts, rounds, own))


def _calibration(model: Decoder, task: Task) -> Calibration:
    """What is looked at in the place of the text, where that is not to be learned from."""
    found, settings = task.calibration, task.settings
    assert found is not None, "distill.CALIBRATION"
    if settings.learn_from != OWN:
        return found
    task.progress(0.0, "writing text")
    windows, length = found.tokens.shape
    lesson = written(model, found.tokens[:, 0], windows, length, settings.seed)
    return replace(found, tokens=lesson.tokens.cpu())


@dataclass(frozen=True)
class Distilled:
    """How linears are rounded: begin by ``start`` (whose settings are ``own``), and learn.

    prepared: the task as it was prepared, with the windows in ``parts``.
    """

    prepared: Task
    parts: Split
    start: RoundLinears
    own: Any

    def __call__(self, model: Decoder, task: Task) -> dict[str, IntegerWeight]:
        """Round all linears; gains and biases of ``model`` become those that were learned.

        Raises:
            SlmqError: the loss became infinite or NaN.
        """
        settings: Settings = self.prepared.settings
        parts, calibration = self.parts, self.prepared.calibration
        teacher = replace(model, weights=dict(model.weights))
        begun = replace(model, weights=dict(model.weights))
        for linear in model.anatomy.linears():
            del model.weights[f"{linear}.weight"]
        held = heard(teacher, parts.held, task.progress, task.spill)
        reads = settings.learn_from != OWN
        text = heard(teacher, parts.train, task.progress, task.spill) if reads else None
        first = self.start(begun, replace(task, settings=self.own, calibration=calibration))
        student = Student(teacher, task.scheme, self._linears(teacher, first), task.inputs)
        del first
        if not settings.own and not settings.blocks:
            # Nothing more is asked of the teacher but its head.
            for linear in model.anatomy.linears():
                del teacher.weights[f"{linear}.weight"]
        length = parts.train.shape[1]
        lessons = Lessons(
            teacher, text, parts.train[:, 0], length, settings.batch, settings.own, settings.seed
        )
        pace = settings.pace(student.device)
        course = Teaching(student, lessons, held, pace, task).run()
        for line in _told(course, lessons, parts, settings, settings.begins(task.scheme)):
            task.note(line)
        linears, moved = student.taken(course.kept)
        model.weights.update({name: t.to(model.weights[name]) for name, t in moved.items()})
        return linears

    def _linears(self, teacher: Decoder, first: dict[str, IntegerWeight]) -> dict[str, Linear]:
        keeps = self.prepared.settings.begins(self.prepared.scheme) in CHOSEN_INTEGERS
        return {
            name: Linear.of(teacher.weights[f"{name}.weight"], weight, keeps)
            for name, weight in first.items()
        }


def _told(
    course: Course, lessons: Lessons, parts: Split, settings: Settings, begun: str
) -> Iterable[str]:
    """What a user should know of the learning, which ``begun`` with a rounding."""
    start, best = course.start, course.best
    windows, length = parts.train.shape
    epochs = course.step / lessons.steps_per_epoch
    tokens = course.step * settings.batch * length
    own = f", {100 * settings.own // settings.batch} % of them the model's own" * bool(settings.own)
    yield (
        f"distill: {best.divergence:.4f} nats from the model where {start.divergence:.4f} were at "
        f"the start ({begun}), perplexity {best.perplexity:.4g} where it was "
        f"{start.perplexity:.4g}, on {_counted(len(parts.held), 'window')} held out"
    )
    if course.step and best == start:
        yield "distill: nothing that it learned was better there: the start is what is kept"
    yield (
        f"distill: {_counted(epochs, 'pass', 'passes')} over {_counted(windows, 'window')}, "
        f"{tokens} tokens{own}"
    )
    if parts.left:
        left = _counted(parts.left, "window")
        yield f"distill: not learned from, for they overlap those held out: {left}"
    if parts.seen:
        yield (
            "distill: all windows overlap those held out: it is judged by what it has learned from "
            "(give a longer text with --calib)"
        )


def _counted(count: float, one: str, many: str | None = None) -> str:
    return f"{count:.4g} {one if count == 1 else many or f'{one}s'}"
