"""The decoder itself, in torch, as one pure function of its weights.

One forward pass serves everything: full precision, calibration, the learning of rotations and the
simulation of a quantized model differ only in ``project``, the function that multiplies by the
linears. Names and mathematics are those of ``slmq_edge.anatomy``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy

# (inputs [..., in], full names of linears that share them) -> one output [..., out] for each
Project = Callable[[Tensor, tuple[str, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Decoder:
    """A model in memory: its anatomy, and its tensors by Hugging Face name, all of one dtype.

    Besides the anatomy's tensors, ``model.embed_rotation.weight`` and
    ``model.head_rotation.weight`` [hidden, hidden] may stand between a tied table and the stream.
    """

    anatomy: Anatomy
    weights: dict[str, Tensor]

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Decoder:
        moved = {name: t.to(dtype=dtype, device=device) for name, t in self.weights.items()}
        return Decoder(self.anatomy, moved)

    def linear(self, inputs: Tensor, name: str) -> Tensor:
        """``inputs`` [..., in] times the named weight [out, in], plus its bias if it has one."""
        if name == names.HEAD and self.anatomy.tied:
            return functional.linear(inputs, self.weights[f"{names.EMBED}.weight"])
        bias = self.weights.get(f"{name}.bias")
        return functional.linear(inputs, self.weights[f"{name}.weight"], bias)

    def project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Full precision: the plain ``Project``."""
        return tuple(self.linear(inputs, name) for name in linears)


def logits(model: Decoder, tokens: Tensor, project: Project | None = None) -> Tensor:
    """Logits [batch, length, vocab] of ``tokens`` int64 [batch, length]."""
    project = project or model.project
    (out,) = project(hidden_states(model, tokens, project), (names.HEAD,))
    return out


def hidden_states(model: Decoder, tokens: Tensor, project: Project | None = None) -> Tensor:
    """What the lm_head reads, [batch, length, hidden]."""
    project = project or model.project
    shape, weights = model.anatomy, model.weights
    stream = functional.embedding(tokens, weights[f"{names.EMBED}.weight"])
    stream = _rotate(model, stream, names.EMBED_ROTATION)
    rotary = rotary_table(shape, tokens.shape[1], stream.dtype, stream.device)
    for layer in range(shape.layers):
        stream = _block(model, layer, stream, rotary, project)
    return _rotate(model, _norm(model, stream, names.NORM), names.HEAD_ROTATION)


def rotary_table(
    shape: Anatomy, length: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and pair, each [length, head_dim / 2].

    The angles are taken in float64, so that every runtime can hold the same table.
    """
    frequencies = torch.tensor(shape.rope.frequencies(shape.head_dim), dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def _block(
    model: Decoder,
    layer: int,
    stream: Tensor,
    rotary: tuple[Tensor, Tensor],
    project: Project,
) -> Tensor:
    shape = model.anatomy

    def full(*linears: str) -> tuple[str, ...]:
        return tuple(shape.block(layer, name) for name in linears)

    normed = _norm(model, stream, *full(ATTENTION_FEED.norm))
    query, key, value = project(normed, full(*QKV))
    mixed = _attention(shape, query, key, value, rotary)
    (out,) = project(mixed, full(names.O))
    stream = stream + out
    normed = _norm(model, stream, *full(MLP_FEED.norm))
    gate, up = project(normed, full(*GATE_UP))
    (out,) = project(functional.silu(gate) * up, full(names.DOWN))
    return stream + out


def _attention(
    shape: Anatomy, query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    batch, length, _ = query.shape

    def heads(x: Tensor, count: int) -> Tensor:
        return x.view(batch, length, count, shape.head_dim).transpose(1, 2)

    query = _turn(heads(query, shape.heads), rotary)
    key = _turn(heads(key, shape.kv_heads), rotary)
    mixed = functional.scaled_dot_product_attention(
        query, key, heads(value, shape.kv_heads), is_causal=True, enable_gqa=True
    )
    return mixed.transpose(1, 2).reshape(batch, length, shape.query_width)


def _turn(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pair (i, i + head_dim / 2) of every head by its position's angle."""
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _norm(model: Decoder, x: Tensor, name: str) -> Tensor:
    gain = model.weights[f"{name}.weight"]
    return functional.rms_norm(x, gain.shape, gain, model.anatomy.norm_eps)


def _rotate(model: Decoder, x: Tensor, name: str) -> Tensor:
    rotation = model.weights.get(f"{name}.weight")
    return x if rotation is None else functional.linear(x, rotation)
