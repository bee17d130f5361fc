"""Rounding at run time, in ONNX, number for number as ``quantization.rounding`` rounds.

    symmetric     s = max(max |x|, 1e-5) / Q                          x_q = round(x / s) + 128
    asymmetric    s = max(max(x, 0) - min(x, 0), 1e-5) / (2^b - 1)    x_q = round(x / s) + z
                  z = round(-min(x, 0) / s)
    static        s and z are constants

A row is a token, or a token's head. Integers are uint8, so that zero stands at 128, or at z: with
signed ones, kernels of CPUs without VNNI saturate (ONNXRUNTIME 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from slmq_edge.exporters.graph import Builder
from slmq_edge.quantization.rounding import SMALLEST_RANGE
from slmq_edge.scheme import Grid

if TYPE_CHECKING:
    from slmq_edge.quantization.rounding import Steps

ZERO_POINT = 128


@dataclass(frozen=True)
class Quantized:
    """A rounded input: uint8 [..., width], to be read less 128.

    scale: float32 [..., 1], or [] where it is static. zero: the zero point less 128, likewise;
    ``None`` on a symmetric grid.
    """

    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None


@dataclass(frozen=True)
class _Rows:
    """scale float32 [..., 1], and zero uint8 [..., 1], 0 the lowest level; ``None``: symmetric."""

    scale: ir.Value
    zero: ir.Value | None


class ByToken:
    """Rounds rows [..., width] by their own ranges; the symmetric zero points are shared."""

    def __init__(self, build: Builder, grid: Grid) -> None:
        self._build, self._grid = build, grid
        self._midpoints: ir.Value | None = None

    def __call__(self, x: ir.Value, width: int, name: str, shared: bool = True) -> Quantized:
        """One block of QuantizeLinear is one row.

        shared: ``x`` has as many rows as the others for which this is said.
        """
        build, rows = self._build, _rows(self._build, x, self._grid, name)
        points = rows.zero or self._points(x, name, shared)
        integers = build.op(
            "QuantizeLinear",
            x,
            rows.scale,
            points,
            name=f"{name}.integers",
            axis=-1,
            block_size=width,
        )
        if rows.zero is None:
            return Quantized(integers, rows.scale, None)
        one, middle = build.constant(1.0, np.float32), build.constant(ZERO_POINT, np.uint8)
        zero = build.op("DequantizeLinear", rows.zero, one, middle, name=f"{name}.zero")
        return Quantized(integers, rows.scale, zero)

    def _points(self, x: ir.Value, name: str, shared: bool) -> ir.Value:
        if not shared:
            return _midpoints(self._build, x, name)
        if self._midpoints is None:
            self._midpoints = _midpoints(self._build, x, "tokens")
        return self._midpoints


def by_tensor(build: Builder, x: ir.Value, grid: Grid, steps: Steps, name: str) -> Quantized:
    """Round ``x`` [..., width] by the scale and zero point that calibration found."""
    scale = build.constant(steps.scale[0].item(), np.float32)
    zero = 0 if steps.zero is None else int(steps.zero[0])
    point = build.constant(zero + ZERO_POINT, np.uint8)
    integers = build.op("QuantizeLinear", x, scale, point, name=f"{name}.integers")
    if -(2 ** (grid.bits - 1)) < grid.bottom:
        # A value beyond the calibrated range may reach the level that the grid does without.
        lowest = build.constant(grid.bottom + ZERO_POINT, np.uint8)
        integers = build.op("Clip", integers, lowest, name=f"{name}.clipped")
    known = None if steps.zero is None else build.constant(zero, np.float32)
    return Quantized(integers, scale, known)


def there_and_back(build: Builder, x: ir.Value, grid: Grid, width: int, name: str) -> ir.Value:
    """Round every row of ``x`` float32 [..., width] by its own range, and return to floats."""
    rows = _rows(build, x, grid, name)
    if rows.zero is None:
        ratio = build.op("Div", x, rows.scale, name=f"{name}.ratio")
        levels = build.op("Round", ratio, name=f"{name}.levels")
        return build.op("Mul", levels, rows.scale, name=f"{name}.rounded")
    blocks: dict[str, Any] = {"axis": -1, "block_size": width}
    integers = build.op(
        "QuantizeLinear", x, rows.scale, rows.zero, name=f"{name}.integers", **blocks
    )
    if grid.bits < 8:
        # Both ends of the range are rounded: a row may end one level above the grid.
        top = build.constant(2**grid.bits - 1, np.uint8)
        integers = build.op("Clip", integers, None, top, name=f"{name}.clipped")
    return build.op(
        "DequantizeLinear", integers, rows.scale, rows.zero, name=f"{name}.rounded", **blocks
    )


def _rows(build: Builder, x: ir.Value, grid: Grid, name: str) -> _Rows:
    axis = build.constant([-1], np.int64)
    if grid.symmetric:
        magnitude = build.op("Abs", x, name=f"{name}.abs")
        reach = build.op("ReduceMax", magnitude, axis, name=f"{name}.absmax", keepdims=1)
        return _Rows(scale_of(build, reach, grid.top, name), None)
    greatest = build.op("ReduceMax", x, axis, name=f"{name}.max", keepdims=1)
    least = build.op("ReduceMin", x, axis, name=f"{name}.min", keepdims=1)
    high = build.op("Relu", greatest, name=f"{name}.high")
    turned = build.op("Neg", least, name=f"{name}.min_turned")
    below = build.op("Relu", turned, name=f"{name}.below_zero")
    reach = build.op("Add", high, below, name=f"{name}.reach")
    scale = scale_of(build, reach, 2**grid.bits - 1, name)
    # Without a zero point of its own it rounds to uint8: the zero point is -low in steps.
    zero = build.op(
        "QuantizeLinear", below, scale, name=f"{name}.zero_points", axis=-1, block_size=1
    )
    return _Rows(scale, zero)


def scale_of(build: Builder, reach: ir.Value, spaces: int, name: str) -> ir.Value:
    """A range float32 [..., 1] cut into ``spaces``: the scale of its row."""
    floor = build.constant(SMALLEST_RANGE, np.float32)
    clamped = build.op("Max", reach, floor, name=f"{name}.clamped")
    return build.op("Div", clamped, build.constant(spaces, np.float32), name=f"{name}.scale")


def _midpoints(build: Builder, x: ir.Value, name: str) -> ir.Value:
    """uint8 [..., 1] of 128: QuantizeLinear wants a zero point for every scale."""
    count = build.op("Shape", x, name=f"{name}.count", start=0, end=-1)
    column = build.op("Concat", count, build.constant([1], np.int64), name=f"{name}.column", axis=0)
    point = build.constant(ZERO_POINT, np.uint8)
    return build.op("Expand", point, column, name=f"{name}.zero_points")
