"""ONNX written by hand: a graph of one operator, where there is no package that writes ONNX.

A message of protobuf is a list of fields, each a key (number * 8 + wire type) and a value: a varint
(wire type 0), or a length and so many bytes (2). Numbers are those of onnx.proto; fields come in
their order, so that the bytes are those that the onnx package writes.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence, Union

IR_VERSION = 8  # onnxruntime 1.11 and later read it
OPSETS = (("", 17), ("com.microsoft", 1))
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # TensorProto.DataType
INT_ATTRIBUTE = 2  # AttributeProto.AttributeType.INT
TOKENS = "tokens"  # the size that a caller chooses

Size = Union[int, str]


class Tensor(NamedTuple):
    """A constant: its bytes, little-endian, row by row."""

    name: str
    kind: int
    shape: tuple[int, ...]
    content: bytes


class Port(NamedTuple):
    """An input or output; of its sizes, a name is one that is not fixed."""

    name: str
    kind: int
    shape: tuple[Size, ...]


class Operator(NamedTuple):
    name: str
    domain: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, int] = {}


def model(operator: Operator, constants: Sequence[Tensor], given: Port, made: Port) -> bytes:
    """Return a model of one operator, which turns ``given`` into ``made``."""
    graph = b"".join(
        [
            _bytes(1, _node(operator, made.name)),
            _text(2, operator.name),
            *(_bytes(5, _tensor(one)) for one in constants),
            _bytes(11, _port(given)),
            _bytes(12, _port(made)),
        ]
    )
    opsets = b"".join(_bytes(8, _text(1, name) + _number(2, since)) for name, since in OPSETS)
    return _number(1, IR_VERSION) + _bytes(7, graph) + opsets


def _node(operator: Operator, made: str) -> bytes:
    attributes = (
        _text(1, name) + _number(3, value) + _number(20, INT_ATTRIBUTE)
        for name, value in sorted(operator.attributes.items())
    )
    return b"".join(
        [
            *(_text(1, name) for name in operator.inputs),
            _text(2, made),
            _text(4, operator.name),
            *(_bytes(5, attribute) for attribute in attributes),
            _text(7, operator.domain) if operator.domain else b"",
        ]
    )


def _tensor(one: Tensor) -> bytes:
    sizes = b"".join(_number(1, size) for size in one.shape)
    return sizes + _number(2, one.kind) + _text(8, one.name) + _bytes(9, one.content)


def _port(one: Port) -> bytes:
    sizes = (_text(2, size) if isinstance(size, str) else _number(1, size) for size in one.shape)
    shape = b"".join(_bytes(1, size) for size in sizes)
    of_tensor = _number(1, one.kind) + _bytes(2, shape)
    return _text(1, one.name) + _bytes(2, _bytes(1, of_tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their top bit set."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
