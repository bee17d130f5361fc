"""Rules 9 to 12: what meets in a product, and who shares a Q/DQ."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from slmq_edge.exporters.trt.lint.findings import WARNING, Case, Problem
from slmq_edge.exporters.trt.lint.graph import (
    DEQUANTIZE,
    PRODUCTS,
    QUANTIZE,
    label,
    operand,
    readers,
    source,
)
from slmq_edge.exporters.trt.lint.products import (
    Product,
    is_integer,
    is_of_weight,
    products,
    stored_type,
)

CAST = frozenset({"Cast", "Identity"})
# Operators whose inputs are of one type; ``None``: all of them.
ONE_TYPE: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "Pow", "PRelu"), (0, 1)),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), (0, 1)),
    **dict.fromkeys(("Concat", "Gemm", "Max", "Mean", "Min", "Sum", "Einsum"), None),
    "Where": (1, 2),
}


def both_sides(case: Case) -> Iterator[Problem]:
    """Rule 9: a product of integers has both sides quantized."""
    expected = frozenset(case.recipe.weight_only) if case.recipe else frozenset()
    integers = set()
    for product in products(case.graph):
        weight, other = product.weight, product.activation
        if weight is None or other is None:  # rule 15's
            continue
        if is_integer(product):
            integers.add(product.node.name)
        elif other.dequantize is not None:
            what = "its input is rounded and its weight is not: it multiplies floats"
            yield Problem(product.name, what, "store the weight as int8 behind a DQ")
        elif weight.dequantize is not None and not _is_meant(case, product, expected):
            what = "only the weight is stored in integers: it multiplies floats"
            yield Problem(product.name, what, "put Q and DQ before it, or call it w8a16", WARNING)
    if case.recipe is None:
        return
    there = {node.name for node in case.graph.of(*PRODUCTS)}
    for name in case.recipe.int8:
        if name in there and name not in integers:
            what = "the recipe promises int8 by int8, and one side of it is not quantized"
            yield Problem(name, what, "export it again")


def _is_meant(case: Case, product: Product, expected: frozenset[str]) -> bool:
    """Whether a weight is stored in integers to be multiplied as floats."""
    weight = product.weight
    assert weight is not None
    return product.node.name in expected or stored_type(case.graph, weight) == ir.DataType.INT4


def sharing(case: Case) -> Iterator[Problem]:
    """Rule 10: one Q/DQ a tensor, which operators of one kind read: so q, k, v become one."""
    rounded: dict[ir.Value, ir.Node] = {}
    for node in case.graph.of(QUANTIZE):
        value = operand(node, 0)
        if value is None or is_of_weight(case.graph, node):
            continue
        first = rounded.setdefault(source(value, CAST), node)
        if first is not node:
            what = f"rounds what {label(first)} has rounded"
            yield Problem(label(node), what, "share one Q and DQ", WARNING)
    for node in case.graph.of(QUANTIZE):
        twins = [one for one, index in node.outputs[0].uses() if one.op_type == DEQUANTIZE]
        for twin in twins[1:]:
            what = f"dequantizes what {label(twins[0])} has dequantized"
            yield Problem(label(twin), what, "share one DQ", WARNING)
    for node in case.graph.of(DEQUANTIZE):
        kinds = sorted({reader.op_type for reader, _ in readers(node.outputs[0], CAST)})
        if len(kinds) > 1 and not is_of_weight(case.graph, node):
            what = f"{' and '.join(kinds)} read it, which cannot be fused alike"
            yield Problem(label(node), what, "quantize for the MatMuls alone", WARNING)


def scale_types(case: Case) -> Iterator[Problem]:
    """Rule 11: both scales of a product of one type; a Cast behind DQ does not change theirs."""
    for product in products(case.graph):
        types = [case.graph.dtype(side.scale) for side in product.sides]
        if None not in types and types[0] != types[1]:
            names = " and ".join(one.name for one in types if one is not None)
            yield Problem(product.name, f"scales of {names}", "store both in FLOAT")


def mixed_types(case: Case) -> Iterator[Problem]:
    """Rule 12: strongly typed, an operator's inputs are of one type."""
    for node in case.graph.of(*ONE_TYPE):
        indices = ONE_TYPE[node.op_type]
        values = [operand(node, index) for index in indices or range(len(node.inputs))]
        found = [value for value in values if value is not None]
        types = [case.graph.dtype(value) for value in found]
        for value, dtype in zip(found, types, strict=True):
            if dtype is None:
                what = f"the type of {value.name} cannot be known"
                advice = "write it down in value_info, or use operators that inference knows"
                yield Problem(label(node), what, advice, WARNING)
        known = sorted({dtype.name for dtype in types if dtype is not None})
        if len(known) > 1:
            what = f"inputs of {' and '.join(known)}"
            yield Problem(label(node), what, "Cast one of them")
