"""One vocabulary of rounding: every quantizer of the three methods is an instance of it.

A row of n values is cut into groups, each with a range [low, high], a scale s and a zero point z:

    symmetric     s = max(|low|, |high|) / Q,                z = 0,                Q = 2^(b-1) - 1
    asymmetric    s = (high - low) / (2^b - 1),              z = round(-low / s) - 2^(b-1)
    integers      t_q = clamp(round_half_even(t / s) + z, bottom, top),   t ~ (t_q - z) s

Ranges are the data's own, or clipped: by calibration, by search, or by learned factors.

    SmoothQuant (METHODS 1.3)             symmetric
    OmniQuant   (METHODS 2.1)             asymmetric (as released zero=False, ours holds zero),
                                          ranges clipped by learned factors
    SpinQuant activations (METHODS 3.4)   asymmetric
    SpinQuant weights, GPTQ (METHODS 3.6) symmetric, lowest, ranges clipped by search

Integers are held in the tensor's own float dtype, and rounding is always in that dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.scheme import Grid, Scheme

if TYPE_CHECKING:
    from slmq_edge.decoder import Operands

SMALLEST_RANGE = 1e-5
LARGEST_ZERO = 1e4
# Below it, float32 holds all whole numbers.
EXACT = 2**24
LARGEST_LEVEL = 128
# Values that are searched at a time for their clipping.
CACHED = 2**17


@dataclass(frozen=True)
class Extent:
    """The range of every group: low and high [..., groups]."""

    low: Tensor
    high: Tensor

    def clipped(self, low: Tensor | float, high: Tensor | float) -> Extent:
        """Both ends times a factor."""
        return Extent(self.low * low, self.high * high)


@dataclass(frozen=True)
class Steps:
    """Where the levels of every group lie: scale and zero point [..., groups].

    zero is ``None`` on a symmetric grid; it is a whole number held in scale's dtype.
    """

    scale: Tensor
    zero: Tensor | None


@dataclass(frozen=True)
class Rounded:
    """integers [..., n], and the steps that give them their values."""

    integers: Tensor
    steps: Steps

    def values(self, grid: Grid) -> Tensor:
        """What the integers stand for, [..., n]."""
        return dequantize(self.integers, self.steps, grid)


def extent(t: Tensor, grid: Grid) -> Extent:
    """The least and the greatest value of every group of ``t`` [..., n].

    Of a grid for the whole tensor it is one range, [1]: what stands in for the calibrated one while
    a method looks for what it can do.
    """
    if grid.per == "tensor":
        return Extent(t.amin().view(1), t.amax().view(1))
    grouped = grouped_rows(t, grid)
    return Extent(grouped.amin(-1), grouped.amax(-1))


def steps(found: Extent, grid: Grid) -> Steps:
    """Scale and zero point for a range; differentiable in it, but for the zero point."""
    if grid.symmetric:
        absmax = torch.maximum(found.low.abs(), found.high.abs())
        return Steps(absmax.clamp(min=SMALLEST_RANGE) / grid.top, None)
    spaces = 2**grid.bits - 1
    low, high = found.low, found.high
    narrow = torch.maximum(low.abs(), high.abs()) * spaces > LARGEST_ZERO * (high - low)
    # A range far from zero and narrow has no zero point that fits: it is widened to hold zero.
    holds_zero = torch.ones_like(narrow) if grid.zero else narrow
    low = torch.where(holds_zero, low.clamp(max=0), low)
    high = torch.where(holds_zero, high.clamp(min=0), high)
    scale = (high - low).clamp(min=SMALLEST_RANGE) / spaces
    zero = torch.round(-low.detach() / scale.detach()) + grid.bottom
    return Steps(scale, zero)


def quantize(t: Tensor, grid: Grid, found: Extent | None = None) -> Rounded:
    """Round ``t`` [..., n] to the grid, by its own range or a given one."""
    where = steps(found or extent(t, grid), grid)
    return Rounded(to_levels(t, where, grid), where)


def to_levels(t: Tensor, where: Steps, grid: Grid) -> Tensor:
    """The nearest level of every value, [..., n]."""
    levels = torch.round(t / spread(where.scale, t, grid))
    if where.zero is not None:
        levels = levels + spread(where.zero, t, grid)
    return levels.clamp(grid.bottom, grid.top)


def dequantize(integers: Tensor, where: Steps, grid: Grid) -> Tensor:
    """(integers - zero) * scale, [..., n]."""
    if where.zero is not None:
        integers = integers - spread(where.zero, integers, grid)
    return integers * spread(where.scale, integers, grid)


def rounded(t: Tensor, grid: Grid | None, found: Extent | None = None) -> Tensor:
    """Round and come back; ``None`` leaves ``t`` as it is."""
    return t if grid is None else quantize(t, grid, found).values(grid)


def operands_of(scheme: Scheme, by: Callable[[Tensor, Grid], Tensor] = rounded) -> Operands:
    """What attention multiplies, on the scheme's grids, rounded ``by`` token and head."""

    def on(grid: Grid | None, x: Tensor) -> Tensor:
        return x if grid is None else by(x, grid)

    def operands(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return on(scheme.query, query), on(scheme.kv, key), on(scheme.kv, value)

    return operands


def straight_through(t: Tensor, grid: Grid, found: Extent | None = None) -> Tensor:
    """Round and come back; the gradient is that of the identity (METHODS 3.4)."""
    value = t.detach()
    return t + (rounded(value, grid, found) - value)


def fake_quantize(t: Tensor, grid: Grid, found: Extent | None = None) -> Tensor:
    """Round and come back, differentiable in ``t`` and in the range (METHODS 2.1).

    Rounding is straight-through, clamping passes gradient only inside, the scale has its full
    gradient, the zero point none.
    """
    where = steps(found or extent(t, grid), grid)
    ratio = t / spread(where.scale, t, grid)
    levels = ratio + (torch.round(ratio) - ratio).detach()
    if where.zero is not None:
        levels = levels + spread(where.zero, t, grid)
    return dequantize(levels.clamp(grid.bottom, grid.top), where, grid)


def search_clip(t: Tensor, grid: Grid) -> Extent:
    """The range, shrunk by 1.00, 0.99 .. 0.21, that leaves least sum |error|^2.4 (METHODS 3.6).

    t: [rows, n]. Rows are searched a few at a time on a CPU, so that they stay in its cache.
    """
    rows = max(1, CACHED // t.shape[-1]) if t.device.type == "cpu" else len(t)
    parts = [_search_clip(part, grid) for part in torch.split(t, rows)]
    return Extent(torch.cat([p.low for p in parts]), torch.cat([p.high for p in parts]))


def _search_clip(t: Tensor, grid: Grid) -> Extent:
    whole = extent(t, grid)
    best = torch.full_like(whole.low, torch.inf)
    chosen = torch.ones_like(whole.low)
    for percent in range(100, 20, -1):
        share = percent / 100
        error = (rounded(t, grid, whole.clipped(share, share)) - t).abs() ** 2.4
        loss = _group_sums(error, grid)
        better = loss < best
        best, chosen = torch.where(better, loss, best), chosen.masked_fill(better, share)
    return whole.clipped(chosen, chosen)


def grouped_rows(t: Tensor, grid: Grid) -> Tensor:
    """``t`` [..., n] as [..., groups, group]; a short last group is filled with its last value."""
    if grid.group is None:
        return t[..., None, :]
    missing = -t.shape[-1] % grid.group
    if missing:
        t = torch.cat([t, t[..., -1:].expand(*t.shape[:-1], missing)], dim=-1)
    return t.reshape(*t.shape[:-1], -1, grid.group)


def spread(per_group: Tensor, like: Tensor, grid: Grid) -> Tensor:
    """[..., groups] repeated over the values of each group, to broadcast against ``like``."""
    if grid.group is None:
        return per_group
    return per_group.repeat_interleave(grid.group, dim=-1)[..., : like.shape[-1]]


def _group_sums(error: Tensor, grid: Grid) -> Tensor:
    if grid.group is None:
        return error.sum(-1, keepdim=True)
    padded = functional.pad(error, (0, -error.shape[-1] % grid.group))
    return padded.reshape(*error.shape[:-1], -1, grid.group).sum(-1)


def integer_matmul(x: Tensor, w: Tensor) -> Tensor:
    """Exact ``x`` [..., in] times ``w`` [out, in] transposed, of integers held in floats.

    x: levels, so 128 at most. float32 multiplies in slices whose partial sums it can hold exactly,
    whatever the order of summation; their sum is taken in float64. Returns float64 [..., out].
    """
    if x.dtype == torch.float64:
        return x @ w.to(torch.float64).mT
    terms = EXACT // (LARGEST_LEVEL * max(1, int(w.abs().max())))
    if terms == 0:
        return integer_matmul(x.to(torch.float64), w)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[-1], terms):
        part_x, part_w = (t[..., start : start + terms] for t in (x, w))
        total = total + (part_x @ part_w.mT).to(torch.float64)
    return total
