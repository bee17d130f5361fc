"""The operators in plain torch, on a CPU and on a GPU: the definition of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.quantization.rounding import Steps, integer_matmul, quantize, to_levels
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime.ops import REFERENCE, Levels, Packed
from slmq_edge.torch_runtime.reference_attention import attend, stored, turned, turned_stored

__all__ = [
    "NAME",
    "attend",
    "gated",
    "gated_rounded",
    "linear",
    "normed",
    "normed_rounded",
    "round_rows",
    "stored",
    "turned",
    "turned_stored",
    "weight_only",
]
NAME = REFERENCE
# torch lets cuBLAS multiply int8 from 17 rows on, where sizes are multiples of 8; with 17 rows some
# releases of cuBLAS were wrong (pytorch issue 107671): rows are filled up with zeros.
ROWS, MULTIPLE = 32, 8
# Rows of a weight whose values are made at a time: all but a vocabulary's.
MOST_ROWS = 16384


def round_rows(x: Tensor, grid: Grid, static: Steps | None) -> Levels:
    """See `ops.Ops`."""
    wide = x.to(torch.float32)
    if static is None:
        found = quantize(wide, grid)
        where = found.steps
        return Levels(found.integers.to(torch.int8), where.scale, where.zero, grid.group)
    levels = to_levels(wide, static, grid).to(torch.int8)
    zero = None if static.zero is None else static.zero.view(1, 1)
    return Levels(levels, static.scale.view(1, 1), zero)


def normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """See `ops.Ops`."""
    return functional.rms_norm(x, gain.shape, gain, eps)


def normed_rounded(x: Tensor, gain: Tensor, eps: float, grid: Grid) -> Levels:
    """See `ops.Ops`."""
    return round_rows(normed(x, gain, eps), grid, None)


def gated(gate_up: Tensor) -> Tensor:
    """See `ops.Ops`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gated_rounded(gate_up: Tensor, grid: Grid) -> Levels:
    """See `ops.Ops`."""
    return round_rows(gated(gate_up), grid, None)


def linear(x: Levels, weight: Packed, bias: Tensor | None, floats: torch.dtype) -> Tensor:
    """See `ops.Ops`."""
    integers = unpacked(weight)
    width = weight.width
    total: Tensor | None = None
    for g, (start, stop) in enumerate(_stretches(width, x.group)):
        part: Tensor | None = None
        for p, (begin, end) in _within(start, stop, width, weight.group):
            scaled = _sums(x, integers, weight, p, begin, end) * weight.scale[:, p]
            part = scaled if part is None else part + scaled
        assert part is not None, "a group is not empty"
        if x.zero is not None:
            assert weight.row_sums is not None, "packed for an input with a zero point"
            sums = weight.row_sums if weight.row_sums.dim() == 1 else weight.row_sums[:, g]
            part = part - x.zero[:, g, None] * sums
        part = part * x.scale[:, g, None]
        total = part if total is None else total + part
    assert total is not None, "a row is not empty"
    return (total if bias is None else total + bias).to(floats)


def weight_only(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """See `ops.Ops`."""
    pieces = range(0, weight.rows, MOST_ROWS)
    parts = [x @ values(weight, slice(at, at + MOST_ROWS)).to(x.dtype).mT for at in pieces]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return out if bias is None else out + bias


def values(weight: Packed, rows: slice | Tensor) -> Tensor:
    """What some rows of a weight stand for, float32 [rows, in]."""
    integers = levels(weight.integers[rows], weight).to(torch.float32)
    if weight.zero is not None:
        integers = integers - _spread(weight.zero[rows].to(torch.float32), weight)
    return integers * _spread(weight.scale[rows], weight)


def unpacked(weight: Packed) -> Tensor:
    """All levels of a weight, int8 [out, in]."""
    return levels(weight.integers, weight)


def levels(stored: Tensor, weight: Packed) -> Tensor:
    """Levels int8 [..., in] of rows as they are stored."""
    if weight.bits == 8:
        return stored
    nibbles = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)
    return nibbles[..., : weight.width].to(torch.int8) - 8


def products(x: Tensor, w: Tensor) -> Tensor:
    """Exact int8 [rows, in] times int8 [out, in] transposed: int32 [rows, out]."""
    if x.device.type != "cpu":
        return _filled_up(x, w)
    if _cpu_is_exact():
        return torch._int_mm(x, w.mT)
    return integer_matmul(x.to(torch.float32), w.to(torch.float32)).to(torch.int32)


def _filled_up(x: Tensor, w: Tensor) -> Tensor:
    """As `products`, in sizes that cuBLAS takes."""
    # A group's columns are a stretch of rows, which need not begin where cuBLAS can read them.
    filled = _padded(x, -len(x) % ROWS, -x.shape[1] % MULTIPLE).contiguous()
    other = _padded(w, -len(w) % MULTIPLE, -w.shape[1] % MULTIPLE).contiguous()
    return torch._int_mm(filled, other.mT)[: len(x), : len(w)]


def _sums(x: Levels, integers: Tensor, weight: Packed, p: int, begin: int, end: int) -> Tensor:
    """The integer sums of one stretch, as float32 [rows, out]: exact before they are rounded."""
    x_q, w_q = x.integers[:, begin:end], integers[:, begin:end]
    found = products(x_q, w_q)
    if weight.zero is None:
        return found.to(torch.float32)
    # A zero point far outside the levels is allowed: its products need more than 32 bits.
    input_sums = x_q.sum(1, dtype=torch.int64)
    shifted = found.to(torch.int64) - input_sums[:, None] * weight.zero[:, p].to(torch.int64)
    return shifted.to(torch.float32)


def _stretches(width: int, group: int | None) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, width, group or width), width]))


def _within(
    start: int, stop: int, width: int, group: int | None
) -> Iterator[tuple[int, tuple[int, int]]]:
    """The weight's groups that lie between two inputs, and what of each does."""
    for p, (begin, end) in enumerate(_stretches(width, group)):
        if begin < stop and end > start:
            yield p, (max(begin, start), min(end, stop))


def _spread(per_group: Tensor, weight: Packed) -> Tensor:
    if weight.group is None:
        return per_group
    return per_group.repeat_interleave(weight.group, dim=-1)[..., : weight.width]


def _padded(t: Tensor, rows: int, columns: int) -> Tensor:
    return functional.pad(t, (0, columns, 0, rows)) if rows or columns else t


@lru_cache(maxsize=1)
def _cpu_is_exact() -> bool:
    """Whether torch's int8 product is, here: kernels of CPUs without VNNI may saturate 16 bits."""
    extremes = torch.tensor([127, -128], dtype=torch.int8)
    x = extremes.repeat_interleave(4)[:, None].repeat(1, 128)
    w = extremes.repeat(8)[:, None].repeat(1, 128)
    expected = x.to(torch.int64) @ w.to(torch.int64).mT
    return torch.equal(torch._int_mm(x, w.mT).to(torch.int64), expected)
