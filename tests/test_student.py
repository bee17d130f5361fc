"""A student computes what its checkpoint will; its linears are what they say, value by value."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from slmq_edge.anatomy import NORM
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder, logits
from slmq_edge.quantization import Task, spinquant
from slmq_edge.quantization.rounding import quantize
from slmq_edge.quantization.student import KINDS, Linear, Student
from slmq_edge.scheme import TOKENS_8, Grid, Scheme, in_words
from slmq_edge.simulation import Simulation
from tests.decoders import (
    QWEN3_BIASED,
    random_decoder,
    random_llama,
    random_qwen2,
    random_qwen3,
    tokens_for,
)
from tests.students import calibration_for, checkpoint_of_student, student_of

SKEW = {"weights": "asymmetric", "activations": "asymmetric"}
STATIC = {"activation_scale": "tensor"}
SOME = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj")
FORMS: dict[str, dict[str, Any]] = {
    "w8a8": {"name": "w8a8"},
    "w4a8": {"name": "w4a8"},
    "w4a16": {"name": "w4a16"},
    "w4a8-g32": {"name": "w4a8-g32"},
    "w4a8-b32": {"name": "w4a8-b32", "weights": "asymmetric", "lm_head": "int4"},
    "w4a8-b128": {"name": "w4a8-b128"},
    "static": {"name": "w4a8", **STATIC, "lm_head": "int8"},
    "static, asymmetric": {"name": "w8a8", **STATIC, **SKEW, "range": "mse"},
    "kv 8": {"name": "w4a8", "kv": 8},
    "asymmetric": {"name": "w4a8", **SKEW},
    "int8 head": {"name": "w4a8", "lm_head": "int8"},
    "int8 embedding": {"name": "w4a8", "embedding": "int8"},
    "int4 head, int8 embedding": {"name": "w4a8", "lm_head": "int4", "embedding": "int8"},
    "protected": {"name": "w4a8", "protect": SOME},
}
# As the released rules have it: o_proj's input by head, queries too.
BY_HEAD = dataclasses.replace(
    in_words(FORMS["kv 8"]), mixed=Grid(8, "token", symmetric=False, group=8), query=TOKENS_8
)
DECODERS: dict[str, Callable[[], Decoder]] = {
    "Qwen2": random_qwen2,
    "untied Llama": random_llama,
    "Qwen3": random_qwen3,
    "biased Qwen3": lambda: random_decoder(QWEN3_BIASED, seed=5),
}


def disturbed(student: Student) -> Student:
    """Somewhere else, of all that is learned, as steps would bring it."""
    generator = torch.Generator().manual_seed(1)
    sizes = dict(zip(KINDS, (0.7, 0.05, 0.1, 0.1), strict=True))
    with torch.no_grad():
        for name, tensor in student.learned(dict.fromkeys(KINDS, 1.0)).items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            tensor.add_(sizes[name.rpartition(".")[2]] * noise)
    return student


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *itertools.product([*FORMS, "by head"], ["Qwen2", "untied Llama"]),
        *itertools.product(["w4a8-g32", "kv 8"], ["Qwen3", "biased Qwen3"]),
    ],
)
def test_it_computes_what_its_checkpoint_will(form: str, name: str) -> None:
    scheme = BY_HEAD if form == "by head" else in_words(FORMS[form])
    teacher = DECODERS[name]().to(torch.float64)
    tokens = tokens_for(teacher, 8, 12)
    student = student_of(teacher, scheme)
    assert_computes_its_checkpoint(student, tokens)
    assert_computes_its_checkpoint(disturbed(student), tokens)


def assert_computes_its_checkpoint(student: Student, tokens: Tensor) -> None:
    """To the float32 that a checkpoint stores; where that flips a rounding, nearly."""
    model, operands = student.model, student.operands

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        return student.project(model, inputs, linears)

    with torch.no_grad():
        found = logits(model, tokens, project, operands)
    expected = Simulation(checkpoint_of_student(student), torch.float64).logits(tokens)
    assert found.dtype == torch.float64
    apart = (found - expected).abs().amax((1, 2)) / expected.abs().max()
    assert apart.median() < 2e-6
    assert apart.max() < 0.05


def test_a_rotated_teacher_has_a_rotated_student() -> None:
    teacher = random_qwen2()
    scheme = in_words({"name": "w4a8", "kv": 8, "lm_head": "int8"})
    task = Task(scheme, spinquant.Settings(steps=0), calibration_for(teacher))
    prepared = spinquant.prepare(teacher, task).model.to(torch.float64)
    assert prepared.online.keys
    assert prepared.online.down
    student = student_of(prepared, scheme)
    assert_computes_its_checkpoint(disturbed(student), tokens_for(prepared, 8, 12))


def test_another_students_checkpoint_is_told_apart() -> None:
    """The comparison can fail: one norm's gain is not what was learned."""
    student = student_of(random_qwen2().to(torch.float64), in_words(FORMS["w4a8"]))
    found = checkpoint_of_student(student)
    with torch.no_grad():
        student.gains[f"{NORM}.weight"][3] += 0.05
    tokens = tokens_for(student.teacher, 8, 12)
    now, before = Simulation(checkpoint_of_student(student)), Simulation(found)
    assert (now.logits(tokens) - before.logits(tokens)).abs().max() > 1e-3
    assert_computes_its_checkpoint(student, tokens)


