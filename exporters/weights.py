"""How weights lie in the graph: transposed integers, unpacked or turned into floats at load.

    one scale a row     [in, out],             scales [out]
    groups of g         [groups, 1, g, out],   scales [groups, 1, 1, out]; the last is filled up

4-bit integers are packed, two a byte. What stands between them and the product is constant, so the
runtime does it once: 4 bits on disk, 8 (or a float) in memory (ONNXRUNTIME 14: the form that both
1.19 and 1.31 take).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.errors import Unsupported
from slmq_edge.exporters.graph import Builder
from slmq_edge.exporters.roundings import ZERO_POINT
from slmq_edge.packing import pack4

HALF_BYTE = 8


@dataclass(frozen=True)
class Stored:
    """uint8 integers, and what stands for zero in them: [], or as the scales are laid out."""

    integers: ir.Value
    zero: NDArray[np.uint8]


def stack(weights: Sequence[IntegerWeight]) -> IntegerWeight:
    """Several weights of one grid as one: the rows of all, [sum of out, in]."""
    zeros = [weight.zero for weight in weights if weight.zero is not None]
    return IntegerWeight(
        torch.cat([weight.integers for weight in weights]),
        torch.cat([weight.scale for weight in weights]),
        torch.cat(zeros) if zeros else None,
        weights[0].grid,
    )


def store(build: Builder, weight: IntegerWeight, name: str) -> Stored:
    """The integers as a kernel multiplies them.

    4-bit levels less their zero points still fit 8 bits: then all have one zero, 128.

    Raises:
        Unsupported: a zero point, or a level less its zero point, does not fit 8 bits.
    """
    signed = laid_out(weight)
    if weight.grid.bits == 8:
        stored = build.weight(unsigned(signed), f"{name}.weight")
        if weight.zero is None:
            return Stored(stored, np.array(ZERO_POINT, np.uint8))
        return Stored(stored, _in_a_byte(_per_group(weight.zero, weight) + ZERO_POINT, name))
    nibbles = _nibbles(build, signed, name)
    if weight.zero is None:
        return Stored(nibbles, np.array(HALF_BYTE, np.uint8))
    centred = signed.astype(np.int32) - _per_group(weight.zero, weight)
    _in_a_byte(centred + ZERO_POINT, name)
    # onnxruntime 1.19 has no 8-bit subtraction.
    wide = build.op("Cast", nibbles, name=f"{name}.weight_wide", to=ir.DataType.INT32)
    shift = _per_group(weight.zero, weight) + (HALF_BYTE - ZERO_POINT)
    zeros = _zeros(build, shift, ir.DataType.INT32, name)
    moved = build.op("Sub", wide, zeros, name=f"{name}.weight_centred")
    narrow = build.op("Cast", moved, name=f"{name}.weight", to=ir.DataType.UINT8)
    return Stored(narrow, np.array(ZERO_POINT, np.uint8))


def dequantize(build: Builder, weight: IntegerWeight, name: str) -> ir.Value:
    """The weight as floats [in, out], from its integers: (integers - zero) * scale."""
    signed = laid_out(weight)
    if weight.grid.bits == 8:
        middle, stored = ZERO_POINT, build.weight(unsigned(signed), f"{name}.weight_integers")
    else:
        middle, stored = HALF_BYTE, _nibbles(build, signed, name)
    floats = build.op("Cast", stored, name=f"{name}.weight_cast", to=ir.DataType.FLOAT)
    if weight.zero is None:
        zero = build.constant(middle, np.float32)
    else:
        zeros = _per_group(weight.zero, weight) + middle
        zero = _zeros(build, zeros, ir.DataType.FLOAT, name)
    centred = build.op("Sub", floats, zero, name=f"{name}.weight_centred")
    scale = build.weight(scales(weight), f"{name}.scale")
    value = build.op("Mul", centred, scale, name=f"{name}.weight_scaled")
    if weight.grid.group is None:
        return value
    rows, columns = weight.integers.shape
    tall = build.constant([-1, rows], np.int64)
    value = build.op("Reshape", value, tall, name=f"{name}.weight_tall")
    if columns % weight.grid.group == 0:
        return value
    begin, end = (build.constant([at], np.int64) for at in (0, columns))
    return build.op("Slice", value, begin, end, name=f"{name}.weight")


def laid_out(weight: IntegerWeight) -> NDArray[np.int8]:
    """The signed integers [out, in] as [in, out] or [groups, 1, group, out]."""
    integers: NDArray[np.int8] = weight.integers.numpy()
    group = weight.grid.group
    if group is None:
        return integers.T
    rows, columns = integers.shape
    filled = np.pad(integers, ((0, 0), (0, -columns % group)))
    return filled.reshape(rows, -1, group).transpose(1, 2, 0)[:, None]


def scales(weight: IntegerWeight) -> NDArray[np.float32]:
    """float32 [out] or [groups, 1, 1, out]."""
    found: NDArray[np.float32] = _per_group(weight.scale, weight)
    return found


def unsigned(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    return (integers.astype(np.int16) + ZERO_POINT).astype(np.uint8)


def _per_group(values: torch.Tensor, weight: IntegerWeight) -> NDArray[Any]:
    """[out, groups] as [out] or [groups, 1, 1, out], to broadcast against the integers."""
    array: NDArray[Any] = values.numpy().T
    return array[0] if weight.grid.group is None else array[:, None, None, :]


def _nibbles(build: Builder, signed: NDArray[np.int8], name: str) -> ir.Value:
    """Levels -8..7 as uint8 0..15, stored in half a byte each."""
    nibbles = (signed + HALF_BYTE).astype(np.uint8)
    packed = build.weight(pack4(nibbles), f"{name}.weight_packed")
    low = build.op("BitwiseAnd", packed, build.constant(15, np.uint8), name=f"{name}.weight_low")
    four = build.constant(4, np.uint8)
    high = build.op("BitShift", packed, four, name=f"{name}.weight_high", direction="RIGHT")
    flat = build.op("Concat", low, high, name=f"{name}.weight_flat", axis=0)
    if nibbles.size % 2:
        begin, end = (build.constant([at], np.int64) for at in (0, nibbles.size))
        flat = build.op("Slice", flat, begin, end, name=f"{name}.weight_cut")
    shape = build.constant(nibbles.shape, np.int64)
    return build.op("Reshape", flat, shape, name=f"{name}.weight_nibbles")


def _zeros(build: Builder, zeros: NDArray[Any], to: ir.DataType, name: str) -> ir.Value:
    """Zero points, 16 bits on disk, in the type of what they are taken from."""
    stored = build.weight(zeros.astype(np.int16), f"{name}.weight_zeros")
    return build.op("Cast", stored, name=f"{name}.weight_zeros_cast", to=to)


def _in_a_byte(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 255:
        raise Unsupported(
            f"target ort cannot multiply {name} by integers: a row of its weights lies so far from "
            "zero that its zero point does not fit 8 bits; use a grid whose ranges hold zero, or "
            "float activations (w4a16, w8a16)"
        )
    return values.astype(np.uint8)
