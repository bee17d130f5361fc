"""The loop of distill: it gets nearer, keeps the best, ends in time, and says when it cannot."""

from __future__ import annotations

import math

import pytest
import torch

from slmq_edge.anatomy import Anatomy
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Task, readback
from slmq_edge.quantization.answers import Judged
from slmq_edge.quantization.rounding import rounded
from slmq_edge.quantization.sampling import Lesson
from slmq_edge.quantization.student import GAINS, KINDS, LEVELS, SHARES, Student
from slmq_edge.quantization.teaching import Course
from slmq_edge.scheme import in_words
from tests.decoders import LLAMA, QWEN3, random_qwen2
from tests.students import RATES, teaching_for, tiny


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


class Clock:
    """A second passes whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(("shape", "own"), [(LLAMA, 0), (LLAMA, 2), (QWEN3, 1)])
def test_learning_gets_nearer_to_the_model(shape: Anatomy, own: int) -> None:
    """On windows that were not learned from, text of the model's own or another's."""
    course = teaching_for(tiny(shape), own=own, windows=24, epochs=6)[0].run()
    assert course.best.divergence < 0.9 * course.start.divergence
    assert course.step == 6 * {0: 12, 1: 24, 2: 12}[own]


@pytest.mark.parametrize("rate", [30.0, 1e4])
def test_what_only_gets_worse_stays_as_it_began(rate: float) -> None:
    teaching, student = teaching_for(tiny(), rates={**RATES, LEVELS: rate}, settling=0.0)
    begun = student.snapshot()
    course = teaching.run()
    assert not same(student.snapshot(), begun)
    assert course.best == course.start
    assert same(course.kept, begun)


def test_the_best_is_kept_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []
    divergences = [1.0, 0.9, 0.5, 0.7, 0.5]

    def told(student: Student, held: object) -> Judged:
        states.append(student.snapshot())
        return Judged(divergences[len(states) - 1], 0.0)

    monkeypatch.setattr("slmq_edge.quantization.teaching.judge", told)
    course = teaching_for(tiny(), epochs=4)[0].run()
    assert len(states) == 5
    assert (course.start.divergence, course.best.divergence) == (1.0, 0.5)
    assert same(course.kept, states[2])
    assert not same(course.kept, states[4])


def test_nothing_learned_is_the_start() -> None:
    teaching, student = teaching_for(tiny(), epochs=0)
    begun = student.snapshot()
    course = teaching.run()
    assert course.step == 0
    assert course.best == course.start
    assert same(course.kept, begun)
    assert same(student.snapshot(), begun)


@pytest.mark.parametrize("kind", [LEVELS, SHARES, GAINS])
def test_what_has_no_rate_rests(kind: str) -> None:
    """To the bit; a norm's gain, a scale and an integer each have a name of their own."""
    rates = {one: RATES[one] if one == kind else 0.0 for one in KINDS}
    teaching, student = teaching_for(random_qwen2(), rates={**rates, kind: 10 * RATES[kind]})
    before = {name: t.clone() for name, t in student.snapshot().items()}
    levels = {name: one.levels.clone() for name, one in student.linears.items()}
    teaching.run()
    moved = {name for name, t in student.snapshot().items() if not torch.equal(t, before[name])}
    ends = {LEVELS: ".integers", SHARES: ".scale", GAINS: "norm.weight"}
    assert moved
    assert all(name.endswith(ends[kind]) for name in moved)
    rested = all(torch.equal(one.levels, levels[n]) for n, one in student.linears.items())
    assert rested == (kind != LEVELS)


def test_biases_learn_where_there_are_any() -> None:
    rates = {**dict.fromkeys(KINDS, 0.0), "biases": 0.01}
    teaching, student = teaching_for(random_qwen2(), rates=rates)
    before = student.snapshot()
    course = teaching.run()
    after = student.snapshot()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith(".bias")}
    assert len(moved) == 6
    assert course.best.divergence < course.start.divergence


def test_values_settle_as_learning_goes_on() -> None:
    def unsettled(settling: float) -> float:
        teaching, student = teaching_for(tiny(), settling=settling, epochs=12)
        teaching.run()
        apart = [(one.levels - one.levels.round()).abs() for one in student.linears.values()]
        return float(torch.cat([t.detach().flatten() for t in apart]).mean())

    assert unsettled(3.0) < 0.5 * unsettled(0.0)


def test_minutes_are_kept_and_the_end_is_judged() -> None:
    clock = Clock()
    teaching, _ = teaching_for(
        tiny(), epochs=10**6, minutes=1.5, clock=clock, rates={**RATES, LEVELS: 0.05}
    )
    began = clock.now
    course = teaching.run()
    assert 90 <= clock.now - began <= 100
    assert 90 <= course.seconds <= 95
    assert course.step > 20


