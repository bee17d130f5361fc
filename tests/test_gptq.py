"""GPTQ: the column loop against its definition, and the staged walk through a block."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge.calibration import Calibration, Text
from slmq_edge.decoder import Decoder
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import Task, gptq
from slmq_edge.quantization.finished import Finished
from slmq_edge.quantization.rounding import Rounded, extent, quantize, search_clip
from slmq_edge.quantization.streams import advance, embedded
from slmq_edge.scheme import Grid, scheme
from tests.decoders import random_llama, random_qwen2, tokens_for

PER_ROW = Grid(4, "channel", lowest=True)
GROUPED = dataclasses.replace(PER_ROW, group=32)
ASYMMETRIC = Grid(4, "channel", symmetric=False, group=20)


def inputs_like_a_models(width: int, seed: int, tokens: int = 400) -> torch.Tensor:
    """Correlated channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    sizes = torch.randn(width, generator=generator).exp()
    return torch.randn(tokens, width, generator=generator) @ mixing * sizes


def output_error(weight: torch.Tensor, found: Rounded, grid: Grid, x: torch.Tensor) -> float:
    return float(((found.values(grid) - weight) @ x.T).square().sum())


@settings(max_examples=20, deadline=None)
@given(
    grid=st.sampled_from([PER_ROW, GROUPED, ASYMMETRIC]),
    width=st.sampled_from([20, 63, 172, 300]),
    act_order=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_outputs_are_nearer_than_rounding_leaves_them(
    grid: Grid, width: int, act_order: bool, seed: int
) -> None:
    x = inputs_like_a_models(width, seed)
    weight = torch.randn(24, width, generator=torch.Generator().manual_seed(seed))
    hessian = gptq.hessian_of(iter([x[None]]))
    found = gptq.solve(weight, hessian, grid, gptq.Settings(act_order=act_order))
    assert found.integers.min() >= grid.bottom
    assert found.integers.max() <= grid.top
    assert found.steps.scale.shape == (24, grid.groups(width))
    nearest = quantize(weight, grid, search_clip(weight, grid))
    assert output_error(weight, found, grid, x) < output_error(weight, nearest, grid, x)


@pytest.mark.parametrize("grid", [PER_ROW, GROUPED, ASYMMETRIC])
def test_uncorrelated_inputs_leave_nothing_to_make_up_for(grid: Grid) -> None:
    weight = torch.randn(8, 160, generator=torch.Generator().manual_seed(0))
    found = gptq.solve(weight, torch.eye(160), grid, gptq.Settings())
    nearest = quantize(weight, grid, search_clip(weight, grid))
    assert torch.equal(found.integers, nearest.integers)
    assert torch.equal(found.values(grid), nearest.values(grid))


def test_the_loop_is_the_definition() -> None:
    """One column after another on the whole matrix, with a factor found the other way round."""
    weight = torch.randn(5, 150, generator=torch.Generator().manual_seed(1)).double()
    hessian = gptq.hessian_of(iter([inputs_like_a_models(150, seed=2)[None]])).double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(150)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    ranges = extent(weight, PER_ROW)
    rest, expected = weight.clone(), torch.empty_like(weight)
    for i in range(150):
        column = quantize(rest[:, i : i + 1], PER_ROW, ranges)
        expected[:, i] = column.integers[:, 0]
        error = (rest[:, i] - column.values(PER_ROW)[:, 0]) / upper[i, i]
        rest[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    found = gptq.solve(weight, hessian, PER_ROW, gptq.Settings(clip_search=False))
    assert (found.integers == expected).double().mean() > 0.98  # float32 against float64


def test_the_factor_inverts_the_damped_hessian() -> None:
    hessian = gptq.hessian_of(iter([inputs_like_a_models(40, seed=3)[None]])).double()
    upper = gptq.inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.mT @ upper @ damped, torch.eye(40).double())


def test_rows_that_share_inputs_are_rounded_as_if_alone() -> None:
    first, second = torch.randn(2, 9, 70, generator=torch.Generator().manual_seed(4))
    hessian = gptq.hessian_of(iter([inputs_like_a_models(70, seed=5)[None]]))
    stacked = gptq.solve(torch.cat([first, second]), hessian, PER_ROW, gptq.Settings())
    for weight, found in zip((first, second), gptq.split(stacked, [first, second]), strict=True):
        alone = gptq.solve(weight, hessian, PER_ROW, gptq.Settings())
        assert torch.equal(found.integers, alone.integers)
        assert torch.equal(found.steps.scale, alone.steps.scale)


def test_an_input_that_is_always_zero_has_no_weight() -> None:
    x = inputs_like_a_models(30, seed=6)
    x[:, [3, 29]] = 0
    weight = torch.randn(4, 30)
    found = gptq.solve(weight, gptq.hessian_of(iter([x[None]])), PER_ROW, gptq.Settings())
    assert (found.integers[:, [3, 29]] == 0).all()


def test_inputs_that_are_no_numbers_are_one_line() -> None:
    hessian = torch.full((4, 4), torch.nan)
    with pytest.raises(SlmqError, match="try a larger --damping"):
        gptq.solve(torch.randn(2, 4), hessian, PER_ROW, gptq.Settings())


@pytest.mark.parametrize("damping", [0.0, 1.0, -1.0])
def test_damping_is_a_share(damping: float) -> None:
    with pytest.raises(UsageError, match="--damping is a share"):
        gptq.Settings(damping=damping)


def task_for(model: Decoder, precision: str = "w4a8", **more: object) -> Task:
    tokens = tokens_for(model, 5, 32, seed=7)
    calibration = Calibration(Text("random tokens", ("none",)), tokens)
    return Task(scheme(precision), gptq.Settings(), calibration, **more)  # type: ignore[arg-type]  # fields by name


def test_the_staged_walk_leaves_the_stream_where_the_rounded_block_puts_it() -> None:
    """To the last bit: what a resumed run computes by walking finished blocks."""
    model = random_qwen2()
    task = task_for(model)
    assert task.calibration is not None
    staged = embedded(model, task.calibration.tokens)
    plain = staged.clone()
    grid = gptq.GPTQ(gptq.Settings()).grid(Grid(4, "channel"))
    rounded = gptq._Block(model, 0, staged, grid, gptq.Settings(), task).rounded()
    assert len(rounded) == 7
    advance(model, 0, plain)
    assert torch.equal(staged, plain)


class Killed(Exception):
    """What a test does to a run."""


@pytest.mark.parametrize("precision", ["w4a8", "w4a8-g32"])
def test_a_killed_run_goes_on_to_the_same_bits(precision: str, tmp_path: Path) -> None:
    unbroken = gptq.GPTQ(gptq.Settings())(random_llama(), task_for(random_llama(), precision))

    def kill(share: float, what: str) -> None:
        if what.startswith("gptq, block 2"):
            raise Killed

    def store() -> Finished:
        return Finished(tmp_path / "blocks", {"model": "random"})

    task = task_for(random_llama(), precision, progress=kill, finished=store())
    with pytest.raises(Killed):
        gptq.GPTQ(gptq.Settings())(random_llama(), task)
    assert store().count == 1
    seen: list[str] = []
    task = task_for(
        random_llama(), precision, progress=lambda _, what: seen.append(what), finished=store()
    )
    resumed = gptq.GPTQ(gptq.Settings())(random_llama(), task)
    assert list(resumed) == list(unbroken)
    for name, weight in unbroken.items():
        assert torch.equal(weight.integers, resumed[name].integers)
        assert torch.equal(weight.scale, resumed[name].scale)
    assert store().count == 2


def test_blocks_of_another_task_are_thrown_away(tmp_path: Path) -> None:
    first = Finished(tmp_path / "blocks", {"model": "one"})
    first.save("gptq-0000", {"x": torch.ones(2)})
    assert Finished(tmp_path / "blocks", {"model": "one"}).count == 1
    assert Finished(tmp_path / "blocks", {"model": "two"}).count == 0
    assert first.load("gptq-0000") is None


def test_streams_may_live_on_disk(tmp_path: Path) -> None:
    spilled = gptq.GPTQ(gptq.Settings())(random_llama(), task_for(random_llama(), spill=tmp_path))
    inside = gptq.GPTQ(gptq.Settings())(random_llama(), task_for(random_llama()))
    assert list(tmp_path.iterdir()) == []
    for name, weight in inside.items():
        assert torch.equal(weight.integers, spilled[name].integers)
