"""Rounding to a symmetric grid, and multiplying integers exactly.

    s = max(absmax(t), 1e-5) / Q,   t_q = round_half_even(t / s),   Q = 2^(b-1) - 1

One scale per row of the last dimension: an output channel of a weight [out, in], a token of an
activation [..., in]. (SmoothQuant's grid, METHODS 1.3, always in the tensor's own precision.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from slmq_edge.scheme import Grid

SMALLEST_ABSMAX = 1e-5
# Sums of so many products of two 8-bit integers stay below 2^24, where float32 is exact.
EXACT_TERMS = 2**24 // 127**2


def quantize(t: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Integers (held in ``t``'s float dtype) [..., n] and their scales [..., 1]."""
    scale = t.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_ABSMAX) / grid.top
    return torch.round(t / scale), scale


def fake_quantize(t: Tensor, grid: Grid) -> Tensor:
    """Round to the grid and come back, with the straight-through gradient of one."""
    integers, scale = quantize(t.detach(), grid)
    return t + (integers * scale - t.detach())


def integer_matmul(x: Tensor, w: Tensor) -> Tensor:
    """Exact ``x`` [..., in] times ``w`` [out, in] transposed, of integers held in floats.

    float32 multiplies in slices whose partial sums it can hold exactly, whatever the order of
    summation; their sum is taken in float64. Returns float64 [..., out].
    """
    if x.dtype == torch.float64:
        return x @ w.to(torch.float64).mT
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[-1], EXACT_TERMS):
        part_x, part_w = (t[..., start : start + EXACT_TERMS] for t in (x, w))
        total = total + (part_x @ part_w.mT).to(torch.float64)
    return total
