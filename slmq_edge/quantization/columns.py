"""Rounding one weight by the error of its outputs: GPTQ's loop over columns, and what may follow.

    loss(Q) = (W - Q) H (W - Q)^T,     H = 2/N sum X^T X + damping * mean(diag) I

    loop      U^T U = H^-1, U upper;  for every column i:  q_i = round(w_i),
              e = (w_i - q_i) / U_ii,   W_j -= e U_ij  for j > i             (METHODS 3.6)
    drift     W <- W + share * (W sum (X_f - X)^T X + sum (S_f - S)^T X) 2/N H^-1
    polish    for every column again:  q_i <- round(q_i + ((W - Q) H)_i / H_ii)

X are the inputs that the rounded model gives the linear. Before the loop, drift moves the target
towards what makes up for the distance of X from the float model's inputs X_f and, in linears that
add to the stream, of the stream S from the float model's S_f; a share of one would undo all of it
on the calibration text, and overfit. Polish is coordinate descent on the same loss from where the
loop has ended. Both are additions to GPTQ, and off in what is called upstream.

The range of a row is found once, before the loop, by a search over its clippings; that of a group,
from the weights as they stand when the loop comes to its 128 columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import readback
from slmq_edge.quantization.rounding import (
    Rounded,
    Steps,
    dequantize,
    extent,
    search_clip,
    spread,
    steps,
    to_levels,
)
from slmq_edge.scheme import Grid

# Columns between two updates of the rest of the matrix, and for which groups take their ranges.
BLOCK = 128


@dataclass(frozen=True)
class Settings:
    """The released code's settings (METHODS 3.6), and two additions that are off.

    damping: share of the mean diagonal that is added to H; clip_search: whether ranges are
    clipped to lose least; act_order: columns in falling order of H's diagonal. drift: share of the
    rounded model's drift from the float one that weights make up for, 0..1; polish: passes over
    the columns after the loop.
    """

    damping: float = 0.01
    clip_search: bool = True
    act_order: bool = False
    drift: float = 0.0
    polish: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.damping < 1:
            raise UsageError(f"--damping is a share above 0 and below 1, not {self.damping}")
        if not 0 <= self.drift <= 1:
            raise UsageError(f"--drift is a share between 0 and 1, not {self.drift}")
        if self.polish < 0:
            raise UsageError(f"--polish counts passes, and cannot be {self.polish}")


@dataclass(frozen=True)
class Sums:
    """2/N times sums over all tokens of N windows, of a linear's inputs X [tokens, in].

    hessian: X^T X. inputs: (X_f - X)^T X [in, in]; stream: (S_f - S)^T X [hidden, in]; ``None``
    where no drift is made up for, or the linear does not add to the stream.
    """

    hessian: Tensor
    inputs: Tensor | None = None
    stream: Tensor | None = None


@torch.no_grad()
def solve(weight: Tensor, sums: Sums, grid: Grid, settings: Settings) -> Rounded:
    """Round ``weight`` [out, in] by the sums of its inputs; integers and steps in float32.

    Raises:
        SlmqError: the Hessian is not positive definite, not even damped: inputs were not finite.
    """
    weight = weight.to(torch.float32, copy=True)
    dead = sums.hessian.diagonal() == 0
    weight.masked_fill_(dead, 0)
    damped = damp(sums.hessian, settings.damping)
    if settings.drift:
        weight += settings.drift * _correction(weight, sums, damped)
        weight.masked_fill_(dead, 0)
    order = torch.arange(len(damped), device=weight.device)
    upper: Tensor
    if settings.act_order:
        order = sums.hessian.diagonal().argsort(descending=True, stable=True)
        upper = inverse_factor(damped[order][:, order])
    else:
        upper = inverse_factor(damped)
    found = _Columns(weight, order, upper, grid, settings).rounded()
    for _ in range(settings.polish):
        found = _polished(weight, found, damped.to(torch.float32), grid)
    return found


def damp(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag) I, float64; an input that was always 0 counts as 1."""
    damped = hessian.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    diagonal.masked_fill_(diagonal == 0, 1)
    diagonal += damping * diagonal.mean()
    return damped


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper U with U^T U = H^-1, float32: H read backwards is L L^T, U is L^-1 read backwards."""
    factor = _cholesky(hessian.flip(0, 1))
    inverse = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    torch.linalg.solve_triangular(factor, inverse, upper=False, out=inverse)
    return inverse.to(torch.float32).flip(0, 1)


def _cholesky(hessian: Tensor) -> Tensor:
    """The lower factor of a matrix, in its place."""
    failed = torch.empty((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(hessian, out=(hessian, failed))
    if any(readback.numbers(failed)):
        raise SlmqError(
            "GPTQ failed: the inputs' Hessian is not positive definite; try a larger --damping"
        )
    return hessian


def _correction(weight: Tensor, sums: Sums, damped: Tensor) -> Tensor:
    """What makes up for all of the drift, [out, in]."""
    assert sums.inputs is not None, "where drift counts, it is summed"
    missing = weight.to(torch.float64) @ sums.inputs.to(torch.float64)
    if sums.stream is not None:
        missing += sums.stream.to(torch.float64)
    return torch.cholesky_solve(missing.mT, _cholesky(damped.clone())).mT.to(torch.float32)


class _Columns:
    """The loop over the columns, in blocks: errors reach the rest of the matrix once a block."""

    def __init__(
        self, weight: Tensor, order: Tensor, upper: Tensor, grid: Grid, settings: Settings
    ) -> None:
        self.order, self.upper, self.grid, self.settings = order, upper, grid, settings
        self.column_grid = replace(grid, group=None)
        self.weight = weight[:, order]
        self.levels = torch.empty_like(self.weight)
        # Numbers, not tensors: a tensor as an index would be waited for, column by column.
        places = readback.numbers(order) if settings.act_order else range(len(order))
        self.group_of = [int(place) // (grid.group or len(order)) for place in places]
        # In another order a block of columns is no block of groups: their ranges come first.
        self.ranges_first = settings.act_order or grid.group is None
        whole = self._ranges(weight)
        self.scale, self.zero = whole.scale, whole.zero

    def rounded(self) -> Rounded:
        width, size = len(self.order), BLOCK
        if self.grid.group is not None:
            size = self.grid.group * max(1, BLOCK // self.grid.group)
        for start in range(0, width, size):
            end = min(start + size, width)
            if not self.ranges_first:
                self._renew_ranges(start, end)
            errors = self._block(start, end)
            self.weight[:, end:] -= errors @ self.upper[start:end, end:]
        levels = torch.empty_like(self.levels)
        levels[:, self.order] = self.levels
        return Rounded(levels, Steps(self.scale, self.zero))

    def _block(self, start: int, end: int) -> Tensor:
        """Round columns start..end; their errors over U_ii, [out, end - start]."""
        weight, upper = self.weight[:, start:end], self.upper[start:end, start:end]
        errors = torch.empty_like(weight)
        for i in range(end - start):
            column, group = weight[:, i : i + 1], self.group_of[start + i]
            zero = None if self.zero is None else self.zero[:, group, None]
            there = Steps(self.scale[:, group, None], zero)
            levels = to_levels(column, there, self.column_grid)
            error = (column - dequantize(levels, there, self.column_grid)) / upper[i, i]
            weight[:, i + 1 :] -= error * upper[i, i + 1 :]
            self.levels[:, start + i] = levels[:, 0]
            errors[:, i] = error[:, 0]
        return errors

    def _ranges(self, weight: Tensor) -> Steps:
        found = search_clip if self.settings.clip_search else extent
        return steps(found(weight, self.grid), self.grid)

    def _renew_ranges(self, start: int, end: int) -> None:
        assert self.grid.group is not None, "only groups take their ranges late"
        here = self._ranges(self.weight[:, start:end])
        groups = slice(start // self.grid.group, -(-end // self.grid.group))
        self.scale[:, groups] = here.scale
        if self.zero is not None and here.zero is not None:
            self.zero[:, groups] = here.zero


def _polished(weight: Tensor, found: Rounded, hessian: Tensor, grid: Grid) -> Rounded:
    """One pass of coordinate descent: every column to its best level, the others held."""
    levels, width = found.integers.clone(), weight.shape[1]
    scale = spread(found.steps.scale, weight, grid).expand_as(weight)
    pull = (weight - found.values(grid)) @ hessian
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        here, inner = pull[:, start:end], hessian[start:end, start:end]
        moved = torch.empty_like(here)
        for i in range(end - start):
            step = scale[:, start + i]
            wanted = levels[:, start + i] + here[:, i] / inner[i, i] / step
            new = wanted.round().clamp(grid.bottom, grid.top)
            moved[:, i] = (new - levels[:, start + i]) * step
            here -= moved[:, i : i + 1] * inner[i]
            levels[:, start + i] = new
        pull[:, end:] -= moved @ hessian[start:end, end:]
    return Rounded(levels, found.steps)
