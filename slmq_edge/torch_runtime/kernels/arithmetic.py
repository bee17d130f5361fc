"""Exact arithmetic that kernels share: four products at once, rounding half to even, steps.

Float divisions are IEEE's (`div_rn`): Triton's own `/` is an approximation, whose levels are not
those of `quantization.rounding`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slmq_edge.torch_runtime.kernels import interpreting

# The interpreter knows no instruction of a GPU: it multiplies the four bytes one by one.
INSTRUCTIONS = tl.constexpr(not interpreting.IS_ON)
# Added to a number of at most 2^22, it leaves no bits for a fraction: the sum is rounded to even.
SHIFT = tl.constexpr(1.5 * 2**23)
FARTHEST = tl.constexpr(2.0**22)
SMALLEST_RANGE = tl.constexpr(1e-5)
LARGEST_ZERO = tl.constexpr(1e4)


@triton.jit
def dot4(a, b, total):
    """Total + the sum of four products: a, b int32, each four int8."""
    if INSTRUCTIONS:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [a, b, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        for shift in tl.static_range(0, 32, 8):
            total += ((a << (24 - shift)) >> 24) * ((b << (24 - shift)) >> 24)
        return total


@triton.jit
def half_even(x):
    """The nearest whole number, the even one of two; beyond 2^22, 2^22."""
    near = tl.minimum(tl.maximum(x, -FARTHEST), FARTHEST)
    return (near + SHIFT) - SHIFT


@triton.jit
def steps(low, high, GRID: tl.constexpr):
    """Scale and zero point of ranges, as `quantization.rounding.steps` has them.

    GRID: bottom, top, whether it is symmetric, whether its range holds 0.
    """
    TOP: tl.constexpr = GRID[1]
    BOTTOM: tl.constexpr = GRID[0]
    if GRID[2]:
        absmax = tl.maximum(tl.abs(low), tl.abs(high))
        scale = tl.div_rn(tl.maximum(absmax, SMALLEST_RANGE), 1.0 * TOP)
        return scale, tl.zeros_like(scale)
    else:
        spaces: tl.constexpr = 1.0 * (TOP - BOTTOM)
        if GRID[3]:
            low = tl.minimum(low, 0.0)
            high = tl.maximum(high, 0.0)
        else:
            absmax = tl.maximum(tl.abs(low), tl.abs(high))
            narrow = absmax * spaces > (high - low) * LARGEST_ZERO
            low = tl.where(narrow, tl.minimum(low, 0.0), low)
            high = tl.where(narrow, tl.maximum(high, 0.0), high)
        scale = tl.div_rn(tl.maximum(high - low, SMALLEST_RANGE), spaces)
        return scale, half_even(tl.div_rn(-low, scale)) + BOTTOM


@triton.jit
def levels(x, scale, zero, GRID: tl.constexpr):
    """The nearest levels of x, int8."""
    found = half_even(tl.div_rn(x, scale)) + zero
    return tl.minimum(tl.maximum(found, 1.0 * GRID[0]), 1.0 * GRID[1]).to(tl.int8)


@triton.jit
def scaled_back(
    total, x_scale, x_zero, row_sums, bias, row, column, row_mask, column_mask,
    STATIC: tl.constexpr, BLOCKED: tl.constexpr,
):  # fmt: skip
    """Sums float32 [rows, out], times the weight's scales already, as `ops.Ops.linear` ends.

    STATIC: the input has one scale. BLOCKED: it has one a group, and they are in the sums.
    """
    if not BLOCKED:
        step = row * 0 if STATIC else row
        if x_zero is not None:
            units = tl.load(x_zero + step, mask=row_mask, other=0.0)[:, None]
            total -= units * tl.load(row_sums + column, mask=column_mask, other=0.0)[None, :]
        total *= tl.load(x_scale + step, mask=row_mask, other=0.0)[:, None]
    if bias is not None:
        total += tl.load(bias + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    return total
