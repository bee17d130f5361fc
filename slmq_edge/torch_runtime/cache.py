"""The cache: keys and values of as many positions as there is room for, allocated once.

Where the scheme rounds them they are held as levels and scales, by token and head. How far it is
filled is known twice: to the host, and on the device, where a captured step reads and advances it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slmq_edge.anatomy import Anatomy
from slmq_edge.decoder import rotary_table
from slmq_edge.quantization.rounding import Rounded, Steps, quantize
from slmq_edge.scheme import Grid

# A mask's rows are then as fused attention kernels want them.
MULTIPLE = 8


@dataclass(frozen=True)
class Kept:
    """Keys, or values, of one block.

    stored: [batch, kv_heads, room, head_dim], F, or int8 levels where ``grid`` is not ``None``.
    scale: float32 [batch, kv_heads, room, groups]; zero: whole numbers, likewise.
    """

    stored: Tensor
    scale: Tensor | None
    zero: Tensor | None
    grid: Grid | None
    floats: torch.dtype

    def write(self, where: slice | Tensor, x: Tensor) -> None:
        """Put ``x`` F [batch, kv_heads, n, head_dim] at positions: a stretch, or int64 [n]."""
        if self.grid is None:
            _put(self.stored, where, x)
            return
        found = quantize(x.to(torch.float32), self.grid)
        _put(self.stored, where, found.integers)
        assert self.scale is not None, "levels have a scale"
        _put(self.scale, where, found.steps.scale)
        if self.zero is not None and found.steps.zero is not None:
            _put(self.zero, where, found.steps.zero)

    def read(self, stop: int) -> Tensor:
        """The first ``stop`` positions, F [batch, kv_heads, stop, head_dim]."""
        stored = self.stored[:, :, :stop]
        if self.grid is None or self.scale is None:
            return stored
        zero = None if self.zero is None else self.zero[:, :, :stop].to(torch.float32)
        steps = Steps(self.scale[:, :, :stop], zero)
        return Rounded(stored.to(torch.float32), steps).values(self.grid).to(self.floats)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.stored, self.scale, self.zero) if t is not None]


@dataclass
class Cache:
    """Keys and values of all blocks, and how many positions are filled.

    length: of which the host knows. position: int64 [1] on the device, the same number. cosine,
    sine: of rotary embedding, F [room, head_dim], the sine's first half negated. columns: int64
    [room].
    """

    blocks: list[tuple[Kept, Kept]]
    position: Tensor
    cosine: Tensor
    sine: Tensor
    columns: Tensor
    batch: int
    room: int
    length: int = 0

    def go_to(self, length: int) -> None:
        """Forget what is behind so many positions: a write from the host, outside any capture."""
        self.length = length
        self.position.fill_(length)

    def copy_from(self, other: Cache, length: int) -> None:
        """Take over the first positions of a smaller cache of the same model and batch."""
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            for kept, old in zip(mine, theirs, strict=True):
                for into, t in zip(kept.tensors, old.tensors, strict=True):
                    into[:, :, :length] = t[:, :, :length]
        self.go_to(length)

    @property
    def bytes(self) -> int:
        """Of keys and values with their scales."""
        return sum(t.nbytes for block in self.blocks for kept in block for t in kept.tensors)


def new(
    shape: Anatomy,
    grid: Grid | None,
    floats: torch.dtype,
    device: torch.device,
    batch: int,
    room: int,
) -> Cache:
    """An empty cache for at least ``room`` positions of ``batch`` rows; see `rounded_up`."""
    room = rounded_up(room)

    def kept() -> Kept:
        def zeros(last: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(batch, shape.kv_heads, room, last, dtype=dtype, device=device)

        if grid is None:
            return Kept(zeros(shape.head_dim, floats), None, None, None, floats)
        groups = grid.groups(shape.head_dim)
        return Kept(
            zeros(shape.head_dim, torch.int8),
            zeros(groups, torch.float32),
            None if grid.symmetric else zeros(groups, zero_dtype(grid)),
            grid,
            floats,
        )

    cosine, sine = rotary_table(shape, room, floats, device)
    return Cache(
        blocks=[(kept(), kept()) for _ in range(shape.layers)],
        position=torch.zeros(1, dtype=torch.int64, device=device),
        cosine=torch.cat([cosine, cosine], -1),
        sine=torch.cat([-sine, sine], -1),
        columns=torch.arange(room, device=device),
        batch=batch,
        room=room,
    )


def rounded_up(room: int) -> int:
    """How many positions a cache has that was asked for ``room``."""
    return -(-max(room, 1) // MULTIPLE) * MULTIPLE


def zero_dtype(grid: Grid) -> torch.dtype:
    """Zero points are levels where every range holds 0; else they may lie far outside."""
    return torch.int8 if grid.zero else torch.int16


def bytes_per_token(shape: Anatomy, grid: Grid | None, floats: torch.dtype) -> int:
    """By which the keys and values of all blocks grow for a token, scales included."""
    head = shape.head_dim * floats.itemsize
    if grid is not None:
        zero = 0 if grid.symmetric else zero_dtype(grid).itemsize
        head = shape.head_dim + grid.groups(shape.head_dim) * (torch.float32.itemsize + zero)
    return 2 * shape.layers * shape.kv_heads * head


def _put(into: Tensor, where: slice | Tensor, x: Tensor) -> None:
    if isinstance(where, slice):
        into[:, :, where] = x.to(into.dtype)
    else:
        into.index_copy_(2, where, x.to(into.dtype))
