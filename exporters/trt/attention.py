"""Attention over caches that are rooms, in standard operators (TENSORRT 2.4, 5.1).

    slot p < room    present[p] = new[p - first]   where first <= p <= last,   past[p] elsewhere
    query at t       softmax over slots p <= t of (q / sqrt(d)) k[p]

A room's length does not grow with what is in it, so that the shapes of a decoding step stay the
same, and an engine's CUDA graph can be replayed. Positions are float32, exact up to 2^24: there are
engines that calculate with no int64. Rotary embedding and softmax are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from slmq_edge.anatomy import Anatomy
from slmq_edge.decoder import rotary_table
from slmq_edge.exporters.attention import Cache
from slmq_edge.exporters.graph import Builder

# Far below any score, and what is taken from it is still finite.
HIDDEN_SCORE = -65504.0


@dataclass(frozen=True)
class _Places:
    """Where the new tokens go, for all layers.

    source: int64 [room], which of the new tokens a slot would take. is_new: bool [room, 1], whether
    it does. mask: float32 [1, 1, 1, new, room], added to scores. cosine, sine: float32
    [1, 1, new, head_dim / 2].
    """

    source: ir.Value
    is_new: ir.Value
    mask: ir.Value
    cosine: ir.Value
    sine: ir.Value


class Attention:
    """Attention of all blocks; what they share is computed once.

    position_ids: int64 [1, new]; past: a cache, of whose room there are as many slots. rotation: R3
    for rows of a head, float32 [head_dim, head_dim], or ``None``.
    """

    def __init__(
        self,
        build: Builder,
        shape: Anatomy,
        position_ids: ir.Value,
        past: Cache,
        context_length: int,
        rotation: NDArray[np.float32] | None = None,
    ) -> None:
        self._build, self._shape, self._rotation = build, shape, rotation
        self._places = self._find_places(position_ids, past, context_length)

    def __call__(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: Cache,
        name: str,
        gains: Sequence[NDArray[np.float32]] = (),
    ) -> tuple[ir.Value, Cache]:
        """Mixed values [1, new, heads * head_dim], and the rooms with the new tokens in them.

        query, key, value: of the graph's floats, [1, new, width]. gains: of the norms of q's and of
        k's heads, where there are such norms.
        """
        build, shape = self._build, self._shape
        query_gain, key_gain = gains or (None, None)
        query = self._turned(query, shape.heads, query_gain, f"{name}.query")
        key = self._turned(key, shape.kv_heads, key_gain, f"{name}.key")
        value = self._heads(value, shape.kv_heads, f"{name}.value")
        present = Cache(
            self._placed(key, past.key, f"{name}.key"),
            self._placed(value, past.value, f"{name}.value"),
        )
        root = build.float_constant(1 / math.sqrt(shape.head_dim))
        query = build.op("Mul", query, root, name=f"{name}.query_scaled")
        # Query heads by the KV head that they share: [1, kv_heads, group, new, head_dim].
        group = shape.heads // shape.kv_heads
        by_group = build.constant([1, shape.kv_heads, group, -1, shape.head_dim], np.int64)
        query = build.op("Reshape", query, by_group, name=f"{name}.query_groups")
        lone = build.constant([2], np.int64)
        keys = build.op("Unsqueeze", present.key, lone, name=f"{name}.keys")
        keys = build.op("Transpose", keys, name=f"{name}.keys_turned", perm=[0, 1, 2, 4, 3])
        values = build.op("Unsqueeze", present.value, lone, name=f"{name}.values")
        scores = build.op("MatMul", query, keys, name=f"{name}.scores")
        scores = build.as_float32(scores, f"{name}.scores")
        masked = build.op("Add", scores, self._places.mask, name=f"{name}.masked")
        shares = build.op("Softmax", masked, name=f"{name}.shares", axis=-1)
        shares = build.as_floats(shares, f"{name}.shares")
        mixed = build.op("MatMul", shares, values, name=f"{name}.mixed_heads")
        back = build.op("Transpose", mixed, name=f"{name}.mixed_turned", perm=[0, 3, 1, 2, 4])
        flat = build.constant([1, -1, shape.query_width], np.int64)
        return build.op("Reshape", back, flat, name=f"{name}.mixed"), present

    def _find_places(self, position_ids: ir.Value, past: Cache, context_length: int) -> _Places:
        build = self._build
        first_axis, columns = build.constant([0], np.int64), build.constant([1], np.int64)
        table = build.weight(np.arange(context_length, dtype=np.float32), "rooms.slots_table")
        # Of the whole shape: the parser of TensorRT 8.4 does not look at Shape's start and end.
        sizes = build.op("Shape", past.key, name="rooms.shape")
        room = build.op("Gather", sizes, build.constant([2], np.int64), name="rooms.length")
        slots = build.op("Slice", table, first_axis, room, first_axis, name="rooms.slots")
        positions = build.op("Cast", position_ids, name="rooms.positions", to=ir.DataType.FLOAT)
        first = self._end(positions, "ReduceMin", "rooms.first")
        last = self._end(positions, "ReduceMax", "rooms.last")
        offsets = build.op("Sub", slots, first, name="rooms.offsets")
        zero = build.constant(0.0, np.float32)
        ahead = build.op("Max", offsets, zero, name="rooms.ahead")
        span = build.op("Sub", last, first, name="rooms.span")
        nearest = build.op("Min", ahead, span, name="rooms.nearest")
        source = build.op("Cast", nearest, name="rooms.source", to=ir.DataType.INT64)
        # New is what the nearest new token stands at.
        differs = build.op("Sub", offsets, nearest, name="rooms.differs")
        taken = build.op("Equal", differs, zero, name="rooms.taken")
        is_new = build.op("Unsqueeze", taken, columns, name="rooms.is_new")
        rows = build.op(
            "Unsqueeze", positions, build.constant([1, 2, 4], np.int64), name="rooms.queries"
        )
        visible = build.op("LessOrEqual", slots, rows, name="rooms.visible")
        hidden = build.constant(HIDDEN_SCORE, np.float32)
        mask = build.op("Where", visible, zero, hidden, name="rooms.mask")
        angles = rotary_table(self._shape, context_length, torch.float32, "cpu")
        cosine, sine = (
            self._angles(table.numpy(), position_ids, f"rotary.{kind}")
            for table, kind in zip(angles, ("cosine", "sine"), strict=True)
        )
        return _Places(source, is_new, mask, cosine, sine)

    def _end(self, positions: ir.Value, kind: str, name: str) -> ir.Value:
        """The first or the last of the positions, float32 [1]."""
        found = self._build.reduce(kind, positions, -1, f"{name}_column")
        return self._build.op("Reshape", found, self._build.constant([1], np.int64), name=name)

    def _angles(self, table: NDArray[np.float32], position_ids: ir.Value, name: str) -> ir.Value:
        build = self._build
        rows = build.op(
            "Gather",
            build.weight(table, f"{name}_table"),
            position_ids,
            name=f"{name}_rows",
            axis=0,
        )
        return build.op("Unsqueeze", rows, build.constant([1], np.int64), name=name)

    def _heads(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """[1, new, heads * head_dim] as [1, heads, new, head_dim]."""
        build = self._build
        shape = build.constant([1, -1, heads, self._shape.head_dim], np.int64)
        split = build.op("Reshape", x, shape, name=f"{name}.split")
        return build.op("Transpose", split, name=f"{name}.heads", perm=[0, 2, 1, 3])

    def _turned(
        self, x: ir.Value, heads: int, gain: NDArray[np.float32] | None, name: str
    ) -> ir.Value:
        """Heads, normed where they have a norm, turned by their positions, and by R3."""
        build, half = self._build, self._shape.head_dim // 2
        wide = build.as_float32(self._heads(x, heads, name), f"{name}.heads")
        if gain is not None:
            wide = norm(build, wide, gain, self._shape.norm_eps, f"{name}.norm")
        sizes = build.constant([half, half], np.int64)
        outputs = (f"{name}.first", f"{name}.second")
        first, second = build.ops(
            "Split", wide, sizes, name=f"{name}.halves", outputs=outputs, axis=-1
        )
        cosine, sine = self._places.cosine, self._places.sine

        def product(one: ir.Value, two: ir.Value, kind: str) -> ir.Value:
            return build.op("Mul", one, two, name=f"{name}.{kind}")

        left = build.op(
            "Sub",
            product(first, cosine, "first_cosine"),
            product(second, sine, "second_sine"),
            name=f"{name}.first_turned",
        )
        right = build.op(
            "Add",
            product(second, cosine, "second_cosine"),
            product(first, sine, "first_sine"),
            name=f"{name}.second_turned",
        )
        turned = build.op("Concat", left, right, name=f"{name}.turned", axis=-1)
        turned = build.as_floats(turned, f"{name}.turned")
        if self._rotation is None:
            return turned
        matrix = build.float_constant(self._rotation)
        return build.op("MatMul", turned, matrix, name=f"{name}.spread")

    def _placed(self, new: ir.Value, past: ir.Value, name: str) -> ir.Value:
        build, places = self._build, self._places
        spread = build.op("Gather", new, places.source, name=f"{name}.by_slot", axis=2)
        return build.op("Where", places.is_new, spread, past, name=f"{name}.present")


def norm(
    build: Builder, x: ir.Value, gain: NDArray[np.float32], epsilon: float, name: str
) -> ir.Value:
    """RMSNorm of rows of ``x`` float32 [..., width], in float32: squares overflow float16."""
    squares = build.op("Mul", x, x, name=f"{name}.squares")
    mean = build.reduce("ReduceMean", squares, -1, f"{name}.mean")
    safe = build.op("Add", mean, build.constant(epsilon, np.float32), name=f"{name}.safe")
    root = build.op("Sqrt", safe, name=f"{name}.root")
    ratio = build.op("Div", x, root, name=f"{name}.ratio")
    return build.op("Mul", ratio, build.weight(gain, f"{name}.gain"), name=f"{name}.normed")
