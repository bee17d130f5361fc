"""Students of small random decoders, and what they are taught by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from slmq_edge.anatomy import Anatomy
from slmq_edge.calibration import Calibration, Text
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Prepared, Task, distill, ranges, round_searched
from slmq_edge.quantization.distill import Settings
from slmq_edge.quantization.lessons import Lessons, heard
from slmq_edge.quantization.student import KINDS, Linear, Student
from slmq_edge.quantization.teaching import Course, Pace, Teaching
from slmq_edge.scheme import Scheme, in_words
from tests.decoders import QWEN2, checkpoint_of, copied, random_decoder, tokens_for
from tests.test_methods import ignore

LENGTH = 12
RATES = dict(zip(KINDS, (0.02, 0.002, 0.001, 0.001), strict=True))


def tiny(shape: Anatomy = QWEN2, seed: int = 5) -> Decoder:
    """One block; a step of it takes milliseconds."""
    small = {"hidden": 16, "ffn": 24, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8}
    return random_decoder(dataclasses.replace(shape, **small), seed)  # type: ignore[arg-type]  # ints by name


def student_of(teacher: Decoder, scheme: Scheme) -> Student:
    """At its start: rounded to nearest in searched ranges."""
    inputs = {}
    if scheme.is_static:
        inputs = ranges.find(teacher, tokens_for(teacher, seed=7), scheme, ignore)
    shared = dataclasses.replace(teacher, weights=dict(teacher.weights))
    begun = round_searched(shared, Task(scheme, None))
    linears = {
        name: Linear.of(teacher.weights[f"{name}.weight"], weight, keeps=True)
        for name, weight in begun.items()
    }
    return Student(teacher, scheme, linears, inputs)


def checkpoint_of_student(student: Student) -> Checkpoint:
    """What would be written of the student as it is."""
    linears, moved = student.taken(student.snapshot())
    model = copied(student.teacher)
    model.weights.update(moved)
    tokens = tokens_for(model, seed=7)
    task = Task(student.scheme, None, Calibration(Text("random tokens", ("none",)), tokens))
    found = checkpoint_of(Prepared(model, lambda *_: linears), task, "distill")
    return dataclasses.replace(found, inputs=dict(student._inputs))


def teaching_for(
    teacher: Decoder,
    scheme: Scheme | str = "w4a8",
    rates: Mapping[str, float] = RATES,
    own: int = 0,
    task: Task | None = None,
    clock: Any = None,
    windows: int = 6,
    **pace: Any,
) -> tuple[Teaching, Student]:
    """A course of a few windows by twos, judged by half as many others."""
    chosen = in_words({"name": scheme}) if isinstance(scheme, str) else scheme
    tokens = tokens_for(teacher, windows + windows // 2, LENGTH, seed=3)
    held, train = (heard(teacher, part, ignore) for part in (tokens[windows:], tokens[:windows]))
    student = student_of(teacher, chosen)
    lessons = Lessons(
        teacher, train if own < 2 else None, tokens[:windows, 0], LENGTH, 2, own, seed=0
    )
    words = {"epochs": 4, "minutes": None, "settling": 0.3, "blocks": 0.0} | pace
    chosen_pace = Pace(rates=rates, **{"precision": torch.float32, **words})
    clocked = {} if clock is None else {"clock": clock}
    return Teaching(
        student, lessons, held, chosen_pace, task or Task(chosen, None), **clocked
    ), student


def calibration_for(model: Decoder, windows: int = 10, length: int = LENGTH) -> Calibration:
    tokens = tokens_for(model, windows, length, seed=7)
    return Calibration(Text("random tokens", ("none",)), tokens)


def task_for(model: Decoder, words: Mapping[str, Any] | str = "w4a8", **settings: Any) -> Task:
    scheme = in_words({"name": words} if isinstance(words, str) else words)
    chosen = Settings(**{"epochs": 2, "batch": 4, "held_out": 0.3, **settings})
    return Task(scheme, chosen, calibration_for(model))


def distilled(model: Decoder, task: Task) -> tuple[Checkpoint, Course]:
    """All that the method does with a model, and how its learning went."""
    courses: list[Course] = []
    run = Teaching.run

    def recorded(teaching: Teaching) -> Course:
        courses.append(run(teaching))
        return courses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teaching, "run", recorded)
        found = checkpoint_of(distill.prepare(copied(model), task), task, "distill")
    return found, courses[0]


def same_bits(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same numbers."""
    names = one.integers.keys() == other.integers.keys() and one.tensors.keys() == (
        other.tensors.keys()
    )
    return (
        names
        and all(torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())
        and all(
            torch.equal(getattr(w, part), getattr(other.integers[name], part))
            for name, w in one.integers.items()
            for part in ("integers", "scale")
        )
    )
