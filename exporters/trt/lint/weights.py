"""Rules 7, 8, 19 and 20: integer weights, their scales, and their sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from slmq_edge.exporters.trt.lint.findings import WARNING, Case, Problem
from slmq_edge.exporters.trt.lint.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    attribute,
    label,
    operand,
)
from slmq_edge.exporters.trt.lint.products import Product, Side, products, stored_type
from slmq_edge.exporters.trt.lint.targets import INT4_OPSET, INT4_SINCE

INTEGERS = (ir.DataType.INT8, ir.DataType.INT4)
# A product of fewer is slower than a float one; multiples of these fill the integer units' tiles.
LEAST, INPUTS, OUTPUTS = 16, 32, 16


def weight_axes(case: Case) -> Iterator[Problem]:
    """Rule 7: one scale for each output channel of a weight, or one for all of it."""
    for product in products(case.graph):
        side = product.weight
        if side is None or side.dequantize is None or _block(side.dequantize):
            continue
        dims = case.graph.dims(side.scale)
        if dims is None or all(dim == 1 for dim in dims):
            continue
        stored = case.graph.dims(operand(side.dequantize, 0))
        axis = _axis_at_product(product, side, len(stored or ()))
        node = label(side.dequantize)
        if axis is None or stored is None:
            what = f"its scale's axis cannot be followed to {product.name}"
            yield Problem(node, what, "store the weight as [in, out]", WARNING)
            continue
        if axis != product.output_axis:
            what = f"scales lie along the inputs of {product.name}, not along its outputs"
            advice = "axis 1 of a weight [in, out], axis 0 of one [out, in] with a Transpose"
            yield Problem(node, what, advice)
        channels = stored[_axis(side.dequantize, len(stored))]
        if len(dims) != 1 or dims[0] != channels:
            what = f"scales {list(dims)} for {channels} channels"
            yield Problem(node, what, "give every channel one scale")


def _axis(dequantize: ir.Node, rank: int) -> int:
    axis = attribute(dequantize, "axis", 1)
    return axis + rank if axis < 0 else axis


def _axis_at_product(product: Product, side: Side, rank: int) -> int | None:
    """Where the scale's axis is once the weight has been turned; ``None``: it was reshaped."""
    assert side.dequantize is not None
    if rank != 2:
        return None
    axis, value = _axis(side.dequantize, rank), side.value
    turns = 0
    while (node := value.producer()) is not None and node is not side.dequantize:
        if node.op_type not in ("Cast", "Identity", "Transpose") or node.inputs[0] is None:
            return None
        turns += node.op_type == "Transpose" and _swaps(node)
        value = node.inputs[0]
    return axis if turns % 2 == 0 else 1 - axis


def _swaps(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return perm is None or list(perm.as_ints()) == [1, 0]


def integer_constants(case: Case) -> Iterator[Problem]:
    """Rule 8: stored integers are read by DQ, and by nothing else."""
    for value in case.graph.values():
        if not case.graph.is_constant(value) or case.graph.dtype(value) not in INTEGERS:
            continue
        for node, index in value.uses():
            is_zero_point = index == 2 and node.op_type in (QUANTIZE, DEQUANTIZE)
            is_dequantized = index == 0 and node.op_type == DEQUANTIZE
            if node.domain != "" or not (is_zero_point or is_dequantized):
                what = f"{label(node)} reads the integers of {value.name} themselves"
                yield Problem(label(node), what, "put a DequantizeLinear before it")


def four_bits(case: Case) -> Iterator[Problem]:
    """Rule 19: INT4 of weights only, in whole blocks, by versions that know it."""
    graph, target = case.graph, case.target
    nodes = [node for node in graph.of(DEQUANTIZE, QUANTIZE) if _is_four_bits(graph, node)]
    if nodes and graph.opset < INT4_OPSET:
        yield Problem("", f"4 bits at opset {graph.opset}", f"export with opset {INT4_OPSET}")
    for node in nodes:
        if target.version < INT4_SINCE:
            what = f"4 bits; INT4 came with TensorRT {INT4_SINCE[0]}"
            yield Problem(label(node), what, "store it as int8, which holds the same numbers")
        yield from _four_bits(graph, node)
    for product in products(graph):
        weight, other = product.weight, product.activation
        if weight is None or other is None or other.dequantize is None:
            continue
        if stored_type(graph, weight) == ir.DataType.INT4:
            what = "a rounded activation by a weight of 4 bits"
            advice = "store the weight as int8, or leave the activation in float"
            yield Problem(product.name, what, advice)


def _is_four_bits(graph: Graph, node: ir.Node) -> bool:
    value = operand(node, 0) if node.op_type == DEQUANTIZE else node.outputs[0]
    four = (ir.DataType.INT4, ir.DataType.UINT4)
    return graph.dtype(value) in four or graph.dtype(operand(node, 2)) in four


def _four_bits(graph: Graph, node: ir.Node) -> Iterator[Problem]:
    zeros = graph.constant(operand(node, 2))
    if zeros is not None and np.any(zeros.astype(np.float32) != 0):
        yield Problem(label(node), "4 bits with zero points", "round to 4 bits symmetrically")
    dims = graph.dims(operand(node, 0))
    if not dims:
        return
    last = dims[-1]
    if isinstance(last, int) and last % 2:
        what = f"{last} columns of 4 bits; two are stored in a byte"
        yield Problem(label(node), what, "make the last dimension even")
    block = _block(node)
    axis = _axis(node, len(dims))
    if not block or axis >= len(dims):
        return
    if axis < len(dims) - 2:
        what = f"blocks along dimension {axis} of {len(dims)}"
        yield Problem(label(node), what, "lay blocks along one of the last two")
    length = dims[axis]
    if isinstance(length, int) and length % block:
        what = f"blocks of {block} do not divide {length}"
        yield Problem(label(node), what, "choose a group that divides the weight's inputs")


def _block(node: ir.Node) -> int:
    return attribute(node, "block_size", 0)


def sizes(case: Case) -> Iterator[Problem]:
    """Rule 20: integer products of sizes that the hardware's tiles divide."""
    for product in products(case.graph):
        weight, other = product.weight, product.activation
        if weight is None or other is None or weight.dequantize is None or not other.dequantize:
            continue
        dims = case.graph.dims(weight.value)
        if dims is None or len(dims) != 2:
            continue
        outputs, inputs = dims[product.output_axis], dims[1 - product.output_axis]
        if not isinstance(inputs, int) or not isinstance(outputs, int):
            continue
        if min(inputs, outputs) < LEAST:
            what = f"{inputs} inputs, {outputs} outputs: slower in integers than in floats"
            yield Problem(product.name, what, "leave this linear in float", WARNING)
        elif inputs % INPUTS or outputs % OUTPUTS:
            what = f"{inputs} inputs, {outputs} outputs: padded at every call"
            advice = f"multiples of {INPUTS} inputs and {OUTPUTS} outputs need no padding"
            yield Problem(product.name, what, advice, WARNING)
