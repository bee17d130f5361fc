"""Small products of matrices whose result is known: does a runtime multiply, and multiply right?

Each is one operator, [tokens, 64] times constant [64, 32], with integers small enough for the
answer to be exact in float16, float32 with 10 bits of fraction (TF32) and int32 alike. Products of
8 by 8 bits take the ends of their grids, which kernels that add pairs up in 16 bits saturate at.
"""

from __future__ import annotations

import struct
from typing import Callable, List, NamedTuple, Sequence

from slmq_edge.runner.onnx_bytes import (
    FLOAT,
    INT8,
    INT32,
    TOKENS,
    UINT8,
    Operator,
    Port,
    Tensor,
    model,
)

WIDTH, OUTPUTS, BLOCK = 64, 32, 32
LENGTHS = (1, 7)  # decoding and prefill take different kernels
MICROSOFT = "com.microsoft"
ZERO_POINT = {UINT8: 128, INT8: 0}
DTYPES = {FLOAT: "float32", UINT8: "uint8", INT8: "int8"}

Matrix = List[List[int]]


class Product(NamedTuple):
    """graph: turns ``a`` [tokens, 64] of ``dtype`` into ``y`` = (a - zero) @ weights.

    tolerance: how far off the answer may be, as a share of the largest number in it.
    """

    graph: bytes
    dtype: str
    zero: int
    weights: Matrix  # [64][32], less their zero point
    tolerance: float

    def activations(self, tokens: int) -> Matrix:
        """What to multiply, [tokens][64]: whole rows of both ends first, then a mix of them."""
        if self.dtype == DTYPES[FLOAT]:
            return [[_mix(row, k) % 9 - 4 for k in range(WIDTH)] for row in range(tokens)]
        return [[_end(row, k) + self.zero for k in range(WIDTH)] for row in range(tokens)]

    def answer(self, activations: Sequence[Sequence[int]]) -> Matrix:
        columns = list(zip(*self.weights))
        return [
            [sum((a - self.zero) * w for a, w in zip(row, column)) for column in columns]
            for row in activations
        ]


def _mix(row: int, column: int) -> int:
    return ((row + 3) * 2654435761 + (column + 7) * 40503 * (row + 11)) >> 9 & 0xFFFF


def _end(row: int, column: int) -> int:
    """-127 or 127: one of them in the first row or column, the other in the second."""
    if row < 2:
        return (127, -127)[row]
    return (127, -127)[_mix(row, column) & 1]


def _floats() -> Product:
    weights = _small()
    content = b"".join(struct.pack("<f", value) for row in weights for value in row)
    constants = [Tensor("b", FLOAT, (WIDTH, OUTPUTS), content)]
    graph = _graph(Operator("MatMul", "", ("a", "b")), constants, FLOAT, FLOAT)
    return Product(graph, DTYPES[FLOAT], 0, weights, tolerance=1e-4)


def _integers(activations: int, weights: int) -> Product:
    """MatMulInteger; the zero points are those of symmetric grids."""
    levels = [[_end(column, k) for column in range(OUTPUTS)] for k in range(WIDTH)]
    zero = ZERO_POINT[weights]
    content = b"".join(_byte(level + zero) for row in levels for level in row)
    constants = [
        Tensor("b", weights, (WIDTH, OUTPUTS), content),
        Tensor("a_zero", activations, (), _byte(ZERO_POINT[activations])),
        Tensor("b_zero", weights, (), _byte(zero)),
    ]
    operator = Operator("MatMulInteger", "", ("a", "b", "a_zero", "b_zero"))
    graph = _graph(operator, constants, activations, INT32)
    return Product(graph, DTYPES[activations], ZERO_POINT[activations], levels, tolerance=0.0)


def _blocks(bits: int) -> Product:
    """MatMulNBits in blocks of 32, all scales 1; its zero point is the middle, unless it is given.

    It may round what it multiplies to 8 bits.
    """
    weights, per_byte, middle = _small(), 8 // bits, 1 << bits - 1
    content = bytearray()
    for column in zip(*weights):
        for k in range(0, WIDTH, per_byte):
            levels = [level + middle for level in column[k : k + per_byte]]
            content.append(sum(level << bits * place for place, level in enumerate(levels)))
    blocks = WIDTH // BLOCK
    constants = [
        Tensor("b", UINT8, (OUTPUTS, blocks, BLOCK * bits // 8), bytes(content)),
        Tensor("scales", FLOAT, (OUTPUTS * blocks,), struct.pack("<f", 1.0) * (OUTPUTS * blocks)),
    ]
    attributes = {"K": WIDTH, "N": OUTPUTS, "bits": bits, "block_size": BLOCK}
    operator = Operator("MatMulNBits", MICROSOFT, ("a", "b", "scales"), attributes)
    graph = _graph(operator, constants, FLOAT, FLOAT)
    return Product(graph, DTYPES[FLOAT], 0, weights, tolerance=0.02)


def _graph(operator: Operator, constants: Sequence[Tensor], given: int, made: int) -> bytes:
    shapes = (TOKENS, WIDTH), (TOKENS, OUTPUTS)
    return model(operator, constants, Port("a", given, shapes[0]), Port("y", made, shapes[1]))


def _small() -> Matrix:
    """Weights of -8 to 7, [64][32]."""
    return [[_mix(k, column) % 16 - 8 for column in range(OUTPUTS)] for k in range(WIDTH)]


def _byte(value: int) -> bytes:
    return bytes([value & 0xFF])


FLOATS, UNSIGNED, MIXED, SIGNED = "float32", "uint8 x uint8", "uint8 x int8", "int8 x int8"
FOUR, EIGHT = "4-bit weights", "8-bit weights"
PRODUCTS: dict[str, Callable[[], Product]] = {
    FLOATS: _floats,
    UNSIGNED: lambda: _integers(UINT8, UINT8),
    MIXED: lambda: _integers(UINT8, INT8),
    SIGNED: lambda: _integers(INT8, INT8),
    FOUR: lambda: _blocks(4),
    EIGHT: lambda: _blocks(8),
}
