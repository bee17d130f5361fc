"""Rules 15 and 16: attention and its caches."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from slmq_edge.exporters.trt.lint.findings import WARNING, Case, Problem
from slmq_edge.exporters.trt.lint.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    attribute,
    label,
    made_by,
    operand,
    readers,
    source,
)
from slmq_edge.exporters.trt.lint.products import products, roundings

INSIDE = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Unsqueeze", "Expand", "Mul", "Add",
                    "Softmax", "Where", "Tile"})  # fmt: skip
# Inputs of Attention that the parser has no use for.
UNREAD = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}


def quantized_attention(case: Case) -> Iterator[Problem]:
    """Rule 15: no Q/DQ inside attention, and caches as TensorScatter asks for them."""
    for product in products(case.graph):
        if any(side.is_weight for side in product.sides):
            continue
        for side in product.sides:
            if side.dequantize is not None:
                yield _inside(product.name, side.dequantize)
    for node in case.graph.of("Attention"):
        for value in node.inputs[:3]:
            dequantize = None if value is None else made_by(source(value), DEQUANTIZE)
            if dequantize is not None:
                yield _inside(label(node), dequantize)
    for node in case.graph.of("TensorScatter"):
        yield from _scatter(case.graph, node)


def _inside(name: str, dequantize: ir.Node) -> Problem:
    if not roundings(dequantize)[1]:
        what = f"reads a cache of integers, by {label(dequantize)}: seen to build, not measured"
        return Problem(name, what, "leave keys and values in float", WARNING)
    what = f"multiplies what {label(dequantize)} rounded, inside attention"
    return Problem(name, what, "leave attention in float")


def _scatter(graph: Graph, node: ir.Node) -> Iterator[Problem]:
    cache, update = operand(node, 0), operand(node, 1)
    name, out = label(node), node.outputs[0]
    if not out.is_graph_output():
        yield Problem(name, "its cache is no output of the graph", "make it an output, as it is")
    if cache is not None and not cache.is_graph_input():
        yield Problem(name, "its cache is no input of the graph", "make it an input, as it is")
    dims, axis = graph.dims(cache), attribute(node, "axis", -2)
    if axis != -2 or (dims is not None and len(dims) != 4):
        yield Problem(name, f"axis {axis} of {dims}", "write [batch, heads, slots, width], axis -2")
    elif dims is not None and not isinstance(dims[axis], int):
        what = f"a cache of {dims[axis] or 'unknown'} slots; their number must be fixed"
        yield Problem(name, what, "fix it, or place rows with Gather and Where")
    quantized = [value for value in (cache, update) if value is not None and _rounds(graph, value)]
    kinds = {reader.op_type for reader, _ in readers(out, INSIDE)}
    if quantized or {QUANTIZE, DEQUANTIZE} & kinds:
        yield Problem(name, "a cache with Q/DQ", "leave keys and values in float")


def _rounds(graph: Graph, value: ir.Value) -> bool:
    node = source(value).producer()
    is_integer = graph.dtype(value) in (ir.DataType.INT8, ir.DataType.INT4)
    return is_integer or (node is not None and node.op_type in (QUANTIZE, DEQUANTIZE))


def attention_operator(case: Case) -> Iterator[Problem]:
    """Rule 16: of the operator Attention, only what TensorRT does as ONNX means it."""
    for node in case.graph.of("Attention"):
        name = label(node)
        if any(_is_used(value) for value in node.outputs[1:]):
            yield Problem(name, "more than one output", "keep the caches outside of it")
        for index, what in UNREAD.items():
            if operand(node, index) is not None:
                yield Problem(
                    name, f"{what} is not read, silently", "use a mask, and caches outside"
                )
        if attribute(node, "is_causal", 0) and not _is_square(case.graph, node):
            what = "is_causal where there may be more keys than queries: ONNX masks from the start"
            yield Problem(name, what, "use a mask")


def _is_used(value: ir.Value) -> bool:
    return bool(value.name) and (value.is_graph_output() or bool(value.uses()))


def _is_square(graph: Graph, node: ir.Node) -> bool:
    """Whether there are as many queries as keys, as far as shapes tell."""
    dims = [graph.dims(operand(node, index)) for index in (0, 1)]
    if any(not one or len(one) < 3 for one in dims):
        return False
    lengths = [one[-2] for one in dims if one]
    return lengths[0] is not None and lengths[0] == lengths[1]
