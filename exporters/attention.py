"""Attention with a KV cache in ONNX: fused where the kernel takes the head, standard otherwise.

Where nothing stands between them, the fused kernel takes q, k and v as one, turns them by their
positions itself, and writes keys and values into the buffers that it read them from. Norms of heads
come before it turns them, and only part the three. The online rotation R3 and the rounding of keys
and values do stand between: then rotary embedding is a node of its own before them, so that the
cache holds what the simulation attends to.
Inputs are [batch, new, width]; caches are [batch, kv_heads, length, head_dim].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge.anatomy import Anatomy
from slmq_edge.decoder import rotary_table
from slmq_edge.exporters import roundings
from slmq_edge.exporters.floats import Floats
from slmq_edge.exporters.graph import MICROSOFT, Builder, onnx_type
from slmq_edge.scheme import Grid

# GroupQueryAttention takes these heads; with its own rotary embedding, those (ONNXRUNTIME 2).
FUSED_HEAD_MULTIPLE, ROTARY_HEAD_MULTIPLE = 8, 16


@dataclass(frozen=True)
class Cache:
    """Keys and values of one block: what was, or what will be."""

    key: ir.Value
    value: ir.Value


def as_outputs(
    presents: Sequence[Cache], floats: Floats, shape: Sequence[int | str]
) -> list[ir.Value]:
    """The caches that a graph puts out, layer by layer, named and typed; ``shape``: of each."""
    outputs = []
    for layer, present in enumerate(presents):
        for kind in ("key", "value"):
            value: ir.Value = getattr(present, kind)
            value.name = f"present.{layer}.{kind}"
            value.type = ir.TensorType(onnx_type(floats))
            value.shape = ir.Shape(shape)
            outputs.append(value)
    return outputs


def is_fused(shape: Anatomy) -> bool:
    """Whether the model's heads fit GroupQueryAttention."""
    return shape.head_dim % FUSED_HEAD_MULTIPLE == 0


