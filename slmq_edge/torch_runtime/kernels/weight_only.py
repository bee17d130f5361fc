"""Few rows of floats times an integer weight whose values are made as they are read."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def values_of(levels, scale, zero, floats: tl.constexpr, EACH: tl.constexpr):
    """(levels - zero) * scale rounded to F, held in float32 [out, chunk]; zero may be None."""
    OUT: tl.constexpr = levels.shape[0]
    CHUNK: tl.constexpr = levels.shape[1]
    wide = tl.reshape(levels.to(tl.float32), [OUT, CHUNK // EACH, EACH])
    if zero is not None:
        wide -= zero.to(tl.float32)[:, :, None]
    wide = (wide * scale[:, :, None]).to(floats).to(tl.float32)
    return tl.reshape(wide, [OUT, CHUNK])


@triton.jit(do_not_specialize=["rows"])
def float_gemv(
    x, w, w_scale, w_zero, bias, y, rows, out,
    BITS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y F [rows, out] of x F [rows, WIDTH] and w's values: `ops.Ops.weight_only`.

    A step reads CHUNK bytes of each row of w. GROUP: inputs that share a scale, WIDTH where
    GROUPS is 1.
    """
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * OUT + tl.arange(0, OUT)
    row_mask, column_mask = row < rows, column < out
    floats: tl.constexpr = x.dtype.element_ty
    PER_BYTE: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = WIDTH // PER_BYTE
    EACH: tl.constexpr = GROUP // PER_BYTE if GROUPS > 1 else CHUNK
    line = w + column.to(tl.int64)[:, None] * BYTES
    inputs = x + row[:, None] * WIDTH
    sums = tl.zeros([ROWS, OUT, CHUNK], tl.float32)
    for start in range(0, BYTES, CHUNK):
        byte = start + tl.arange(0, CHUNK)
        byte_mask = byte < BYTES
        within = column_mask[:, None] & byte_mask[None, :]
        stored = tl.load(line + byte[None, :], mask=within, other=0)
        group = start // EACH + tl.arange(0, CHUNK // EACH)
        if GROUPS == 1:
            group = group * 0
        at = column[:, None] * GROUPS + group[None, :]
        held = column_mask[:, None] & (group < GROUPS)[None, :]
        scale = tl.load(w_scale + at, mask=held, other=0.0)
        zero = tl.load(w_zero + at, mask=held, other=0) if w_zero is not None else None
        mask = row_mask[:, None] & byte_mask[None, :]
        place = inputs + PER_BYTE * byte[None, :]
        first = tl.load(place, mask=mask, other=0.0).to(tl.float32)[:, None, :]
        if BITS == 8:
            values = values_of(stored, scale, zero, floats, EACH)
            sums += first * values[None, :, :]
        else:
            second = tl.load(place + 1, mask=mask, other=0.0).to(tl.float32)[:, None, :]
            low = values_of((stored & 15).to(tl.int8) - 8, scale, zero, floats, EACH)
            high = values_of((stored >> 4).to(tl.int8) - 8, scale, zero, floats, EACH)
            sums += first * low[None, :, :]
            sums += second * high[None, :, :]
    found = tl.sum(sums, axis=2).to(floats)
    if bias is not None:
        added = tl.load(bias + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        found = (found.to(tl.float32) + added).to(floats)
    place = y + row.to(tl.int64)[:, None] * out + column[None, :]
    tl.store(place, found, mask=row_mask[:, None] & column_mask[None, :])
