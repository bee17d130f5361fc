"""Rules 1, 2, 14, 22, 23 and 24: what is in the graph at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from slmq_edge.exporters.trt.lint.findings import ERROR, WARNING, Case, Problem
from slmq_edge.exporters.trt.lint.graph import (
    DEQUANTIZE,
    PRODUCTS,
    PROTOBUF_BYTES,
    QUANTIZE,
    label,
    operand,
)
from slmq_edge.exporters.trt.lint.targets import FUNCTIONS_SINCE, INT64_SINCE, SHAPE_PART_SINCE

STANDARD = ("", "ai.onnx")
# Of the default domain, and of com.microsoft by how their names begin.
INTEGER_OPERATORS = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger"}
)
INTEGER_BEGINNINGS = (
    "Quantize", "Dequantize", "QLinear", "QAttention", "QGemm", "QMoE", "MatMulNBits",
    "MatMulInteger", "MatMulBnb4", "DynamicQuantize", "GatherBlockQuantized", "QOrdered",
    "QEmbed", "ConvTransposeInteger",
)  # fmt: skip
MICROSOFT = "com.microsoft"


def known_operators(case: Case) -> Iterator[Problem]:
    """Rule 1: the opset, the operators and the types that this version's parser reads."""
    target, graph = case.target, case.graph
    if graph.opset > target.opset:
        is_read = graph.opset <= target.opset_seen
        what = f"opset {graph.opset}; the parser's list ends at {target.opset}"
        if is_read:
            yield Problem("", what, "it reads this opset's INT4; try it there", WARNING)
        else:
            yield Problem("", what, f"export with opset {target.opset} or older")
    for node in graph.nodes:
        if node.domain in STANDARD and not _is_integer_operator(node):
            yield from _operator(case, node)
    for value in graph.values():
        dtype = graph.dtype(value)
        # 8-bit unsigned is rule 3's.
        if dtype is None or dtype.name in ("UINT8", "UINT4") or target.takes(dtype.name):
            continue
        if dtype == ir.DataType.DOUBLE:
            yield Problem(value.name or "", "DOUBLE, read as FLOAT", "store FLOAT", WARNING)
        else:
            what = f"{dtype.name}, a type that TensorRT {target.name} does not have"
            yield Problem(value.name or "", what, "use FLOAT, FLOAT16, INT8, INT32 or INT64")


def _operator(case: Case, node: ir.Node) -> Iterator[Problem]:
    target, kind = case.target, node.op_type
    if not target.knows(kind):
        what = f"operator {kind} is not in the list of TensorRT {target.name}'s parser"
        yield Problem(label(node), what, "write it in older standard operators")
        return
    index = target.constant_input(kind)
    value = None if index is None else operand(node, index)
    if value is not None and not case.graph.is_constant(value):
        what = f"input {index} of {kind} is computed; this version takes constants only"
        yield Problem(label(node), what, "make it an initializer")
    if kind == "Shape" and node.attributes and target.version < SHAPE_PART_SINCE:
        what = "Shape of some dimensions, which older parsers take for all of them"
        level = ERROR if target.is_8 else WARNING
        yield Problem(label(node), what, "Gather them from the whole Shape", level)
    if any(one.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
           for one in node.attributes.values()):  # fmt: skip
        what = f"{kind} holds a graph of its own, which is not looked into"
        yield Problem(label(node), what, "write the graph without control flow", WARNING)


def integer_operators(case: Case) -> Iterator[Problem]:
    """Rule 2: integers that are not Q/DQ, which no version reads."""
    for node in case.graph.nodes:
        if _is_integer_operator(node):
            place = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            what = f"{place} has no counterpart in TensorRT"
            advice = "write QuantizeLinear and DequantizeLinear around a MatMul (--target trt)"
            yield Problem(label(node), what, advice)


def _is_integer_operator(node: ir.Node) -> bool:
    if node.domain in STANDARD:
        return node.op_type in INTEGER_OPERATORS
    return node.domain == MICROSOFT and node.op_type.startswith(INTEGER_BEGINNINGS)


def int64_inputs(case: Case) -> Iterator[Problem]:
    """Rule 14: before 9.0, INT64 inputs and outputs are INT32 in the engine."""
    if case.target.version >= INT64_SINCE:
        return
    for port in (*case.graph.inputs, *case.graph.outputs):
        if case.graph.dtype(port) == ir.DataType.INT64:
            what = "INT64 here, INT32 in an engine of TensorRT 8"
            yield Problem(port.name or "", what, "bind INT32, as the engine says", WARNING)


def embedded_weights(case: Case) -> Iterator[Problem]:
    """Rule 22: weights within the model, which as a file can have 2 GiB at most."""
    size = case.graph.embedded_bytes()
    if size >= PROTOBUF_BYTES:
        what = f"{size} bytes of weights without external data; a model file ends at 2 GiB"
        yield Problem("", what, "save them as external data", WARNING)


def node_names(case: Case) -> Iterator[Problem]:
    """Rule 23: names that find a layer of the engine again, those of the recipe among them."""
    nodes = list(case.graph.of(*PRODUCTS, QUANTIZE, DEQUANTIZE))
    counts = Counter(node.name for node in nodes)
    tensors = {value.name for value in case.graph.values()}
    for node in nodes:
        if not node.name or counts[node.name] > 1:
            what = f"{counts[node.name]} nodes of this name" if node.name else "no name"
            advice = "give it one of its own: layers of an engine are known by it"
            yield Problem(label(node), what, advice, WARNING)
        elif node.op_type in PRODUCTS and node.name in tensors:
            what = "a tensor is called the same, and the layer will be called otherwise"
            yield Problem(label(node), what, "call what it makes otherwise", WARNING)
    if case.recipe is None:
        return
    names = {node.name for node in case.graph.of(*PRODUCTS)}
    for name in (*case.recipe.int8, *case.recipe.weight_only):
        if name not in names:
            yield Problem(name, "in the recipe, and not in the graph", "export it again", ERROR)


def domains(case: Case) -> Iterator[Problem]:
    """Rule 24: operators of other domains need a plugin of the name on the machine that builds."""
    graph, target = case.graph, case.target
    functions = {identifier[:2] for identifier in graph.model.functions}
    for node in graph.nodes:
        if node.domain in STANDARD or _is_integer_operator(node):
            continue
        place = f"{node.domain}.{node.op_type}"
        if (node.domain, node.op_type) not in functions:
            advice = "write it in standard operators, or build with a plugin of that name"
            yield Problem(label(node), f"{place} is no standard operator", advice)
        elif target.version < FUNCTIONS_SINCE:
            what = f"{place} is a function of the model, which TensorRT {target.name} cannot read"
            yield Problem(label(node), what, "inline the model's functions")
        else:
            what = f"{place} is a function of the model, which is not looked into"
            yield Problem(label(node), what, "inline the model's functions", WARNING)
