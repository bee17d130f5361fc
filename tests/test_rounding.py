"""Grids, exact integer products, packing, Hadamard matrices and Cayley steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slmq_edge.packing import pack4, unpack4
from slmq_edge.quantization.cayley import cayley_step, orthogonalize
from slmq_edge.quantization.hadamard import hadamard
from slmq_edge.quantization.rounding import (
    Extent,
    extent,
    fake_quantize,
    integer_matmul,
    quantize,
    search_clip,
    spread,
    straight_through,
    to_levels,
)
from slmq_edge.scheme import Grid

FLOATS = st.floats(-1e4, 1e4, width=32)
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2), elements=FLOATS)
# Every quantizer of the three methods: METHODS 1.3, 2.1, 3.4 and 3.6, and its grouped forms.
GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([2, 4, 8]),
    per=st.sampled_from(["channel", "token"]),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 1, 2, 3, 32]),
    lowest=st.booleans(),
    zero=st.booleans(),
)


@given(MATRICES, GRIDS)
def test_integers_are_levels_of_the_grid(values: Matrix, grid: Grid) -> None:
    integers = quantize(torch.from_numpy(values), grid).integers
    assert torch.equal(integers, integers.round())
    assert integers.max() <= grid.top
    assert integers.min() >= grid.bottom
    assert grid.top - grid.bottom + 1 <= 2**grid.bits


@given(MATRICES, GRIDS)
def test_no_value_moves_further_than_half_a_step(values: Matrix, grid: Grid) -> None:
    """A zero point is rounded too, so the ends of an asymmetric range may lose another half."""
    t = torch.from_numpy(values)
    found = quantize(t, grid)
    most = 0.5 if grid.symmetric else 1.0
    # What float32 leaves of a value next to a range that ends far from zero.
    slack = 1e-4 + 1e-6 * t.abs().max()
    error = (found.values(grid) - t).abs()
    assert (error <= spread(found.steps.scale, t, grid) * (most + 1e-4) + slack).all()


@given(MATRICES, GRIDS)
def test_rounding_twice_changes_nothing(values: Matrix, grid: Grid) -> None:
    """With the same steps always; with its own where the row's ends are levels."""
    first = quantize(torch.from_numpy(values).double(), grid)
    once = first.values(grid)
    assert torch.equal(to_levels(once, first.steps, grid), first.integers)
    if grid.symmetric:
        large = (spread(first.steps.scale, once, grid) > 1e-4).expand(once.shape)
        again = quantize(once, grid).integers
        assert torch.equal(again[large], first.integers[large])


@given(MATRICES, GRIDS.filter(lambda grid: grid.symmetric))
def test_a_symmetric_grid_is_symmetric_about_zero(values: Matrix, grid: Grid) -> None:
    t = torch.from_numpy(values)
    assert torch.equal(quantize(-t, grid).integers, -quantize(t, grid).integers)
    assert quantize(t, grid).steps.zero is None


@given(MATRICES, GRIDS.filter(lambda grid: not grid.symmetric and grid.zero))
def test_zero_is_a_level_where_the_range_holds_it(values: Matrix, grid: Grid) -> None:
    found = quantize(torch.from_numpy(values), grid)
    zero = found.steps.zero
    assert zero is not None
    assert zero.min() >= grid.bottom
    assert zero.max() <= grid.top
    assert (found.values(grid)[torch.from_numpy(values) == 0] == 0).all()


@given(MATRICES, GRIDS.filter(lambda grid: grid.group is not None))
def test_groups_are_slices(values: Matrix, grid: Grid) -> None:
    t, whole = torch.from_numpy(values), dataclasses.replace(grid, group=None)
    assert grid.group is not None
    slices = [quantize(piece, whole).integers for piece in torch.split(t, grid.group, dim=1)]
    assert torch.equal(quantize(t, grid).integers, torch.cat(slices, dim=1))
    assert quantize(t, grid).steps.scale.shape[1] == grid.groups(t.shape[1])


def test_quantizers_are_as_published() -> None:
    """By hand: the four rows of the table that opens ``rounding``."""
    t = torch.tensor([[-1.0, 0.5, 3.0]])
    smoothquant = quantize(t, Grid(4, "channel"))
    assert smoothquant.integers.tolist() == [[-2, 1, 7]]
    assert smoothquant.steps.scale.item() == pytest.approx(3 / 7)
    spinquant = quantize(t, Grid(8, "token", symmetric=False))
    assert spinquant.steps.scale.item() == pytest.approx(4 / 255)
    assert spinquant.steps.zero is not None
    assert spinquant.steps.zero.item() == 64 - 128
    assert spinquant.integers.tolist() == [[-128, -32, 127]]
    omniquant = quantize(t + 2, Grid(4, "channel", symmetric=False, zero=False))
    assert omniquant.steps.scale.item() == pytest.approx(4 / 15)
    assert omniquant.steps.zero is not None
    assert omniquant.steps.zero.item() == -4 - 8  # round(-1 / s), below every level
    gptq = Grid(4, "channel", lowest=True)
    clipped = extent(t, gptq).clipped(0.25, 0.25)
    assert quantize(t, gptq, clipped).integers.tolist() == [[-8, 5, 7]]


