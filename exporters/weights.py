"""How weights lie in the graph: transposed integers, unpacked or turned into floats at load.

    one scale a row     [in, out],             scales [out]
    groups of g         [groups, 1, g, out],   scales [groups, 1, 1, out]; the last is filled up
    blocks of g         [out, blocks, g bits], scales [out * blocks]; as MatMulNBits reads them

4-bit integers are packed, two a byte. Blocks stay so in memory. In the other forms, what stands
between them and the product is constant, so the runtime does it once: 4 bits on disk, 8 (or a
float) in memory (ONNXRUNTIME 14: the form that both 1.19 and 1.31 take).
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
from slmq_edge.exporters.limits import block_size
from slmq_edge.exporters.roundings import ZERO_POINT
from slmq_edge.packing import pack4

HALF_BYTE = 8


@dataclass(frozen=True)
class Stored:
    """Integers, and what stands for zero in them, of their type: [], or laid out as scales are."""

    integers: ir.Value
    zero: NDArray[Any]


def stack(weights: Sequence[IntegerWeight]) -> IntegerWeight:
    """Several weights of one grid as one: the rows of all, [sum of out, in]."""
    zeros = [weight.zero for weight in weights if weight.zero is not None]
    return IntegerWeight(
        torch.cat([weight.integers for weight in weights]),
        torch.cat([weight.scale for weight in weights]),
        torch.cat(zeros) if zeros else None,
        weights[0].grid,
    )


def store(build: Builder, weight: IntegerWeight, name: str, signed: bool = False) -> Stored:
    """The integers as a kernel multiplies them: uint8, or int8 of the same bytes on disk.

    4-bit levels less their zero points still fit 8 bits: then all have one zero, the middle.

    Raises:
        Unsupported: a zero point, or a level less its zero point, does not fit 8 bits.
    """
    levels = laid_out(weight)
    if weight.grid.bits == 8:
        stored = store8(build, levels, name, signed)
        if weight.zero is None:
            return Stored(stored, middle(signed))
        zeros = _in_a_byte(_per_group(weight.zero, weight) + ZERO_POINT, name)
        return Stored(stored, _signed(zeros) if signed else zeros)
    kind = ir.DataType.INT8 if signed else ir.DataType.UINT8
    packed = nibbles(build, levels, name)
    if weight.zero is None:
        if signed:
            packed = build.op("Cast", packed, name=f"{name}.weight", to=kind)
        return Stored(packed, np.array(HALF_BYTE, middle(signed).dtype))
    centred = levels.astype(np.int32) - _per_group(weight.zero, weight)
    _in_a_byte(centred + ZERO_POINT, name)
    shift = _per_group(weight.zero, weight) + (HALF_BYTE - int(middle(signed)))
    by = _zeros(build, shift, ir.DataType.INT32, name)
    return Stored(less(build, packed, by, kind, name), middle(signed))


def less(build: Builder, levels: ir.Value, by: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    """Levels less ``by`` int32, in 8 bits: onnxruntime 1.19 has no subtraction of these."""
    wide = build.op("Cast", levels, name=f"{name}.weight_wide", to=ir.DataType.INT32)
    moved = build.op("Sub", wide, by, name=f"{name}.weight_centred")
    return build.op("Cast", moved, name=f"{name}.weight", to=to)


def middle(signed: bool) -> NDArray[Any]:
    """What stands for zero in 8 bits."""
    return np.array(0, np.int8) if signed else np.array(ZERO_POINT, np.uint8)


def store8(build: Builder, levels: NDArray[np.int8], name: str, signed: bool) -> ir.Value:
    """8-bit levels, on disk uint8 of zero point 128.

    signed: the same bytes read as int8, and their top bits turned at load.
    """
    stored = unsigned(levels)
    if not signed:
        return build.weight(stored, f"{name}.weight")
    top = build.constant(-ZERO_POINT, np.int8)
    read = build.weight(stored.view(np.int8), f"{name}.weight")
    return build.op("BitwiseXor", read, top, name=f"{name}.weight_turned")


def _signed(points: NDArray[np.uint8]) -> NDArray[np.int8]:
    return (points.astype(np.int16) - ZERO_POINT).astype(np.int8)


def dequantize(build: Builder, weight: IntegerWeight, name: str) -> ir.Value:
    """The weight as float32 [in, out], from its integers: (integers - zero) * scale."""
    signed = laid_out(weight)
    if weight.grid.bits == 8:
        middle, stored = ZERO_POINT, build.weight(unsigned(signed), f"{name}.weight_integers")
    else:
        middle, stored = HALF_BYTE, nibbles(build, signed, name)
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


@dataclass(frozen=True)
class Blocks:
    """integers: uint8 [out, blocks, bytes]; scale: floats [out * blocks]; zero: uint8 or ``None``.

    Without zero points, the middle of the levels stands for zero.
    """

    size: int
    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None


def blocks(build: Builder, weight: IntegerWeight, name: str) -> Blocks:
    """The integers in blocks; what fills up a row's last one stands for zero.

    Raises:
        Unsupported: a zero point is none of the grid's levels.
    """
    size, bits = block_size(weight.grid), weight.grid.bits
    assert size is not None, "asked of what fits blocks"
    rows, columns = weight.integers.shape
    middle, count = 2 ** (bits - 1), -(-columns // size)
    per_block = 1 if weight.grid.group else count
    unsigned_levels = (weight.integers.numpy().astype(np.int16) + middle).astype(np.uint8)
    filled = np.pad(
        unsigned_levels, ((0, 0), (0, count * size - columns)), constant_values=middle
    ).reshape(rows, count, size)
    zero = None
    if weight.zero is not None:
        if not are_levels(weight):
            raise Unsupported(_far_from_zero(name, f"{bits} bits"))
        points = weight.zero.numpy().repeat(per_block, 1) + middle
        zero = build.weight(_pairs(points.astype(np.uint8), bits), f"{name}.zeros")
    scale = weight.scale.numpy().repeat(per_block, 1).reshape(-1)
    return Blocks(
        size,
        build.weight(_pairs(filled, bits), f"{name}.weight"),
        build.float_weight(scale, f"{name}.scale"),
        zero,
    )


def are_levels(weight: IntegerWeight) -> bool:
    """Whether every zero point is one of the integers' levels, as blocks store them."""
    half, zero = 2 ** (weight.grid.bits - 1), weight.zero
    return zero is None or bool(((zero >= -half) & (zero < half)).all())


