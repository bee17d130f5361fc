"""Kernels in Triton's interpreter, on CPU tensors, held to the operators in plain torch.

Run by test_triton.py in a process of its own: TRITON_INTERPRET is read when Triton is imported.
"""

from __future__ import annotations

import dataclasses
import math
import os

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import gpu_kernels
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.quantization.rounding import Steps, quantize
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime import packing, reference, triton_ops
from slmq_edge.torch_runtime.ops import Levels, Packed

F16, F32 = torch.float16, torch.float32
EXAMPLES = int(os.environ.get("SLMQ_EDGE_TRITON_EXAMPLES", "4"))
TOKEN, BOTH_SIDES = Grid(8, "token"), Grid(8, "token", symmetric=False)
WIDTHS = (2, 3, 7, 31, 33, 64, 100, 129, 576, 896)
PHASES = (Phase.explicit, Phase.generate)
examples = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=PHASES)


def random(*shape: int, seed: int, dtype: torch.dtype = F32) -> Tensor:
    """Rows with outliers, as activations have them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return (x * torch.where(torch.rand(shape, generator=generator) > 0.99, 30.0, 1.0)).to(dtype)


def integer_weight(out: int, width: int, grid: Grid, seed: int) -> IntegerWeight:
    return IntegerWeight.of(quantize(random(out, width, seed=seed) / math.sqrt(width), grid), grid)


def assert_same(mine: Levels, theirs: Levels) -> None:
    assert torch.equal(mine.integers, theirs.integers)
    assert torch.equal(mine.scale, theirs.scale)
    assert (mine.zero is None) == (theirs.zero is None)
    assert mine.zero is None or theirs.zero is None or torch.equal(mine.zero, theirs.zero)
    assert mine.group == theirs.group


grids = st.builds(
    Grid,
    bits=st.sampled_from([3, 4, 8]),
    per=st.just("token"),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 32, 64, 128, 24]),
    lowest=st.booleans(),
    zero=st.booleans(),
)
# Not bfloat16: numpy has none, and the interpreter cuts off what it should round.
floats = st.sampled_from([F16, F32])


@examples
@given(
    rows=st.integers(1, 3),
    width=st.sampled_from(WIDTHS),
    grid=grids,
    dtype=floats,
    offset=st.sampled_from([0.0, 0.5, 300.0]),
    seed=st.integers(0, 99),
)
@example(rows=2, width=4864, grid=TOKEN, dtype=F16, offset=0.0, seed=0)
@example(rows=2, width=1536, grid=BOTH_SIDES, dtype=F32, offset=3.0, seed=1)
@example(
    rows=1, width=576, grid=dataclasses.replace(TOKEN, group=32), dtype=F32, offset=0.0, seed=2
)
def test_rows_are_rounded_to_the_bit(
    rows: int, width: int, grid: Grid, dtype: torch.dtype, offset: float, seed: int
) -> None:
    x = (random(rows, width, seed=seed) + offset).to(dtype)
    assert_same(triton_ops.round_rows(x, grid, None), reference.round_rows(x, grid, None))


def test_ties_go_to_the_even_level() -> None:
    """127 makes the scale 1: what lies halfway between two levels is there as it is."""
    x = torch.cat([torch.arange(-127, 127) + 0.5, torch.tensor([127.0, -127.0])])[None]
    found = triton_ops.round_rows(x, TOKEN, None)
    assert found.scale.item() == 1
    assert torch.equal(found.integers, torch.round(x).clamp(-127, 127).to(torch.int8))


def test_a_division_is_not_a_product_with_the_inverse() -> None:
    """Near the middle between two levels they differ: what is found is the division's."""
    absmax = torch.arange(1, 65)[:, None] / 7
    x = torch.cat([absmax, (torch.arange(-127, 127) + 0.5) * absmax / 127], 1)
    mine, expected = (ops.round_rows(x, TOKEN, None) for ops in (triton_ops, reference))
    assert torch.equal(mine.integers, expected.integers)
    by_inverse = torch.round(x * (1 / expected.scale)).clamp(-127, 127)
    assert not torch.equal(by_inverse.to(torch.int8), expected.integers)


@pytest.mark.parametrize("zero", [None, 17.0, -9000.0])
@pytest.mark.parametrize("scale", [0.03, 1e-6])
def test_static_ranges_clamp(zero: float | None, scale: float) -> None:
    grid = Grid(8, "tensor", symmetric=zero is None)
    static = Steps(torch.tensor([scale]), None if zero is None else torch.tensor([zero]))
    x = torch.cat([random(2, 70, seed=3), torch.tensor([[1e30], [-1e30]])], 1)
    assert_same(triton_ops.round_rows(x, grid, static), reference.round_rows(x, grid, static))


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize("width", [576, 33])
def test_norm_and_gate_are_those_of_torch(width: int, dtype: torch.dtype) -> None:
    x, gain = random(3, width, seed=1, dtype=dtype), random(width, seed=2, dtype=dtype)
    gate_up = 4 * random(3, 2 * width, seed=3, dtype=dtype)
    gate_up[0, 0] = -30000.0
    pairs = (
        (triton_ops.normed(x, gain, 1e-5), reference.normed(x, gain, 1e-5)),
        (triton_ops.gated(gate_up), reference.gated(gate_up)),
    )
    for mine, theirs in pairs:
        assert mine.dtype == dtype
        wide = theirs.to(torch.float64)
        slack = torch.finfo(dtype).eps * 4 * wide.abs() + 1e-30
        assert ((mine.to(torch.float64) - wide).abs() <= slack).all()


