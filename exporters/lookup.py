"""The lookup table in the graph: its rows, as floats, of what a tied head multiplies by.

    float       [vocab, hidden]
    8 bits      [vocab, hidden], one scale a row       row = (integers - 128) s
    4 bits      [vocab, blocks, bytes], two a byte     row = block by block (integers - 8) s

One initializer serves lookup and head: packed for the product once, and read where it lies in the
file for the few rows that are looked up (ONNXRUNTIME 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from slmq_edge.exporters.graph import Builder
from slmq_edge.exporters.weights import HALF_BYTE, Blocks

if TYPE_CHECKING:
    from slmq_edge.checkpoint import IntegerWeight
    from slmq_edge.exporters.flavours import Integers


def byte_rows(
    build: Builder, table: ir.Value, weight: IntegerWeight, tokens: ir.Value, integers: Integers
) -> ir.Value:
    """Rows [batch, new, hidden] of an 8-bit table, in the graph's floats."""
    stored = build.op("Gather", table, tokens, name="embed.stored", axis=0)
    scales = build.weight(weight.scale[:, 0].numpy(), "embed.scale")
    centred = integers.centred(stored, "embed")
    scale = build.op("Gather", scales, tokens, name="embed.row_scale", axis=0)
    axis = build.constant([-1], np.int64)
    column = build.op("Unsqueeze", scale, axis, name="embed.row_scale_column")
    rows = build.op("Mul", centred, column, name="embed.rows")
    return build.as_floats(rows, "embed.rows")


def block_rows(build: Builder, table: Blocks, tokens: ir.Value, width: int) -> ir.Value:
    """Rows [batch, new, width] of a 4-bit table in blocks without zero points, float32."""
    count = -(-width // table.size)
    pairs = build.op("Gather", table.integers, tokens, name="embed.stored", axis=0)
    low = build.op("BitwiseAnd", pairs, build.constant(15, np.uint8), name="embed.low")
    four = build.constant(4, np.uint8)
    high = build.op("BitShift", pairs, four, name="embed.high", direction="RIGHT")
    last = build.constant([-1], np.int64)
    halves = [build.op("Unsqueeze", half, last, name=f"{half.name}_half") for half in (low, high)]
    both = build.op("Concat", *halves, name="embed.pairs", axis=-1)
    in_blocks = build.constant([0, 0, count, table.size], np.int64)
    levels = build.op("Reshape", both, in_blocks, name="embed.levels")
    floats = build.op("Cast", levels, name="embed.cast", to=ir.DataType.FLOAT)
    zero = build.constant(HALF_BYTE, np.float32)
    centred = build.op("Sub", floats, zero, name="embed.integers")
    scaled = build.op("Mul", centred, _scales(build, table, tokens, count), name="embed.scaled")
    flat = build.constant([0, 0, count * table.size], np.int64)
    rows = build.op("Reshape", scaled, flat, name="embed.filled")
    if count * table.size == width:
        return rows
    begin, end, axis = (build.constant([at], np.int64) for at in (0, width, 2))
    return build.op("Slice", rows, begin, end, axis, name="embed.rows")


def _scales(build: Builder, table: Blocks, tokens: ir.Value, count: int) -> ir.Value:
    """Of every block of those rows, [batch, new, count, 1]; the product reads them as one line."""
    last = build.constant([-1], np.int64)
    first = build.op("Mul", tokens, build.constant(count, np.int64), name="embed.first_block")
    column = build.op("Unsqueeze", first, last, name="embed.first_block_column")
    places = build.op("Add", column, build.constant(range(count), np.int64), name="embed.blocks")
    scale = build.op("Gather", table.scale, places, name="embed.block_scale", axis=0)
    return build.op("Unsqueeze", scale, last, name="embed.block_scale_column")
