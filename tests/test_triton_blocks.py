"""Sizes of tiles, as plain functions of a shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.torch_runtime.kernels import blocks

sizes = st.integers(1, 200_000)


@given(rows=st.integers(1, 4), out=sizes, words=st.integers(1, 8248))
def test_tiles_of_few_rows(rows: int, out: int, words: int) -> None:
    for group in (None, 4, 8, 16, 32):
        tile = blocks.gemv(rows, out, words, group)
        assert tile.rows >= rows
        assert tile.inner & (tile.inner - 1) == 0
        assert group is None or tile.inner % group == 0
        assert tile.rows * tile.out * tile.inner <= 128 * 32
    for group in (None, 16, 128):
        tile = blocks.float_gemv(rows, 4 * words, group or 1)
        assert tile.inner % (group or 1) == 0


@given(rows=st.integers(1, 4096), out=sizes, group=st.sampled_from([32, 64, 128, 24, 576, 4864]))
def test_tiles_of_many_rows(rows: int, out: int, group: int) -> None:
    tile = blocks.gemm(rows, out, group)
    assert 32 <= tile.inner <= 128
    assert tile.rows <= max(16, 2 * rows)
    whole = blocks.gemm(rows, out, group, most=32 * 32)
    assert whole.rows * whole.out <= 32 * 32


def test_sums_of_floats_stay_in_registers() -> None:
    assert blocks.most_held(torch.float32, plain=True) == 32 * 32
    assert blocks.most_held(None, plain=True) > blocks.most_held(None, plain=False)


def test_rooms_are_read_by_one_program_or_by_several() -> None:
    assert blocks.splits(192) == blocks.splits(512) == 1
    assert blocks.splits(600) == 3
    assert blocks.splits(2048) == 8
