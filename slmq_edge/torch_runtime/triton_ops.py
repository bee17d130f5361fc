"""The operators as Triton kernels: for a GPU, and for Triton's interpreter on a CPU.

Same functions, same integers as `reference`; products whose groups no kernel takes go there. What
a kernel is told of a shape is fixed by the shape, so that nothing is chosen while a graph is
captured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slmq_edge.quantization.rounding import Steps
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime import reference
from slmq_edge.torch_runtime.kernels import blocks, launching, rows
from slmq_edge.torch_runtime.kernels.blocks import power_of_two
from slmq_edge.torch_runtime.kernels.gemm import float_gemm, integer_gemm
from slmq_edge.torch_runtime.kernels.gemv import integer_gemv
from slmq_edge.torch_runtime.kernels.weight_only import float_gemv
from slmq_edge.torch_runtime.ops import TRITON, Levels, Packed
from slmq_edge.torch_runtime.triton_attention import (
    attend,
    grid_of,
    stored,
    turned,
    turned_stored,
)

__all__ = [
    "NAME", "attend", "gated", "gated_rounded", "linear", "normed", "normed_rounded", "round_rows",
    "stored", "turned", "turned_stored", "weight_only",
]  # fmt: skip
NAME = TRITON
BITS_A_WORD = 32


def round_rows(x: Tensor, grid: Grid, static: Steps | None) -> Levels:
    """See `ops.Ops`."""
    return _rounded(x, grid, rows.PLAIN, static=static)


def normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """See `ops.Ops`."""
    return _floats(x, rows.NORMED, gain, eps)


def normed_rounded(x: Tensor, gain: Tensor, eps: float, grid: Grid) -> Levels:
    """See `ops.Ops`."""
    return _rounded(x, grid, rows.NORMED, gain, eps)


def gated(gate_up: Tensor) -> Tensor:
    """See `ops.Ops`."""
    return _floats(gate_up, rows.GATED)


def gated_rounded(gate_up: Tensor, grid: Grid) -> Levels:
    """See `ops.Ops`."""
    return _rounded(gate_up, grid, rows.GATED)


def linear(x: Levels, weight: Packed, bias: Tensor | None, floats: torch.dtype) -> Tensor:
    """See `ops.Ops`."""
    if not _takes(x.group, weight):
        return reference.linear(x, weight, bias, floats)
    count, width = x.integers.shape
    y = x.integers.new_empty((count, weight.rows), dtype=floats)
    if not count:
        return y
    group = weight.group or x.group or width
    groups = -(-width // group)
    flags = {
        "STATIC": x.scale.numel() == 1,
        "BLOCKED": x.group is not None and groups > 1,
        "SCALES": _groups(weight),
    }
    arguments = (
        x.integers.contiguous(), x.scale.contiguous(), _contiguous(x.zero),
        weight.integers, weight.scale, weight.zero, weight.row_sums if x.zero is not None else None,
        bias, y, count, weight.rows,
    )  # fmt: skip
    per_word = BITS_A_WORD // weight.bits
    if count <= blocks.MOST_GEMV_ROWS and _by_words(width, group, per_word):
        words = width // per_word
        each = group // per_word if groups > 1 else None
        tile = blocks.gemv(count, weight.rows, words, each)
        launching.launch(
            integer_gemv, (_programs(weight.rows, tile.out),), *arguments,
            BITS=weight.bits, WORDS=words, GROUP_WORDS=each or words, GROUPS=groups, **flags,
            ROWS=tile.rows, OUT=tile.out, CHUNK=tile.inner, num_warps=tile.warps,
        )  # fmt: skip
        return y
    group = min(group, width)
    held = blocks.held(None, plain=weight.bits == 8 and groups == 1)
    tile = blocks.gemm(count, weight.rows, group, held)
    launching.launch(
        integer_gemm, _tiles(count, weight, tile), *arguments,
        BITS=weight.bits, WIDTH=width, GROUP=group, GROUPS=groups, **flags, **_settings(tile),
    )  # fmt: skip
    return y


def weight_only(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """See `ops.Ops`."""
    if not _takes(None, weight):
        return reference.weight_only(x, weight, bias)
    count, width = x.shape
    y = x.new_empty((count, weight.rows))
    if not count:
        return y
    groups, group = _groups(weight), min(weight.group or width, width)
    arguments = (
        x.contiguous(), weight.integers, weight.scale, weight.zero, bias, y, count, weight.rows,
    )  # fmt: skip
    shape = {"BITS": weight.bits, "WIDTH": width, "GROUP": group, "GROUPS": groups}
    per_byte = 8 // weight.bits
    if count <= blocks.MOST_GEMV_ROWS and _by_words(width, group, per_byte):
        tile = blocks.float_gemv(count, width // per_byte, group // per_byte if groups > 1 else 1)
        launching.launch(
            float_gemv, (_programs(weight.rows, tile.out),), *arguments, **shape,
            ROWS=tile.rows, OUT=tile.out, CHUNK=tile.inner, num_warps=tile.warps,
        )  # fmt: skip
        return y
    tile = blocks.gemm(count, weight.rows, group, blocks.held(x.dtype, plain=False))
    launching.launch(
        float_gemm, _tiles(count, weight, tile), *arguments, **shape, **_settings(tile)
    )
    return y


def _rounded(
    x: Tensor,
    grid: Grid,
    before: int,
    gain: Tensor | None = None,
    eps: float = 0.0,
    static: Steps | None = None,
) -> Levels:
    count, width = len(x), _width(x, before)
    integers = x.new_empty((count, width), dtype=torch.int8)
    if static is None:
        scale = x.new_empty((count, grid.groups(width)), dtype=torch.float32)
        zero = None if grid.symmetric else torch.empty_like(scale)
        _launch_rows(x, gain, None, Levels(integers, scale, zero), None, eps, before, grid)
        return Levels(integers, scale, zero, grid.group)
    scale = static.scale.view(1, 1)
    zero = None if static.zero is None else static.zero.view(1, 1)
    found = Levels(integers, scale, zero)
    _launch_rows(x, gain, None, found, found, eps, before, grid)
    return found


def _floats(x: Tensor, before: int, gain: Tensor | None = None, eps: float = 0.0) -> Tensor:
    values = x.new_empty((len(x), _width(x, before)))
    _launch_rows(x, gain, values, None, None, eps, before, Grid(8, "token"))
    return values


def _width(x: Tensor, before: int) -> int:
    return x.shape[1] // 2 if before == rows.GATED else x.shape[1]


def _launch_rows(
    x: Tensor,
    gain: Tensor | None,
    values: Tensor | None,
    found: Levels | None,
    given: Levels | None,
    eps: float,
    before: int,
    grid: Grid,
) -> None:
    """One program a row: ``values``, or the levels ``found``, by ``given`` steps where static."""
    if not len(x):
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    width = _width(x, before)
    group = min(grid.group or width, width)
    groups = -(-width // group)
    held, each = power_of_two(groups), power_of_two(group)
    to: tuple[Any, ...] = (None, None, None)
    if found is not None:
        to = found.integers, found.scale, found.zero
    by = (None, None) if given is None else (given.scale, given.zero)
    launching.launch(
        rows.row_kernel, (len(x),), x, gain, values, *to, *by, x.stride(0), float(eps),
        WIDTH=width, GROUP=group, GROUPS=groups, BEFORE=before,
        GRID=grid_of(grid), BLOCKS=held, BLOCK=each, num_warps=blocks.row_warps(held * each),
    )  # fmt: skip


def _takes(input_group: int | None, weight: Packed) -> bool:
    """Whether kernels know how the groups of an input and of a weight lie to each other."""
    group = weight.group or input_group or weight.width
    if weight.bits == 4 and group % 2 and group < weight.width:
        return False
    return input_group in (None, group)


def _groups(weight: Packed) -> int:
    return int(weight.scale.shape[1])


def _by_words(width: int, group: int, levels: int) -> bool:
    """Whether rows and groups are whole words of so many levels."""
    if width % levels:
        return False
    return group >= width or (group % levels == 0 and _is_power(group))


def _is_power(n: int) -> bool:
    return n & (n - 1) == 0


def _programs(size: int, each: int) -> int:
    return -(-size // each)


def _tiles(count: int, weight: Packed, tile: blocks.Tile) -> tuple[int, int]:
    return _programs(weight.rows, tile.out), _programs(count, tile.rows)


def _settings(tile: blocks.Tile) -> dict[str, int]:
    return {
        "ROWS": tile.rows, "OUT": tile.out, "K": tile.inner,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
