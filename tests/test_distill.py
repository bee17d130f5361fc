"""Distill as a method: begun as another leaves it, judged as it is stored, killed and gone on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge import quantization
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import SlmqError, Unsupported, UsageError
from slmq_edge.quantization import Task, distill, round_searched, teaching
from slmq_edge.quantization.answers import Judged, judge
from slmq_edge.quantization.distill import LEARN_FROM, STARTS, Settings
from slmq_edge.quantization.finished import Finished
from slmq_edge.quantization.lessons import split
from slmq_edge.quantization.sampling import Lesson
from slmq_edge.quantization.student import Student
from slmq_edge.quantization.teaching import Course
from slmq_edge.scheme import in_words, scheme
from slmq_edge.simulation import Simulation, token_log_probabilities
from tests.decoders import (
    checkpoint_of,
    copied,
    random_llama,
    random_qwen2,
    random_qwen3,
)
from tests.students import calibration_for, distilled, same_bits, task_for, tiny

SOME = ("model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj")


def judged(source: Decoder, found: Checkpoint, held: torch.Tensor) -> Judged:
    """An artifact on windows, by the simulation that every exporter is held to."""
    given = torch.log_softmax(Simulation(found).logits(held).double(), -1)
    wanted = torch.log_softmax(logits(source, held).double(), -1)
    divergence = (wanted.exp() * (wanted - given)).sum(-1).mean()
    return Judged(float(divergence), -float(token_log_probabilities(given, held).mean()))


@pytest.mark.parametrize(
    ("make", "words", "settings"),
    [
        (random_qwen3, {"name": "w8a8"}, {}),
        (random_qwen2, {"name": "w4a8", "kv": 8, "lm_head": "int8"}, {"start": "spinquant"}),
        (random_qwen3, {"name": "w4a8", "activation_scale": "tensor"}, {"start": "gptq"}),
        (
            random_qwen2,
            {"name": "w4a8-g32", "weights": "asymmetric"},
            {"start": "gptq", "learn_from": "own"},
        ),
        (random_llama, {"name": "w4a8-b32", "embedding": "int8"}, {"learn_from": "text"}),
        (random_qwen2, {"name": "w4a8", "protect": SOME}, {"blocks": 0.1}),
        (random_qwen3, {"name": "w4a8", "kv": 8}, {"precision": "bfloat16"}),
        (random_llama, {"name": "w4a8", "activations": "asymmetric"}, {"start": "smoothquant"}),
    ],
)
def test_what_was_judged_is_what_is_stored(
    make: Any, words: dict[str, Any], settings: dict[str, Any]
) -> None:
    source = make()
    task = task_for(source, words, **{"weight_rate": 0.05, **settings})
    assert task.calibration is not None
    notes: list[str] = []
    found, course = distilled(source, dataclasses.replace(task, note=notes.append))
    if task.settings.learn_from == "own":
        tokens = distill._calibration(source, task).tokens
    else:
        tokens = task.calibration.tokens
    held = split(tokens, task.settings.held_out).held
    seen = judged(source, found, held)
    assert seen.divergence == pytest.approx(course.best.divergence, rel=2e-3)
    assert seen.log_perplexity == pytest.approx(course.best.log_perplexity, rel=1e-4)
    assert course.best.divergence <= course.start.divergence
    told = f"{course.best.divergence:.4f} nats from the model where {course.start.divergence:.4f}"
    assert told in "".join(notes)
    assert f"{len(held)} window" in notes[0]
    assert f"the start ({task.settings.begins(task.scheme)})" in notes[0]
    kept_start = any("the start is what is kept" in line for line in notes)
    assert kept_start == (course.best == course.start)


def begun(name: str, model: Decoder, task: Task) -> Checkpoint:
    """What distill is to begin with, made without it."""
    if name == "clipped":
        return checkpoint_of(quantization.Prepared(copied(model), round_searched), task, name)
    chosen = quantization.method(name)
    # Nothing is left to rotate at run time; what is rounded to nearest is in searched ranges.
    settings = {"online": False} if name == "spinquant" else {}
    own = dataclasses.replace(task, settings=chosen.Settings(**settings))
    prepared = chosen.prepare(copied(model), own)
    if name == "smoothquant":
        prepared = dataclasses.replace(prepared, round_linears=round_searched)
    return checkpoint_of(prepared, own, name)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        *((start, {"name": "w4a8"}) for start in STARTS if start != "omniquant"),
        pytest.param("omniquant", {"name": "w4a8"}, marks=pytest.mark.slow),
        ("gptq", {"name": "w4a8-g32", "weights": "asymmetric"}),
        ("clipped", {"name": "w4a8-g32", "weights": "asymmetric", "protect": SOME}),
    ],
)
def test_nothing_learned_is_the_start_to_the_bit(start: str, words: dict[str, Any]) -> None:
    model = tiny()
    task = task_for(model, words, start=start, epochs=0)
    found, course = distilled(model, task)
    assert course.step == 0
    assert same_bits(found, begun(start, model, task))


@pytest.mark.parametrize(("precision", "start"), [("w4a8", "smoothquant"), ("w4a16", "clipped")])
def test_a_start_is_chosen_by_what_is_rounded(precision: str, start: str) -> None:
    one, other = (
        distilled(tiny(), task_for(tiny(), precision, start=chosen, epochs=1))[0]
        for chosen in (None, start)
    )
    assert same_bits(one, other)


def test_all_that_it_may_learn_is_learned() -> None:
    """Integers, scales, gains, biases; the table, the head and the rotations stay."""
    model = random_llama()
    task = task_for(model, epochs=1, start="clipped")
    found, course = distilled(model, task)
    plain = begun("clipped", model, task)
    assert course.best.divergence < course.start.divergence
    for name, weight in found.integers.items():
        assert not torch.equal(weight.integers, plain.integers[name].integers)
        assert not torch.equal(weight.scale, plain.integers[name].scale)
    for name, tensor in found.tensors.items():
        moved = not torch.equal(tensor, plain.tensors[name])
        assert moved == ("norm" in name or name.endswith(".bias"))
    assert found.tensors.keys() == plain.tensors.keys()


def test_the_source_is_what_it_learns_from_alone() -> None:
    """The model handed over loses its linears, and the source of a copy nothing."""
    model = tiny()
    before = copied(model).weights
    task = task_for(model)
    prepared = distill.prepare(copied(model), task)
    prepared.round_linears(prepared.model, task)
    linears = {f"{linear}.weight" for linear in model.anatomy.linears()}
    assert linears.isdisjoint(prepared.model.weights)
    assert all(torch.equal(model.weights[name], t) for name, t in before.items())


def test_of_the_text_own_reads_first_tokens_alone() -> None:
    model = tiny()
    task = task_for(model, learn_from="own", start="gptq")
    assert task.calibration is not None
    tokens = task.calibration.tokens
    other = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], dim=1)
    changed = dataclasses.replace(
        task, calibration=dataclasses.replace(task.calibration, tokens=other)
    )
    for learn_from, alike in (("own", True), ("both", False)):
        settings = dataclasses.replace(task.settings, learn_from=learn_from)
        one, two = (
            distilled(model, dataclasses.replace(t, settings=settings))[0] for t in (task, changed)
        )
        assert same_bits(one, two) == alike


def test_a_damaged_model_that_writes_is_one_line() -> None:
    model = tiny()
    model.weights["model.norm.weight"][0] = torch.nan
    with pytest.raises(SlmqError, match="one of them is damaged"):
        distilled(model, task_for(model, learn_from="own"))


def test_a_seed_is_a_result() -> None:
    def found(seed: int) -> Checkpoint:
        return distilled(tiny(), task_for(tiny(), seed=seed))[0]

    assert same_bits(found(0), found(0))
    assert not same_bits(found(0), found(1))


def test_what_is_spilled_is_learned_alike(tmp_path: Path) -> None:
    task = task_for(tiny())
    plain = distilled(tiny(), task)[0]
    assert same_bits(distilled(tiny(), dataclasses.replace(task, spill=tmp_path))[0], plain)
    assert list(tmp_path.iterdir()) == []


def test_what_overlaps_the_held_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, notes = tiny(), list[str]()
    task = task_for(model, held_out=0.2, epochs=1)
    assert task.calibration is not None
    tokens = task.calibration.tokens.clone()
    tokens[0] = tokens[2]  # 2 and 7 of 10 are held out
    calibration = dataclasses.replace(task.calibration, tokens=tokens)
    distilled(model, dataclasses.replace(task, calibration=calibration, note=notes.append))
    assert [line for line in notes if "overlap" in line] == [
        "distill: not learned from, for they overlap those held out: 1 window"
    ]
    told = "".join(notes)
    assert "1 pass over 7 windows" in told
    assert "50 % of them the model's own" in told


def test_a_text_that_repeats_itself_is_told() -> None:
    model, notes = tiny(), list[str]()
    task = task_for(model, epochs=0, start="clipped")
    assert task.calibration is not None
    tokens = task.calibration.tokens[:1].repeat(4, 1)
    calibration = dataclasses.replace(task.calibration, tokens=tokens)
    distilled(model, dataclasses.replace(task, calibration=calibration, note=notes.append))
    assert "all windows overlap those held out" in notes[-1]


# --- killed and gone on -------------------------------------------------------------------------


class Killed(Exception):
    """What a test does to a run."""


@pytest.fixture
def keeps_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "SECONDS", 0.0)
    monkeypatch.setattr(teaching, "SHARE", 1e9)


def killed_and_gone_on(task: Task, folder: Path) -> tuple[Checkpoint, Course, Checkpoint, Course]:
    """What a run makes that is killed before its last step, and an unbroken one."""
    whole, expected = distilled(tiny(), task)
    steps: list[str] = []

    def hear(share: float, what: str) -> None:
        if what.startswith("distilling, loss"):
            steps.append(what)
            if len(steps) == expected.step - 1:
                raise Killed

    finished = Finished(folder / "finished", {"task": "this"})
    broken = dataclasses.replace(task, finished=finished, progress=hear)
    with pytest.raises(Killed):
        distilled(tiny(), broken)
    assert "student" in finished.parts
    done = len(steps) - 1
    steps.clear()
    found, course = distilled(tiny(), broken)
    assert len(steps) == expected.step - done
    assert course.step == expected.step
    return found, course, whole, expected


@pytest.mark.usefixtures("keeps_every_step")
@pytest.mark.parametrize(
    ("start", "learn_from"),
    [
        *itertools.product(["clipped"], LEARN_FROM),
        ("gptq", "both"),
        ("spinquant", "text"),
        pytest.param("omniquant", "own", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    start: str, learn_from: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that it learned to the last step, whether that was for the better or not."""

    def keep(course: Course, student: Student, held: Lesson) -> None:
        course.best, course.kept = judge(student, held), student.snapshot()

    monkeypatch.setattr(Course, "judge", keep)
    words = {"name": "w4a8", "kv": 8, "lm_head": "int8"}
    task = task_for(tiny(), words, start=start, learn_from=learn_from, weight_rate=0.05)
    found, course, whole, expected = killed_and_gone_on(task, tmp_path)
    assert (course.start, course.best) == (expected.start, expected.best)
    assert course.best != course.start
    assert same_bits(found, whole)


