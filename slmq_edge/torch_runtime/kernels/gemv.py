"""Few rows times a weight: bound by how fast the weight is read.

A program takes a few rows of the weight and reads them from left to right, 16 bytes a thread; all
rows of the input share what is read. Words of 32 bits hold four levels of 8 bits, or eight of 4;
one instruction multiplies four pairs. Of 4 bits, a word's low nibbles are the even columns and
its high nibbles the odd ones: the input's words are sorted likewise, once a program.
Sums are exact; groups are added in their order, as `reference.linear` adds them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slmq_edge.torch_runtime.kernels.arithmetic import dot4, scaled_back

LOW_NIBBLES = tl.constexpr(0x0F0F0F0F)
ONES = tl.constexpr(0x01010101)
TOP_BYTE = tl.constexpr(-(1 << 24))


@triton.jit
def even_bytes(first, second):
    """Bytes 0, 2 of both words, as one word."""
    low = (first & 0xFF) | ((first >> 8) & 0xFF00)
    return low | ((second & 0xFF) << 16) | ((second << 8) & TOP_BYTE)


@triton.jit
def odd_bytes(first, second):
    """Bytes 1, 3 of both words, as one word."""
    low = ((first >> 8) & 0xFF) | ((first >> 16) & 0xFF00)
    return low | ((second << 8) & 0xFF0000) | (second & TOP_BYTE)


@triton.jit
def in_order(parts, total, COUNT: tl.constexpr):
    """Total [rows, out] + parts[:, :, 0] + parts[:, :, 1] + ..., added in that order."""
    for g in tl.static_range(COUNT):
        at = tl.full([parts.shape[0], parts.shape[1], 1], g, tl.int32)
        total += tl.reshape(tl.gather(parts, at, axis=2), [parts.shape[0], parts.shape[1]])
    return total


@triton.jit(do_not_specialize=["rows"])
def integer_gemv(
    x, x_scale, x_zero, w, w_scale, w_zero, row_sums, bias, y, rows, out,
    BITS: tl.constexpr, WORDS: tl.constexpr, GROUP_WORDS: tl.constexpr, GROUPS: tl.constexpr,
    STATIC: tl.constexpr, BLOCKED: tl.constexpr, SCALES: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y F [rows, out] of x int8 [rows, in] and w [out, in]: `ops.Ops.linear`.

    WORDS: of 32 bits in a row of w; GROUP_WORDS: of them in a group (all, where GROUPS is 1).
    STATIC: the input has one scale. BLOCKED: it has one a group. SCALES: that a row of w has, one
    a group, or one.
    """
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * OUT + tl.arange(0, OUT)
    row_mask, column_mask = row < rows, column < out
    both = row_mask[:, None] & column_mask[None, :]
    x_words = x.to(tl.pointer_type(tl.int32))
    w_words = w.to(tl.pointer_type(tl.int32)) + column.to(tl.int64)[:, None] * WORDS
    X_WORDS: tl.constexpr = WORDS * 8 // BITS
    PARTS: tl.constexpr = CHUNK // GROUP_WORDS if GROUPS > 1 else 1
    EACH: tl.constexpr = CHUNK // PARTS
    sums = tl.zeros([ROWS, OUT, CHUNK], tl.int32)
    inputs = tl.zeros([ROWS, CHUNK], tl.int32)
    total = tl.zeros([ROWS, OUT], tl.float32)
    ones = tl.full([1, 1], ONES, tl.int32)
    # Written out, so that a row's loads need not wait for the sums before them.
    for start in tl.static_range(0, WORDS, CHUNK):
        word = start + tl.arange(0, CHUNK)
        word_mask = word < WORDS
        within = column_mask[:, None] & word_mask[None, :]
        weights = tl.load(w_words + word[None, :], mask=within, other=0)[None, :, :]
        mask = row_mask[:, None] & word_mask[None, :]
        if GROUPS > 1:
            sums = tl.zeros([ROWS, OUT, CHUNK], tl.int32)
            inputs = tl.zeros([ROWS, CHUNK], tl.int32)
        if BITS == 8:
            levels = tl.load(x_words + row[:, None] * X_WORDS + word[None, :], mask=mask, other=0)
            sums = dot4(weights, levels[:, None, :], sums)
            inputs = dot4(levels, ones, inputs)
        else:
            pair = x_words + row[:, None] * X_WORDS + 2 * word[None, :]
            first = tl.load(pair, mask=mask, other=0)
            second = tl.load(pair + 1, mask=mask, other=0)
            sums = dot4(weights & LOW_NIBBLES, even_bytes(first, second)[:, None, :], sums)
            sums = dot4((weights >> 4) & LOW_NIBBLES, odd_bytes(first, second)[:, None, :], sums)
            # Nibbles are levels + 8.
            found = dot4(first, ones, dot4(second, ones, tl.zeros_like(first)))
            sums -= 8 * found[:, None, :]
            inputs += found
        if GROUPS > 1:
            group = start // GROUP_WORDS + tl.arange(0, PARTS)
            at = column[:, None] * GROUPS + group[None, :]
            of_weight = at if SCALES > 1 else column[:, None] + 0 * group[None, :]
            held = column_mask[:, None] & (group < GROUPS)[None, :]
            parts = tl.sum(tl.reshape(sums, [ROWS, OUT, PARTS, EACH]), axis=3)
            if w_zero is not None:
                shift = tl.load(w_zero + of_weight, mask=held, other=0).to(tl.int64)[None, :, :]
                by_group = tl.sum(tl.reshape(inputs, [ROWS, PARTS, EACH]), axis=2)
                scaled = (parts.to(tl.int64) - by_group.to(tl.int64)[:, None, :] * shift).to(
                    tl.float32
                )
            else:
                scaled = parts.to(tl.float32)
            scaled *= tl.load(w_scale + of_weight, mask=held, other=0.0)[None, :, :]
            if BLOCKED:
                x_at = row[:, None] * GROUPS + group[None, :]
                x_held = row_mask[:, None] & (group < GROUPS)[None, :]
                if x_zero is not None:
                    units = tl.load(x_zero + x_at, mask=x_held, other=0.0)
                    scaled -= (
                        units[:, None, :] * tl.load(row_sums + at, mask=held, other=0.0)[None, :, :]
                    )
                scaled *= tl.load(x_scale + x_at, mask=x_held, other=0.0)[:, None, :]
            total = in_order(scaled, total, PARTS if PARTS < GROUPS else GROUPS)
    if GROUPS == 1:
        whole = tl.sum(sums, axis=2)
        if w_zero is not None:
            shift = tl.load(w_zero + column, mask=column_mask, other=0).to(tl.int64)[None, :]
            whole = whole.to(tl.int64) - tl.sum(inputs, axis=1).to(tl.int64)[:, None] * shift
        total = (
            whole.to(tl.float32) * tl.load(w_scale + column, mask=column_mask, other=0.0)[None, :]
        )
    total = scaled_back(
        total, x_scale, x_zero, row_sums, bias, row, column, row_mask, column_mask, STATIC, BLOCKED
    )
    place = y + row.to(tl.int64)[:, None] * out + column[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=both)