class Attention:
    """Attention of all blocks; what they share is computed once.

    attention_mask: int64 [batch, length]; position_ids: int64 [batch, new]. rotation: R3 for rows
    of a head, float32 [head_dim, head_dim] or ``None``; kv: the grid of keys and values.
    """

    def __init__(
        self,
        build: Builder,
        shape: Anatomy,
        attention_mask: ir.Value,
        position_ids: ir.Value,
        context_length: int,
        rotation: NDArray[np.float32] | None = None,
        kv: Grid | None = None,
    ) -> None:
        import torch

        self._build, self._shape = build, shape
        self._rotation, self._kv = rotation, kv
        self._position_ids = position_ids
        cosine, sine = rotary_table(shape, context_length, torch.float32, "cpu")
        self._cosine = build.float_weight(cosine.numpy(), "rotary.cosine")
        self._sine = build.float_weight(sine.numpy(), "rotary.sine")
        self.fused = is_fused(shape)
        rotates = shape.head_dim % ROTARY_HEAD_MULTIPLE == 0
        self._kernel_rotates = rotates and rotation is None and kv is None
        if self.fused:
            self._lengths = self._past_lengths(attention_mask)
        else:
            self._mask = self._causal_mask(attention_mask, position_ids)

    def __call__(
        self, qkv: ir.Value, past: Cache, name: str, gains: Sequence[NDArray[np.float32]] = ()
    ) -> tuple[ir.Value, Cache]:
        """Mix values [batch, new, heads * head_dim]; also the caches that hold the new tokens.

        qkv: queries, keys and values side by side, [batch, new, width of all]. gains: [head_dim] of
        the norms of q's and of k's heads, where there are such norms.
        """
        rotary = (self._cosine, self._sine)
        if self._kernel_rotates and not gains:
            return self._group_query_attention((qkv, None, None), past, name, rotary)
        widths = (self._shape.query_width, self._shape.kv_width, self._shape.kv_width)
        query, key, value = self._build.ops(
            "Split",
            qkv,
            self._build.constant(widths, np.int64),
            name=f"{name}.qkv_split",
            outputs=[f"{name}.{one}" for one in ("query", "key", "value")],
            axis=-1,
        )
        if gains:
            query = self._norm(query, gains[0], f"{name}.q_norm")
            key = self._norm(key, gains[1], f"{name}.k_norm")
        if self._kernel_rotates:
            return self._group_query_attention((query, key, value), past, name, rotary)
        query = self._rotate(query, f"{name}.query", self._shape.heads)
        key = self._rotate(key, f"{name}.key", self._shape.kv_heads)
        if self._kv is not None:
            key, value = self._round(key, value, self._kv, name)
        if self.fused:
            return self._group_query_attention((query, key, value), past, name)
        return self._standard(query, key, value, past, name)

    def _norm(self, x: ir.Value, gain: NDArray[np.float32], name: str) -> ir.Value:
        """RMSNorm of every head of ``x`` [batch, new, heads * head_dim]."""
        rows = self._build.constant([0, 0, -1, self._shape.head_dim], np.int64)
        normed = self._build.op(
            "SimplifiedLayerNormalization",
            self._build.op("Reshape", x, rows, name=f"{name}.split"),
            self._build.float_weight(gain, f"{name}.weight"),
            name=f"{name}.normed_heads",
            axis=-1,
            epsilon=self._shape.norm_eps,
            stash_type=1,
        )
        flat = self._build.constant([0, 0, -1], np.int64)
        return self._build.op("Reshape", normed, flat, name=f"{name}.normed")

    def _rotate(self, x: ir.Value, name: str, heads: int) -> ir.Value:
        """By its position, and by R3 where the model has it."""
        rotated = self._build.op(
            "RotaryEmbedding",
            x,
            self._position_ids,
            self._cosine,
            self._sine,
            name=f"{name}.rotated",
            domain=MICROSOFT,
            num_heads=heads,
        )
        if self._rotation is None:
            return rotated
        by_head = self._split(rotated, heads, f"{name}.rotated")
        matrix = self._build.float_constant(self._rotation)
        spread = self._build.op("MatMul", by_head, matrix, name=f"{name}.spread_heads")
        return self._join(spread, heads, f"{name}.spread")

    def _round(
        self, key: ir.Value, value: ir.Value, grid: Grid, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Keys and values by token and head, all at once: heads are rows of their own."""
        build, shape = self._build, self._shape
        both = build.op("Concat", key, value, name=f"{name}.key_value", axis=-1)
        heads = self._split(both, 2 * shape.kv_heads, f"{name}.key_value")
        rounded = roundings.there_and_back(build, heads, grid, shape.head_dim, f"{name}.key_value")
        joint = self._join(rounded, 2 * shape.kv_heads, f"{name}.key_value_rounded")
        widths = build.constant([shape.kv_width, shape.kv_width], np.int64)
        outputs = (f"{name}.key_rounded", f"{name}.value_rounded")
        rounded_key, rounded_value = build.ops(
            "Split", joint, widths, name=f"{name}.key_value_split", outputs=outputs, axis=-1
        )
        return rounded_key, rounded_value

    def _past_lengths(self, attention_mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """int32: last position of every row [batch], and the length of the longest []."""
        build = self._build
        one, axis = build.constant(1, np.int64), build.constant([1], np.int64)
        seen = build.op("ReduceSum", attention_mask, axis, name="mask.seen", keepdims=0)
        last = build.op("Sub", seen, one, name="mask.last")
        total = build.op("Shape", attention_mask, name="mask.length", start=1, end=2)
        scalar = build.op(
            "Squeeze", total, build.constant([0], np.int64), name="mask.length_scalar"
        )
        int32 = ir.DataType.INT32
        return (
            build.op("Cast", last, name="mask.last_int32", to=int32),
            build.op("Cast", scalar, name="mask.length_int32", to=int32),
        )

    def _group_query_attention(
        self,
        qkv: tuple[ir.Value, ir.Value | None, ir.Value | None],
        past: Cache,
        name: str,
        rotary: tuple[ir.Value, ...] = (),
    ) -> tuple[ir.Value, Cache]:
        """rotary: cosine and sine, for the kernel to turn queries and keys by."""
        last, total = self._lengths
        mixed, new_key, new_value = self._build.ops(
            "GroupQueryAttention",
            *qkv,
            past.key,
            past.value,
            last,
            total,
            *rotary,
            name=f"{name}.attention",
            outputs=(f"{name}.mixed", f"{name}.present_key", f"{name}.present_value"),
            domain=MICROSOFT,
            num_heads=self._shape.heads,
            kv_num_heads=self._shape.kv_heads,
            do_rotary=int(bool(rotary)),
            scale=1.0 / math.sqrt(self._shape.head_dim),
        )
        return mixed, Cache(new_key, new_value)

    def _causal_mask(self, attention_mask: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Floats [batch, 1, new, length]: 0 where a query may look, the lowest one elsewhere."""
        build = self._build

        def scalar(x: ir.Value, name: str) -> ir.Value:
            size = build.op("Shape", x, name=f"{name}.shape", start=1, end=2)
            return build.op("Squeeze", size, build.constant([0], np.int64), name=name)

        zero, one = build.constant(0, np.int64), build.constant(1, np.int64)
        length = scalar(attention_mask, "mask.length")
        new = scalar(position_ids, "mask.new")
        first = build.op("Sub", length, new, name="mask.first")
        queries = build.op("Range", first, length, one, name="mask.queries")
        column = build.op(
            "Unsqueeze", queries, build.constant([1], np.int64), name="mask.query_column"
        )
        keys = build.op("Range", zero, length, one, name="mask.keys")
        causal = build.op("LessOrEqual", keys, column, name="mask.causal")
        real = build.op("Cast", attention_mask, name="mask.real", to=ir.DataType.BOOL)
        rows = build.op("Unsqueeze", real, build.constant([1, 2], np.int64), name="mask.real_rows")
        allowed = build.op("And", causal, rows, name="mask.allowed")
        zero_f, low_f = build.float_constant(0.0), build.float_constant(build.floats.lowest)
        return build.op("Where", allowed, zero_f, low_f, name="mask.additive")

    def _standard(
        self, query: ir.Value, key: ir.Value, value: ir.Value, past: Cache, name: str
    ) -> tuple[ir.Value, Cache]:
        build, shape = self._build, self._shape
        query = self._heads(query, shape.heads, f"{name}.query")
        present = Cache(
            *(
                build.op(
                    "Concat",
                    old,
                    self._heads(new, shape.kv_heads, f"{name}.{kind}"),
                    name=f"{name}.present_{kind}",
                    axis=2,
                )
                for kind, old, new in (("key", past.key, key), ("value", past.value, value))
            )
        )
        keys = self._repeat(present.key, f"{name}.key")
        values = self._repeat(present.value, f"{name}.value")
        turned = build.op("Transpose", keys, name=f"{name}.keys_turned", perm=[0, 1, 3, 2])
        products = build.op("MatMul", query, turned, name=f"{name}.products")
        root = build.float_constant(1.0 / math.sqrt(shape.head_dim))
        scores = build.op("Mul", products, root, name=f"{name}.scores")
        masked = build.op("Add", scores, self._mask, name=f"{name}.masked")
        shares = build.op("Softmax", masked, name=f"{name}.shares", axis=-1)
        mixed = build.op("MatMul", shares, values, name=f"{name}.mixed_heads")
        back = build.op("Transpose", mixed, name=f"{name}.mixed_turned", perm=[0, 2, 1, 3])
        flat = build.constant([0, 0, shape.query_width], np.int64)
        return build.op("Reshape", back, flat, name=f"{name}.mixed"), present

    def _heads(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        split = self._split(x, heads, name)
        return self._build.op("Transpose", split, name=f"{name}.heads", perm=[0, 2, 1, 3])

    def _split(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """[batch, new, heads * head_dim] -> [batch, new, heads, head_dim]."""
        shape = self._build.constant([0, 0, heads, self._shape.head_dim], np.int64)
        return self._build.op("Reshape", x, shape, name=f"{name}.split")

    def _join(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """[batch, new, heads, head_dim] -> [batch, new, heads * head_dim]."""
        shape = self._build.constant([0, 0, heads * self._shape.head_dim], np.int64)
        return self._build.op("Reshape", x, shape, name=name)

    def _repeat(self, x: ir.Value, name: str) -> ir.Value:
        """One copy of every KV head for each query head of its group."""
        group = self._shape.heads // self._shape.kv_heads
        if group == 1:
            return x
        build = self._build
        lone = build.op("Unsqueeze", x, build.constant([2], np.int64), name=f"{name}.lone")
        tile = build.constant([1, 1, group, 1, 1], np.int64)
        copies = build.op("Tile", lone, tile, name=f"{name}.copies")
        size = build.constant([0, self._shape.heads, -1, self._shape.head_dim], np.int64)
        return build.op("Reshape", copies, size, name=f"{name}.repeated")
