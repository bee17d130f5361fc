"""Sizes of tiles: plain functions of a shape, the one place that a GPU session tunes.

They change speed and no number: integer sums are exact, and groups are added in one order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# An H100 has 132 multiprocessors, an A800 108: fewer programs than that leave some of them idle.
FEWEST_PROGRAMS = 100
# So many rows of an input are multiplied as they pass by; more go to the matrix units.
MOST_GEMV_ROWS = 4
# Groups of a row that a warp holds, one a lane: adding them in order is then a shuffle each.
GROUPS_A_CHUNK = 32


@dataclass(frozen=True)
class Tile:
    """What a program multiplies in one step: rows of the input, of the weight, and along it.

    inner: words of 32 bits, bytes, or columns, as the kernel says. stages: steps that are loaded
    ahead.
    """

    rows: int
    out: int
    inner: int
    warps: int
    stages: int = 1


@dataclass(frozen=True)
class Held:
    """What the registers of a program hold at most: sums, and how deep its operands are."""

    sums: int
    inner: int


# Rows, out, warps, stages; largest first.
GEMM_TILES = (
    (128, 128, 8, 3),
    (64, 128, 4, 3),
    (64, 64, 4, 4),
    (32, 64, 4, 4),
    (32, 32, 4, 4),
    (16, 32, 2, 5),
    (16, 16, 2, 5),
)
# Rows of a weight for each program of a GEMV, from so many rows of the weight on.
GEMV_OUT = ((16384, 8), (0, 4))
# Words of one tile, and bytes of one whose values are floats: what 4 warps hold without spilling.
GEMV_WORDS, GEMV_BYTES = 4096, 4096
LONGEST_CHUNK = 512
# Positions that a program of attention reads at a time, and in all before others read on.
POSITIONS, STRETCH = 64, 256


def gemv(rows: int, out: int, words: int, group_words: int | None) -> Tile:
    """For ``rows`` of the input (at most 4); inner: words of a row of the weight.

    group_words: words that share a scale, ``None``: all.
    """
    each = next(size for least, size in GEMV_OUT if out >= least)
    taken = power_of_two(rows)
    most = min(LONGEST_CHUNK, GEMV_WORDS // (taken * each))
    if group_words is None:
        return Tile(taken, each, min(power_of_two(words), most), warps=4)
    most = max(group_words, min(most, GROUPS_A_CHUNK * group_words))
    return Tile(taken, each, min(max(power_of_two(words), group_words), most), warps=4)


def float_gemv(rows: int, bytes_a_row: int, group_bytes: int) -> Tile:
    """As ``gemv``, of float inputs; inner: bytes of a row of the weight."""
    taken, each = power_of_two(rows), 4
    most = max(group_bytes, GEMV_BYTES // (taken * each))
    return Tile(taken, each, min(max(power_of_two(bytes_a_row), group_bytes), most), warps=4)


def gemm(rows: int, out: int, group: int, held: Held) -> Tile:
    """The largest tile that leaves no multiprocessor idle, or else the smallest.

    group: inputs that share a scale. Inner: columns of both.
    """
    fitting = [
        tile
        for tile in GEMM_TILES
        if tile[0] <= max(16, power_of_two(rows)) and tile[0] * tile[1] <= held.sums
    ]
    filling = (t for t in fitting if -(-rows // t[0]) * -(-out // t[1]) >= FEWEST_PROGRAMS)
    high, wide, warps, stages = next(filling, fitting[-1])
    return Tile(high, wide, min(max(32, power_of_two(group)), held.inner), warps, stages)


def row_warps(size: int) -> int:
    """Warps of a program that holds ``size`` values of one row."""
    return min(16, max(1, size // 512))


def splits(room: int) -> int:
    """Programs that read one head's ``room`` positions side by side."""
    return max(1, -(-room // STRETCH)) if room > 2 * STRETCH else 1


def power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def held(floats: torch.dtype | None, plain: bool) -> Held:
    """For products of ``floats``; of integers where ``None``.

    plain: levels of 8 bits with one scale a row.
    """
    if floats == torch.float32:  # no matrix units take it: both operands lie in registers
        return Held(32 * 32, 32)
    return Held(128 * 128 if floats is None and plain else 64 * 64, 128)
