"""Attention's operators in plain torch: turning, writing the cache, attention of single tokens.

All take heads as a linear puts them out, F [batch, n, heads, head_dim]. cosine, sine: F [n,
head_dim] of these positions, as `cache.Cache` has them. start: int64 [1] on the device, the first
position: a graph that has been captured reads it anew each time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime import attention
from slmq_edge.torch_runtime.cache import Kept


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
    """Queries, turned; keys, turned, and values are written from position ``start`` on.

    heads: queries, keys, values. query: the grid to which queries are rounded and come back. gains:
    of the norms of queries and keys before they are turned, [head_dim].
    """
    kv_heads = keys.stored.shape[1]
    sizes = [heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads]
    queries, key, value = torch.split(heads, sizes, dim=2)
    if gains is not None:
        queries, key = (
            functional.rms_norm(x, gain.shape, gain, eps)
            for x, gain in zip((queries, key), gains, strict=True)
        )
    stored(turned(key, cosine, sine), value, start, keys, values)
    return attention.on_grid(turned(queries, cosine, sine), query)


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Every pair of every head rotated by its position's angle."""
    return attention.turned(x.transpose(1, 2), cosine, sine).transpose(1, 2)


def stored(key: Tensor, value: Tensor, start: Tensor, keys: Kept, values: Kept) -> None:
    """Write n positions from ``start`` on, rounded by the cache's grid."""
    where = start + torch.arange(key.shape[1], device=key.device)
    keys.write(where, key.transpose(1, 2))
    values.write(where, value.transpose(1, 2))


def attend(query: Tensor, keys: Kept, values: Kept, start: Tensor) -> Tensor:
    """What o_proj reads: the token at ``start`` + t attends to positions 0 .. ``start`` + t."""
    room = keys.stored.shape[2]
    last = start + torch.arange(query.shape[1], device=query.device)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.read(room),
        values.read(room),
        attn_mask=torch.arange(room, device=query.device) <= last[:, None],
        enable_gqa=True,
    )
    return mixed.transpose(1, 2)
