"""One linear in onnxruntime, the same input: its integers and outputs are the simulation's.

Equal to the last bit; with groups, whose sums the runtime takes in its own order, to 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.errors import Unsupported
from slmq_edge.exporters import linears, probe, rotations, roundings, rows, weights
from slmq_edge.exporters.graph import Builder
from slmq_edge.exporters.roundings import ZERO_POINT, ByToken
from slmq_edge.quantization.hadamard import factors, rotate_last
from slmq_edge.quantization.rounding import Extent, Rounded, Steps, quantize, steps, to_levels
from slmq_edge.runner.probe import activations as extreme_inputs
from slmq_edge.runner.probe import product as product_of_probe
from slmq_edge.scheme import Grid, scheme
from slmq_edge.simulation import Simulation
from tests.decoders import random_llama, rounded

WEIGHT_GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([4, 8]),
    per=st.just("channel"),
    symmetric=st.booleans(),
    group=st.sampled_from([None, None, 5, 32]),
    lowest=st.booleans(),
)
INPUT_GRIDS = st.builds(
    Grid,
    bits=st.just(8),
    per=st.sampled_from(["token", "tensor"]),
    symmetric=st.booleans(),
    lowest=st.booleans(),
)
SIZES = {
    "tokens": st.integers(1, 9),
    "width": st.integers(1, 300),
    "outputs": st.integers(1, 40),
    "spread": st.floats(0.0, 3.0),
    "offset": st.floats(-2.0, 2.0),
    "seed": st.integers(0, 2**31),
}


def run(model: ir.Model, x: NDArray[Any]) -> list[NDArray[Any]]:
    proto = ir.to_proto(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    running = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in running.get_inputs())
    found: list[NDArray[Any]] = running.run(None, {name: x})
    return found


def draw(rows: int, columns: int, spread: float, offset: float, seed: int) -> torch.Tensor:
    """Columns of very different sizes; a row of zeros, and one on one side of zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) + offset
    x = x * (spread * torch.randn(columns, generator=generator)).exp()
    x[-1:] = x[-1:].abs()
    x[2:3] = 0
    return x


def rounded_inputs(x: torch.Tensor, grid: Grid) -> Rounded:
    """As the simulation rounds them; a static range is the data's own, shrunk, so that it clips."""
    if grid.per == "token":
        return quantize(x, grid)
    found = steps(Extent(x.min() * 0.7, x.max() * 0.7), grid)
    zero = None if found.zero is None else found.zero.reshape(1)
    static = Steps(found.scale.reshape(1), zero)
    return Rounded(to_levels(x, static, grid), static)


def linear_graph(weight: IntegerWeight, grid: Grid, static: Steps) -> ir.Model:
    build, width = Builder(), weight.integers.shape[1]
    x = ir.val("x", ir.DataType.FLOAT, ["batch", "new", width])
    if grid.per == "token":
        quantized = ByToken(build, grid)(x, width, "input")
    else:
        quantized = roundings.by_tensor(build, x, grid, static, "input")
    stored = weights.store(build, weight, "linear")
    y = linears.integer_linear(build, quantized, stored, weight, None, "linear")
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    quantized.integers.type = ir.TensorType(ir.DataType.UINT8)
    product = next(node.outputs[0] for node in y_nodes(y) if node.op_type == linears.OPERATOR)
    product.type = ir.TensorType(ir.DataType.FLOAT)
    return build.model([x], [y, quantized.integers, product])


def y_nodes(y: ir.Value) -> Iterator[ir.Node]:
    """The nodes that ``y`` was computed by, last first, along their first inputs."""
    node = y.producer()
    while node is not None:
        yield node
        first = node.inputs[0]
        node = None if first is None else first.producer()


@settings(max_examples=150, deadline=None)
@given(weight_grid=WEIGHT_GRIDS, input_grid=INPUT_GRIDS, **SIZES)
def test_one_linear_is_equal_to_the_last_bit(
    weight_grid: Grid,
    input_grid: Grid,
    tokens: int,
    width: int,
    outputs: int,
    spread: float,
    offset: float,
    seed: int,
) -> None:
    x = draw(tokens, width, spread, offset, seed)
    w = draw(outputs, width, 0.0, offset, seed + 1)
    weight = IntegerWeight.of(quantize(w, weight_grid), weight_grid)
    x_q = rounded_inputs(x, input_grid)
    found = run(linear_graph(weight, input_grid, x_q.steps), x[None].numpy())
    y, stored, product = (array.squeeze(-3) for array in found)
    assert np.array_equal(stored, (x_q.integers + ZERO_POINT).to(torch.uint8).numpy())
    assert np.array_equal(product, products(x_q, weight))
    simulation = Simulation(rounded(random_llama(), scheme("w8a8")))
    expected = simulation._multiply(x_q, weight).numpy()
    if weight_grid.group is None:
        assert np.array_equal(y, expected)
    else:
        assert np.abs(y - expected).max() <= 1e-6 * terms(x_q, weight)


