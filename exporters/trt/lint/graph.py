"""A graph as rules look at it: types and shapes, constants, and where a value comes from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge.errors import Damaged, NotFound, Unsupported

# A ModelProto cannot be larger, and no parser reads one that is.
PROTOBUF_BYTES = 1 << 31
# What moves values, or changes their type, and calculates nothing.
MOVES = frozenset(
    {"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"}
)
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = frozenset({"MatMul", "Gemm"})


class Graph:
    """A model with its types and shapes inferred; the model that was given stays as it is.

    Weights in files beside it are not read: of them, rules ask for types and shapes only.

    Raises:
        Damaged: its nodes are not in the order that they run in.
    """

    def __init__(self, model: ir.Model) -> None:
        _check_order(model.graph)
        self.model = _inferred(model)
        self.nodes: tuple[ir.Node, ...] = tuple(self.model.graph)
        self.inputs = tuple(self.model.graph.inputs)
        self.outputs = tuple(self.model.graph.outputs)
        self.opset = int(self.model.graph.opset_imports.get("", 0))
        self._constants: dict[ir.Value, NDArray[Any] | None] = {}

    def of(self, *kinds: str) -> Iterator[ir.Node]:
        """Nodes of these operators of the default domain."""
        return (node for node in self.nodes if node.domain == "" and node.op_type in kinds)

    def values(self) -> Iterator[ir.Value]:
        """Inputs, initializers and what nodes make; each once."""
        yield from self.inputs
        initializers = self.model.graph.initializers.values()
        yield from (value for value in initializers if not value.is_graph_input())
        for node in self.nodes:
            yield from (value for value in node.outputs if value.name)

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """What an initializer that no input replaces, or a Constant, holds; not yet read."""
        if value is None:
            return None
        producer = value.producer()
        if producer is None:
            return None if value.is_graph_input() else value.const_value
        if producer.op_type != "Constant" or producer.domain != "":
            return None
        attribute = producer.attributes.get("value")
        if attribute is not None:
            tensor: ir.TensorProtocol = attribute.as_tensor()
            return tensor
        for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
            number = producer.attributes.get(name)
            if number is not None:
                return ir.tensor(np.array(number.value, dtype))
        return None

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """A constant's numbers; for small ones, since this reads them.

        Raises:
            Damaged: they are in a file that is missing or too short.
        """
        if value is None:
            return None
        if value not in self._constants:
            tensor = self.tensor(value)
            try:
                self._constants[value] = None if tensor is None else np.asarray(tensor.numpy())
            except (OSError, ValueError) as error:
                raise Damaged(f"the numbers of {value.name} cannot be read: {error}") from error
        return self._constants[value]

    def is_constant(self, value: ir.Value | None) -> bool:
        return self.tensor(value) is not None

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """A value's type; ``None`` where it cannot be known."""
        if value is None:
            return None
        tensor = self.tensor(value)
        return value.dtype if tensor is None else tensor.dtype

    def dims(self, value: ir.Value | None) -> tuple[int | str | None, ...] | None:
        """Numbers, names, or ``None``, of each dimension; ``None`` where not even the rank is."""
        if value is None:
            return None
        tensor = self.tensor(value)
        shape = value.shape if tensor is None else tensor.shape
        if shape is None:
            return None
        return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)

    def embedded_bytes(self) -> int:
        """Bytes of the initializers that lie in the model itself."""
        values = self.model.graph.initializers.values()
        tensors = (value.const_value for value in values)
        return sum(
            tensor.nbytes
            for tensor in tensors
            if tensor is not None and not isinstance(tensor, ir.ExternalTensor)
        )


def source(value: ir.Value, through: frozenset[str] = MOVES) -> ir.Value:
    """Where a value comes from, behind the operators ``through``."""
    while (node := value.producer()) is not None and node.domain == "":
        if node.op_type not in through or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return value


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of that operator that makes a value, or ``None``."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type == kind else None


def readers(value: ir.Value, through: frozenset[str] = frozenset()) -> list[tuple[ir.Node, int]]:
    """Who reads a value and as which input, behind the operators ``through``."""
    found: list[tuple[ir.Node, int]] = []
    for node, index in value.uses():
        if node.domain == "" and node.op_type in through and index == 0:
            found += readers(node.outputs[0], through)
        else:
            found.append((node, index))
    return found


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """A node's input; ``None`` where there is none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None and value.name != "" else None


def label(node: ir.Node) -> str:
    """A node's name, or what it makes."""
    return node.name or f"{node.op_type} of {node.outputs[0].name}"


def attribute(node: ir.Node, name: str, default: int) -> int:
    """A number that a node carries."""
    found = node.attributes.get(name)
    return default if found is None else int(found.value)


def load(source: Path | ir.Model | Any) -> Graph:
    """The graph of a file, of a model of onnx-ir, or of a ModelProto.

    Raises:
        NotFound: there is no such file.
        Damaged: it is no ONNX model, or its nodes are out of order.
        Unsupported: it is larger than a model without external data can be.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, ir.Model):
        return Graph(source)
    if not isinstance(source, Path):
        return Graph(ir.from_proto(source))
    try:
        size = source.stat().st_size
    except OSError as error:
        raise NotFound(f"{source} cannot be read: {error.strerror}") from error
    if size >= PROTOBUF_BYTES:
        raise Unsupported(
            f"{source} has {size} bytes, and no parser reads a model of 2 GiB: "
            "save its weights as external data"
        )
    try:
        model = ir.load(source)
    except Exception as error:  # protobuf's own, and onnx-ir's of every kind
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise Damaged(f"{source} is no ONNX model: {reason:.200}") from error
    return Graph(model)


def _check_order(graph: ir.Graph) -> None:
    """Raise Damaged where a node reads what a later one makes."""
    waiting = set(graph)
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() in waiting:
                raise Damaged(
                    f"{label(node)} reads {value.name} before it is made: sort the graph's nodes"
                )
        waiting.remove(node)


def _inferred(model: ir.Model) -> ir.Model:
    """A copy with types and shapes; where inference fails, with those that were there."""
    from onnx_ir.passes.common import ShapeInferencePass

    copy = model.clone()
    log = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = log.level
    log.setLevel(logging.ERROR)  # what stays unknown is found, and said, by the rules
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    finally:
        log.setLevel(level)
    return copy
