"""A decoder for TensorRT, from Anatomy and a checkpoint that ``convert`` has made expressible.

Its ports are documented where they are read, in ``slmq_edge.runner.trt.recipe``. Linears that share
an input are products of their own that read one DequantizeLinear: TensorRT joins them sideways.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.exporters import rotations
from slmq_edge.exporters.attention import Cache, as_outputs
from slmq_edge.exporters.floats import FLOAT16, Floats
from slmq_edge.exporters.graph import Builder, onnx_type
from slmq_edge.exporters.lowering import context_length
from slmq_edge.exporters.rows import Multiplication, Part
from slmq_edge.exporters.trt import linears
from slmq_edge.exporters.trt.attention import Attention, norm
from slmq_edge.runner.ort import IN_PLACE, KV_CACHE
from slmq_edge.runner.trt.recipe import KEPT, NEW, ROOM

# A layer of an engine is called as its node is only where no tensor is called the same (0018).
RESULT = ".out"


@dataclass(frozen=True)
class Written:
    """A graph, what it multiplies by, and which of its MatMuls are what (``Recipe``)."""

    model: ir.Model
    multiplications: tuple[Multiplication, ...]
    int8: tuple[str, ...]
    weight_only: tuple[str, ...]


def write(checkpoint: Checkpoint, opset: int, floats: Floats = FLOAT16) -> Written:
    """The graph of a checkpoint; ``opset``: 21 where weights are int4.

    Raises:
        Unsupported: a value is too large for ``floats``.
    """
    writer = _Writer(checkpoint, opset, floats)
    model = writer.model()
    return Written(
        model, tuple(writer.multiplications), tuple(writer.int8), tuple(writer.weight_only)
    )


class _Writer:
    """Walks the anatomy once, writing nodes as it goes, and counts what it multiplies by."""

    def __init__(self, checkpoint: Checkpoint, opset: int, floats: Floats) -> None:
        self.checkpoint, self.shape = checkpoint, checkpoint.anatomy
        self.build = Builder(floats, opset, domains={}, result=RESULT)
        self.inputs = inputs(self.shape, floats)
        self.multiplications: list[Multiplication] = []
        self.int8: list[str] = []
        self.weight_only: list[str] = []
        self._table = self._stored_table()

    def model(self) -> ir.Model:
        shape = self.shape
        attention = Attention(
            self.build,
            shape,
            self.inputs["position_ids"],
            self._past(0),
            context_length(shape),
            rotations.of_heads(shape.head_dim) if self.checkpoint.online.keys else None,
        )
        stream = self._embed()
        presents: list[Cache] = []
        for layer in range(shape.layers):
            stream, present = self._block(layer, stream, attention)
            presents.append(present)
        out = self._head(self._norm(stream, names.NORM))
        # onnxruntime writes a present where it has read the past; an engine must not.
        return self.build.model(
            list(self.inputs.values()),
            [out, *as_outputs(presents, self.build.floats, _cache_shape(shape))],
            {KV_CACHE: IN_PLACE},
        )

    def _block(self, layer: int, stream: ir.Value, attention: Attention) -> tuple[ir.Value, Cache]:
        build, shape = self.build, self.shape
        normed = self._norm(stream, shape.block(layer, ATTENTION_FEED.norm))
        query, key, value = self._multiply(normed, shape.blocks(layer, QKV))
        norms = shape.blocks(layer, (names.Q_NORM, names.K_NORM)) if shape.qk_norm else ()
        gains = [self._tensor(f"{one}.weight") for one in norms]
        name = shape.block(layer, "self_attn")
        mixed, present = attention(query, key, value, self._past(layer), name, gains)
        if self.checkpoint.online.keys:
            macs = (shape.heads + shape.kv_heads) * shape.head_dim**2
            self._count(f"{name}.spread", "rotation", None, macs)
        (update,) = self._multiply(mixed, shape.blocks(layer, (names.O,)))
        stream = build.op("Add", stream, update, name=f"{name}.stream")
        normed = self._norm(stream, shape.block(layer, MLP_FEED.norm))
        gate, up = self._multiply(normed, shape.blocks(layer, GATE_UP))
        name = shape.block(layer, "mlp")
        (update,) = self._multiply(
            self._activated(gate, up, name), shape.blocks(layer, (names.DOWN,))
        )
        return build.op("Add", stream, update, name=f"{name}.stream"), present

    def _activated(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """What down_proj reads: silu(gate) * up, rotated by R4 where the model has it."""
        build = self.build
        share = build.op("Sigmoid", gate, name=f"{name}.sigmoid")
        active = build.op("Mul", gate, share, name=f"{name}.silu")
        product = build.op("Mul", active, up, name=f"{name}.product")
        if not self.checkpoint.online.down:
            return product
        product, macs = rotations.rotate_rows(build, product, self.shape.ffn, f"{name}.spread")
        self._count(f"{name}.spread", "rotation", None, macs)
        return product

    def _norm(self, stream: ir.Value, name: str) -> ir.Value:
        """RMSNorm of the stream, of the graph's floats as it comes and goes."""
        wide = self.build.as_float32(stream, name)
        gain = self._tensor(f"{name}.weight")
        normed = norm(self.build, wide, gain, self.shape.norm_eps, name)
        return self.build.as_floats(normed, f"{name}.normed")

    def _stored_table(self) -> ir.Value:
        """The lookup table [vocab, hidden], which a tied head shares: DQ of int8, or floats."""
        weight = self.checkpoint.integers.get(names.EMBED)
        if weight is None:
            return self.build.float_weight(self._tensor(f"{names.EMBED}.weight"), "embed.weight")
        return linears.rows(self.build, weight, "embed")

    def _embed(self) -> ir.Value:
        """Rows of the lookup table, [1, new, hidden]."""
        build = self.build
        rows = build.op("Gather", self._table, self.inputs["input_ids"], name="embed", axis=0)
        if names.EMBED in self.checkpoint.integers:
            rows = build.as_floats(rows, "embed.rows")
        return self._rotation(rows, names.EMBED_ROTATION)

    def _head(self, normed: ir.Value) -> ir.Value:
        """Logits float32 [1, kept, vocab] of the positions that are asked for."""
        build, positions = self.build, self.inputs["logits_positions"]
        kept = build.op("Gather", normed, positions, name="logits.kept", axis=1)
        kept = self._rotation(kept, names.HEAD_ROTATION)
        weight = self.checkpoint.integer_weight(names.HEAD)
        if not self.shape.tied:
            (out,) = self._multiply(kept, (names.HEAD,), "head")
        else:
            table = self._table
            turned = build.op("Transpose", table, name="lm_head.weight_turned", perm=[1, 0])
            out = self._product(kept, turned, names.HEAD, weight, "head")
        logits = build.as_float32(out, "logits")
        logits.name = "logits"
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape([1, KEPT, self.shape.vocab])
        return logits

    def _multiply(
        self, x: ir.Value, group: tuple[str, ...], part: Part = "linear"
    ) -> list[ir.Value]:
        """Linears that share an input: it is rounded once, and each multiplies it."""
        found = []
        rounded: linears.Rounded | None = None
        for linear in group:
            weight = self.checkpoint.integer_weight(linear)
            stored = self._stored(linear, weight)
            if weight is not None and rounded is None:
                rounded = self._rounded(x, group[0])
            found.append(self._product(x, stored, linear, weight, part, rounded))
        return found

    def _rounded(self, x: ir.Value, linear: str) -> linears.Rounded | None:
        """``x`` as the linears that read it first by ``linear`` round it; ``None``: they do not."""
        grid = self.checkpoint.scheme.input_grid(linear)
        if grid is None:
            return None
        steps = self.checkpoint.inputs.get(linear)
        return linears.quantize(self.build, x, grid, steps, f"{linear}.input")

    def _stored(self, linear: str, weight: IntegerWeight | None) -> ir.Value:
        """A linear's weight [in, out]: float32 of int8, the graph's floats of all else."""
        if weight is None:
            return self.build.float_weight(self._tensor(f"{linear}.weight").T, f"{linear}.weight")
        if weight.grid.group is not None:
            return linears.blocks(self.build, weight, linear)
        return linears.channels(self.build, weight, linear)

    def _product(
        self,
        x: ir.Value,
        stored: ir.Value,
        linear: str,
        weight: IntegerWeight | None,
        part: Part,
        rounded: linears.Rounded | None = None,
    ) -> ir.Value:
        """``x`` by a stored weight [in, out], and what it counts as."""
        build, bias = self.build, self._bias(linear)
        if weight is not None and rounded is None:
            rounded = self._rounded(x, linear)
        is_integer = rounded is not None
        macs = self._macs(linear, part)
        self._count(linear, part, weight, macs, is_integer)
        if rounded is not None:
            self.int8.append(f"{linear}.matmul")
            return linears.integer_linear(build, rounded, stored, bias, linear)
        if weight is not None:
            self.weight_only.append(f"{linear}.matmul")
            if weight.grid.group is None:
                stored = build.as_floats(stored, f"{linear}.weight")
        return linears.float_linear(build, x, stored, bias, linear)

    def _macs(self, linear: str, part: Part) -> int:
        if part == "head":
            return self.shape.vocab * self.shape.hidden
        weight = self.checkpoint.integers.get(linear)
        tensor = self.checkpoint.tensors.get(f"{linear}.weight")
        count = weight.integers.numel() if weight is not None else tensor.numel()  # type: ignore[union-attr]
        return int(count)

    def _rotation(self, x: ir.Value, name: str) -> ir.Value:
        rotation = self.checkpoint.tensors.get(f"{name}.weight")
        if rotation is None:
            return x
        self._count(name, "rotation", None, rotation.numel())
        stored = self.build.float_weight(rotation.numpy().T, f"{name}.weight")
        return linears.float_linear(self.build, x, stored, None, name)

    def _count(
        self,
        name: str,
        part: Part,
        weight: IntegerWeight | None,
        macs: int,
        is_integer: bool = False,
    ) -> None:
        """int8 holds every grid by channel, 4 bits too; int4 stays int4 in blocks."""
        grid = None if weight is None else weight.grid
        stored = None if grid is None else 8 if grid.group is None else grid.bits
        float_operator = "MatMul" if grid is None else linears.WEIGHT_ONLY
        operator = linears.OPERATOR if is_integer else float_operator
        floats = self.build.floats
        self.multiplications.append(
            Multiplication(
                name, part, grid, is_integer, macs, operator, floats=floats, stored=stored
            )
        )

    def _tensor(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self.checkpoint.tensors[name].numpy()
        return array

    def _bias(self, linear: str) -> NDArray[np.float32] | None:
        tensor = self.checkpoint.tensors.get(f"{linear}.bias")
        return None if tensor is None else tensor.numpy()

    def _past(self, layer: int) -> Cache:
        past = f"past_key_values.{layer}"
        return Cache(self.inputs[f"{past}.key"], self.inputs[f"{past}.value"])


def inputs(shape: Anatomy, floats: Floats) -> dict[str, ir.Value]:
    """The graph's inputs by name, as ``Recipe`` documents them."""
    int64 = ir.DataType.INT64
    values = [
        ir.val("input_ids", int64, [1, NEW]),
        ir.val("position_ids", int64, [1, NEW]),
        ir.val("logits_positions", int64, [KEPT]),
        *(
            ir.val(f"past_key_values.{layer}.{kind}", onnx_type(floats), _cache_shape(shape))
            for layer in range(shape.layers)
            for kind in ("key", "value")
        ),
    ]
    return {str(value.name): value for value in values}


def _cache_shape(shape: Anatomy) -> tuple[int | str, ...]:
    return 1, shape.kv_heads, ROOM, shape.head_dim
