"""A thin hand on onnx-ir: operators by name, constants stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge import __version__
from slmq_edge.errors import Unsupported
from slmq_edge.exporters.floats import FLOAT32, Floats

# The newest that onnxruntime 1.19 loads (JetPack 5).
OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
MICROSOFTS = {MICROSOFT: 1}
# Of an older opset, the file format that came with it.
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: IR_VERSION}
# From here on, axes of a reduction are an input.
AXES_ARE_INPUT = 18


def onnx_type(floats: Floats) -> ir.DataType:
    """A type of floats as ONNX calls it."""
    return ir.DataType.from_numpy(floats.numpy)


class Builder:
    """Collects the nodes and initializers of one graph, whose floats are ``floats``.

    opset: of the standard operators. domains: of all others, with their versions. result: what is
    added to a node's name for its output's.
    """

    def __init__(
        self,
        floats: Floats = FLOAT32,
        opset: int = OPSET,
        domains: Mapping[str, int] = MICROSOFTS,
        result: str = "",
    ) -> None:
        self.floats, self.opset = floats, opset
        self._result = result
        self._domains = dict(domains)
        self._tape = ir.tape.Tape()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        name: str,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output, which carries the node's name, and ``result``."""
        out = self._tape.op(kind, inputs, attributes or None, domain=domain, name=name)
        out.name = f"{name}{self._result}"
        return out

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        name: str,
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node with several outputs; an empty name is an output that is not wanted."""
        values = self._tape.op_multi_out(
            kind,
            inputs,
            attributes or None,
            num_outputs=len(outputs),
            domain=domain,
            name=name,
        )
        for value, output in zip(values, outputs, strict=True):
            value.name = output
        return tuple(values)

    def reduce(self, kind: str, x: ir.Value, axis: int, name: str) -> ir.Value:
        """``ReduceMax`` and its like over one axis, which stays with one value."""
        if self.opset < AXES_ARE_INPUT:
            return self.op(kind, x, name=name, axes=[axis], keepdims=1)
        return self.op(kind, x, self.constant([axis], np.int64), name=name, keepdims=1)

    def weight(self, array: NDArray[Any], name: str) -> ir.Value:
        """An initializer of its own."""
        return self._tape.initializer(ir.tensor(np.ascontiguousarray(array), name=name))

    def constant(self, value: Any, dtype: Any) -> ir.Value:
        """A small constant, one initializer however often it is asked for."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self._constants[key] = self.weight(array, name)
        return self._constants[key]

    def float_weight(self, array: NDArray[Any], name: str) -> ir.Value:
        """An initializer of its own, of the graph's floats.

        Raises:
            Unsupported: one of its values is too large for them.
        """
        if self.floats == FLOAT32:
            return self.weight(array, name)
        with np.errstate(over="ignore"):
            stored = array.astype(self.floats.numpy)
        if not np.isfinite(stored).all():
            raise Unsupported(self.floats.too_large(name, np.abs(array).max()))
        return self.weight(stored, name)

    def float_constant(self, value: Any) -> ir.Value:
        """A small constant of the graph's floats."""
        return self.constant(value, self.floats.numpy)

    def as_float32(self, value: ir.Value, name: str) -> ir.Value:
        """A value of the graph's floats, as float32: itself where they are."""
        return self._cast(value, FLOAT32, name)

    def as_floats(self, value: ir.Value, name: str) -> ir.Value:
        """A float32 value, as the graph's floats: itself where they are float32."""
        return self._cast(value, self.floats, name)

    def _cast(self, value: ir.Value, to: Floats, name: str) -> ir.Value:
        if self.floats == FLOAT32:
            return value
        return self.op("Cast", value, name=f"{name}.{to.name}", to=onnx_type(to))

    def model(
        self,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        about: Mapping[str, str] | None = None,
    ) -> ir.Model:
        """The graph; ``about``: what a runner can read of it once it is loaded."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": self.opset, **self._domains},
            name="decoder",
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSIONS[self.opset],
            producer_name="slmq-edge",
            producer_version=__version__,
            metadata_props=dict(about or {}),
        )


def tensor_bytes(model: ir.Model) -> dict[str, int]:
    """Bytes of every constant and weight, by name."""
    values = model.graph.initializers.items()
    return {name: one.const_value.nbytes for name, one in values if one.const_value is not None}


def save(model: ir.Model, path: Path) -> None:
    """Write the graph, its weights beside it in ``<name>.data``."""
    ir.save(model, path, external_data=f"{path.name}.data")


def save_beside(model: ir.Model, path: Path, other: Path) -> None:
    """Write a graph whose weights are those of ``other``, saved before in the same folder.

    Its initializers are read from the other's data file where the same bytes lie there, whatever
    their type; the few that do not lie in the graph itself.
    """
    shared = {
        _content(tensor): tensor
        for value in ir.load(other).graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    for name, value in model.graph.initializers.items():
        wanted = value.const_value
        found = None if wanted is None else shared.get(_content(wanted))
        if wanted is not None and found is not None:
            value.const_value = ir.ExternalTensor(
                found.location,
                found.offset,
                found.length,
                wanted.dtype,
                shape=ir.Shape(wanted.shape.numpy()),
                name=name,
                base_dir=path.parent,
            )
    ir.save(model, path)


def _content(tensor: ir.TensorProtocol) -> bytes:
    return hashlib.blake2b(tensor.tobytes()).digest()
