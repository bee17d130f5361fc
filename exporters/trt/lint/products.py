"""MatMul and Gemm as the rules see them: what each side comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from slmq_edge.exporters.trt.lint.graph import (
    DEQUANTIZE,
    MOVES,
    PRODUCTS,
    QUANTIZE,
    Graph,
    attribute,
    label,
    made_by,
    operand,
    source,
)

# What carries integers from Q to DQ unchanged.
CARRIES = MOVES - {"Cast"} | {"Slice", "Gather"}


@dataclass(frozen=True)
class Side:
    """An operand. dequantize: the DQ that it comes from. is_weight: whether it is a constant."""

    value: ir.Value
    dequantize: ir.Node | None
    is_weight: bool

    @property
    def scale(self) -> ir.Value | None:
        return None if self.dequantize is None else operand(self.dequantize, 1)


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm; ``sides`` are its first two operands."""

    node: ir.Node
    sides: tuple[Side, Side]

    @property
    def name(self) -> str:
        return label(self.node)

    @property
    def weight(self) -> Side | None:
        """The side that is a constant; ``None``: neither, or both."""
        return self._only(True)

    @property
    def activation(self) -> Side | None:
        """The other side."""
        return self._only(False)

    def _only(self, is_weight: bool) -> Side | None:
        found = [side for side in self.sides if side.is_weight == is_weight]
        return found[0] if len(found) == 1 else None

    @property
    def output_axis(self) -> int:
        """Of a weight with two dimensions, the one that outputs are counted along."""
        if self.sides[1].is_weight:
            return 0 if attribute(self.node, "transB", 0) else 1
        return 1 if attribute(self.node, "transA", 0) else 0


def products(graph: Graph) -> Iterator[Product]:
    """Every MatMul and Gemm with two operands."""
    for node in graph.of(*PRODUCTS):
        left, right = operand(node, 0), operand(node, 1)
        if left is not None and right is not None:
            yield Product(node, (_side(graph, left), _side(graph, right)))


def _side(graph: Graph, value: ir.Value) -> Side:
    origin = source(value)
    dequantize = made_by(origin, DEQUANTIZE)
    if dequantize is None:
        return Side(value, None, graph.is_constant(origin))
    return Side(value, dequantize, is_of_weight(graph, dequantize))


def is_of_weight(graph: Graph, node: ir.Node) -> bool:
    """Whether what a Q or DQ reads is a constant: integers, or floats that a Q rounds at load."""
    value = operand(node, 0)
    if value is None:
        return False
    quantize = made_by(value, QUANTIZE)
    if node.op_type == DEQUANTIZE and quantize is not None:
        return is_of_weight(graph, quantize)
    return graph.is_constant(source(value))


def roundings(dequantize: ir.Node) -> tuple[list[ir.Node], bool]:
    """The Qs whose integers a DQ reads, and whether all that it reads is theirs, not a cache's."""
    found, complete = [], True
    waiting = [operand(dequantize, 0)]
    while waiting:
        value = waiting.pop()
        origin = None if value is None else source(value, CARRIES)
        node = None if origin is None else origin.producer()
        if node is not None and node.op_type in ("Concat", "Where"):
            waiting += node.inputs[1:] if node.op_type == "Where" else node.inputs
        elif node is not None and node.op_type == QUANTIZE:
            found.append(node)
        else:
            complete = False
    return found, complete


def is_integer(product: Product) -> bool:
    """Whether it is meant to multiply int8 by int8: a rounded activation by a stored weight."""
    weight, activation = product.weight, product.activation
    return (
        weight is not None
        and activation is not None
        and weight.dequantize is not None
        and activation.dequantize is not None
    )


def stored_type(graph: Graph, side: Side) -> ir.DataType | None:
    """The type of the integers that a side is dequantized from."""
    return None if side.dequantize is None else graph.dtype(operand(side.dequantize, 0))