def _pairs(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """4-bit levels, two neighbours of the last dimension a byte; 8-bit ones as they are."""
    if bits == 8:
        return levels
    ends = [(0, 0)] * (levels.ndim - 1) + [(0, levels.shape[-1] % 2)]
    even = np.pad(levels, ends)
    return (even[..., 0::2] | (even[..., 1::2] << 4)).astype(np.uint8)


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


def nibbles(build: Builder, signed: NDArray[np.int8], name: str) -> ir.Value:
    """Levels -8..7 as uint8 0..15, stored in half a byte each."""
    levels = (signed + HALF_BYTE).astype(np.uint8)
    packed = build.weight(pack4(levels), f"{name}.weight_packed")
    low = build.op("BitwiseAnd", packed, build.constant(15, np.uint8), name=f"{name}.weight_low")
    four = build.constant(4, np.uint8)
    high = build.op("BitShift", packed, four, name=f"{name}.weight_high", direction="RIGHT")
    flat = build.op("Concat", low, high, name=f"{name}.weight_flat", axis=0)
    if levels.size % 2:
        begin, end = (build.constant([at], np.int64) for at in (0, levels.size))
        flat = build.op("Slice", flat, begin, end, name=f"{name}.weight_cut")
    shape = build.constant(levels.shape, np.int64)
    return build.op("Reshape", flat, shape, name=f"{name}.weight_nibbles")


def _zeros(build: Builder, zeros: NDArray[Any], to: ir.DataType, name: str) -> ir.Value:
    """Zero points, 16 bits on disk, in the type of what they are taken from."""
    stored = build.weight(zeros.astype(np.int16), f"{name}.weight_zeros")
    return build.op("Cast", stored, name=f"{name}.weight_zeros_cast", to=to)


def _in_a_byte(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 255:
        raise Unsupported(_far_from_zero(name, "8 bits"))
    return values.astype(np.uint8)


def _far_from_zero(name: str, bits: str) -> str:
    return (
        f"target ort cannot multiply {name} by integers: a row of its weights lies so far from "
        f"zero that its zero point does not fit {bits}; use a grid whose ranges hold zero, or "
        "float activations (w4a16, w8a16)"
    )
