"""The decoder itself, in torch, as one pure function of its weights.

One forward pass serves everything: full precision, calibration, the learning of rotations and the
simulation of a quantized model differ only in ``project``, the function that multiplies by the
linears, and in ``operands``, what attention is given. Names and mathematics are those of
``slmq_edge.anatomy``. A block is also here in its stages, for methods that stop between them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.anatomy import (
    ATTENTION_FEED,
    GATE_UP,
    MLP_FEED,
    NOTHING_ONLINE,
    QKV,
    Anatomy,
    Online,
)
from slmq_edge.quantization.hadamard import rotate_last

# (inputs [..., in], full names of linears that share them) -> one output [..., out] for each
Project = Callable[[Tensor, tuple[str, ...]], tuple[Tensor, ...]]
# Queries, keys, values [batch, heads, length, head_dim], as attention multiplies them.
Operands = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def untouched(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's operands in float: the plain ``Operands``."""
    return query, key, value


@dataclass(frozen=True)
class Decoder:
    """A model in memory: its anatomy, and its tensors by Hugging Face name, all of one dtype.

    Besides the anatomy's tensors, ``model.embed_rotation.weight`` and
    ``model.head_rotation.weight`` [hidden, hidden] may stand between a tied table and the stream.
    """

    anatomy: Anatomy
    weights: dict[str, Tensor]
    online: Online = NOTHING_ONLINE

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Decoder:
        moved = {name: t.to(dtype=dtype, device=device) for name, t in self.weights.items()}
        return dataclasses.replace(self, weights=moved)

    def linear(self, inputs: Tensor, name: str) -> Tensor:
        """``inputs`` [..., in] times the named weight [out, in], plus its bias if it has one."""
        if name == names.HEAD and self.anatomy.tied:
            return functional.linear(inputs, self.weights[f"{names.EMBED}.weight"])
        bias = self.weights.get(f"{name}.bias")
        return functional.linear(inputs, self.weights[f"{name}.weight"], bias)

    def project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Full precision: the plain ``Project``."""
        return tuple(self.linear(inputs, name) for name in linears)


def logits(
    model: Decoder, tokens: Tensor, project: Project | None = None, operands: Operands = untouched
) -> Tensor:
    """Logits [batch, length, vocab] of ``tokens`` int64 [batch, length]."""
    project = project or model.project
    (out,) = project(hidden_states(model, tokens, project, operands), (names.HEAD,))
    return out


def hidden_states(
    model: Decoder, tokens: Tensor, project: Project | None = None, operands: Operands = untouched
) -> Tensor:
    """What the lm_head reads, [batch, length, hidden]."""
    stream = embed(model, tokens)
    rotary = rotary_table(model.anatomy, tokens.shape[1], stream.dtype, stream.device)
    for layer in range(model.anatomy.layers):
        stream = block(model, layer, stream, rotary, project, operands)
    return head_input(model, stream)


def embed(model: Decoder, tokens: Tensor) -> Tensor:
    """The stream before the first block, [batch, length, hidden]."""
    stream = functional.embedding(tokens, model.weights[f"{names.EMBED}.weight"])
    return _rotate(model, stream, names.EMBED_ROTATION)


def head_input(model: Decoder, stream: Tensor) -> Tensor:
    """What the lm_head reads of the stream behind the last block."""
    return _rotate(model, norm(model, stream, names.NORM), names.HEAD_ROTATION)


def block(
    model: Decoder,
    layer: int,
    stream: Tensor,
    rotary: tuple[Tensor, Tensor],
    project: Project | None = None,
    operands: Operands = untouched,
) -> Tensor:
    """One block: the stream [batch, length, hidden] before it -> behind it."""
    project = project or model.project
    stream = attention_half(model, layer, stream, rotary, project, operands)
    return mlp_half(model, layer, stream, project)


def attention_half(
    model: Decoder,
    layer: int,
    stream: Tensor,
    rotary: tuple[Tensor, Tensor],
    project: Project,
    operands: Operands = untouched,
) -> Tensor:
    """The stream, and what a block's attention adds to it."""
    shape = model.anatomy
    normed = norm(model, stream, shape.block(layer, ATTENTION_FEED.norm))
    query, key, value = project(normed, shape.blocks(layer, QKV))
    mixed = attention(model, layer, query, key, value, rotary, operands)
    (out,) = project(mixed, shape.blocks(layer, (names.O,)))
    return stream + out