@pytest.mark.parametrize("name", DECODERS)
def test_all_that_it_learns_has_a_gradient_and_the_teacher_none(name: str) -> None:
    student = student_of(DECODERS[name](), in_words(FORMS["kv 8"]))
    moving = student.learned(dict.fromkeys(KINDS, 1.0))
    model = student.model
    found = logits(
        model,
        tokens_for(model),
        lambda x, linears: student.project(model, x, linears),
        student.operands,
    )
    found.square().mean().backward()  # type: ignore[no-untyped-call]
    shape = student.teacher.anatomy
    norms = 2 * shape.layers + 1 + 2 * shape.layers * shape.qk_norm
    kinds = [name.rpartition(".")[2] for name in moving]
    linears = len(list(shape.linears()))
    counts = (linears, linears, norms, len(shape.biased) * shape.layers)
    assert tuple(map(kinds.count, KINDS)) == counts
    for tensor in moving.values():
        assert tensor.grad is not None
        assert (tensor.grad != 0).float().mean() > 0.5
    assert not any(t.requires_grad for t in student.teacher.weights.values())


# --- one linear ---------------------------------------------------------------------------------

GRIDS = (
    Grid(4, "channel"),
    Grid(8, "channel"),
    Grid(3, "channel", lowest=True),
    Grid(4, "channel", symmetric=False),
    Grid(4, "channel", symmetric=False, zero=False, group=5),
    Grid(4, "channel", lowest=True, group=4),
)


