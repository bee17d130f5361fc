"""Operators of the torch runtime against the simulation: one linear at a time, no tolerance."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.errors import Unsupported
from slmq_edge.quantization.rounding import Steps, quantize
from slmq_edge.scheme import TOKENS_8, WEIGHTS_4, WEIGHTS_8, Grid, Scheme
from slmq_edge.simulation import Simulation
from slmq_edge.torch_runtime import ops, packing, reference
from tests.decoders import random_qwen2, rounded

UNEVEN_4, UNEVEN_8 = Grid(4, "channel", symmetric=False), Grid(8, "channel", symmetric=False)
FREE = Grid(4, "channel", symmetric=False, zero=False)
TOKENS_UNEVEN = Grid(8, "token", symmetric=False)
WEIGHTS = [
    WEIGHTS_8,
    WEIGHTS_4,
    UNEVEN_4,
    UNEVEN_8,
    FREE,
    Grid(3, "channel"),
    Grid(4, "channel", lowest=True),
    Grid(4, "channel", group=32),
    Grid(4, "channel", group=32, symmetric=False),
    Grid(8, "channel", group=64),
]
ONE_SCALE = [TOKENS_8, TOKENS_UNEVEN]
GROUPED = [Grid(8, "token", group=32), Grid(8, "token", symmetric=False, group=12)]
SHAPES = [(1, 96, 40), (5, 63, 17), (40, 172, 8)]  # rows, in, out


def weight_of(rows: int, width: int, grid: Grid, seed: int = 0) -> IntegerWeight:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, width, generator=generator) + 0.3
    return IntegerWeight.of(quantize(drawn, grid), grid)


def input_of(rows: int, width: int, seed: int = 1) -> Tensor:
    """With outliers, and a row of zeros where there are several."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) + 0.2
    x[:, 3] *= 30
    x[1:2] = 0
    return x


def simulated(x: Tensor, weight: IntegerWeight, grid: Grid, bias: Tensor) -> Tensor:
    """What the simulation's own product of one linear is, in float32."""
    model = random_qwen2()
    simulation = Simulation(rounded(model, Scheme("any", WEIGHTS_8, grid)))
    return simulation._product(x, quantize(x, grid), grid, weight) + bias


def multiplied(
    grid: Grid, reads: Grid, shape: tuple[int, int, int]
) -> tuple[Tensor, IntegerWeight, Tensor, Tensor]:
    """Random input, weight, bias of (rows, width, out), and what the reference makes of them."""
    rows, width, out = shape
    x, weight, bias = input_of(rows, width), weight_of(out, width, grid), torch.randn(out)
    levels = reference.round_rows(x, reads, None)
    found = reference.linear(levels, packing.packed([weight], reads), bias, torch.float32)
    return x, weight, bias, found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reads", ONE_SCALE, ids=str)
@pytest.mark.parametrize("grid", WEIGHTS, ids=str)
def test_a_linear_is_the_simulations_to_the_last_bit(
    grid: Grid, reads: Grid, shape: tuple[int, int, int]
) -> None:
    x, weight, bias, found = multiplied(grid, reads, shape)
    assert torch.equal(found, simulated(x, weight, reads, bias))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reads", GROUPED, ids=str)
