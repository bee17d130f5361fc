"""GPTQ: the column loop against its definition, and the staged walk through a block."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from slmq_edge.anatomy import ATTENTION_FEED, LINEARS
from slmq_edge.calibration import Calibration, Text
from slmq_edge.decoder import Decoder
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import Task, columns, gptq
from slmq_edge.quantization.columns import Settings, Sums
from slmq_edge.quantization.finished import DTYPES, Finished
from slmq_edge.quantization.rounding import Rounded, extent, quantize, search_clip, steps
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


def sums_of(x: torch.Tensor) -> Sums:
    return Sums(2 * x.T @ x)


def output_error(weight: torch.Tensor, found: Rounded, grid: Grid, x: torch.Tensor) -> float:
    return float(((found.values(grid) - weight) @ x.T).square().sum())


@examples(max_examples=20, deadline=None)
@given(
    grid=st.sampled_from([PER_ROW, GROUPED, ASYMMETRIC]),
    width=st.sampled_from([20, 63, 172, 300]),
    settings=st.builds(Settings, act_order=st.booleans(), polish=st.integers(0, 2)),
    seed=st.integers(0, 2**31),
)
def test_outputs_are_nearer_than_rounding_leaves_them(
    grid: Grid, width: int, settings: Settings, seed: int
) -> None:
    x = inputs_like_a_models(width, seed)
    weight = torch.randn(24, width, generator=torch.Generator().manual_seed(seed))
    found = columns.solve(weight, sums_of(x), grid, settings)
    assert found.integers.min() >= grid.bottom
    assert found.integers.max() <= grid.top
    assert found.steps.scale.shape == (24, grid.groups(width))
    nearest = quantize(weight, grid, search_clip(weight, grid))
    assert output_error(weight, found, grid, x) < output_error(weight, nearest, grid, x)


@pytest.mark.parametrize("grid", [PER_ROW, GROUPED, ASYMMETRIC])
def test_uncorrelated_inputs_leave_nothing_to_make_up_for(grid: Grid) -> None:
    weight = torch.randn(8, 160, generator=torch.Generator().manual_seed(0))
    found = columns.solve(weight, Sums(torch.eye(160)), grid, Settings())
    nearest = quantize(weight, grid, search_clip(weight, grid))
    assert torch.equal(found.integers, nearest.integers)
    assert torch.equal(found.values(grid), nearest.values(grid))


@pytest.mark.parametrize(
    "settings", [Settings(clip_search=False), Settings(clip_search=False, act_order=True)]
)
def test_the_loop_is_the_definition(settings: Settings) -> None:
    """One column after another on the whole matrix, with a factor found the other way round."""
    weight = torch.randn(5, 150, generator=torch.Generator().manual_seed(1)).double()
    hessian = sums_of(inputs_like_a_models(150, seed=2)).hessian.double()
    order = torch.arange(150)
    if settings.act_order:
        order = hessian.diagonal().argsort(descending=True)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(150)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    ranges = extent(weight, PER_ROW)
    rest, expected = weight[:, order].clone(), torch.empty_like(weight)
    for i in range(150):
        column = quantize(rest[:, i : i + 1], PER_ROW, ranges)
        expected[:, order[i]] = column.integers[:, 0]
        error = (rest[:, i] - column.values(PER_ROW)[:, 0]) / upper[i, i]
        rest[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    found = columns.solve(weight, Sums(hessian), PER_ROW, settings)
    assert (found.integers == expected).double().mean() > 0.98  # float32 against float64


def test_groups_take_their_ranges_as_the_loop_comes_to_them() -> None:
    """The first block's from the weights as they are, later ones' from what errors made of them."""
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(12))
    found = columns.solve(weight, sums_of(inputs_like_a_models(256, seed=13)), GROUPED, Settings())
    early = steps(search_clip(weight, GROUPED), GROUPED).scale
    assert torch.equal(found.steps.scale[:, :4], early[:, :4])
    assert not torch.isclose(found.steps.scale[:, 4:], early[:, 4:]).all(0).any()


def test_sums_of_two_walks_are_of_the_rounded_ones_inputs() -> None:
    """X^T X, (X_f - X)^T X and (S_f - S)^T X over the windows, written out."""
    model = random_qwen2()
    calibration = task_for(model).calibration
    assert calibration is not None
    streams = [embedded(model, calibration.tokens) for _ in range(2)]
    streams[0] += 0.1 * torch.randn(streams[0].shape, generator=torch.Generator().manual_seed(14))
    walks = [gptq._Walk(model, 0, stream, None) for stream in streams]
    inputs = [walk.normed(ATTENTION_FEED) for walk in walks]
    sums = gptq._sums(walks, inputs, adds=True)
    x, x_float = (read(slice(None)).flatten(0, 1) for read in inputs)
    apart = (streams[1] - streams[0]).flatten(0, 1)
    share = 2 / len(streams[0])
    assert sums.inputs is not None
    assert sums.stream is not None
    torch.testing.assert_close(sums.hessian, share * x.T @ x)
    torch.testing.assert_close(sums.inputs, share * (x_float - x).T @ x)
    torch.testing.assert_close(sums.stream, share * apart.T @ x)


def test_half_of_the_drift_moves_the_target_half_way() -> None:
    generator = torch.Generator().manual_seed(15)
    x = inputs_like_a_models(40, seed=16)
    drift = Sums(2 * x.T @ x, 2 * (0.1 * torch.randn(x.shape, generator=generator)).T @ x)
    weight, fine = torch.randn(6, 40, generator=generator), Grid(8, "channel", lowest=True)

    def target(share: float) -> torch.Tensor:
        return columns.solve(weight, drift, fine, Settings(drift=share)).values(fine)

    whole = target(1.0) - target(0.0)
    assert whole.norm() > 0.05 * weight.norm()
    torch.testing.assert_close(target(0.5) - target(0.0), whole / 2, rtol=0, atol=0.1)


def test_the_factor_inverts_the_damped_hessian() -> None:
    hessian = sums_of(inputs_like_a_models(40, seed=3)).hessian.double()
    upper = columns.inverse_factor(columns.damp(hessian, 0.01))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    assert torch.equal(upper, upper.triu())
    product = upper.double().mT @ upper.double() @ damped
    torch.testing.assert_close(product, torch.eye(40).double(), rtol=0, atol=1e-4)


def test_rows_that_share_inputs_are_rounded_as_if_alone() -> None:
    first, second = torch.randn(2, 9, 70, generator=torch.Generator().manual_seed(4))
    sums = sums_of(inputs_like_a_models(70, seed=5))
    stacked = columns.solve(torch.cat([first, second]), sums, PER_ROW, Settings())
    for weight, found in zip((first, second), gptq.split(stacked, [first, second]), strict=True):
        alone = columns.solve(weight, sums, PER_ROW, Settings())
        assert torch.equal(found.integers, alone.integers)
        assert torch.equal(found.steps.scale, alone.steps.scale)


def test_an_input_that_is_always_zero_has_no_weight() -> None:
    x = inputs_like_a_models(30, seed=6)
    x[:, [3, 29]] = 0
    weight = torch.randn(4, 30)
    found = columns.solve(weight, sums_of(x), PER_ROW, Settings())
    assert (found.integers[:, [3, 29]] == 0).all()


def test_inputs_that_are_no_numbers_are_one_line() -> None:
    hessian = torch.full((4, 4), torch.nan)
    with pytest.raises(SlmqError, match="try a larger --damping"):
        columns.solve(torch.randn(2, 4), Sums(hessian), PER_ROW, Settings())


@pytest.mark.parametrize("damping", [0.0, 1.0, -1.0])
def test_damping_is_a_share(damping: float) -> None:
    with pytest.raises(UsageError, match="--damping is a share"):
        Settings(damping=damping)


def task_for(model: Decoder, precision: str = "w4a8", **more: object) -> Task:
    tokens = tokens_for(model, 5, 32, seed=7)
    calibration = Calibration(Text("random tokens", ("none",)), tokens)
    return Task(scheme(precision), Settings(), calibration, **more)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_the_staged_walk_leaves_the_streams_where_plain_blocks_put_them(drift: float) -> None:
    """To the last bit: what a resumed run computes by walking finished blocks."""
    model = random_qwen2()
    calibration = task_for(model).calibration
    assert calibration is not None
    staged = embedded(model, calibration.tokens)
    plain, exact = staged.clone(), staged.clone()
    advance(model, 0, plain)
    float_behind = plain
    grid = gptq.GPTQ(Settings()).grid(Grid(4, "channel"))
    before = staged.clone()
    streams = (staged, exact if drift else None)
    grids = dict.fromkeys(model.anatomy.blocks(0, LINEARS), grid)
    rounded = gptq.round_block(model, 0, streams, grids, Settings(drift=drift))
    assert len(rounded) == 7
    advance(model, 0, before)
    assert torch.equal(staged, before)
    assert torch.equal(exact, float_behind) == bool(drift)


def test_polish_lowers_the_loss_that_the_loop_left() -> None:
    x = inputs_like_a_models(150, seed=8)
    weight = torch.randn(16, 150, generator=torch.Generator().manual_seed(9))
    errors = [
        output_error(weight, columns.solve(weight, sums_of(x), PER_ROW, settings), PER_ROW, x)
        for settings in (Settings(), Settings(polish=1), Settings(polish=3))
    ]
    assert errors[1] < 0.99 * errors[0]
    assert errors[2] < errors[1]


def test_a_corrected_target_makes_up_for_the_drift_of_inputs_and_stream() -> None:
    """Least squares by another road: with all of it, W* X is what the float model would add."""
    generator = torch.Generator().manual_seed(10)
    x = inputs_like_a_models(30, seed=11).double()
    x_float = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    apart = 0.1 * torch.randn(len(x), 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    sums = Sums(2 * x.T @ x, 2 * (x_float - x).T @ x, 2 * apart.T @ x)
    found = weight + columns._correction(weight, sums, columns.damp(sums.hessian, 1e-9))
    best = torch.linalg.lstsq(x, x_float @ weight.T + apart).solution.T
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)


class Killed(Exception):
    """What a test does to a run."""


@pytest.mark.parametrize(
    ("precision", "settings"),
    [("w4a8", Settings()), ("w4a8-g32", Settings()), ("w4a8", Settings(drift=0.5, polish=1))],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    precision: str, settings: Settings, tmp_path: Path
) -> None:
    unbroken = gptq.GPTQ(settings)(random_llama(), task_for(random_llama(), precision))

    def kill(share: float, what: str) -> None:
        if what.startswith("gptq, block 2"):
            raise Killed

    def store() -> Finished:
        return Finished(tmp_path / "blocks", {"model": "random"})

    task = task_for(random_llama(), precision, progress=kill, finished=store())
    with pytest.raises(Killed):
        gptq.GPTQ(settings)(random_llama(), task)
    assert store().count == 1
    seen: list[str] = []
    task = task_for(
        random_llama(), precision, progress=lambda _, what: seen.append(what), finished=store()
    )
    resumed = gptq.GPTQ(settings)(random_llama(), task)
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


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_what_is_kept_is_what_was_given(kind: torch.dtype, tmp_path: Path) -> None:
    given = {
        "matrix/weight": (100 * torch.rand(3, 5)).to(kind),
        "odd": torch.arange(7).to(torch.int8),
        "number": torch.tensor(3.0).to(kind),
        "nothing": torch.empty(0, 2).to(kind),
        "turned": torch.arange(6.0).reshape(2, 3).to(kind).T,
    }
    finished = Finished(tmp_path / "blocks", {})
    finished.save("state", given)
    found = finished.load("state")
    assert found is not None
    assert set(found) == set(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_keeping_takes_no_second_copy(tmp_path: Path) -> None:
    """Of a student's state, that would be more than the model."""
    state = {name: torch.ones(1000, 500) for name in "abcd"}
    finished = Finished(tmp_path / "blocks", {})
    tracemalloc.start()
    finished.save("state", state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_streams_may_live_on_disk(tmp_path: Path) -> None:
    spilled = gptq.GPTQ(Settings())(random_llama(), task_for(random_llama(), spill=tmp_path))
    inside = gptq.GPTQ(Settings())(random_llama(), task_for(random_llama()))
    assert list(tmp_path.iterdir()) == []
    for name, weight in inside.items():
        assert torch.equal(weight.integers, spilled[name].integers)