@st.composite
def linears(draw: st.DrawFn) -> tuple[Tensor, IntegerWeight]:
    """A weight, and how a method that makes up for errors may have rounded it."""
    grid = draw(st.sampled_from(GRIDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = (draw(st.integers(1, 5)), draw(st.integers(1, 13)))
    offset, spread, error = (
        draw(st.floats(low, high)) for low, high in ((-3.0, 3.0), (1e-3, 10.0), (0.0, 2.0))
    )
    weight = offset + spread * torch.randn(size, generator=generator)
    wrong = weight + error * spread * torch.randn(size, generator=generator)
    return weight, IntegerWeight.of(quantize(wrong, grid), grid)


@examples(deadline=None)
@given(linears())
def test_a_kept_start_has_its_integers(drawn: tuple[Tensor, IntegerWeight]) -> None:
    weight, start = drawn
    found = Linear.of(weight, start, keeps=True)
    assert torch.equal(found.rounded.integers, start.integers.float())
    assert torch.equal(found.weight, start.dequantized)


@examples(deadline=None)
@given(linears(), st.data())
def test_a_start_that_is_rounding_itself_has_its_integers(
    drawn: tuple[Tensor, IntegerWeight], data: st.DataObject
) -> None:
    weight, grid = drawn[0], drawn[1].grid
    start = IntegerWeight.of(quantize(weight, grid), grid)
    found = Linear.of(weight, start, keeps=data.draw(st.booleans()))
    assert torch.equal(found.rounded.integers, start.integers.float())


@examples(deadline=None)
@given(linears(), st.floats(0.0, 4.0))
def test_what_multiplies_is_what_is_stored(drawn: tuple[Tensor, IntegerWeight], far: float) -> None:
    """Wherever values have moved, also beyond the grid's ends: to the bit."""
    found = Linear.of(*drawn, keeps=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found.levels.add_(far * torch.randn(found.levels.shape, generator=generator))
        found.shares.add_(0.1 * torch.randn(found.shares.shape, generator=generator))
    stored = IntegerWeight.of(found.rounded, found.grid)
    assert found.rounded.integers.min() >= found.grid.bottom
    assert found.rounded.integers.max() <= found.grid.top
    assert torch.equal(stored.integers.float(), found.rounded.integers)
    assert torch.equal(found.weight, stored.dequantized)


@examples(deadline=None)
@given(linears())
def test_gradients_pass_inside_the_ends_alone(drawn: tuple[Tensor, IntegerWeight]) -> None:
    """d/du = s inside, 0 outside; d/dt = the group's weights: t moves s by a share."""
    found = Linear.of(*drawn, keeps=False)
    grid = found.grid
    generator = torch.Generator().manual_seed(2)
    asked = torch.randn(found.levels.shape, generator=generator)
    (found.weight * asked).sum().backward()  # type: ignore[no-untyped-call]
    wide = grid.group or found.levels.shape[1]
    scale, zero = (
        torch.zeros_like(found.scale) if t is None else t for t in (found.scale, found.zero)
    )
    for column in range(found.levels.shape[1]):
        level = found.levels[:, column].detach() + zero[:, column // wide]
        inside = (level >= grid.bottom) & (level <= grid.top)
        expected = torch.where(inside, asked[:, column] * scale[:, column // wide], 0.0)
        assert found.levels.grad is not None
        torch.testing.assert_close(found.levels.grad[:, column], expected)
    products = torch.split((found.weight * asked).detach(), wide, dim=1)
    sums = torch.stack([part.sum(1) for part in products], dim=1)
    assert found.shares.grad is not None
    torch.testing.assert_close(
        found.shares.grad, sums, rtol=1e-4, atol=1e-5 * float(sums.abs().max())
    )


@examples(deadline=None)
@given(linears(), st.floats(0.0, 1.0))
def test_settling_never_passes_the_middle(
    drawn: tuple[Tensor, IntegerWeight], distance: float
) -> None:
    found = Linear.of(*drawn, keeps=False)
    before = found.levels.detach().clone()
    integers, weight = found.rounded.integers, found.weight.detach()
    found.settle(distance)
    middle = torch.round(before)
    off, now = before - middle, found.levels.detach() - middle
    rounding = 1e-6 * before.abs().max()
    assert ((off - now).abs() <= distance + rounding).all()
    assert (now.sign() * off.sign() >= 0).all()
    assert ((now.abs() - (off.abs() - distance).clamp(min=0)).abs() <= rounding).all()
    assert torch.equal(found.rounded.integers, integers)
    assert torch.equal(found.weight, weight)


def test_what_has_no_rate_has_no_gradient() -> None:
    student = student_of(random_qwen2(), Scheme("w3a8", Grid(3, "channel"), TOKENS_8))
    everything = student.learned(dict.fromkeys(KINDS, 1.0))
    for kind in KINDS:
        moving = student.learned({one: float(one == kind) for one in KINDS})
        assert moving.keys() == {name for name in everything if name.endswith(f".{kind}")}
        assert all(t.requires_grad == (name in moving) for name, t in everything.items())
