"""Text of the model's own: windows written by it, and what it knew while it wrote them.

    x_t ~ softmax(logits(x_0 .. x_{t-1}))          temperature 1, nothing cut off

What a model writes is text that it knows, and there is no end of it: to distil by it needs no data
(Liu et al. 2023, LLM-QAT, section 3.1). Windows are written side by side, with a cache of keys and
values; what the head reads at each position is what a forward pass would have given it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, QKV
from slmq_edge.decoder import (
    Decoder,
    attend,
    embed,
    head_input,
    heads,
    mlp_half,
    norm,
    rotary_table,
)


@dataclass(frozen=True)
class Lesson:
    """tokens: int64 [windows, length]. hidden: what the model's head reads, [.., .., hidden]."""

    tokens: Tensor
    hidden: Tensor

    def part(self, windows: slice | Tensor) -> Lesson:
        return Lesson(self.tokens[windows], self.hidden[windows])

    def to(self, device: torch.device) -> Lesson:
        return Lesson(self.tokens.to(device), self.hidden.to(device))


def write(model: Decoder, first: Tensor, length: int, generator: torch.Generator) -> Lesson:
    """Windows of ``length`` that begin with ``first``, int64 [windows].

    generator: of the model's device.
    """
    table = model.weights[f"{names.EMBED}.weight"]
    tokens = torch.empty(len(first), length, dtype=torch.int64, device=table.device)
    hidden = table.new_empty(len(first), length, model.anatomy.hidden)
    cache = _Cache(model, len(first), length)
    token = first.to(table.device)
    with torch.no_grad():
        for at in range(length):
            tokens[:, at] = token
            out = cache.step(embed(model, token[:, None]), at)
            hidden[:, at : at + 1] = out
            if at + 1 < length:
                (logits,) = model.project(out[:, 0], (names.HEAD,))
                token = _drawn(torch.softmax(logits.float(), -1), generator)
    return Lesson(tokens, hidden)


def _drawn(chances: Tensor, generator: torch.Generator) -> Tensor:
    """One index int64 [rows] of every row of ``chances`` [rows, n].

    As torch.multinomial draws it, which first reads whether these are chances: on a GPU it would be
    waited for at every token.
    """
    waits = torch.empty_like(chances).exponential_(generator=generator)
    return torch.div(chances, waits, out=waits).argmax(-1)


class _Cache:
    """Keys and values of every block, [windows, kv_heads, length, head_dim]."""

    def __init__(self, model: Decoder, windows: int, length: int) -> None:
        shape = model.anatomy
        like = model.weights[f"{names.EMBED}.weight"]
        room = (shape.layers, windows, shape.kv_heads, length, shape.head_dim)
        self._model = model
        self._keys, self._values = like.new_empty(room), like.new_empty(room)
        self._rotary = rotary_table(shape, length, like.dtype, like.device)

    def step(self, stream: Tensor, at: int) -> Tensor:
        """One token of every window through all blocks: what the head reads, [windows, 1, hidden].

        Rotations of queries and keys by one matrix (R3) leave their products alone.
        """
        model, shape = self._model, self._model.anatomy
        cosine, sine = self._rotary
        here = (cosine[at : at + 1], sine[at : at + 1])
        for layer in range(shape.layers):
            normed = norm(model, stream, shape.block(layer, ATTENTION_FEED.norm))
            query, key, value = model.project(normed, shape.blocks(layer, QKV))
            query, key, value = heads(model, layer, query, key, value, here)
            keys, values = self._keys[layer], self._values[layer]
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = key, value
            mixed = attend(query, keys[:, :, : at + 1], values[:, :, : at + 1], causal=False)
            stream = stream + model.project(mixed, shape.blocks(layer, (names.O,)))[0]
            stream = mlp_half(model, layer, stream, model.project)
        return head_input(model, stream)