@pytest.mark.parametrize("grid", WEIGHTS, ids=str)
def test_inputs_in_groups_are_multiplied_as_integers_too(
    grid: Grid, reads: Grid, shape: tuple[int, int, int]
) -> None:
    """The simulation multiplies their values: both are the same but for float32's rounding."""
    x, weight, bias, found = multiplied(grid, reads, shape)
    values = quantize(x, reads).values(reads).double()
    expected = values @ weight.dequantized.double().mT + bias
    size = values.abs() @ weight.dequantized.double().abs().mT + bias.abs()
    assert ((found - expected).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("reads", [*ONE_SCALE, *GROUPED], ids=str)
@pytest.mark.parametrize("floats", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_are_the_simulations_to_the_last_bit(reads: Grid, floats: torch.dtype) -> None:
    x = input_of(7, 63).to(floats)
    found, expected = reference.round_rows(x, reads, None), quantize(x.float(), reads)
    assert found.integers.dtype == torch.int8
    assert torch.equal(found.integers.float(), expected.integers)
    assert torch.equal(found.scale, expected.steps.scale)
    assert found.group == reads.group
    assert (found.zero is None) == reads.symmetric
    if found.zero is not None and expected.steps.zero is not None:
        assert torch.equal(found.zero, expected.steps.zero)


@pytest.mark.parametrize("symmetric", [True, False])
def test_static_levels_have_one_scale_for_all_rows(symmetric: bool) -> None:
    x, grid = input_of(5, 40), Grid(8, "tensor", symmetric=symmetric)
    zero = None if symmetric else torch.tensor([-17.0])
    found = reference.round_rows(x, grid, Steps(torch.tensor([0.037]), zero))
    assert found.scale.shape == (1, 1)
    levels = torch.round(x / 0.037) + (0 if symmetric else -17)
    assert torch.equal(found.integers.float(), levels.clamp(grid.bottom, grid.top))
    weight, bias = weight_of(12, 40, WEIGHTS_8), torch.zeros(12)
    out = reference.linear(found, packing.packed([weight], grid), bias, torch.float32)
    values = (found.integers - (0.0 if zero is None else zero)).double() * found.scale.double()
    expected = values @ weight.dequantized.double().mT
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 70),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.none() | st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_packed_levels_come_back(
    rows: int, width: int, bits: int, symmetric: bool, group: int | None, seed: int
) -> None:
    weight = weight_of(rows, width, Grid(bits, "channel", symmetric, group), seed)
    packed = packing.packed([weight])
    assert torch.equal(reference.unpacked(packed), weight.integers)
    assert torch.equal(reference.values(packed, slice(None)), weight.dequantized)
    each = math.ceil(width / 2) if bits <= 4 else width
    assert packed.integers.numel() * packed.integers.element_size() == rows * each


def test_a_byte_holds_neighbours_the_left_one_low() -> None:
    assert packing.nibbles(torch.tensor([[-8, 7, 1]], dtype=torch.int8)).tolist() == [[240, 137]]


def test_weights_that_share_an_input_are_one_without_changing_a_bit() -> None:
    x, parts = input_of(3, 96), [weight_of(n, 96, WEIGHTS_4, n) for n in (40, 8, 17)]
    levels = reference.round_rows(x, TOKENS_UNEVEN, None)
    alone = [
        reference.linear(levels, packing.packed([part], TOKENS_UNEVEN), None, torch.float32)
        for part in parts
    ]
    together = packing.packed(parts, TOKENS_UNEVEN)
    assert together.rows == 65
    found = reference.linear(levels, together, None, torch.float32)
    assert torch.equal(found, torch.cat(alone, dim=-1))


def test_a_width_whose_sums_could_overflow_is_refused() -> None:
    weight = weight_of(1, ops.WIDEST + 1, WEIGHTS_8)
    with pytest.raises(Unsupported, match="33001 inputs"):
        packing.packed([weight])


def test_the_widest_sums_are_exact() -> None:
    """All extremes of one sign: the largest sum that there is, and a neighbour of it."""
    x = torch.full((2, ops.WIDEST), -128, dtype=torch.int8)
    w = torch.full((8, ops.WIDEST), -128, dtype=torch.int8)
    w[3, 7] = -127
    found = reference.products(x, w)
    assert found[0, 0] == 2**14 * ops.WIDEST
    assert found[1, 3] == 2**14 * ops.WIDEST - 128


def test_a_cpu_whose_product_saturates_multiplies_floats_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `_cpu_is_exact` finds it out: a stand-in for a kernel that saturates pairs of products."""

    def saturating(x: Tensor, w: Tensor) -> Tensor:
        pairs = (x[:, :, None].int() + 128) * w[None].int()
        pairs = pairs.view(len(x), -1, 2, w.shape[1]).sum(2).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * w.int().sum(0)).int()

    x, w = input_of(4, 64).clamp(-100, 100).to(torch.int8), weight_of(9, 64, WEIGHTS_8).integers
    expected = x.long() @ w.long().mT
    reference._cpu_is_exact.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    try:
        assert not reference._cpu_is_exact()
        assert torch.equal(reference.products(x, w).long(), expected)
    finally:
        reference._cpu_is_exact.cache_clear()


@pytest.mark.parametrize("shape", [*SHAPES, (17, 16, 16), (32, 64, 24)])
def test_sizes_that_cublas_does_not_take_are_filled_up(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width, out = shape
    x = input_of(rows, width).clamp(-128, 127).to(torch.int8)
    w, sizes, multiply = weight_of(out, width, WEIGHTS_8).integers, [], torch._int_mm

    def seen(x: Tensor, w: Tensor) -> Tensor:
        sizes.append((*x.shape, w.shape[1]))
        return multiply(x, w)

    monkeypatch.setattr(torch, "_int_mm", seen)
    assert torch.equal(reference._filled_up(x, w).long(), x.long() @ w.long().mT)
    ((m, k, n),) = sizes
    assert (m % 32, k % 8, n % 8) == (0, 0, 0)
    assert (m - rows, k - width, n - out) < (32, 8, 8)


def test_weights_alone_are_values_in_the_inputs_own_floats() -> None:
    x, weight = input_of(3, 96).half(), weight_of(40, 96, Grid(4, "channel", group=32))
    found = reference.weight_only(x, packing.packed([weight]), None)
    assert found.dtype == torch.float16
    assert torch.equal(found, x @ weight.dequantized.half().mT)


def test_norms_and_gates_are_the_decoders_and_fused_ones_round_them() -> None:
    x, gain = input_of(5, 64), torch.rand(64) + 0.5
    plain = reference.normed(x, gain, 1e-6)
    assert torch.equal(plain, torch.nn.functional.rms_norm(x, (64,), gain, 1e-6))
    fused = reference.normed_rounded(x, gain, 1e-6, TOKENS_8)
    assert torch.equal(fused.integers, reference.round_rows(plain, TOKENS_8, None).integers)
    product = torch.nn.functional.silu(x[:, :32]) * x[:, 32:]
    assert torch.equal(reference.gated(x), product)
    rounded_product = reference.gated_rounded(x, TOKENS_8)
    assert torch.equal(
        rounded_product.integers, reference.round_rows(product, TOKENS_8, None).integers
    )


def test_a_cpu_gets_the_reference() -> None:
    assert ops.choose("cpu").NAME == ops.REFERENCE
    assert ops.choose("cpu") is reference


def test_a_gpu_gets_triton_where_it_is_installed_and_else_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def imported(name: str) -> object:
        asked.append(name.rpartition(".")[2])
        return reference

    monkeypatch.setattr(importlib, "import_module", imported)
    for there in ({"triton"}, {"slmq_edge.torch_runtime.triton_ops"}):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, there=there: name in there)
        ops.choose("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    ops.choose("cuda")
    ops.choose("cpu")
    assert asked == ["reference", "reference", "triton_ops", "reference"]
