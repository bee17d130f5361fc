"""Distill on a GPU that is not there: a step sends nothing, and asks for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge.decoder import Decoder, rotary_table
from slmq_edge.quantization import (
    Task,
    answers,
    distill,
    lessons,
    moving,
    readback,
    round_to_nearest,
    streams,
)
from slmq_edge.quantization.lessons import Lessons
from slmq_edge.quantization.moving import Near
from slmq_edge.quantization.sampling import Lesson
from slmq_edge.quantization.student import Student
from slmq_edge.quantization.teaching import Pace, Teaching
from slmq_edge.scheme import in_words
from tests.decoders import tokens_for
from tests.device_spy import Door, Spy, closed
from tests.students import RATES, student_of, task_for, tiny
from tests.test_methods import ignore

META = torch.device("meta")
LENGTH = 4


def meta(model: Decoder) -> Decoder:
    return model.to(torch.float32, META)


@pytest.fixture(autouse=True)
def _no_generator_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none of a device that is not there: what is drawn is nothing anyway."""
    plain = lessons._generator

    def generator(device: torch.device | str, seed: int, number: int) -> Any:
        return None if str(device) == "meta" else plain(device, seed, number)

    monkeypatch.setattr(lessons, "_generator", generator)


def student_there(model: Decoder, words: dict[str, Any]) -> Student:
    found = student_of(model, in_words(words))
    linears = {
        name: type(one)(
            one.levels.detach().to(META).requires_grad_(),
            one.shares.detach().to(META).requires_grad_(),
            one.scale.to(META),
            None if one.zero is None else one.zero.to(META),
            one.grid,
        )
        for name, one in found.linears.items()
    }
    return Student(meta(model), found.scheme, linears, found._inputs)


# Steps of two windows each, 3 to an epoch where none is the model's own, judged by as many.
@pytest.mark.parametrize(
    ("own", "blocks", "an_epoch"),
    [(0, 0.5, 3), (1, 0.0, 6), pytest.param(2, 0.0, 3, marks=pytest.mark.slow)],
)
def test_a_step_stays_on_its_device(
    own: int, blocks: float, an_epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent are an epoch's order and a lot's first tokens; read are losses, in bunches, and sums.

    Of the student itself nothing is read but the start, since nothing seems better here.
    """
    monkeypatch.setattr(readback, "STEPS", 4)
    monkeypatch.setattr(lessons, "side_by_side", lambda linears, kept: 4)
    monkeypatch.setattr(answers, "TOGETHER", 3 * LENGTH)
    model, epochs = tiny(), 2
    ranges = {"activation_scale": "tensor"} if blocks else {}
    student = student_there(model, {"name": "w4a8", "kv": 8, "lm_head": "int8", **ranges})
    tokens = tokens_for(model, 6, LENGTH)
    there = Lesson(tokens.to(META), torch.empty(6, LENGTH, model.anatomy.hidden, device=META))
    heard: list[str] = []
    task = Task(student.scheme, None, progress=lambda share, what: heard.append(what))
    with closed(monkeypatch) as door:
        rotary_table(model.anatomy, LENGTH, torch.float32, META)  # made once, by the CPU
        with Spy() as once:
            student.snapshot()
        found = Lessons(
            student.teacher, there if own < 2 else None, tokens[:, 0], LENGTH, 2, own, seed=0
        )
        pace = Pace(epochs, None, RATES, 0.3, blocks, torch.float32)
        with Spy() as spy:
            course = Teaching(student, found, there, pace, task).run()
    bunches = -(-course.step // 4)
    assert course.step == epochs * an_epoch
    assert spy.mixed == []
    assert spy.copies.count("meta to cpu") == once.copies.count("meta to cpu")
    lots = -(-course.step * own // 4)
    assert spy.copies.count("cpu to meta") == lots + (epochs if own < 2 else 0)
    assert door.opened == bunches + 1 + epochs
    assert len([line for line in heard if "loss" in line]) == bunches


def whole(windows: int, words: dict[str, Any], patch: pytest.MonkeyPatch) -> tuple[Spy, Door]:
    """All but the steps: windows are heard, the start is made, and judged."""
    model = tiny()
    task = task_for(model, words, epochs=0, held_out=0.5, start="clipped")
    assert task.calibration is not None
    tokens = tokens_for(model, windows, LENGTH)
    calibration = type(task.calibration)(task.calibration.text, tokens)
    task = Task(task.scheme, task.settings, calibration)
    with closed(patch) as door, Spy() as spy:
        prepared = distill.prepare(meta(model), task)
        integers = prepared.round_linears(prepared.model, task)
    assert {w.integers.device.type for w in integers.values()} == {"cpu"}
    return spy, door


def test_more_text_crosses_no_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BATCH_TOKENS", LENGTH)
    # Whose search is that of ``round_searched`` everywhere, and takes seconds here.
    monkeypatch.setattr(distill, "round_searched", round_to_nearest)
    monkeypatch.setattr(answers, "TOGETHER", LENGTH)
    few, few_read = whole(2, {"name": "w4a8"}, monkeypatch)
    many, many_read = whole(8, {"name": "w4a8"}, monkeypatch)
    assert many.mixed == []
    assert many.copies == few.copies
    assert many_read.opened == few_read.opened == 1


def test_what_lies_in_a_file_is_sent_where_it_is_judged_and_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streams that are spilled are the host's, whatever the device is."""
    model = tiny()
    student = student_there(model, {"name": "w4a8"})
    held = Lesson(tokens_for(model, 3, LENGTH), torch.zeros(3, LENGTH, 16))
    found = Lessons(student.teacher, held, held.tokens[:, 0], LENGTH, 2, 1, seed=0)
    with closed(monkeypatch) as door, Spy() as spy:
        answers.judge(student, held)
        assert found.at(0).hidden.device == META
    assert spy.mixed == []
    assert door.opened == 1


class Sent(Near):
    """A way to a device from which nothing can come back."""

    def __init__(self, stream: torch.Tensor, device: torch.device) -> None:
        super().__init__(stream)
        self._device = device

    def get(self, part: slice) -> torch.Tensor:
        return super().get(part).to(self._device)

    def put(self, part: slice, value: torch.Tensor) -> None:
        assert value.device == self._device


def test_what_is_heard_into_a_file_is_heard_where_the_model_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(moving, "way", Sent)
    model = tiny()
    with Spy() as spy:
        found = lessons.heard(meta(model), tokens_for(model, 3, LENGTH), ignore, tmp_path)
    assert spy.mixed == []
    assert found.hidden.device.type == found.tokens.device.type == "cpu"
