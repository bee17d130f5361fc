"""What a token adds to the cache: heads turned to its position, rounded, written; one program each.

Positions come from a tensor on the device, so that a captured graph writes where it stands now.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slmq_edge.torch_runtime.kernels.arithmetic import levels, steps


@triton.jit
def normed_halves(first, second, gain, at, mask, eps, DIM: tl.constexpr, floats: tl.constexpr):
    """RMSNorm of one head by its gain, rounded to F."""
    square = tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)
    root = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(square, 1.0 * DIM) + eps))
    low = tl.load(gain + at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(gain + DIM // 2 + at, mask=mask, other=0.0).to(tl.float32)
    first = (first * root * low).to(floats).to(tl.float32)
    second = (second * root * high).to(floats).to(tl.float32)
    return first, second


@triton.jit
def turned_halves(first, second, cosine, sine, floats: tl.constexpr):
    """Rotated by an angle each pair, every product rounded to F and their sum again."""
    a = (first * cosine).to(floats).to(tl.float32)
    b = (second * sine).to(floats).to(tl.float32)
    c = (second * cosine).to(floats).to(tl.float32)
    d = (first * sine).to(floats).to(tl.float32)
    return (a - b).to(floats).to(tl.float32), (c + d).to(floats).to(tl.float32)


@triton.jit
def rounded_halves(first, second, mask, GRID: tl.constexpr):
    """Levels of both halves, and the scale and zero point that they share."""
    low = tl.min(tl.where(mask, tl.minimum(first, second), float("inf")), axis=0)
    high = tl.max(tl.where(mask, tl.maximum(first, second), float("-inf")), axis=0)
    scale, zero = steps(low, high, GRID)
    return (
        levels(first, scale, zero, GRID),
        levels(second, scale, zero, GRID),
        scale,
        zero,
    )


@triton.jit
def keep(
    held, scales, zeros, first, second, line, at, mask, HALF: tl.constexpr, GRID: tl.constexpr
):
    """Write one head to one line of a cache [lines, 2 HALF]: as floats, or as levels."""
    place = held + line * 2 * HALF + at
    if scales is None:
        tl.store(place, first.to(held.dtype.element_ty), mask=mask)
        tl.store(place + HALF, second.to(held.dtype.element_ty), mask=mask)
    else:
        low, high, scale, zero = rounded_halves(first, second, mask, GRID)
        tl.store(place, low, mask=mask)
        tl.store(place + HALF, high, mask=mask)
        tl.store(scales + line, scale)
        if zeros is not None:
            tl.store(zeros + line, zero.to(zeros.dtype.element_ty))


@triton.jit(do_not_specialize=["length"])
def turn_and_store(
    x, cosine, sine, start, query_gain, key_gain, eps, query,
    keys, key_scales, key_zeros, values, value_scales, value_zeros,
    length, batch_stride, token_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROOM: tl.constexpr,
    TURN: tl.constexpr, ROUND_QUERY: tl.constexpr,
    QUERY_GRID: tl.constexpr, GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x F [batch, length, HEADS + 2 KV_HEADS, DIM]: queries -> query, keys and values -> cache.

    start: int64 [1], the position of the first token. A cache's lines are [batch, KV_HEADS, ROOM].
    """
    head = tl.program_id(0)
    token = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    HALF: tl.constexpr = DIM // 2
    floats: tl.constexpr = x.dtype.element_ty
    at = tl.arange(0, BLOCK)
    mask = at < HALF
    place = x + batch * batch_stride + token.to(tl.int64) * token_stride + head * DIM + at
    first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        if query_gain is not None:
            if head < HEADS:
                first, second = normed_halves(first, second, query_gain, at, mask, eps, DIM, floats)
            else:
                first, second = normed_halves(first, second, key_gain, at, mask, eps, DIM, floats)
        if TURN:
            # Tables are as wide as a head; the first half of the sine's is negated.
            cosines = tl.load(cosine + token * DIM + at, mask=mask, other=0.0).to(tl.float32)
            sines = tl.load(sine + token * DIM + HALF + at, mask=mask, other=0.0).to(tl.float32)
            first, second = turned_halves(first, second, cosines, sines, floats)
    if HEADS > 0:
        if head < HEADS:
            if ROUND_QUERY:
                low, high, scale, zero = rounded_halves(first, second, mask, QUERY_GRID)
                first = (low.to(tl.float32) - zero) * scale
                second = (high.to(tl.float32) - zero) * scale
            out = query + ((batch * length + token) * HEADS + head) * DIM + at
            tl.store(out, first.to(floats), mask=mask)
            tl.store(out + HALF, second.to(floats), mask=mask)
    if KV_HEADS > 0:
        position = tl.load(start) + token
        line = (batch * KV_HEADS + (head - HEADS) % KV_HEADS) * ROOM + position
        if head >= HEADS + KV_HEADS:
            keep(values, value_scales, value_zeros, first, second, line, at, mask, HALF, GRID)
        elif head >= HEADS:
            keep(keys, key_scales, key_zeros, first, second, line, at, mask, HALF, GRID)
