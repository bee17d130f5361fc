"""Rules 3 to 6 and 13: zero points and scales of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from slmq_edge.exporters.trt.lint.findings import WARNING, Case, Problem
from slmq_edge.exporters.trt.lint.graph import (
    DEQUANTIZE,
    QUANTIZE,
    attribute,
    label,
    operand,
    source,
)
from slmq_edge.exporters.trt.lint.products import is_of_weight, roundings

UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT4)
FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
# Of symmetric integers, and the floats whose zero point is 0 too.
SYMMETRIC = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
SMALLEST_HALF = float(np.finfo(np.float16).smallest_normal)


def zero_points(case: Case) -> Iterator[Problem]:
    """Rule 3: symmetric integers only, and zero points that say so."""
    graph = case.graph
    for node in graph.of(QUANTIZE, DEQUANTIZE):
        zero = operand(node, 2)
        if zero is None:
            # On 8 it is rule 13's.
            if not case.target.is_8 and not attribute(node, "output_dtype", 0):
                default = "uint8 by ONNX's default, int8 to TensorRT"
                what = default if node.op_type == QUANTIZE else "0, of what type is left open"
                what = f"no zero point: {what}"
                yield Problem(label(node), what, "give it zeros of int8", WARNING)
        else:
            yield from _zero_point(case, node, zero)
    told = {*graph.inputs, *graph.outputs}
    for node in graph.of(QUANTIZE, DEQUANTIZE):
        told.update(_unsigned_by_its_zero(case, node))
    for value in graph.values():
        dtype = graph.dtype(value)
        if dtype in UNSIGNED and value not in told:
            what = f"{dtype.name}; unsigned integers can only be inputs and outputs"
            yield Problem(value.name or "", what, "use int8 and a zero point of 0")


def _unsigned_by_its_zero(case: Case, node: ir.Node) -> Iterator[ir.Value]:
    """A node's integers and zero point, where the one is unsigned since the other is or lacks."""
    zero = operand(node, 2)
    is_default = (
        zero is None and node.op_type == QUANTIZE and not attribute(node, "output_dtype", 0)
    )
    if is_default or case.graph.dtype(zero) in UNSIGNED:
        integers = operand(node, 0) if node.op_type == DEQUANTIZE else node.outputs[0]
        yield from (value for value in (integers, zero) if value is not None)


def _zero_point(case: Case, node: ir.Node, zero: ir.Value) -> Iterator[Problem]:
    dtype = case.graph.dtype(zero)
    if dtype in UNSIGNED or (dtype is not None and dtype.name not in SYMMETRIC):
        what = f"zero point of {dtype.name}"
        yield Problem(label(node), what, "recalibrate symmetrically, to int8")
        return
    values = case.graph.constant(zero)
    if values is None:
        yield Problem(label(node), "zero point is computed", "make it zeros of int8")
    # Those of 4 bits are rule 19's.
    elif dtype not in FOUR_BITS and np.any(values.astype(np.float32) != 0):
        worst = values.reshape(-1)[np.argmax(np.abs(values.astype(np.float32)))]
        what = f"zero point {worst}; TensorRT quantizes symmetrically"
        yield Problem(label(node), what, "recalibrate symmetrically; dropping it is wrong")


def scales(case: Case) -> Iterator[Problem]:
    """Rule 4: constant, positive, finite, and normal numbers."""
    for node in case.graph.of(QUANTIZE, DEQUANTIZE):
        scale = operand(node, 1)
        values = case.graph.constant(scale)
        if values is None and scale is not None and case.graph.is_constant(source(scale)):
            what = "scale is made of a constant, which not every parser folds"
            yield Problem(label(node), what, "store what it is made into", WARNING)
            continue
        if values is None:
            what = "scale is computed at run time: no integer product comes of it"
            advice = (
                "make it an initializer; per token, divide by the largest before Q and use 1/127"
            )
            yield Problem(label(node), what, advice)
            continue
        wide = values.astype(np.float64)
        wrong = ~(np.isfinite(wide) & (wide > 0))
        if wrong.any():
            what = f"scale {wide[wrong].reshape(-1)[0]:g}; it must be positive and finite"
            yield Problem(label(node), what, "calibrate again, or floor the scale")
        elif values.dtype == np.float16 and wide.min() < SMALLEST_HALF:
            what = f"scale {wide.min():.3g} is subnormal in float16"
            yield Problem(label(node), what, "store scales in float32", WARNING)


def activation_scales(case: Case) -> Iterator[Problem]:
    """Rule 5: one scale for a whole activation."""
    for node in case.graph.of(QUANTIZE, DEQUANTIZE):
        scale = operand(node, 1)
        if scale is None or is_of_weight(case.graph, node):
            continue
        dims = case.graph.dims(scale)
        if dims is None:
            what = "it cannot be known how many scales there are"
            yield Problem(label(node), what, "make the scale an initializer", WARNING)
        elif any(dim != 1 for dim in dims):
            what = f"scales {list(dims)} for an activation; one is allowed"
            advice = "calibrate per tensor, or divide by the token's largest before Q"
            yield Problem(label(node), what, advice)


def scale_pairs(case: Case) -> Iterator[Problem]:
    """Rule 6: Q and DQ of one tensor by the same scale; the engine keeps only one."""
    for node in case.graph.of(DEQUANTIZE):
        after = case.graph.constant(operand(node, 1))
        for quantize in roundings(node)[0]:
            before = case.graph.constant(operand(quantize, 1))
            if before is None or after is None:  # rule 4's
                continue
            if not np.array_equal(before, after, equal_nan=True):
                what = f"another scale than its Q, {label(quantize)}"
                yield Problem(label(node), what, "let both read one initializer")


def form_of_8(case: Case) -> Iterator[Problem]:
    """Rule 13: TensorRT 8's parser takes three inputs, and reads scales as float32."""
    if not case.target.is_8:
        return
    for node in case.graph.of(QUANTIZE, DEQUANTIZE):
        if operand(node, 2) is None:
            what = "two inputs; TensorRT 8 asks for three"
            yield Problem(label(node), what, "give it a zero point of int8 zeros")
        dtype = case.graph.dtype(operand(node, 1))
        if dtype is not None and dtype != ir.DataType.FLOAT:
            what = f"scale of {dtype.name}; TensorRT 8 reads float32"
            yield Problem(label(node), what, "store it in FLOAT, and Cast around Q and DQ")
