"""Linears in ONNX: float, or integers as the simulation multiplies them.

    absmax_t = max_k |x_tk|,  s_t = max(absmax_t, 1e-5) / 127,  x_q = round_half_even(x / s_t) + 128
    y = float(sum_k (x_q - 128)(w_q - 128)) * s_w * s_t + b

Activations and weights are uint8 with zero point 128: with int8 weights, kernels of CPUs without
VNNI saturate (ONNXRUNTIME 1). The stream is [tokens, width], so that one QuantizeLinear rounds
every row by its own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.exporters.graph import MICROSOFT, Builder
from slmq_edge.packing import pack4
from slmq_edge.quantization.rounding import SMALLEST_RANGE
from slmq_edge.scheme import Grid

ZERO_POINT = 128
OPERATOR = "MatMulIntegerToFloat"


@dataclass(frozen=True)
class Quantized:
    """An input rounded token by token: uint8 [tokens, width] and its scales [tokens, 1]."""

    integers: ir.Value
    scale: ir.Value


def quantize(
    build: Builder, x: ir.Value, width: int, grid: Grid, zero_points: ir.Value, name: str
) -> Quantized:
    """Round ``x`` [tokens, width] per token: one block of QuantizeLinear is one row.

    ``zero_points`` is uint8 [tokens, 1] of 128, from ``zero_points_for``.
    """
    magnitude = build.op("Abs", x, name=f"{name}.abs")
    axis = build.constant([-1], np.int64)
    absmax = build.op("ReduceMax", magnitude, axis, name=f"{name}.absmax", keepdims=1)
    floor = build.constant(SMALLEST_RANGE, np.float32)
    clamped = build.op("Max", absmax, floor, name=f"{name}.clamped")
    top = build.constant(grid.top, np.float32)
    scale = build.op("Div", clamped, top, name=f"{name}.scale")
    integers = build.op(
        "QuantizeLinear",
        x,
        scale,
        zero_points,
        name=f"{name}.integers",
        axis=1,
        block_size=width,
    )
    return Quantized(integers, scale)


def zero_points_for(build: Builder, x: ir.Value, name: str) -> ir.Value:
    """uint8 [tokens, 1] of 128: QuantizeLinear wants a zero point for every scale."""
    count = build.op("Shape", x, name=f"{name}.count", start=0, end=1)
    one = build.constant([1], np.int64)
    column = build.op("Concat", count, one, name=f"{name}.column", axis=0)
    point = build.constant(ZERO_POINT, np.uint8)
    return build.op("Expand", point, column, name=f"{name}.zero_points")


def integer_weight(build: Builder, weight: IntegerWeight, name: str) -> ir.Value:
    """Store the integers transposed, uint8 [in, out]; 4-bit ones packed, unpacked at load.

    The unpacking is constant, so the runtime does it once: 4 bits on disk, 8 in memory
    (ONNXRUNTIME 14: the form that both 1.19 and 1.31 take).
    """
    signed = weight.integers.numpy().T
    if weight.grid.bits == 8:
        return build.weight(unsigned(signed), f"{name}.weight")
    nibbles = (signed + 8).astype(np.uint8)
    packed = build.weight(pack4(nibbles), f"{name}.weight_packed")
    low = build.op("BitwiseAnd", packed, build.constant(15, np.uint8), name=f"{name}.weight_low")
    four = build.constant(4, np.uint8)
    high = build.op("BitShift", packed, four, name=f"{name}.weight_high", direction="RIGHT")
    flat = build.op("Concat", low, high, name=f"{name}.weight_flat", axis=0)
    if nibbles.size % 2:
        begin, end = (build.constant([at], np.int64) for at in (0, nibbles.size))
        flat = build.op("Slice", flat, begin, end, name=f"{name}.weight_cut")
    shape = build.constant(nibbles.shape, np.int64)
    return build.op("Reshape", flat, shape, name=f"{name}.weight")


def stack(weights: Sequence[IntegerWeight]) -> IntegerWeight:
    """Several weights of one grid as one: the rows of all, [sum of out, in]."""
    integers = torch.cat([weight.integers for weight in weights])
    scale = torch.cat([weight.scale for weight in weights])
    return IntegerWeight(integers, scale, None, weights[0].grid)


def zero_point(weight: IntegerWeight) -> int:
    """What stands for zero in the stored integers: 128, or 8 for 4-bit ones."""
    return ZERO_POINT if weight.grid.bits == 8 else 8


def integer_linear(
    build: Builder,
    x: Quantized,
    stored: ir.Value,
    weight: IntegerWeight,
    bias: NDArray[np.float32] | None,
    name: str,
) -> ir.Value:
    """Multiply ``x`` by stored integers [in, out]: float32 [tokens, out]."""
    product = build.op(
        OPERATOR,
        x.integers,
        stored,
        build.constant(1.0, np.float32),
        build.weight(weight.scale[:, 0].numpy(), f"{name}.scale"),
        build.constant(ZERO_POINT, np.uint8),
        build.constant(zero_point(weight), np.uint8),
        name=f"{name}.matmul",
        domain=MICROSOFT,
    )
    scaled = build.op("Mul", product, x.scale, name=f"{name}.scaled")
    return _add_bias(build, scaled, bias, name)


def float_linear(
    build: Builder,
    x: ir.Value,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    name: str,
) -> ir.Value:
    """Multiply ``x`` [tokens, in] by ``weight`` [out, in], stored transposed."""
    stored = build.weight(weight.T, f"{name}.weight")
    product = build.op("MatMul", x, stored, name=f"{name}.matmul")
    return _add_bias(build, product, bias, name)


def _add_bias(build: Builder, y: ir.Value, bias: NDArray[np.float32] | None, name: str) -> ir.Value:
    if bias is None:
        return y
    return build.op("Add", y, build.weight(bias, f"{name}.bias"), name=f"{name}.biased")


def unsigned(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    return (integers.astype(np.int16) + ZERO_POINT).astype(np.uint8)
