"""Many rows times a weight: tiles on the matrix units, int8 x int8 -> int32.

A step of the loop is a group of the inputs, or a stretch of one: what a group sums to is exact
before its scale makes it float32, and groups are added in their order. Levels of 4 bits are
unpacked in registers. Takes any number of rows and any width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slmq_edge.torch_runtime.kernels.arithmetic import scaled_back


@triton.jit
def weight_levels(
    w, column, column_mask, at, valid, WIDTH: tl.constexpr, BITS: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """Levels int8 [out, K] of the columns from ``at`` on, those that are ``valid``."""
    if BITS == 8:
        inside = at + tl.arange(0, K)
        mask = column_mask[:, None] & valid[None, :]
        return tl.load(w + column[:, None] * WIDTH + inside[None, :], mask=mask, other=0)
    else:
        BYTES: tl.constexpr = (WIDTH + 1) // 2
        inside = at // 2 + tl.arange(0, K // 2)
        mask = column_mask[:, None] & (inside < BYTES)[None, :]
        pairs = tl.load(w + column[:, None] * BYTES + inside[None, :], mask=mask, other=0)
        return tl.interleave((pairs & 15).to(tl.int8) - 8, (pairs >> 4).to(tl.int8) - 8)


@triton.jit(do_not_specialize=["rows"])
def integer_gemm(
    x, x_scale, x_zero, w, w_scale, w_zero, row_sums, bias, y, rows, out,
    BITS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    STATIC: tl.constexpr, BLOCKED: tl.constexpr, SCALES: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y F [rows, out] of x int8 [rows, WIDTH] and w [out, in]: `ops.Ops.linear`.

    STATIC, BLOCKED, SCALES: as in `gemv`.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * OUT + tl.arange(0, OUT)
    row_mask, column_mask = row < rows, column < out
    row, column = row.to(tl.int64), column.to(tl.int64)
    total = tl.zeros([ROWS, OUT], tl.float32)
    for group in range(GROUPS):
        sums = tl.zeros([ROWS, OUT], tl.int32)
        inputs = tl.zeros([ROWS], tl.int32)
        for start in range(0, GROUP, K):
            inside = start + tl.arange(0, K)
            at = group * GROUP + start
            valid = (inside < GROUP) & (group * GROUP + inside < WIDTH)
            place = x + row[:, None] * WIDTH + (at + tl.arange(0, K))[None, :]
            levels = tl.load(place, mask=row_mask[:, None] & valid[None, :], other=0)
            weights = weight_levels(w, column, column_mask, at, valid, WIDTH, BITS, K)
            sums = tl.dot(levels, tl.trans(weights), sums, out_dtype=tl.int32)
            if w_zero is not None:
                inputs += tl.sum(levels.to(tl.int32), axis=1)
        of_weight = column * SCALES + (group if SCALES > 1 else 0)
        if w_zero is not None:
            shift = tl.load(w_zero + of_weight, mask=column_mask, other=0)
            products = inputs.to(tl.int64)[:, None] * shift.to(tl.int64)[None, :]
            scaled = (sums.to(tl.int64) - products).to(tl.float32)
        else:
            scaled = sums.to(tl.float32)
        scaled *= tl.load(w_scale + of_weight, mask=column_mask, other=0.0)[None, :]
        if BLOCKED:
            if x_zero is not None:
                units = tl.load(x_zero + row * GROUPS + group, mask=row_mask, other=0.0)
                gains = tl.load(row_sums + column * GROUPS + group, mask=column_mask, other=0.0)
                scaled -= units[:, None] * gains[None, :]
            scaled *= tl.load(x_scale + row * GROUPS + group, mask=row_mask, other=0.0)[:, None]
        total += scaled
    total = scaled_back(
        total, x_scale, x_zero, row_sums, bias, row, column, row_mask, column_mask, STATIC, BLOCKED
    )
    both = row_mask[:, None] & column_mask[None, :]
    tl.store(y + row[:, None] * out + column[None, :], total.to(y.dtype.element_ty), mask=both)


@triton.jit(do_not_specialize=["rows"])
def float_gemm(
    x, w, w_scale, w_zero, bias, y, rows, out,
    BITS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y F [rows, out] of x F [rows, WIDTH] and w's values, rounded to F: `ops.Ops.weight_only`."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * OUT + tl.arange(0, OUT)
    row_mask, column_mask = row < rows, column < out
    row, column = row.to(tl.int64), column.to(tl.int64)
    floats = x.dtype.element_ty
    total = tl.zeros([ROWS, OUT], tl.float32)
    for group in range(GROUPS):
        scale = tl.load(w_scale + column * GROUPS + group, mask=column_mask, other=0.0)
        for start in range(0, GROUP, K):
            inside = start + tl.arange(0, K)
            at = group * GROUP + start
            valid = (inside < GROUP) & (group * GROUP + inside < WIDTH)
            place = x + row[:, None] * WIDTH + (at + tl.arange(0, K))[None, :]
            inputs = tl.load(place, mask=row_mask[:, None] & valid[None, :], other=0.0)
            weights = weight_levels(w, column, column_mask, at, valid, WIDTH, BITS, K)
            values = weights.to(tl.float32)
            if w_zero is not None:
                shift = tl.load(w_zero + column * GROUPS + group, mask=column_mask, other=0)
                values -= shift.to(tl.float32)[:, None]
            values = (values * scale[:, None]).to(floats)
            total = tl.dot(inputs, tl.trans(values), total, input_precision="ieee")
    found = total.to(floats)
    if bias is not None:
        # The product is rounded to F, and the sum with the bias again, as two operators of F.
        added = tl.load(bias + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        found = (found.to(tl.float32) + added).to(floats)
    both = row_mask[:, None] & column_mask[None, :]
    tl.store(y + row[:, None] * out + column[None, :], found, mask=both)