def products(x: Rounded, weight: IntegerWeight) -> NDArray[np.float32]:
    """float(integer product) * scale, [tokens, out] or, of groups, [groups, tokens, out]."""
    width = weight.grid.group or x.integers.shape[1]
    centred = weight.centred.double()
    pieces = zip(torch.split(x.integers, width, -1), torch.split(centred, width, 1), strict=True)
    found = [
        (x_q.double() @ w_q.mT).float() * weight.scale[:, group]
        for group, (x_q, w_q) in enumerate(pieces)
    ]
    stacked: NDArray[np.float32] = torch.stack(found).numpy()
    return stacked[0] if weight.grid.group is None else stacked


def terms(x: Rounded, weight: IntegerWeight) -> float:
    """The largest sum of magnitudes that any output is summed from."""
    sums = x.integers.abs() @ weight.dequantized.abs().mT
    if x.steps.zero is not None:
        sums = sums + x.steps.zero.abs() * weight.dequantized.sum(1).abs()
    return float((sums * x.steps.scale).max())


@settings(max_examples=50, deadline=None)
@given(grid=WEIGHT_GRIDS, width=st.integers(1, 70), outputs=st.integers(1, 9), seed=SIZES["seed"])
def test_a_dequantized_weight_is_the_simulations(
    grid: Grid, width: int, outputs: int, seed: int
) -> None:
    weight = IntegerWeight.of(quantize(draw(outputs, width, 0.0, 0.3, seed), grid), grid)
    build = Builder()
    x = ir.val("x", ir.DataType.FLOAT, ["tokens", width])
    values = weights.dequantize(build, weight, "linear")
    y = linears.float_linear(build, x, values, None, "linear")
    y.type = ir.TensorType(ir.DataType.FLOAT)
    (found,) = run(build.model([x], [y]), np.eye(width, dtype=np.float32))
    assert np.array_equal(found.T, weight.dequantized.numpy())


@settings(max_examples=50, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    spread=SIZES["spread"],
    offset=SIZES["offset"],
    seed=SIZES["seed"],
)
def test_keys_and_values_are_rounded_as_the_simulation_rounds_them(
    bits: int, symmetric: bool, spread: float, offset: float, seed: int
) -> None:
    grid, size = Grid(bits, "token", symmetric), (2, 5, 3, 8)
    x = draw(30, 8, spread, offset, seed).reshape(size)
    build = Builder()
    inputs = ir.val("x", ir.DataType.FLOAT, ["batch", "new", 3, 8])
    y = roundings.there_and_back(build, inputs, grid, 8, "heads")
    y.type = ir.TensorType(ir.DataType.FLOAT)
    (found,) = run(build.model([inputs], [y]), x.numpy())
    assert np.array_equal(found, quantize(x, grid).values(grid).numpy())


@pytest.mark.parametrize("width", [1, 2, 8, 12, 20, 64, 80, 576, 1536])
def test_rotations_are_the_decoders(width: int) -> None:
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    build = Builder()
    inputs = ir.val("x", ir.DataType.FLOAT, ["batch", "new", width])
    y, macs = rotations.rotate_rows(build, inputs, width, "rotation")
    y.type = ir.TensorType(ir.DataType.FLOAT)
    ((found,),) = run(build.model([inputs], [y]), x[None].numpy())
    expected = rotate_last(x.double()).float().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(x.numpy() @ rotations.of_heads(width), expected, rtol=0, atol=1e-5)
    found_factors = factors(width)
    assert found_factors is not None
    assert macs == width * sum(map(len, found_factors))


def one_sided(bits: int, group: int | None) -> IntegerWeight:
    """Rows far from zero, with zero points beyond their levels."""
    grid = Grid(bits, "channel", symmetric=False, group=group, zero=False)
    w = 1.0 + 0.3 * torch.rand(12, 40, generator=torch.Generator().manual_seed(1))
    w[::2] *= -1
    weight = IntegerWeight.of(quantize(w, grid), grid)
    assert weight.zero is not None
    assert not ((weight.zero >= grid.bottom) & (weight.zero <= grid.top)).any()
    return weight


@pytest.mark.parametrize("group", [None, 16])
def test_four_bits_reach_zero_points_beyond_their_levels(group: int | None) -> None:
    weight, x = one_sided(4, group), draw(6, 40, 0.5, 0.5, 3)
    x_q = quantize(x, Grid(8, "token"))
    _, _, product = run(linear_graph(weight, Grid(8, "token"), x_q.steps), x[None].numpy())
    assert np.array_equal(product.squeeze(-3), products(x_q, weight))


def test_eight_bits_do_not_and_that_is_one_line() -> None:
    with pytest.raises(Unsupported, match=r"linear by integers.*ranges hold zero"):
        weights.store(Builder(), one_sided(8, None), "linear")


@pytest.mark.parametrize(
    "gemm",
    [
        {"operator": linears.OPERATOR},
        {"operator": linears.OPERATOR, "batch": "groups of inputs"},
        {"operator": rows.BLOCK_OPERATOR, "bits": "4"},
        {"operator": rows.BLOCK_OPERATOR, "bits": "8"},
    ],
)
def test_the_probe_returns_the_exact_product(gemm: dict[str, str]) -> None:
    model = probe.write_probe(gemm)
    for a in extreme_inputs((7, probe.DEPTH)):
        y, stored = run(model, a)
        assert np.array_equal(y, product_of_probe(a, stored))