def mlp_half(model: Decoder, layer: int, stream: Tensor, project: Project) -> Tensor:
    """The stream, and what a block's MLP adds to it."""
    shape = model.anatomy
    normed = norm(model, stream, shape.block(layer, MLP_FEED.norm))
    gate, up = project(normed, shape.blocks(layer, GATE_UP))
    (out,) = project(activated(model, gate, up), shape.blocks(layer, (names.DOWN,)))
    return stream + out


def activated(model: Decoder, gate: Tensor, up: Tensor) -> Tensor:
    """What down_proj reads: silu(gate) * up, rotated by R4 where the model has it."""
    product = functional.silu(gate) * up
    return rotate_last(product) if model.online.down else product


def rotary_table(
    shape: Anatomy, length: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and pair, each [length, head_dim / 2].

    The angles are taken in float64, so that every runtime can hold the same table.
    """
    frequencies = tuple(shape.rope.frequencies(shape.head_dim))
    return _rotary_table(frequencies, length, dtype, torch.device(device))


@functools.lru_cache(maxsize=8)
def _rotary_table(
    frequencies: tuple[float, ...], length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Kept: it is made on the CPU, and every copy from there would be waited for on a GPU."""
    with torch.inference_mode(False):
        angles = torch.arange(length, dtype=torch.float64)[:, None]
        angles = angles * torch.tensor(frequencies, dtype=torch.float64)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def attention(
    model: Decoder,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotary: tuple[Tensor, Tensor],
    operands: Operands = untouched,
) -> Tensor:
    """What o_proj reads [batch, length, query_width], from what q, k and v put out."""
    query, key, value = heads(model, layer, query, key, value, rotary)
    if model.online.keys:
        query, key = rotate_last(query), rotate_last(key)
    query, key, value = operands(query, key, value)
    return attend(query, key, value, causal=True)


def heads(
    model: Decoder,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values [batch, heads, length, head_dim], normed and turned, of outputs."""
    shape = model.anatomy

    def split(x: Tensor, count: int, normed_by: str | None = None) -> Tensor:
        apart = x.view(*x.shape[:-1], count, shape.head_dim)
        if shape.qk_norm and normed_by is not None:
            apart = norm(model, apart, shape.block(layer, normed_by))
        return apart.transpose(1, 2)

    return (
        _turn(split(query, shape.heads, names.Q_NORM), rotary),
        _turn(split(key, shape.kv_heads, names.K_NORM), rotary),
        split(value, shape.kv_heads),
    )


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """What o_proj reads [batch, length, query_width], of queries [batch, heads, length, head_dim].

    Keys and values may be shared by several heads. causal: a query sees the keys up to its own
    position; otherwise all of them.
    """
    is_cpu = query.device.type == "cpu"
    if not is_cpu:
        shared = query.shape[1] // key.shape[1]
        key, value = (_to_every_query(x, shared) for x in (key, value))
    mixed: Tensor = functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, enable_gqa=is_cpu
    )
    batch, _, length, _ = mixed.shape
    return mixed.transpose(1, 2).reshape(batch, length, -1)


def _to_every_query(x: Tensor, queries: int) -> Tensor:
    """Keys or values [batch, kv_heads, length, head_dim], once for each query head that reads them.

    On a GPU no fused attention of float32 shares them, and the one that does holds all scores.
    """
    return x if queries == 1 else x.repeat_interleave(queries, dim=1)


def _turn(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pair (i, i + head_dim / 2) of every head by its position's angle."""
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def norm(model: Decoder, x: Tensor, name: str) -> Tensor:
    """RMSNorm of the stream, or of heads, by the named norm's gain, in the gain's dtype.

    Heads come in a lower one where products are taken in it (autocast).
    """
    gain = model.weights[f"{name}.weight"]
    return functional.rms_norm(x.to(gain.dtype), gain.shape, gain, model.anatomy.norm_eps)


def _rotate(model: Decoder, x: Tensor, name: str) -> Tensor:
    rotation = model.weights.get(f"{name}.weight")
    return x if rotation is None else functional.linear(x, rotation)
