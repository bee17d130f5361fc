"""A decoder of integer linears over a static cache: what `slmq_edge.simulation` says, in modules.

Names and mathematics are those of ``slmq_edge.anatomy``; the stream is [rows, hidden], rows being
all positions of all texts of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import SlmqError
from slmq_edge.torch_runtime import attention, cache, ops
from slmq_edge.torch_runtime.cache import Cache, Kept
from slmq_edge.torch_runtime.modules import (
    FloatLinears,
    IntegerLinears,
    Linears,
    Maker,
    Rotation,
    Weight,
)
from slmq_edge.torch_runtime.ops import Ops

# Queries [batch, n, heads, head_dim] -> what o_proj reads, likewise.
Attend = Callable[[Tensor, Kept, Kept, Cache], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a stream [batch * n, hidden] stands: behind a cache, at these angles; how it attends.

    cosine, sine: F [n, head_dim] of its positions.
    """

    cache: Cache
    batch: int
    cosine: Tensor
    sine: Tensor
    attend: Attend


@dataclass(frozen=True)
class Held:
    """Linears that run as one. integer: whether integers are multiplied; bytes: of their weights.

    operator: of torch or Triton, for reports. bits: of the weights as they lie in memory.
    """

    names: tuple[str, ...]
    operator: str
    integer: bool
    bits: tuple[int, ...]
    bytes: int