@pytest.mark.usefixtures("keeps_every_step")
def test_a_run_that_goes_on_remembers_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which was behind the first epoch; what came later is worse."""
    seen: list[Judged] = []

    def told(student: Student, held: Lesson) -> Judged:
        found = judge(student, held)
        seen.append(dataclasses.replace(found, divergence=-1.0 if len(seen) % 3 == 1 else 0.0))
        return seen[-1]

    monkeypatch.setattr(teaching, "judge", told)
    found, course, whole, expected = killed_and_gone_on(task_for(tiny()), tmp_path)
    assert len(seen) == 3 + 2 + 1  # of the unbroken run, of the killed one, and of the rest
    assert (course.start, course.best) == (expected.start, expected.best)
    assert course.best.divergence == -1.0
    assert same_bits(found, whole)


@pytest.mark.usefixtures("keeps_every_step")
def test_a_damaged_state_is_begun_again(tmp_path: Path) -> None:
    model = tiny()
    finished = Finished(tmp_path / "finished", {"task": "this"})
    task = dataclasses.replace(task_for(model), finished=finished)
    whole = distilled(model, task)[0]
    (state,) = (tmp_path / "finished").glob("student*")
    state.write_bytes(state.read_bytes()[:100])
    assert same_bits(distilled(model, task)[0], whole)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": "gtpq"}, "did you mean gptq"),
        ({"start": "none"}, "unknown --start 'none'"),
        ({"learn_from": "txt"}, "did you mean text"),
        ({"precision": "bfloat"}, "did you mean bfloat16"),
        ({"epochs": -1}, "--epochs counts passes over the text, and cannot be -1"),
        ({"minutes": 0.0}, "--minutes is a number above 0, not 0"),
        ({"minutes": float("nan")}, "--minutes is a number above 0, not nan"),
        ({"minutes": float("inf")}, "--minutes is a number above 0, not inf"),
        ({"batch": 1}, "at least 2, not 1"),
        ({"batch": 0, "learn_from": "text"}, "at least 1, not 0"),
        ({"weight_rate": -0.1}, "--weight-rate is a number from 0, not -0.1"),
        ({"scale_rate": float("nan")}, "--set scale_rate is a number from 0, not nan"),
        ({"gain_rate": float("inf")}, "--set gain_rate is a number from 0, not inf"),
        ({"settling": -1.0}, "--set settling is a number from 0, not -1"),
        ({"blocks": -1.0}, "--set blocks is a number from 0, not -1"),
        ({"weight_rate": 0.0, "scale_rate": 0.0, "gain_rate": 0.0}, "learns nothing: keep one"),
        ({"held_out": 0.0}, "a share between 0 and 1, not 0"),
        ({"held_out": 1.0}, "a share between 0 and 1, not 1"),
        ({"seed": -1}, "--seed is a whole number from 0, not -1"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Settings(**given)
    assert "\n" not in str(caught.value)


def test_one_window_alone_may_be_a_batch() -> None:
    for learn_from in ("text", "own"):
        assert distilled(tiny(), task_for(tiny(), batch=1, epochs=1, learn_from=learn_from))[1].step


@pytest.mark.parametrize(
    ("start", "precision", "said"),
    [
        ("clipped", "fp32", "method distill prepares"),
        ("gptq", "fp32", "method distill prepares"),
        ("smoothquant", "w4a16", "smoothquant"),
    ],
)
def test_a_start_refuses_what_it_refuses_alone(start: str, precision: str, said: str) -> None:
    model = tiny()
    with pytest.raises(Unsupported, match=said) as caught:
        distill.check(model.anatomy, scheme(precision), Settings(start=start))  # type: ignore[arg-type]  # one of them
    assert "\n" not in str(caught.value)


def test_one_window_of_text_is_one_line() -> None:
    model = tiny()
    task = Task(in_words({"name": "w4a8"}), Settings(), calibration_for(model, windows=1))
    with pytest.raises(SlmqError, match="at least 2"):
        distill.prepare(model, task)
