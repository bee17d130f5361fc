"""Grids, exact integer products, packing, Hadamard matrices and Cayley steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slmq_edge.packing import pack4, unpack4
from slmq_edge.quantization.cayley import cayley_step, orthogonalize
from slmq_edge.quantization.hadamard import hadamard
from slmq_edge.quantization.rounding import fake_quantize, integer_matmul, quantize
from slmq_edge.scheme import Grid

FLOATS = st.floats(-1e4, 1e4, width=32)
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2), elements=FLOATS)


@given(MATRICES, st.sampled_from([4, 8]))
def test_rounding_stays_on_the_grid_and_within_half_a_step(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], bits: int
) -> None:
    t, grid = torch.from_numpy(values), Grid(bits, "token")
    integers, scale = quantize(t, grid)
    assert torch.equal(integers, integers.round())
    assert integers.abs().max() <= grid.top
    assert ((integers * scale - t).abs() <= scale * (0.5 + 1e-4)).all()


@given(MATRICES, st.sampled_from([4, 8]))
def test_rounding_twice_changes_nothing(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], bits: int
) -> None:
    grid = Grid(bits, "token")
    integers, scale = quantize(torch.from_numpy(values), grid)
    again, _ = quantize(integers * scale, grid)
    # A row that is smaller than the smallest scale is no longer told apart.
    large = (scale > 1e-4).flatten()
    assert torch.equal(integers[large], again[large])


def test_fake_quantization_passes_the_gradient_straight_through() -> None:
    t = torch.randn(3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(fake_quantize(t, Grid(4, "token")).sum(), t)
    assert torch.equal(gradient, torch.ones_like(t))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**31))
def test_integer_products_are_exact(depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor([-127, 127])
    x = ends[torch.randint(0, 2, (3, depth), generator=generator)]
    w = ends[torch.randint(0, 2, (2, depth), generator=generator)]
    x[0] = w[0] = 127
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
