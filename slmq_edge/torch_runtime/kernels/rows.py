"""One program a row: what is done to a row of the stream, and its rounding, in one pass.

The row is held as a tile [groups, group], so that rows and groups of a row are rounded alike.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slmq_edge.torch_runtime.kernels.arithmetic import levels, steps

# What becomes of a row before it is rounded.
PLAIN, NORMED, GATED = 0, 1, 2
# exp of more is beyond float32; silu of less than -88 is no more than 1e-36 either way.
STEEPEST = tl.constexpr(88.0)


@triton.jit
def normed_tile(x, gain, mask, eps, WIDTH: tl.constexpr):
    """RMSNorm of the tile of a row, float32."""
    square = tl.sum(tl.sum(x * x, axis=1), axis=0)
    root = tl.sqrt_rn(tl.div_rn(square, 1.0 * WIDTH) + eps)
    return x * tl.div_rn(1.0, root) * gain


@triton.jit
def silu(x):
    return tl.div_rn(x, 1.0 + tl.exp(tl.minimum(-x, STEEPEST)))


@triton.jit
def row_kernel(
    x, gain, values, integers, scale, zero, given_scale, given_zero, stride, eps,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BEFORE: tl.constexpr,
    GRID: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x F [rows, WIDTH] (GATED: [rows, 2 WIDTH]) -> values F, or integers with scale and zero.

    values: ``None`` where the row is rounded. zero: ``None`` on a symmetric grid. given_scale,
    given_zero: [1], of a static grid. GRID: as in `arithmetic.steps`.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCKS)
    inside = tl.arange(0, BLOCK)
    column = group[:, None] * GROUP + inside[None, :]
    mask = (inside < GROUP)[None, :] & (column < WIDTH)
    tile = tl.load(x + row * stride + column, mask=mask, other=0.0)
    floats = tile.dtype
    tile = tile.to(tl.float32)
    if BEFORE == 1:
        gains = tl.load(gain + column, mask=mask, other=0.0).to(tl.float32)
        tile = normed_tile(tile, gains, mask, eps, WIDTH)
    if BEFORE == 2:
        up = tl.load(x + row * stride + WIDTH + column, mask=mask, other=0.0).to(tl.float32)
        # As two operators of floats F, each rounds.
        tile = silu(tile).to(floats).to(tl.float32) * up
    tile = tile.to(floats)
    if values is not None:
        tl.store(values + row * WIDTH + column, tile, mask=mask)
    else:
        tile = tile.to(tl.float32)
        if given_scale is not None:
            step = tl.load(given_scale)
            shift = 0.0
            if given_zero is not None:
                shift = tl.load(given_zero)
            found = levels(tile, step, shift, GRID)
        else:
            held = group < GROUPS
            low = tl.min(tl.where(mask, tile, float("inf")), axis=1)
            high = tl.max(tl.where(mask, tile, float("-inf")), axis=1)
            low = tl.where(held, low, 0.0)
            high = tl.where(held, high, 0.0)
            step, shift = steps(low, high, GRID)
            tl.store(scale + row * GROUPS + group, step, mask=held)
            if zero is not None:
                tl.store(zero + row * GROUPS + group, shift, mask=held)
            found = levels(tile, step[:, None], shift[:, None], GRID)
        tl.store(integers + row * WIDTH + column, found, mask=mask)