def test_a_row_of_one_value_far_from_zero_keeps_it() -> None:
    """The released quantizers divide by a scale of nothing here (METHODS 3.4)."""
    t = torch.full((1, 5), 7.0)
    for grid in (
        Grid(4, "channel", symmetric=False, zero=False),
        Grid(8, "token", symmetric=False),
    ):
        torch.testing.assert_close(quantize(t, grid).values(grid), t)


@given(MATRICES, st.sampled_from([None, 3]), st.booleans())
def test_a_searched_range_loses_no_more_than_the_whole_one(
    values: Matrix, group: int | None, symmetric: bool
) -> None:
    grid = Grid(4, "channel", symmetric=symmetric, group=group, lowest=symmetric)
    t = torch.from_numpy(values).double()

    def loss(found: Extent) -> torch.Tensor:
        return (quantize(t, grid, found).values(grid) - t).abs().pow(2.4).sum(1)

    assert (loss(search_clip(t, grid)) <= loss(extent(t, grid)) * (1 + 1e-9)).all()


def test_straight_through_is_the_identity_to_the_gradient() -> None:
    t = torch.randn(3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(straight_through(t, Grid(4, "token")).sum(), t)
    assert torch.equal(gradient, torch.ones_like(t))


def test_fake_quantization_is_differentiable_in_its_range() -> None:
    """METHODS 2.1: the scale has its full gradient, the zero point none, a clipped value none."""
    t = torch.tensor([[-1.0, 0.31, 3.0]], requires_grad=True)
    low, high = torch.tensor([[-1.0]]), torch.tensor([[2.0]], requires_grad=True)
    grid = Grid(4, "channel", symmetric=False)
    out = fake_quantize(t, grid, Extent(low, high))
    to_t, to_high = torch.autograd.grad(out.sum(), (t, high))
    assert to_t.tolist() == [[1.0, 1.0, 0.0]]
    # d/ds of sum (q - z) s at fixed zero point: rounding's remainder inside, q - z where clipped.
    scale = 3 / 15
    ratio = t.detach()[0] / scale
    remainder = (ratio.round() - ratio)[:2].sum().item()
    clipped = 15 - round(1 / scale)
    assert to_high.item() == pytest.approx((remainder + clipped) / 15, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**31))
def test_integer_products_are_exact(depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor([-128, 127])[torch.randint(0, 2, (3, depth), generator=generator)]
    w = torch.tensor([-255, 255])[torch.randint(0, 2, (2, depth), generator=generator)]
    x[0], w[0] = -128, 255
    assert torch.equal(integer_matmul(x.float(), w.float()).long(), x @ w.T)


@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=3), elements=st.integers(0, 15)))
def test_packing_round_trips(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    packed = pack4(values)
    assert packed.size == (values.size + 1) // 2
    assert np.array_equal(unpack4(packed, values.shape), values)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 28, 36, 64, 76, 192, 576, 896, 1536, 4864])
def test_hadamard_matrices_are_orthogonal_signs(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 10, 172])
def test_orders_that_are_not_constructed(order: int) -> None:
    assert hadamard(order) is None


def test_a_cayley_step_follows_the_gradient_and_stays_orthogonal() -> None:
    torch.manual_seed(0)
    start = orthogonalize(torch.linalg.qr(torch.randn(4, 16, 16, dtype=torch.float64))[0])
    goal = orthogonalize(torch.linalg.qr(torch.randn(4, 16, 16, dtype=torch.float64))[0])

    def distance(rotation: torch.Tensor) -> torch.Tensor:
        return -(rotation * goal).sum(dim=(1, 2))

    moved = cayley_step(start, -goal, rate=0.1)
    identity = torch.eye(16, dtype=torch.float64)
    assert (moved @ moved.mT - identity).abs().max() < 1e-6
    assert (distance(moved) < distance(start)).all()


def test_a_cayley_step_is_the_exact_transform() -> None:
    torch.manual_seed(1)
    r = orthogonalize(torch.linalg.qr(torch.randn(1, 8, 8, dtype=torch.float64))[0])[0]
    g = 0.01 * torch.randn(8, 8, dtype=torch.float64)
    rate = 0.5
    x, v = r.T, -g.T
    half = v @ x.T - 0.5 * x @ (x.T @ v @ x.T)
    skew = half - half.T
    identity = torch.eye(8, dtype=torch.float64)
    exact = torch.linalg.solve(identity - rate / 2 * skew, (identity + rate / 2 * skew) @ x)
    torch.testing.assert_close(cayley_step(r, g, rate), exact.T, rtol=0, atol=1e-7)


def test_orthogonalize_repairs_float32_rounding() -> None:
    rough = torch.linalg.qr(torch.randn(64, 64))[0] + 1e-4 * torch.randn(64, 64)
    exact = orthogonalize(rough)
    error = exact @ exact.T - torch.eye(64, dtype=torch.float64)
    assert error.abs().max() < 1e-13
    assert (exact - rough).abs().max() < 1e-3
