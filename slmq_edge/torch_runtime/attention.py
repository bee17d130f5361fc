"""Attention over the static cache: of a prompt's piece, whose length the host knows.

So no more of the cache is read than is filled. One token's position is known to the device alone:
see `reference_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.quantization.rounding import rounded
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime.cache import Cache, Kept


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of F [batch, heads, n, head_dim], tables [n, head_dim] as in `Cache`.

    Bit by bit that of `decoder`: a difference is the sum with what was negated.
    """
    return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine


def on_grid(x: Tensor, grid: Grid | None) -> Tensor:
    """``x`` rounded in float32 and come back; as it is where there is no grid."""
    return x if grid is None else rounded(x.to(torch.float32), grid).to(x.dtype)


def of_piece(query: Tensor, keys: Kept, values: Kept, cache: Cache) -> Tensor:
    """Causal, of F [batch, n, heads, head_dim] behind ``cache.length`` positions."""
    past, seen = cache.length, cache.length + query.shape[1]
    query = query.transpose(1, 2)
    if past == 0:  # a kernel that knows causality needs no mask of n x n
        mixed = functional.scaled_dot_product_attention(
            query, keys.read(seen), values.read(seen), is_causal=True, enable_gqa=True
        )
    else:
        mask = cache.columns[:seen] <= cache.columns[past:seen, None]
        mixed = _masked(query, keys.read(seen), values.read(seen), mask)
    return mixed.transpose(1, 2)


def _masked(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention to what ``mask`` [n, seen] allows.

    Heads that share keys are rows of one query: no kernel then repeats the keys for them.
    """
    batch, heads, new, width = query.shape
    shared = heads // keys.shape[1]
    grouped = query.reshape(batch, keys.shape[1], shared * new, width)
    mixed = functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask.repeat(shared, 1)
    )
    return mixed.reshape(query.shape)
