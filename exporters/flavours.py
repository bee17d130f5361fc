"""Flavours of the graph: what its floats are, and how it multiplies integers.

ort                float32; uint8 by uint8, of every grid
ort, signed        the same, of the same bytes on disk: uint8 by int8
ort-cuda           float16; int8 by int8, symmetric
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge.anatomy import HEAD, Anatomy
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.exporters import cuda, linears, roundings, weights
from slmq_edge.exporters.attention import is_fused
from slmq_edge.exporters.floats import FLOAT16, FLOAT32, Floats
from slmq_edge.exporters.graph import IR_VERSIONS, OPSET, Builder
from slmq_edge.exporters.lowering import Form
from slmq_edge.exporters.roundings import ByToken, Quantized
from slmq_edge.exporters.weights import Stored
from slmq_edge.runner.asked import ON_CPU, ON_CUDA, Provider


class Integers(Protocol):
    """A linear of integers, piece by piece. Scales, sums and results are float32."""

    def quantize(
        self, x: ir.Value, linear: str, width: int, name: str, all_tokens: bool
    ) -> Quantized:
        """Round what ``linear`` reads [rows, width]; ``all_tokens``: a row for each of them."""

    def store(self, weight: IntegerWeight, name: str) -> Stored:
        """A weight as ``multiply`` takes it."""

    def multiply(
        self,
        x: Quantized,
        stored: Stored,
        weight: IntegerWeight,
        bias: NDArray[np.float32] | None,
        name: str,
    ) -> ir.Value:
        """``x`` times the stored form of ``weight``, plus its bias: float32 [rows, out]."""

    def store_table(self, levels: NDArray[np.int8]) -> ir.Value:
        """An 8-bit lookup table [vocab, hidden], row-major."""

    def turned_table(self, table: ir.Value, levels: NDArray[np.int8]) -> Stored:
        """The table as the weight of a head [hidden, vocab]."""

    def centred(self, stored: ir.Value, name: str) -> ir.Value:
        """Rows of the table: its levels, as float32."""


class Bytes:
    """uint8 by uint8, which no kernel saturates; ``signed``: by int8, of the same bytes on disk."""

    def __init__(self, build: Builder, checkpoint: Checkpoint, signed: bool = False) -> None:
        self._build, self._checkpoint, self._signed = build, checkpoint, signed
        grid = checkpoint.scheme.input_grid(HEAD)
        self._by_token = ByToken(build, grid) if grid and grid.per == "token" else None

    def quantize(
        self, x: ir.Value, linear: str, width: int, name: str, all_tokens: bool
    ) -> Quantized:
        if self._by_token is not None:
            return self._by_token(x, width, name, all_tokens)
        grid = self._checkpoint.scheme.activations
        assert grid is not None, "asked where inputs are rounded"
        return roundings.by_tensor(self._build, x, grid, self._checkpoint.inputs[linear], name)

    def store(self, weight: IntegerWeight, name: str) -> Stored:
        return weights.store(self._build, weight, name, self._signed)

    def multiply(
        self,
        x: Quantized,
        stored: Stored,
        weight: IntegerWeight,
        bias: NDArray[np.float32] | None,
        name: str,
    ) -> ir.Value:
        return linears.integer_linear(self._build, x, stored, weight, bias, name)

    def store_table(self, levels: NDArray[np.int8]) -> ir.Value:
        return weights.store8(self._build, levels, "embed", signed=False)

    def turned_table(self, table: ir.Value, levels: NDArray[np.int8]) -> Stored:
        """Signed, it is read a second time: rows are looked up in the file, at no cost there."""
        if self._signed:
            table = weights.store8(self._build, levels, "lm_head.table", self._signed)
        turned = self._build.op("Transpose", table, name="lm_head.weight", perm=[1, 0])
        return Stored(turned, weights.middle(self._signed))

    def centred(self, stored: ir.Value, name: str) -> ir.Value:
        build = self._build
        floats = build.op("Cast", stored, name=f"{name}.cast", to=ir.DataType.FLOAT)
        zero = build.constant(roundings.ZERO_POINT, np.float32)
        return build.op("Sub", floats, zero, name=f"{name}.integers")


@dataclass(frozen=True)
class Flavour:
    """target: as it is asked for. operator, integer: of its integer product, for the report.

    provider: of ONNX Runtime's, the one that the graph is written for.
    """

    target: str
    floats: Floats
    integers: Callable[[Builder, Checkpoint], Integers]
    operator: str
    integer: str
    provider: Provider = ON_CPU

    def form(self, shape: Anatomy) -> Form:
        """How it writes the graph of a model, for the report."""
        attention = "GroupQueryAttention" if is_fused(shape) else "standard operators"
        return Form(self.floats, self.operator, self.integer, attention, OPSET, IR_VERSIONS[OPSET])


ORT = Flavour("ort", FLOAT32, Bytes, linears.OPERATOR, "uint8")
ORT_SIGNED = Flavour("ort", FLOAT32, partial(Bytes, signed=True), linears.OPERATOR, "uint8")
ORT_CUDA = Flavour("ort-cuda", FLOAT16, cuda.Int8, cuda.OPERATOR, "int8", ON_CUDA)

FLAVOURS = {one.target: one for one in (ORT, ORT_CUDA)}