@examples
@given(width=st.sampled_from(WIDTHS), grid=grids, dtype=floats, seed=st.integers(0, 99))
@example(width=576, grid=TOKEN, dtype=F16, seed=0)
def test_what_is_fused_equals_its_parts(
    width: int, grid: Grid, dtype: torch.dtype, seed: int
) -> None:
    x, gain = random(2, width, seed=seed, dtype=dtype), random(width, seed=seed + 1, dtype=dtype)
    gate_up = random(2, 2 * width, seed=seed + 2, dtype=dtype)
    normed, gated = triton_ops.normed(x, gain, 1e-5), triton_ops.gated(gate_up)
    assert_same(triton_ops.gated_rounded(gate_up, grid), reference.round_rows(gated, grid, None))
    fused = triton_ops.normed_rounded(x, gain, 1e-5, grid)
    parts = reference.round_rows(normed, grid, None)
    if grid.group is None:
        assert_same(fused, parts)
    else:
        # Squares of a row in groups are added in another order.
        torch.testing.assert_close(fused.scale, parts.scale, rtol=2e-2, atol=0)
        assert (fused.integers.int() - parts.integers.int()).abs().max() <= 1 + grid.top // 64


def case(
    rows: int, out: int, width: int, weights: Grid, inputs: Grid, seed: int
) -> tuple[Levels, Packed, Tensor]:
    weight = packing.packed([integer_weight(out, width, weights, seed)], inputs)
    x = reference.round_rows(random(rows, width, seed=seed + 1) + 0.3, inputs, None)
    return x, weight, random(out, seed=seed + 2)


weight_grids = st.builds(
    Grid,
    bits=st.sampled_from([4, 8, 3]),
    per=st.just("channel"),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 32, 64, 128, 24]),
)
rows_of_both_kernels = st.sampled_from([1, 2, 3, 4, 5, 17, 40])


@settings(examples, max_examples=4 * EXAMPLES)
@given(
    rows=rows_of_both_kernels,
    out=st.sampled_from([1, 5, 16, 33, 65]),
    width=st.sampled_from(WIDTHS),
    weights=weight_grids,
    symmetric=st.booleans(),
    biased=st.booleans(),
    dtype=floats,
    seed=st.integers(0, 99),
)
@example(1, 5, 576, Grid(8, "channel"), True, True, F16, 0)
@example(1, 5, 4864, Grid(4, "channel"), True, False, F32, 0)
@example(4, 5, 1536, Grid(4, "channel", group=32), False, True, F32, 0)
@example(1, 3, 4864, Grid(4, "channel", group=128), False, True, F32, 0)
@example(2, 3, 1528, Grid(4, "channel", group=64), True, True, F32, 0)
@example(17, 20, 600, Grid(4, "channel", group=128), True, True, F32, 0)
def test_products_equal_the_reference_to_the_bit(
    rows: int,
    out: int,
    width: int,
    weights: Grid,
    symmetric: bool,
    biased: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    inputs = Grid(8, "token", symmetric=symmetric)
    x, weight, bias = case(rows, out, width, weights, inputs, seed)
    given_bias = bias if biased else None
    mine = triton_ops.linear(x, weight, given_bias, dtype)
    assert torch.equal(mine, reference.linear(x, weight, given_bias, dtype))


@settings(examples, max_examples=2 * EXAMPLES)
@given(
    rows=rows_of_both_kernels,
    width=st.sampled_from(WIDTHS),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128]),
    symmetric=st.tuples(st.booleans(), st.booleans()),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
@example(rows=1, width=576, bits=4, group=32, symmetric=(True, True), shared=True, seed=0)
@example(rows=2, width=1000, bits=4, group=32, symmetric=(False, False), shared=True, seed=0)
@example(rows=1, width=576, bits=8, group=64, symmetric=(False, False), shared=False, seed=0)
def test_inputs_in_blocks(
    rows: int,
    width: int,
    bits: int,
    group: int,
    symmetric: tuple[bool, bool],
    shared: bool,
    seed: int,
) -> None:
    """The weight's blocks are the same, or it has none, like o_proj behind rounding by head."""
    weights = Grid(bits, "channel", group=group if shared else None, symmetric=symmetric[0])
    inputs = Grid(8, "token", group=group, symmetric=symmetric[1])
    x, weight, bias = case(rows, 9, width, weights, inputs, seed)
    assert torch.equal(
        triton_ops.linear(x, weight, bias, F32), reference.linear(x, weight, bias, F32)
    )