class Attention(nn.Module):
    """Of one block: from the stream to what o_proj puts out."""

    gain: Tensor
    q_gain: Tensor | None
    k_gain: Tensor | None

    def __init__(self, make: Maker, layer: int, rotation: Rotation | None) -> None:
        super().__init__()
        checkpoint = make.checkpoint
        shape = checkpoint.anatomy
        self._shape, self._query, self._ops = shape, checkpoint.scheme.query, make.ops
        self.qkv = make.linears(shape.blocks(layer, QKV))
        self.o = make.linears(shape.blocks(layer, (names.O,)))
        self.rotation = rotation
        self.register_buffer("gain", make.tensor(_gain(shape, layer, ATTENTION_FEED.norm)))
        for buffer, norm in (("q_gain", names.Q_NORM), ("k_gain", names.K_NORM)):
            found = make.tensor(_gain(shape, layer, norm)) if shape.qk_norm else None
            self.register_buffer(buffer, found)

    def forward(self, stream: Tensor, keys: Kept, values: Kept, place: Place) -> Tensor:
        shape = self._shape
        out = self.qkv.behind_norm(stream, self.gain, shape.norm_eps)
        heads = out.view(place.batch, -1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        if self.rotation is None:
            query = self._stored(heads, keys, values, place)
        else:
            query = self._rotated(heads, self.rotation, keys, values, place)
        mixed = place.attend(query, keys, values, place.cache)
        found: Tensor = self.o(mixed.reshape(len(stream), shape.query_width))
        return found

    def _stored(self, heads: Tensor, keys: Kept, values: Kept, place: Place) -> Tensor:
        """Queries as attention takes them; keys and values go to the cache, in one operator."""
        gains = None
        if self.q_gain is not None and self.k_gain is not None:
            gains = self.q_gain, self.k_gain
        return self._ops.turned_stored(
            heads,
            place.cosine,
            place.sine,
            place.cache.position,
            keys,
            values,
            self._query,
            gains,
            self._shape.norm_eps,
        )

    def _rotated(
        self, heads: Tensor, rotation: Rotation, keys: Kept, values: Kept, place: Place
    ) -> Tensor:
        """As `_stored`, with queries and keys rotated between turning and rounding."""
        shape = self._shape
        both = shape.heads + shape.kv_heads
        mine, value = torch.split(heads, [both, shape.kv_heads], dim=2)
        turned = rotation(self._ops.turned(self._normed(mine), place.cosine, place.sine))
        query, key = torch.split(turned, [shape.heads, shape.kv_heads], dim=2)
        self._ops.stored(key, value, place.cache.position, keys, values)
        return attention.on_grid(query, self._query)

    def _normed(self, heads: Tensor) -> Tensor:
        """Heads of q and k [..., heads, head_dim], normalized where the family does that."""
        if self.q_gain is None or self.k_gain is None:
            return heads
        shape = self._shape
        parts = torch.split(heads, [shape.heads, shape.kv_heads], dim=2)
        normed = [
            self._ops.normed(part.reshape(-1, shape.head_dim), gain, shape.norm_eps).view_as(part)
            for part, gain in zip(parts, (self.q_gain, self.k_gain), strict=True)
        ]
        return torch.cat(normed, dim=2)


class Mlp(nn.Module):
    """Of one block: from the stream to what down_proj puts out."""

    gain: Tensor

    def __init__(self, make: Maker, layer: int, rotation: Rotation | None) -> None:
        super().__init__()
        shape = make.checkpoint.anatomy
        self._eps, self._ops = shape.norm_eps, make.ops
        self.gate_up = make.linears(shape.blocks(layer, GATE_UP))
        self.down = make.linears(shape.blocks(layer, (names.DOWN,)))
        self.rotation = rotation
        self.register_buffer("gain", make.tensor(_gain(shape, layer, MLP_FEED.norm)))

    def forward(self, stream: Tensor) -> Tensor:
        gate_up = self.gate_up.behind_norm(stream, self.gain, self._eps)
        if self.rotation is None:
            return self.down.behind_gate(gate_up)
        found: Tensor = self.down(self.rotation(self._ops.gated(gate_up)))
        return found


class Block(nn.Module):
    """One block: the stream before it -> behind it."""

    def __init__(
        self, make: Maker, layer: int, keys: Rotation | None, down: Rotation | None
    ) -> None:
        super().__init__()
        self.attention = Attention(make, layer, keys)
        self.mlp = Mlp(make, layer, down)

    def forward(self, stream: Tensor, keys: Kept, values: Kept, place: Place) -> Tensor:
        stream = stream + self.attention(stream, keys, values, place)
        found: Tensor = stream + self.mlp(stream)
        return found


class IntegerModel(nn.Module):
    """A checkpoint ready to run on one device; its caches are made by `cache`."""

    gain: Tensor

    def __init__(self, make: Maker) -> None:
        super().__init__()
        checkpoint = make.checkpoint
        shape = checkpoint.anatomy
        self.anatomy, self.scheme = shape, checkpoint.scheme
        self.floats, self.ops = make.floats, make.ops
        self.table_of_tokens = make.table()
        self.table_turn = make.optional(f"{names.EMBED_ROTATION}.weight")
        online = checkpoint.online
        keys = Rotation(shape.head_dim, make.floats) if online.keys else None
        down = Rotation(shape.ffn, make.floats) if online.down else None
        self.blocks = nn.ModuleList(Block(make, at, keys, down) for at in range(shape.layers))
        self.head_turn = make.optional(f"{names.HEAD_ROTATION}.weight")
        self.head = make.head(self.table_of_tokens)
        self.register_buffer("gain", make.tensor(f"{names.NORM}.weight"))

    @staticmethod
    def of(
        checkpoint: Checkpoint,
        floats: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
        chosen: Ops | None = None,
    ) -> IntegerModel:
        """A checkpoint's modules on a device, what is float in it as ``floats``.

        chosen: operators; by default those that `ops.choose` has for the device.

        Raises:
            Unsupported: a tensor that the floats cannot hold, or a linear too wide for int32 sums.
        """
        make = Maker(checkpoint, floats, chosen or ops.choose(device))
        return IntegerModel(make).to(device)

    @property
    def device(self) -> torch.device:
        return self.gain.device

    def cache(self, batch: int = 1, room: int = 192) -> Cache:
        """An empty cache for at least ``room`` positions of ``batch`` texts."""
        return cache.new(self.anatomy, self.scheme.kv, self.floats, self.device, batch, room)

    def prefill(self, tokens: Tensor, kept: Cache, keep: int | None = None) -> Tensor:
        """Logits float32 [batch, keep, vocab] of prompts int64 [batch, n], from an empty cache.

        keep: how many last positions; ``None``: all.

        Raises:
            SlmqError: the cache has not room for them.
        """
        kept.go_to(0)
        return self.extend(tokens, kept, keep)

    def extend(self, tokens: Tensor, kept: Cache, keep: int | None = None) -> Tensor:
        """As `prefill`, behind what the cache holds already."""
        hidden = self.read(tokens, kept)
        return self.logits(hidden if keep is None else hidden[:, -keep:])

    @torch.no_grad()
    def read(self, tokens: Tensor, kept: Cache) -> Tensor:
        """Read texts int64 [batch, n] behind what the cache holds: F [batch, n, hidden].

        Raises:
            SlmqError: the cache has not room for them.
        """
        batch, new = tokens.shape
        where = slice(kept.length, kept.length + new)
        _check(batch, where.stop, kept)
        place = Place(kept, batch, kept.cosine[where], kept.sine[where], attention.of_piece)
        stream = self._stream(tokens, place)
        kept.go_to(where.stop)
        return stream.view(batch, new, -1)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [batch, n, vocab] of what `read` returns."""
        return self._logits(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:2], -1)

    def step(self, tokens: Tensor, kept: Cache) -> Tensor:
        """Logits float32 [batch, 1, vocab] of one more token int64 [batch, 1] of every text.

        Raises:
            SlmqError: the cache is full.
        """
        _check(tokens.shape[0], kept.length + 1, kept)
        found = self.advance(tokens, kept)
        kept.length += 1
        return found

    @torch.no_grad()
    def advance(self, tokens: Tensor, kept: Cache) -> Tensor:
        """A step as the device takes it, which a CUDA graph can capture: see `step`.

        The position is read and advanced on the device; the host's ``length`` stays as it was.
        """
        cosine, sine = (t.index_select(0, kept.position) for t in (kept.cosine, kept.sine))
        place = Place(kept, len(tokens), cosine, sine, self._attend)
        out = self._logits(self._stream(tokens, place))
        kept.position.add_(1)
        return out[:, None]

    def _attend(self, query: Tensor, keys: Kept, values: Kept, kept: Cache) -> Tensor:
        """Of one token at the device's position."""
        return self.ops.attend(query, keys, values, kept.position)

    def _stream(self, tokens: Tensor, place: Place) -> Tensor:
        """[rows, hidden] behind the last block."""
        stream = self.table_of_tokens.looked_up(tokens.reshape(-1), self.floats)
        if self.table_turn is not None:
            stream = functional.linear(stream, self.table_turn.values)
        for block, (keys, values) in zip(self.blocks, place.cache.blocks, strict=True):
            stream = block(stream, keys, values, place)
        return stream

    def _logits(self, stream: Tensor) -> Tensor:
        """float32 [rows, vocab]."""
        eps = self.anatomy.norm_eps
        if self.head_turn is None:
            return self.head.behind_norm(stream, self.gain, eps).to(torch.float32)
        normed = self.ops.normed(stream, self.gain, eps)
        out: Tensor = self.head(functional.linear(normed, self.head_turn.values))
        return out.to(torch.float32)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of all blocks' keys and values for one position, with their scales."""
        return cache.bytes_per_token(self.anatomy, self.scheme.kv, self.floats)

    @property
    def integer_bytes(self) -> int:
        """Of integer weights, with their scales, zero points and row sums."""
        return sum(_bytes(one) for one in self.modules() if isinstance(one, Weight))

    @property
    def float_bytes(self) -> int:
        """Of all else that is held."""
        return _bytes(self) - self.integer_bytes

    def table(self) -> list[Held]:
        """What multiplies, in the order in which it runs; the head last."""
        return [_held(one, self.ops.NAME) for one in self.modules() if isinstance(one, Linears)]


def _held(one: Linears, name: str) -> Held:
    if isinstance(one, FloatLinears):
        floats = one.weight.values
        return Held(one.names, "torch.linear", False, (8 * floats.itemsize,), _bytes(one))
    bits = tuple(m.bits for m in one.modules() if isinstance(m, Weight))
    integer = isinstance(one, IntegerLinears)
    operator = f"{name}.linear" if integer else f"{name}.weight_only"
    return Held(one.names, operator, integer, bits, _bytes(one))


def _bytes(module: nn.Module) -> int:
    """Of its buffers, each counted once."""
    return sum(t.nbytes for t in module.buffers())


def _gain(shape: Anatomy, layer: int, norm: str) -> str:
    return f"{shape.block(layer, norm)}.weight"


def _check(batch: int, needed: int, kept: Cache) -> None:
    if batch != kept.batch:
        raise ValueError(f"a cache of {kept.batch} texts, and {batch} of them")
    if needed > kept.room:
        raise SlmqError(f"{needed} positions: the cache has room for {kept.room}")