def test_the_end_is_judged_wherever_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch, too."""
    seen: list[int] = []
    judge = Course.judge

    def record(course: Course, student: Student, held: Lesson) -> None:
        seen.append(course.step)
        judge(course, student, held)

    monkeypatch.setattr(Course, "judge", record)
    course = teaching_for(tiny(), minutes=0.23, clock=Clock())[0].run()
    assert course.step % 3
    assert seen == [*range(3, course.step, 3), course.step]


@pytest.mark.parametrize("every", [1, 4, 100])
def test_a_loss_that_is_no_number_is_one_line(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "steps_between", lambda device: every)
    teaching, _ = teaching_for(tiny(), rates={**RATES, SHARES: 1e4})
    with pytest.raises(
        SlmqError, match="distilling failed: the loss is nan; try a smaller"
    ) as told:
        teaching.run()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_damaged_model_is_one_line(epochs: int) -> None:
    model = tiny()
    model.weights["model.norm.weight"][0] = math.nan
    teaching, _ = teaching_for(model, epochs=epochs)
    with pytest.raises(SlmqError, match="before any step the rounded model is nan nats") as told:
        teaching.run()
    assert "\n" not in str(told.value)


def test_losses_read_later_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = teaching_for(tiny(), own=1)[0].run()
    monkeypatch.setattr(readback, "steps_between", lambda device: 5)
    later = teaching_for(tiny(), own=1)[0].run()
    assert (later.best, later.step) == (plain.best, plain.step)
    assert same(later.kept, plain.kept)


def test_activations_computed_anew_end_in_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though every tensor moves while gradients of others are still to come."""
    for blocks in (0.0, 0.3):
        plain, student = teaching_for(random_qwen2(), own=1, blocks=blocks, epochs=2)
        begun = student.snapshot()
        plain.run()
        assert not same(student.snapshot(), begun)
        with monkeypatch.context() as patch:
            patch.setattr("slmq_edge.quantization.answers.ACTIVATIONS", 0)
            anew, other = teaching_for(random_qwen2(), own=1, blocks=blocks, epochs=2)
            anew.run()
        assert same(other.snapshot(), student.snapshot())


HALF: dict[str, dict[str, object]] = {
    "kv 8": {"name": "w4a8", "kv": 8, "lm_head": "int8"},
    "static": {"name": "w4a8", "activation_scale": "tensor"},
    "weights alone": {"name": "w4a16-g32"},
}


@pytest.mark.parametrize("form", HALF)
def test_half_precision_multiplies_and_learns(form: str) -> None:
    teaching, _ = teaching_for(
        tiny(),
        in_words(HALF[form]),
        own=1,
        windows=12,
        blocks=0.1,
        precision=torch.bfloat16,
    )
    course = teaching.run()
    assert course.best.divergence < 0.95 * course.start.divergence
    assert all(t.dtype in (torch.float32, torch.int8) for t in course.kept.values())


def test_half_precision_rounds_nothing() -> None:
    """What attention multiplies is on its grid to float32, of whatever it was made."""
    _, student = teaching_for(random_qwen2(), in_words({"name": "w4a8", "kv": 8}))
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=generator).to(torch.bfloat16)
    found = student.operands(query, key, value)
    assert torch.equal(found[0], query)
    for one, made_of in zip(found[1:], (key, value), strict=True):
        assert student.scheme.kv is not None
        assert torch.equal(one, rounded(made_of.float(), student.scheme.kv))


def test_blocks_are_drawn_to_the_models() -> None:
    def apart(blocks: float) -> Course:
        return teaching_for(random_qwen2(), blocks=blocks)[0].run()

    with_blocks, without = apart(1.0), apart(0.0)
    assert not same(with_blocks.kept, without.kept)
    assert with_blocks.best.divergence < with_blocks.start.divergence


def test_progress_tells_the_loss_and_what_is_held_out() -> None:
    told: list[tuple[float, str]] = []
    task = Task(in_words({"name": "w4a8"}), None, progress=lambda *said: told.append(said))
    teaching, _ = teaching_for(tiny(), task=task, epochs=3)
    course = teaching.run()
    learning = [(share, what) for share, what in told if what.startswith("distilling, loss ")]
    assert len(learning) == course.step == 9
    shares = [share for share, _ in learning]
    assert shares == pytest.approx([(n + 1) / 9 for n in range(9)])
    assert f"held-out perplexity {course.start.perplexity:.4g}" in learning[0][1]


def test_a_course_needs_no_place_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked at every step whether to keep a state, where there is nowhere to keep it."""
    plain = teaching_for(tiny())[0].run()
    monkeypatch.setattr("slmq_edge.quantization.teaching.SECONDS", 0.0)
    found = teaching_for(tiny())[0].run()
    assert (found.best, found.step) == (plain.best, plain.step)
    assert same(found.kept, plain.kept)