def test_the_largest_levels_at_the_widest() -> None:
    """Every product as large as it can be, of one sign: no sum is cut short."""
    width = 32_992
    for rows in (1, 5):
        x = Levels(torch.full((rows, width), -128, dtype=torch.int8), torch.ones(rows, 1), None)
        weight = Packed(
            torch.full((2, width), 127, dtype=torch.int8), 8, width, torch.ones(2, 1),
            torch.full((2, 1), -128, dtype=torch.int16), None, None,
        )  # fmt: skip
        found = triton_ops.linear(x, weight, None, F32)
        assert torch.equal(found, torch.full((rows, 2), float(-128 * 255 * width)))


def test_zero_points_far_outside_of_the_levels() -> None:
    """Their products do not fit 32 bits."""
    for rows in (1, 5):
        for group in (None, 128):
            x = Levels(torch.full((rows, 4864), 127, dtype=torch.int8), torch.ones(rows, 1), None)
            groups = 1 if group is None else 4864 // group
            weight = Packed(
                torch.full((2, 4864), 5, dtype=torch.int8), 8, 4864, torch.ones(2, groups),
                torch.full((2, groups), 10_000, dtype=torch.int16), group, None,
            )  # fmt: skip
            mine = triton_ops.linear(x, weight, None, F32)
            assert torch.equal(mine, reference.linear(x, weight, None, F32))
            assert mine.min() < -(2**31)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_static_inputs_and_a_head_of_floats(rows: int) -> None:
    """A [1, 1] scale serves all rows; groups that lie across each other go to the reference."""
    grid = Grid(8, "tensor", symmetric=False)
    weight = packing.packed([integer_weight(7, 576, Grid(8, "channel"), 1)], grid)
    static = Steps(torch.tensor([0.04]), torch.tensor([-3.0]))
    x = triton_ops.round_rows(random(rows, 576, seed=2), grid, static)
    assert torch.equal(
        triton_ops.linear(x, weight, None, F16), reference.linear(x, weight, None, F16)
    )
    across = Grid(8, "token", group=48)
    x, weight, _ = case(rows, 7, 576, Grid(4, "channel", group=64), across, 3)
    assert torch.equal(
        triton_ops.linear(x, weight, None, F16), reference.linear(x, weight, None, F16)
    )


@settings(examples, max_examples=2 * EXAMPLES)
@given(
    rows=rows_of_both_kernels,
    width=st.sampled_from(WIDTHS),
    weights=weight_grids,
    dtype=floats,
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
@example(rows=1, width=576, weights=Grid(4, "channel", group=32), dtype=F16, biased=True, seed=0)
@example(rows=1, width=4864, weights=Grid(4, "channel"), dtype=F16, biased=False, seed=0)
@example(rows=2, width=896, weights=Grid(8, "channel"), dtype=F32, biased=True, seed=0)
def test_weight_only(
    rows: int, width: int, weights: Grid, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    weight = packing.packed([integer_weight(9, width, weights, seed)])
    x = random(rows, width, seed=seed + 1, dtype=dtype)
    bias = random(9, seed=seed + 2, dtype=dtype) if biased else None
    mine = triton_ops.weight_only(x, weight, bias)
    values = reference.values(weight, slice(None)).to(dtype)
    exact = x.to(torch.float64) @ values.to(torch.float64).mT
    size = x.to(torch.float64).abs() @ values.to(torch.float64).abs().mT
    if bias is not None:
        exact, size = exact + bias.to(torch.float64), size + bias.abs().to(torch.float64)
    slack = 2 * torch.finfo(dtype).eps * exact.abs() + 1e-5 * size
    if bias is not None:
        slack = slack + torch.finfo(dtype).eps * size
    assert mine.dtype == dtype
    assert ((mine.to(torch.float64) - exact).abs() <= slack).all()


def test_the_kernels_benchmark_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator that it times, once, and products equal to the reference."""
    monkeypatch.setattr(gpu_kernels, "DIM", 16)
    bench = gpu_kernels.Bench(gpu_kernels.chosen(torch.device("cpu")), torch.device("cpu"))
    assert bench.ops is triton_ops
    shape = gpu_kernels.Shape(hidden=32, ffn=32, heads=1, kv_heads=1, vocab=8)
    rows = list(bench.model("toy", shape, 1, ("fp16", "w4a8-g32")))
    assert {row.operator for row in rows} == {
        "qkv", "o", "gate_up", "down", "head", "norm", "gate", "turn", "attend",
    }  # fmt: skip
    assert {row.equal for row in rows} == {None, True}
    assert all(row.seconds > 0 and row.bytes > 0 for row in rows)
