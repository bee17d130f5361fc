"""Integers as ONNX Runtime's CUDA provider multiplies them: int8 by int8, both symmetric.

    s = max(max |x|, 1e-5) / 127      x_q = round(x / s)      y = float(x_q w_q) s_w s + b

Its MatMulInteger takes nothing else, and rounding row by row is no operator of its own there (docs
/decisions/0014). What is read may be float16; scales, sums and ``y`` are float32: an integer sum
does not fit float16, and a scale would lose bits that the simulation has.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.exporters import linears, roundings, weights
from slmq_edge.exporters.graph import Builder
from slmq_edge.exporters.roundings import Quantized
from slmq_edge.exporters.weights import Stored
from slmq_edge.scheme import Grid

OPERATOR = "MatMulInteger"
ZERO = np.array(0, np.int8)


class Int8:
    """Symmetric int8 by int8: the ``flavours.Integers`` of a GPU."""

    def __init__(self, build: Builder, checkpoint: Checkpoint) -> None:
        self._build, self._scheme = build, checkpoint.scheme

    def quantize(
        self, x: ir.Value, linear: str, width: int, name: str, all_tokens: bool
    ) -> Quantized:
        grid = self._scheme.input_grid(linear)
        assert grid is not None, "asked where inputs are rounded"
        return by_token(self._build, x, grid, name)

    def store(self, weight: IntegerWeight, name: str) -> Stored:
        """int8 [in, out]; 4-bit ones are two a byte on disk, and unpacked at load."""
        build, levels = self._build, weights.laid_out(weight)
        if weight.grid.bits == 8:
            return Stored(build.weight(levels, f"{name}.weight"), ZERO)
        nibbles = weights.nibbles(build, levels, name)
        half = build.constant(weights.HALF_BYTE, np.int32)
        return Stored(weights.less(build, nibbles, half, ir.DataType.INT8, name), ZERO)

    def multiply(
        self,
        x: Quantized,
        stored: Stored,
        weight: IntegerWeight,
        bias: NDArray[np.float32] | None,
        name: str,
    ) -> ir.Value:
        build = self._build
        sums = build.op(OPERATOR, x.integers, stored.integers, name=f"{name}.matmul")
        floats = build.op("Cast", sums, name=f"{name}.sums", to=ir.DataType.FLOAT)
        scale = build.weight(weights.scales(weight), f"{name}.scale")
        product = build.op("Mul", floats, scale, name=f"{name}.product")
        scaled = build.op("Mul", product, x.scale, name=f"{name}.scaled")
        return linears.add_bias(build, scaled, bias, name, build.weight)

    def store_table(self, levels: NDArray[np.int8]) -> ir.Value:
        return self._build.weight(levels, "embed.weight")

    def turned_table(self, table: ir.Value, levels: NDArray[np.int8]) -> Stored:
        turned = self._build.op("Transpose", table, name="lm_head.weight", perm=[1, 0])
        return Stored(turned, ZERO)

    def centred(self, stored: ir.Value, name: str) -> ir.Value:
        return self._build.op("Cast", stored, name=f"{name}.integers", to=ir.DataType.FLOAT)


def by_token(build: Builder, x: ir.Value, grid: Grid, name: str) -> Quantized:
    """Round rows of ``x`` [..., width], of the graph's floats, by their own ranges.

    No clipping: a row's largest value over its scale is within a rounding of 127.
    """
    axis = build.constant([-1], np.int64)
    magnitude = build.op("Abs", x, name=f"{name}.abs")
    reach = build.op("ReduceMax", magnitude, axis, name=f"{name}.absmax", keepdims=1)
    wide = build.as_float32(reach, f"{name}.absmax")
    scale = roundings.scale_of(build, wide, grid.top, name)
    ratio = build.op("Div", build.as_float32(x, name), scale, name=f"{name}.ratio")
    levels = build.op("Round", ratio, name=f"{name}.levels")
    integers = build.op("Cast", levels, name=f"{name}.integers", to=ir.DataType.INT8)
    return Quantized(integers, scale, None)
