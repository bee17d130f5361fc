"""Linears in ONNX: float, or integers as the simulation multiplies them.

    y = (sum_g float(sum_(k in g) (x_q - 128)(w_q - z_w)) s_w,g - (z_x - 128) sum(W)) s_x + b

Activations and weights are uint8 (``roundings``, ``weights``). Where both share their blocks of
inputs, one operator rounds and multiplies:

    y = sum_g float(sum_(k in g) x_q (w_q - z_w)) s_w,g s_x,g + b

The stream is [batch, new, width];
groups of inputs are a batch of products, [groups, batch, new, group] by [groups, 1, group, out].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.exporters import weights
from slmq_edge.exporters.graph import MICROSOFT, Builder
from slmq_edge.exporters.roundings import ZERO_POINT, Quantized
from slmq_edge.exporters.rows import BLOCK_OPERATOR
from slmq_edge.exporters.weights import Blocks, Stored

OPERATOR = "MatMulIntegerToFloat"
# What MatMulNBits multiplies by: its input, or 8-bit integers with a scale for each block of it.
FLOAT_INPUT, INTEGER_INPUT = 1, 4


def integer_linear(
    build: Builder,
    x: Quantized,
    stored: Stored,
    weight: IntegerWeight,
    bias: NDArray[np.float32] | None,
    name: str,
) -> ir.Value:
    """Multiply ``x`` by the stored form of ``weight``: float32 [batch, new, out]."""
    grouped = weight.grid.group is not None
    points = stored.zero
    shared = points.ndim == 0
    zero = build.constant(points, points.dtype) if shared else build.weight(points, f"{name}.zeros")
    inputs = _groups(build, x.integers, weight, name) if grouped else x.integers
    product = build.op(
        OPERATOR,
        inputs,
        stored.integers,
        build.constant(1.0, np.float32),
        build.weight(weights.scales(weight), f"{name}.scale"),
        build.constant(ZERO_POINT, np.uint8),
        zero,
        name=f"{name}.matmul",
        domain=MICROSOFT,
    )
    if grouped:
        first = build.constant([0], np.int64)
        product = build.op("ReduceSum", product, first, name=f"{name}.sum", keepdims=0)
    if x.zero is not None:
        sums = build.weight(weight.row_sums.numpy(), f"{name}.row_sums")
        shift = build.op("Mul", x.zero, sums, name=f"{name}.shift")
        product = build.op("Sub", product, shift, name=f"{name}.centred")
    scaled = build.op("Mul", product, x.scale, name=f"{name}.scaled")
    return add_bias(build, scaled, bias, name, build.weight)


def _groups(build: Builder, integers: ir.Value, weight: IntegerWeight, name: str) -> ir.Value:
    """[batch, new, width] as [groups, batch, new, group]; what fills the last one stands for 0."""
    group, width = weight.grid.group, weight.integers.shape[1]
    assert group is not None, "asked of grouped weights"
    count = weight.grid.groups(width)
    missing = count * group - width
    if missing:
        ends = build.constant([0, 0, 0, 0, 0, missing], np.int64)
        point = build.constant(ZERO_POINT, np.uint8)
        integers = build.op("Pad", integers, ends, point, name=f"{name}.filled")
    shape = build.constant([0, 0, count, group], np.int64)
    cut = build.op("Reshape", integers, shape, name=f"{name}.cut")
    return build.op("Transpose", cut, name=f"{name}.groups", perm=[2, 0, 1, 3])


def block_linear(
    build: Builder,
    x: ir.Value,
    found: Blocks,
    weight: IntegerWeight,
    bias: NDArray[np.float32] | None,
    name: str,
    accuracy: int,
) -> ir.Value:
    """Multiply ``x`` [..., in], of the graph's floats, by the ``found`` blocks of ``weight``.

    The kernel itself rounds ``x``, by token and block, or leaves it in float: see ``accuracy``.
    Returns [..., out].
    """
    rows, columns = weight.integers.shape
    inputs = [x, found.integers, found.scale]
    product = build.op(
        BLOCK_OPERATOR,
        *(inputs if found.zero is None else [*inputs, found.zero]),
        name=f"{name}.matmul",
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=weight.grid.bits,
        block_size=found.size,
        accuracy_level=accuracy,
    )
    return add_bias(build, product, bias, name, build.float_weight)


def float_linear(
    build: Builder, x: ir.Value, weight: ir.Value, bias: NDArray[np.float32] | None, name: str
) -> ir.Value:
    """Multiply ``x`` [..., in] by ``weight`` [in, out], both of the graph's floats."""
    product = build.op("MatMul", x, weight, name=f"{name}.matmul")
    return add_bias(build, product, bias, name, build.float_weight)


def add_bias(
    build: Builder,
    y: ir.Value,
    bias: NDArray[np.float32] | None,
    name: str,
    store: Callable[[NDArray[np.float32], str], ir.Value],
) -> ir.Value:
    """``y`` plus a bias, ``store``d in the type of ``y``; as it is where there is none."""
    if bias is None:
        return y
    return build.op("Add", y, store(bias, f"{name}.bias"), name=f"{name}.biased")
