"""Linears as TensorRT multiplies integers: Q, DQ and MatMul, which it fuses (TENSORRT 1.3, 2.2).

    static       x ~ DQ(Q(x, s), s)                                    s: a constant of the graph
    per token    m = max(max |x|, 1e-5);   x ~ m DQ(Q(x / m, 1/127), 1/127)
    weights      W ~ DQ(W_q, s_w) by output channel, zero points 0
    both         y = (DQ(Q(.)) DQ(W_q)) m + b

Scales, products and biases are float32: an engine writes the sums of int8 by int8 as float32 then,
which cannot overflow, and on any other runtime the product is that of the simulation. What leaves a
linear is of the graph's floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.exporters.graph import Builder
from slmq_edge.quantization.rounding import SMALLEST_RANGE, Steps
from slmq_edge.scheme import Grid

OPERATOR, WEIGHT_ONLY = "MatMul (Q/DQ)", "MatMul (DQ)"
TOP = 127


@dataclass(frozen=True)
class Rounded:
    """An input that was rounded: float32 [1, new, width], to be multiplied by ``factor``.

    factor: float32 [1, new, 1]; ``None``: 1.
    """

    values: ir.Value
    factor: ir.Value | None


def quantize(build: Builder, x: ir.Value, grid: Grid, steps: Steps | None, name: str) -> Rounded:
    """Round ``x`` [1, new, width], of the graph's floats; ``steps`` where they are known."""
    wide = build.as_float32(x, name)
    if grid.per == "tensor":
        assert steps is not None, "calibration found a scale for it"
        scale = build.weight(steps.scale[0].numpy().astype(np.float32), f"{name}.scale")
        return Rounded(_there_and_back(build, wide, scale, name), None)
    magnitude = build.op("Abs", wide, name=f"{name}.abs")
    reach = build.reduce("ReduceMax", magnitude, -1, f"{name}.absmax")
    floor = build.constant(SMALLEST_RANGE, np.float32)
    factor = build.op("Max", reach, floor, name=f"{name}.reach")
    ratio = build.op("Div", wide, factor, name=f"{name}.ratio")
    scale = build.constant(1 / TOP, np.float32)
    return Rounded(_there_and_back(build, ratio, scale, name), factor)


def _there_and_back(build: Builder, x: ir.Value, scale: ir.Value, name: str) -> ir.Value:
    zero = build.constant(0, np.int8)
    integers = build.op("QuantizeLinear", x, scale, zero, name=f"{name}.quantize")
    return build.op("DequantizeLinear", integers, scale, zero, name=f"{name}.dequantize")


def integer_linear(
    build: Builder,
    x: Rounded,
    weight: ir.Value,
    bias: NDArray[np.float32] | None,
    name: str,
) -> ir.Value:
    """``x`` times ``weight`` float32 [in, out] of a DequantizeLinear: the graph's floats."""
    product = build.op("MatMul", x.values, weight, name=f"{name}.matmul")
    if x.factor is not None:
        product = build.op("Mul", product, x.factor, name=f"{name}.scaled")
    if bias is not None:
        stored = build.weight(bias, f"{name}.bias")
        product = build.op("Add", product, stored, name=f"{name}.biased")
    return build.as_floats(product, name)


def float_linear(
    build: Builder, x: ir.Value, weight: ir.Value, bias: NDArray[np.float32] | None, name: str
) -> ir.Value:
    """``x`` times ``weight`` [in, out], both of the graph's floats, and so is what comes of it."""
    product = build.op("MatMul", x, weight, name=f"{name}.matmul")
    if bias is None:
        return product
    return build.op("Add", product, build.float_weight(bias, f"{name}.bias"), name=f"{name}.biased")


def channels(build: Builder, weight: IntegerWeight, name: str) -> ir.Value:
    """int8 [in, out] with a scale for each output channel, as float32 [in, out]."""
    levels = weight.integers.numpy().T
    zeros = np.zeros(levels.shape[1], np.int8)
    return build.op(
        "DequantizeLinear",
        build.weight(levels, f"{name}.weight"),
        build.weight(weight.scale[:, 0].numpy(), f"{name}.scale"),
        build.weight(zeros, f"{name}.zeros"),
        name=f"{name}.weight_dequantize",
        axis=1,
    )


def rows(build: Builder, weight: IntegerWeight, name: str) -> ir.Value:
    """An int8 table [vocab, hidden] with a scale for each row, as float32 [vocab, hidden]."""
    return build.op(
        "DequantizeLinear",
        build.weight(weight.integers.numpy(), f"{name}.weight"),
        build.weight(weight.scale[:, 0].numpy(), f"{name}.scale"),
        build.weight(np.zeros(len(weight.scale), np.int8), f"{name}.zeros"),
        name=f"{name}.weight_dequantize",
        axis=0,
    )


def blocks(build: Builder, weight: IntegerWeight, name: str) -> ir.Value:
    """int4 [in, out] with a scale for each block of inputs, as the graph's floats (opset 21)."""
    assert weight.grid.group is not None, "asked of weights in groups"
    return build.op(
        "DequantizeLinear",
        build.weight(weight.integers.numpy().T.astype(ml_dtypes.int4), f"{name}.weight"),
        build.float_weight(weight.scale.numpy().T, f"{name}.scale"),
        build.weight(np.zeros(weight.scale.T.shape, ml_dtypes.int4), f"{name}.zeros"),
        name=f"{name}.weight_dequantize",
        axis=0,
        block_size=weight.grid.group,
    )
