"""Sizes of tiles, as plain functions of a shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.torch_runtime import probe
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
    for floats, plain in (
        (None, True),
        (None, False),
        (torch.float16, False),
        (torch.float32, False),
    ):
        held = blocks.held(floats, plain)
        tile = blocks.gemm(rows, out, group, held)
        assert 32 <= tile.inner <= held.inner
        assert tile.rows <= max(16, 2 * rows)
        assert tile.rows * tile.out <= held.sums


def test_a_prompt_fills_the_multiprocessors() -> None:
    """Where the layer is large enough for it, by tiles that are as large as that allows."""
    plain = blocks.held(None, plain=True)
    assert blocks.gemm(1024, 9728, 896, plain) == blocks.Tile(128, 128, 128, 8, 3)
    small = blocks.gemm(128, 576, 576, plain)
    assert -(-128 // small.rows) * (576 // small.out) >= blocks.FEWEST_PROGRAMS
    assert blocks.gemm(5, 576, 576, plain).rows == 16


def test_integers_are_probed_in_the_tiles_that_prompts_take() -> None:
    """Those of 64 rows and more are other instructions on an H100 than those of 16 and 32."""
    for plain, large in ((True, {(128, 128), (64, 128)}), (False, {(64, 64)})):
        held = blocks.held(None, plain)
        tiles = [blocks.gemm(*size, 896, held) for size in probe.SIZES_ON_GPU]
        assert {(tile.rows, tile.out) for tile in tiles} == large


def test_rooms_are_read_by_one_program_or_by_several() -> None:
    assert blocks.splits(192) == blocks.splits(512) == 1
    assert blocks.splits(600) == 3
    assert blocks.splits(2048) == 8
