"""Attention of single tokens over the filled part of a static cache.

A program reads a stretch of positions for all query heads that share a head of keys and values,
with the softmax kept as it goes: m the largest score so far, l the sum of exp(score - m). Where
the room is long, stretches are read side by side and joined by a second kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cached(held, scales, zeros, line, position, at, mask, floats: tl.constexpr, DIM: tl.constexpr):
    """Positions [count, dim] of one head's cache, as floats F."""
    valid = mask[:, None] & (at < DIM)[None, :]
    place = held + (line + position)[:, None] * DIM + at[None, :]
    if scales is None:
        return tl.load(place, mask=valid, other=0.0)
    else:
        levels = tl.load(place, mask=valid, other=0).to(tl.float32)
        if zeros is not None:
            levels -= tl.load(zeros + line + position, mask=mask, other=0).to(tl.float32)[:, None]
        scale = tl.load(scales + line + position, mask=mask, other=0.0)
        return (levels * scale[:, None]).to(floats)


@triton.jit(do_not_specialize=["length"])
def attend_stretch(
    query, keys, key_scales, key_zeros, values, value_scales, value_zeros, start,
    out, best, weight, length, factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROOM: tl.constexpr,
    STRETCH: tl.constexpr, SPLITS: tl.constexpr,
    SHARED: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """out F [batch, length, HEADS, DIM]; of several stretches float32 [..., SPLITS, DIM].

    best, weight: m and l of every stretch, float32 [batch, length, HEADS, SPLITS]; ``None`` of one.
    factor: of the scores, 1 / sqrt(DIM). SHARED, BLOCK: query heads of a head, and DIM, as tiles.
    """
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2)
    PER_HEAD: tl.constexpr = HEADS // KV_HEADS
    floats: tl.constexpr = query.dtype.element_ty
    batch = (token // length).to(tl.int64)
    filled = (tl.load(start) + token % length + 1).to(tl.int32)
    begin = split * STRETCH
    stop = tl.minimum(begin + STRETCH, filled)
    if begin < stop:
        at = tl.arange(0, BLOCK)
        shared = tl.arange(0, SHARED)
        head = token.to(tl.int64) * HEADS + kv_head * PER_HEAD + shared
        both = (shared < PER_HEAD)[:, None] & (at < DIM)[None, :]
        queries = tl.load(query + head[:, None] * DIM + at[None, :], mask=both, other=0.0)
        line = (batch * KV_HEADS + kv_head) * ROOM
        m = tl.full([SHARED], float("-inf"), tl.float32)
        total = tl.zeros([SHARED], tl.float32)
        mixed = tl.zeros([SHARED, BLOCK], tl.float32)
        for first in range(begin, stop, COUNT):
            position = first + tl.arange(0, COUNT)
            mask = position < stop
            key = cached(keys, key_scales, key_zeros, line, position, at, mask, floats, DIM)
            scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * factor
            scores = tl.where(mask[None, :], scores, float("-inf"))
            larger = tl.maximum(m, tl.max(scores, axis=1))
            shares = tl.exp(scores - larger[:, None])
            shrunk = tl.exp(m - larger)
            value = cached(values, value_scales, value_zeros, line, position, at, mask, floats, DIM)
            total = total * shrunk + tl.sum(shares, axis=1)
            mixed = mixed * shrunk[:, None]
            mixed = tl.dot(shares.to(floats), value, mixed, input_precision="ieee")
            m = larger
        if SPLITS == 1:
            found = tl.div_rn(mixed, total[:, None])
            tl.store(out + head[:, None] * DIM + at[None, :], found.to(floats), mask=both)
        else:
            place = head * SPLITS + split
            tl.store(out + place[:, None] * DIM + at[None, :], mixed, mask=both)
            tl.store(best + place, m, mask=shared < PER_HEAD)
            tl.store(weight + place, total, mask=shared < PER_HEAD)


@triton.jit(do_not_specialize=["length"])
def join_stretches(
    parts, best, weight, start, out, length,
    HEADS: tl.constexpr, DIM: tl.constexpr, STRETCH: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """out F [batch, length, HEADS, DIM] of the stretches that have been read."""
    head = tl.program_id(0)
    token = tl.program_id(1)
    filled = (tl.load(start) + token % length + 1).to(tl.int32)
    split = tl.arange(0, MOST)
    at = tl.arange(0, BLOCK)
    read = split * STRETCH < filled
    line = token.to(tl.int64) * HEADS + head
    m = tl.load(best + line * SPLITS + split, mask=read, other=float("-inf"))
    shares = tl.exp(m - tl.max(m, axis=0))
    total = tl.sum(shares * tl.load(weight + line * SPLITS + split, mask=read, other=0.0), axis=0)
    place = (line * SPLITS + split)[:, None] * DIM + at[None, :]
    mixed = tl.load(parts + place, mask=read[:, None] & (at < DIM)[None, :], other=0.0)
    found = tl.div_rn(tl.sum(mixed * shares[:, None], axis=0), total)
    tl.store(out + line * DIM + at, found.to(out.dtype.element_ty), mask=at < DIM)
