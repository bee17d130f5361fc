"""Attention's operators as Triton kernels; `reference_attention` defines them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime.cache import Kept
from slmq_edge.torch_runtime.kernels import blocks, launching
from slmq_edge.torch_runtime.kernels.attend import attend_stretch, join_stretches
from slmq_edge.torch_runtime.kernels.blocks import power_of_two
from slmq_edge.torch_runtime.kernels.store import turn_and_store

# Products on matrix units have at least so many rows, and so many terms.
LEAST = 16


def turned_stored(
    heads: Tensor,
    cosine: Tensor,
    sine: Tensor,
    start: Tensor,
    keys: Kept,
    values: Kept,
    query: Grid | None,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """See `reference_attention`."""
    batch, new, count, dim = heads.shape
    queries = heads.new_empty((batch, new, count - 2 * keys.stored.shape[1], dim))
    _launch(heads, (cosine, sine), start, queries, (keys, values), query, gains, eps)
    return queries


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """See `reference_attention`."""
    out = x.new_empty(x.shape)
    _launch(x, (cosine, sine), None, out, None)
    return out


def stored(key: Tensor, value: Tensor, start: Tensor, keys: Kept, values: Kept) -> None:
    """See `reference_attention`."""
    _launch(torch.cat([key, value], dim=2), None, start, None, (keys, values))


def attend(query: Tensor, keys: Kept, values: Kept, start: Tensor) -> Tensor:
    """See `reference_attention`; only positions that are filled are read."""
    batch, length, heads, dim = query.shape
    _, kv_heads, room, _ = keys.stored.shape
    query = query.contiguous()
    out = query.new_empty(query.shape)
    count = blocks.splits(room)
    parts: tuple[Any, ...] = (out, None, None)
    if count > 1:
        wide = query.new_empty((*query.shape[:3], count, dim), dtype=torch.float32)
        best, weight = (wide.new_empty(wide.shape[:4]) for _ in range(2))
        parts = (wide, best, weight)
    shape = {"HEADS": heads, "DIM": dim, "STRETCH": blocks.STRETCH if count > 1 else room}
    block = max(LEAST, power_of_two(dim))
    launching.launch(
        attend_stretch, (kv_heads, count, batch * length),
        query, *_parts(keys), *_parts(values), start, *parts, length, 1 / math.sqrt(dim),
        **shape, KV_HEADS=kv_heads, ROOM=room, SPLITS=count,
        SHARED=max(LEAST, power_of_two(heads // kv_heads)), BLOCK=block, COUNT=blocks.POSITIONS,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    if count > 1:
        launching.launch(
            join_stretches, (heads, batch * length), *parts, start, out, length,
            **shape, SPLITS=count, BLOCK=block, MOST=power_of_two(count), num_warps=2,
        )  # fmt: skip
    return out


def _launch(
    x: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    start: Tensor | None,
    queries: Tensor | None,
    cache: tuple[Kept, Kept] | None,
    query: Grid | None = None,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """One program for each head of each token: first those of ``queries``, then the cache's."""
    batch, new, count, dim = x.shape
    if x.stride(3) != 1 or x.stride(2) != dim:
        x = x.contiguous()
    held: tuple[Tensor | None, ...] = (None,) * 6
    kv_heads, room, grid = 0, 0, None
    if cache is not None:
        held, grid = _parts(cache[0]) + _parts(cache[1]), cache[0].grid
        kv_heads, room = cache[0].stored.shape[1:3]
    launching.launch(
        turn_and_store, (count, new, batch),
        x, *(rotary or (None, None)), start, *(gains or (None, None)), float(eps), queries, *held,
        new, x.stride(0), x.stride(1),
        HEADS=0 if queries is None else queries.shape[2], KV_HEADS=kv_heads, DIM=dim, ROOM=room,
        TURN=rotary is not None, ROUND_QUERY=query is not None,
        QUERY_GRID=grid_of(query), GRID=grid_of(grid), BLOCK=power_of_two(dim // 2), num_warps=1,
    )  # fmt: skip


def _parts(kept: Kept) -> tuple[Tensor | None, ...]:
    return kept.stored, kept.scale, kept.zero


def grid_of(grid: Grid | None) -> tuple[int, int, bool, bool]:
    """What kernels are told of a grid; ``None``: one that is not used."""
    grid = grid or Grid(8, "token")
    return grid.bottom, grid.top, grid.symmetric, grid.zero
