"""LET: OmniQuant's learnable equivalent transformation of a block (Shao et al. 2024, section 3.3).

Four vectors scale the channels between a norm and its linears, or between two linears, so that the
block computes what it did (METHODS 2.3):

    s1 [hidden]      gamma_1 / s1,              W_q, W_k, W_v diag(s1)
    s2 [hidden]      gamma_2 / s2,              W_gate, W_up diag(s2)
    s3 [kv_width]    diag(s3)^-1 (W_v, b_v),    W_o diag(s3)
    s4 [kv_width]    diag(s4)^-1 (W_q, b_q),    diag(s4) (W_k, b_k)

down_proj has none. Query heads that share a KV head share its entries of s3 and s4. A scale of the
keys commutes with rotary embedding only where both channels of a pair (i, i + head_dim / 2) have
the same entry, so that s4 is held as [kv_heads, head_dim / 2]; the released code leaves them free,
and so changes the model (METHODS 2.3, 2.8 B).

Where every head of q and of k passes a norm (Qwen3), rows of W_q and W_k cannot take s4: it would
change what the norm divides by. The norms' gains can, since behind them there is only rotary
embedding; they are one for all heads of a block, and so is s4, held as [1, head_dim / 2]:

    s4 [head_dim]    gamma_q / s4,              gamma_k diag(s4)

The start is

    s = a^alpha / max_rows|W|^(1 - alpha)    of q_proj, up_proj, o_proj; a: absmax of its inputs

for s1, s2 and s3, the largest a and |W| of the query heads that share an entry, and s4 = 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slmq_edge.anatomy import (
    ATTENTION_FEED,
    GATE_UP,
    K_NORM,
    MLP_FEED,
    Q_NORM,
    Anatomy,
    Feed,
    K,
    O,
    Q,
    V,
)

SMALLEST = 1e-5
# A scale that crosses zero would divide by nothing.
NEAREST_ZERO = 1e-2

# Of one block, by the names above; without s3 and s4 where attention is left as it is.
Scales = dict[str, Tensor]
FEED_OF = {"s1": ATTENTION_FEED, "s2": MLP_FEED}
# Where each scale's start is taken: a linear's weights, and the inputs that it reads.
KEY_LINEAR = {"s1": Q, "s2": GATE_UP[1], "s3": O}


def initial_scales(
    shape: Anatomy,
    layer: int,
    weights: Mapping[str, Tensor],
    absmax: Mapping[str, Tensor],
    alpha: float,
    attention: bool = True,
) -> Scales:
    """Where learning starts.

    absmax: of every channel [in] that each ``KEY_LINEAR`` reads, by the linear's name within a
    block. attention: whether there are s3 and s4.
    """
    scales = {}
    for name in KEY_LINEAR if attention else FEED_OF:
        linear = KEY_LINEAR[name]
        x_absmax = absmax[linear]
        w_absmax = weights[f"{shape.block(layer, linear)}.weight"].abs().amax(0)
        if name == "s3":
            x_absmax, w_absmax = (_shared(shape, t).amax(1).flatten() for t in (x_absmax, w_absmax))
        scales[name] = start(x_absmax, w_absmax, alpha)
    if attention:
        shared_by_all = 1 if shape.qk_norm else shape.kv_heads
        scales["s4"] = torch.ones(shared_by_all, shape.head_dim // 2).to(scales["s1"])
    return scales


def start(x_absmax: Tensor, w_absmax: Tensor, alpha: float) -> Tensor:
    """a^alpha / |W|^(1 - alpha), with nothing smaller than 1e-5."""
    moved = x_absmax.clamp(min=SMALLEST) ** alpha / w_absmax.clamp(min=SMALLEST) ** (1 - alpha)
    return moved.clamp(min=SMALLEST)


def away_from_zero(scale: Tensor) -> Tensor:
    """Entries nearer to zero than 1e-2 are put there, on their side; the gradient does not see."""
    sign = torch.where(scale < 0, -1.0, 1.0).to(scale)
    far = torch.where(scale.abs() < NEAREST_ZERO, sign * NEAREST_ZERO, scale)
    return scale + (far - scale).detach()


def fold(
    shape: Anatomy, layer: int, weights: Mapping[str, Tensor], scales: Scales
) -> dict[str, Tensor]:
    """The block's tensors that the scales change, by full name; differentiable in the scales."""
    scales = {name: away_from_zero(scale) for name, scale in scales.items()}
    changed: dict[str, Tensor] = {}

    def change(part: str, kind: str, factor: Tensor) -> None:
        name = f"{shape.block(layer, part)}.{kind}"
        if name in weights:
            changed[name] = changed.get(name, weights[name]) * factor

    def change_rows(linear: str, factor: Tensor) -> None:
        change(linear, "weight", factor[:, None])
        change(linear, "bias", factor)

    def change_feed(feed: Feed, scale: Tensor) -> None:
        change(feed.norm, "weight", 1 / scale)
        for linear in feed.linears:
            change(linear, "weight", scale)

    for name, feed in FEED_OF.items():
        if name in scales:
            change_feed(feed, scales[name])
    if "s3" in scales:
        change_rows(V, 1 / scales["s3"])
        change(O, "weight", _to_query_heads(shape, scales["s3"]))
    if "s4" in scales:
        both = torch.cat([scales["s4"], scales["s4"]], dim=-1).flatten()
        if shape.qk_norm:
            change(Q_NORM, "weight", 1 / both)
            change(K_NORM, "weight", both)
        else:
            change_rows(Q, 1 / _to_query_heads(shape, both))
            change_rows(K, both)
    return changed


def _shared(shape: Anatomy, per_query_channel: Tensor) -> Tensor:
    """[query_width] as [kv_heads, query heads that share it, head_dim]."""
    return per_query_channel.view(shape.kv_heads, -1, shape.head_dim)


def _to_query_heads(shape: Anatomy, per_kv_channel: Tensor) -> Tensor:
    """[kv_width] repeated for the query heads that share each KV head, [query_width]."""
    per_head = per_kv_channel.view(shape.kv_heads, 1, shape.head_dim)
    return per_head.expand(-1, shape.heads // shape.kv_heads, -1).flatten()
