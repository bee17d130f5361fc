"""Rotations of the residual stream: what SpinQuant merges into the weights (METHODS 3.1).

    E' = E R1                                         the stream x' = x R1, norms without gains
    W' = W diag(gamma) R1          q, k, v, gate, up   RMSNorm(x R1) = RMSNorm(x) R1
    W' = R1^T W                    o, down
    W_v[head] <- R2^T W_v[head],  b_v[head] <- R2^T b_v[head],  W_o[:, head] <- W_o[:, head] R2
    W_down <- W_down M             where down_proj's input is rotated by M while the model runs (R4)

A tied table stays one table, between two rotations (METHODS 4.1):

    x = E[token] R1,     logits = ((RMSNorm(x') R1^T) * gamma) E^T
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.anatomy import FEEDS, Anatomy, Online
from slmq_edge.decoder import Decoder
from slmq_edge.quantization.cayley import orthogonalize
from slmq_edge.quantization.hadamard import hadamard, rotate_last

# Of a table, that are in float64 at a time.
ROWS = 4096


@dataclass(frozen=True)
class Rotations:
    """r1 [hidden, hidden], r2 [layers, head_dim, head_dim]."""

    r1: Tensor
    r2: Tensor

    def to(self, device: torch.device) -> Rotations:
        return Rotations(self.r1.to(device), self.r2.to(device))

    def orthogonal(self) -> Rotations:
        """The nearest orthogonal matrices, float64."""
        return Rotations(orthogonalize(self.r1), orthogonalize(self.r2))


def absorb_gains(model: Decoder) -> None:
    """Move every norm's gain into the linears that read it, in place, leaving gains of one.

    The final gain goes into an untied head; on a tied model it becomes a diagonal head rotation,
    because the table is also the lookup. The products are taken in float64.
    """
    weights, shape = model.weights, model.anatomy

    def absorb(norm: str, linears: tuple[str, ...]) -> None:
        gain = weights[f"{norm}.weight"]
        for name in (f"{linear}.weight" for linear in linears):
            weights[name] = _by_rows(weights[name], lambda rows: rows * gain.to(torch.float64))
        weights[f"{norm}.weight"] = torch.ones_like(gain)

    for layer in range(shape.layers):
        for feed in FEEDS:
            absorb(shape.block(layer, feed.norm), shape.blocks(layer, feed.linears))
    if shape.tied:
        weights[f"{names.HEAD_ROTATION}.weight"] = torch.diag(weights[f"{names.NORM}.weight"])
        absorb(names.NORM, ())
    else:
        absorb(names.NORM, (names.HEAD,))


def _by_rows(table: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``table`` [rows, width] with its rows changed in float64, a few thousand at a time."""
    changed = torch.empty_like(table)
    for start in range(0, len(table), ROWS):
        part = slice(start, start + ROWS)
        changed[part] = change(table[part].to(torch.float64)).to(table.dtype)
    return changed


def rotate_online(model: Decoder, online: Online) -> Decoder:
    """Leave ``online`` rotations to run time, and merge R4's inverse, in place: W_down M.

    Online rotations are orthogonal: R3 turns queries and keys alike, and their products stay.
    """
    if online.down:
        for layer in range(model.anatomy.layers):
            key = f"{model.anatomy.block(layer, names.DOWN)}.weight"
            weight = model.weights[key]
            model.weights[key] = rotate_last(weight.to(torch.float64)).to(weight.dtype)
    return replace(model, online=online)


def merge(model: Decoder, rotations: Rotations) -> None:
    """Merge R1 and R2 in place, in float64, one block at a time."""
    exact = rotations.orthogonal()
    shape, weights = model.anatomy, model.weights
    for layer in range(shape.layers):
        prefix = shape.block(layer, "")
        part = {
            name: tensor.to(torch.float64)
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        rotate_block(shape, layer, part, exact.r1, exact.r2[layer])
        for name, tensor in part.items():
            weights[name] = tensor.to(weights[name].dtype)
    if shape.tied:
        place = weights[f"{names.NORM}.weight"]
        head = weights[f"{names.HEAD_ROTATION}.weight"].to(torch.float64)
        weights[f"{names.EMBED_ROTATION}.weight"] = exact.r1.mT.to(place).contiguous()
        weights[f"{names.HEAD_ROTATION}.weight"] = (head @ exact.r1).to(place)
        return
    for key in (f"{names.EMBED}.weight", f"{names.HEAD}.weight"):
        weights[key] = _by_rows(weights[key], lambda rows: rows @ exact.r1)


def rotate_block(
    shape: Anatomy, layer: int, weights: dict[str, Tensor], r1: Tensor, r2: Tensor
) -> None:
    """Rotate one block's tensors in their dict, differentiably: r2 is [head_dim, head_dim]."""

    def key(linear: str, kind: str = "weight") -> str:
        return f"{shape.block(layer, linear)}.{kind}"

    for name in (key(linear) for feed in FEEDS for linear in feed.linears):
        weights[name] = weights[name] @ r1
    for linear in (names.O, names.DOWN):
        weights[key(linear)] = r1.mT @ weights[key(linear)]
        if key(linear, "bias") in weights:
            weights[key(linear, "bias")] = weights[key(linear, "bias")] @ r1
    # v's rows and o's columns, head by head: [heads, head_dim, ...]
    per_head = weights[key(names.V)].view(shape.kv_heads, shape.head_dim, shape.hidden)
    weights[key(names.V)] = (r2.mT @ per_head).reshape(shape.kv_width, shape.hidden)
    if key(names.V, "bias") in weights:
        bias = weights[key(names.V, "bias")].view(shape.kv_heads, shape.head_dim)
        weights[key(names.V, "bias")] = (bias @ r2).reshape(shape.kv_width)
    columns = weights[key(names.O)].reshape(shape.hidden, shape.heads, shape.head_dim)
    weights[key(names.O)] = (columns @ r2).reshape(shape.hidden, shape.query_width)


def initial_rotations(shape: Anatomy, seed: int) -> Rotations:
    """Random-sign Hadamard matrices diag(+-1) H / sqrt(n), float32.

    Where no Hadamard matrix of the order is constructed: QR of a Gaussian matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    r2 = [_random_rotation(shape.head_dim, generator) for _ in range(shape.layers)]
    return Rotations(_random_rotation(shape.hidden, generator), torch.stack(r2))


def _random_rotation(order: int, generator: torch.Generator) -> Tensor:
    matrix = hadamard(order)
    if matrix is not None:
        signs = torch.randint(0, 2, (order, 1), generator=generator) * 2.0 - 1.0
        return (signs * matrix / math.sqrt(order)).to(torch.float32)
    gaussian = torch.randn(order, order, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    uniform: Tensor = q * r.diagonal().sign()
    return uniform.to(torch.float32)
