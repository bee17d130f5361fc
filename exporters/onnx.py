"""The ``ort`` flavour: a decoder with a KV cache for ONNX Runtime, from Anatomy and Checkpoint.

Inputs and outputs are named as optimum names them: ``input_ids``, ``attention_mask``,
``position_ids``, ``past_key_values.N.key|value``; ``logits``, ``present.N.key|value``. For how many
of the last positions logits are computed is an overridable initializer, ``logits_to_keep``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy, Online
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import Unsupported
from slmq_edge.exporters import linears
from slmq_edge.exporters.attention import Attention, Cache, is_fused
from slmq_edge.exporters.graph import IR_VERSION, MICROSOFT, OPSET, Builder
from slmq_edge.exporters.linears import Quantized
from slmq_edge.scheme import Grid, Scheme

MINIMUM_VERSION = "1.19"
KEEP_ALL = 2**31 - 1
FLOAT_BITS = 32
LONGEST_ROTARY_TABLE = 32768


@dataclass(frozen=True)
class Lowering:
    """What the graph does with what the scheme asked for."""

    scheme_ran: str
    int8_gemm_share: float
    activation_mode: str
    attention: str
    lm_head: str
    weight_storage_bits: dict[str, int]
    integer_gemm: dict[str, str] | None
    opset: int
    ir_version: int
    context_length: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def context_length(shape: Anatomy) -> int:
    """Positions for which the graph holds rotary angles."""
    return min(shape.max_positions, LONGEST_ROTARY_TABLE)


def check(scheme: Scheme, online: Online) -> None:
    """Refuse what this flavour cannot express.

    Raises:
        Unsupported: names the part and what to do.
    """
    plain = (None, Grid(4, "channel"), Grid(8, "channel"))
    if scheme.weights not in plain or scheme.activations not in (None, Grid(8, "token")):
        raise Unsupported(f"target ort cannot express {scheme.weights} x {scheme.activations} yet")
    if (scheme.weights is None) != (scheme.activations is None) or scheme.kv or online.down:
        raise Unsupported(f"target ort cannot express scheme {scheme.name} with these options yet")


def write(checkpoint: Checkpoint) -> tuple[ir.Model, Lowering]:
    """The graph of a checkpoint, and the report of how it was lowered."""
    check(checkpoint.scheme, checkpoint.online)
    writer = _Writer(checkpoint)
    return writer.model(), lowering(writer.multiplications, checkpoint.anatomy)


@dataclass(frozen=True)
class Multiplication:
    """A weight matrix that the graph multiplies by: its bits (32: float) and its size."""

    name: str
    bits: int
    macs_per_token: int


def write_probe() -> ir.Model:
    """The integer GEMM alone: ``a`` uint8 [m, k] of zero point 128 times extreme constants.

    Its float32 output ``y`` is the exact integer sum on a kernel that does not saturate;
    ``weights`` uint8 [k, n] returns the constants, zero point 128 too.
    """
    build = Builder()
    depth, width = 64, 48
    a = ir.val("a", ir.DataType.UINT8, ["m", depth])
    ends = np.array([0, 255], np.uint8)
    extremes = np.random.default_rng(0).choice(ends, (depth, width))
    extremes[:, :2] = ends
    stored, one = build.weight(extremes, "extremes"), build.constant(1.0, np.float32)
    zero = build.constant(linears.ZERO_POINT, np.uint8)
    y = build.op(linears.OPERATOR, a, stored, one, one, zero, zero, name="y", domain=MICROSOFT)
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["m", width])
    weights = build.op("Identity", stored, name="weights")
    weights.type, weights.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([depth, width])
    return build.model([a], [y, weights])


def lowering(multiplications: Sequence[Multiplication], shape: Anatomy) -> Lowering:
    """Sum up the multiplications that were written (attention's own products are not counted)."""
    integer = [one for one in multiplications if one.bits < FLOAT_BITS]
    bits = {one.bits for one in multiplications if one.name.startswith("model.layers.")}
    head = next(one.bits for one in multiplications if one.name == names.HEAD)
    total = sum(one.macs_per_token for one in multiplications)
    widest = max(bits)
    ran = "fp32" if widest == FLOAT_BITS else f"w{widest}a8"
    return Lowering(
        scheme_ran=ran if len(bits) == 1 else "mixed",
        int8_gemm_share=sum(one.macs_per_token for one in integer) / total,
        activation_mode="per token, dynamic, symmetric" if integer else "float32",
        attention="GroupQueryAttention" if is_fused(shape) else "standard operators",
        lm_head="float" if head == FLOAT_BITS else f"int{head}",
        weight_storage_bits={
            "linears": widest,
            "lm_head": head,
            "embedding": head if shape.tied else FLOAT_BITS,
        },
        integer_gemm=(
            {"operator": linears.OPERATOR, "activation": "uint8", "weight": "uint8"}
            if integer
            else None
        ),
        opset=OPSET,
        ir_version=IR_VERSION,
        context_length=context_length(shape),
    )


def kind_of(linear: str) -> str:
    """A linear's name within its block: ``mlp.up_proj`` of ``model.layers.3.mlp.up_proj``."""
    return linear if linear == names.HEAD else ".".join(linear.split(".")[-2:])


def _joint_name(group: tuple[str, ...]) -> str:
    """``...self_attn.q_k_v_proj`` for the three that share an input."""
    if len(group) == 1:
        return group[0]
    place = group[0].rpartition(".")[0]
    parts = [linear.rpartition(".")[2].removesuffix("_proj") for linear in group]
    return f"{place}.{'_'.join(parts)}_proj"


class _Writer:
    """Walks the anatomy once, writing nodes as it goes, and counts what it multiplies by."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.shape = checkpoint, checkpoint.anatomy
        self.build = Builder()
        self.inputs = _inputs(self.shape)
        self.multiplications: list[Multiplication] = []
        build, tokens = self.build, self.inputs["input_ids"]
        rest = build.constant([-1], np.int64)
        batch_shape = build.op("Shape", tokens, name="tokens.shape")
        self._new_shape = build.op("Concat", batch_shape, rest, name="tokens.new_shape", axis=0)
        self._tokens = build.op("Reshape", tokens, rest, name="tokens.flat")
        self._rows = build.constant([-1, self.shape.hidden], np.int64)
        self._keep = build.weight(np.array([KEEP_ALL], np.int64), "logits_to_keep")
        self._table = self._stored_table()
        self._zero_points: ir.Value | None = None

    def model(self) -> ir.Model:
        build, shape = self.build, self.shape
        attention = Attention(
            build,
            shape,
            self.inputs["attention_mask"],
            self.inputs["position_ids"],
            context_length(shape),
        )
        stream = self._embed()
        update: ir.Value | None = None
        presents: list[Cache] = []
        for layer in range(shape.layers):
            stream, update, present = self._block(layer, stream, update, attention)
            presents.append(present)
        _, normed = self._add_norm(stream, update, names.NORM)
        out = self._head(normed)
        return self.build.model(
            [*self.inputs.values(), self._keep], [out, *self._present_outputs(presents)]
        )

    def _block(
        self, layer: int, stream: ir.Value, update: ir.Value | None, attention: Attention
    ) -> tuple[ir.Value, ir.Value, Cache]:
        """One block; additions to the stream are left to the norm that follows them."""
        build, shape = self.build, self.shape
        stream, normed = self._add_norm(stream, update, shape.block(layer, ATTENTION_FEED.norm))
        query, key, value = self._project(normed, tuple(shape.block(layer, name) for name in QKV))
        past = Cache(
            self.inputs[f"past_key_values.{layer}.key"],
            self.inputs[f"past_key_values.{layer}.value"],
        )
        name = shape.block(layer, "self_attn")
        mixed, present = attention(query, key, value, past, name)
        rows = build.constant([-1, shape.query_width], np.int64)
        mixed = build.op("Reshape", mixed, rows, name=f"{name}.mixed_rows")
        (update,) = self._project(mixed, (shape.block(layer, names.O),))
        stream, normed = self._add_norm(stream, update, shape.block(layer, MLP_FEED.norm))
        gate, up = self._project(normed, tuple(shape.block(layer, name) for name in GATE_UP))
        active = build.op(
            "QuickGelu",
            gate,
            name=f"{shape.block(layer, 'mlp')}.silu",
            domain=MICROSOFT,
            alpha=1.0,
        )
        product = build.op("Mul", active, up, name=f"{shape.block(layer, 'mlp')}.product")
        (update,) = self._project(product, (shape.block(layer, names.DOWN),))
        return stream, update, present

    def _embed(self) -> ir.Value:
        """Rows of the lookup table, [tokens, hidden]."""
        build = self.build
        rows = build.op("Gather", self._table, self._tokens, name="embed.stored", axis=0)
        if names.EMBED in self.checkpoint.integers:
            rows = self._scaled_rows(rows)
        return self._rotation(rows, names.EMBED_ROTATION)

    def _stored_table(self) -> ir.Value:
        """The lookup table, row-major: a tied head shares this one copy (ONNXRUNTIME 10)."""
        table = self.checkpoint.integers.get(names.EMBED)
        if table is None:
            return self.build.weight(self._tensor(f"{names.EMBED}.weight"), "embed.weight")
        return self.build.weight(linears.unsigned(table.integers.numpy()), "embed.weight")

    def _scaled_rows(self, stored: ir.Value) -> ir.Value:
        """Rows of an 8-bit table, as floats."""
        build, flat = self.build, self._tokens
        table = self.checkpoint.integers[names.EMBED]
        scales = build.weight(table.scale[:, 0].numpy(), "embed.scale")
        shifted = build.op("Cast", stored, name="embed.cast", to=ir.DataType.FLOAT)
        zero = build.constant(linears.ZERO_POINT, np.float32)
        integers = build.op("Sub", shifted, zero, name="embed.integers")
        scale = build.op("Gather", scales, flat, name="embed.row_scale", axis=0)
        axis = build.constant([-1], np.int64)
        column = build.op("Unsqueeze", scale, axis, name="embed.row_scale_column")
        return build.op("Mul", integers, column, name="embed.rows")

    def _head(self, normed: ir.Value) -> ir.Value:
        """Logits of the last ``logits_to_keep`` positions, [batch, kept, vocab]."""
        build = self.build
        by_batch = self._by_batch(normed)
        start = build.op("Neg", self._keep, name="logits.start")
        end, axis = build.constant([KEEP_ALL], np.int64), build.constant([1], np.int64)
        kept = build.op("Slice", by_batch, start, end, axis, name="logits.kept")
        kept_shape = build.op("Shape", kept, name="logits.kept_shape", start=0, end=2)
        rows = build.op("Reshape", kept, self._rows, name="logits.kept_rows")
        rows = self._rotation(rows, names.HEAD_ROTATION)
        flat = self._multiply_head(rows)
        vocab = build.constant([self.shape.vocab], np.int64)
        size = build.op("Concat", kept_shape, vocab, name="logits.shape", axis=0)
        out = build.op("Reshape", flat, size, name="logits")
        out.type = ir.TensorType(ir.DataType.FLOAT)
        out.shape = ir.Shape(["batch_size", "kept_length", self.shape.vocab])
        return out

    def _multiply_head(self, rows: ir.Value) -> ir.Value:
        build, weight = self.build, self.checkpoint.integer_weight(names.HEAD)
        bits = FLOAT_BITS if weight is None else weight.grid.bits
        self._count(names.HEAD, bits, *self.shape.shape(names.HEAD))
        if weight is None and self.shape.tied:
            return build.op("Gemm", rows, self._table, name="lm_head.matmul", transB=1)
        if weight is None:
            table = self._tensor(f"{names.HEAD}.weight")
            return linears.float_linear(build, rows, table, None, names.HEAD)
        points = linears.zero_points_for(build, rows, names.HEAD)
        quantized = self._quantize(rows, self.shape.hidden, points, names.HEAD)
        if self.shape.tied:
            turned = build.op("Transpose", self._table, name="lm_head.weight", perm=[1, 0])
        else:
            turned = linears.integer_weight(build, weight, names.HEAD)
        return linears.integer_linear(build, quantized, turned, weight, None, names.HEAD)

    def _project(self, x: ir.Value, group: tuple[str, ...]) -> tuple[ir.Value, ...]:
        """Linears that share an input, as one: quantized once, multiplied once, split after.

        Output channels are independent: stacking the rows of several linears changes no number.
        q, k and v come out as [batch, new, width], all else as [tokens, width].
        """
        name = _joint_name(group)
        biases = [bias for bias in map(self._bias, group) if bias is not None]
        bias = np.concatenate(biases) if biases else None
        weights = [self.checkpoint.integer_weight(linear) for linear in group]
        integer = [weight for weight in weights if weight is not None]
        if integer:
            stacked = linears.stack(integer)
            self._count(name, stacked.grid.bits, *stacked.integers.shape)
            stored = linears.integer_weight(self.build, stacked, name)
            if self._zero_points is None:
                self._zero_points = linears.zero_points_for(self.build, x, "tokens")
            width = stacked.integers.shape[1]
            quantized = self._quantize(x, width, self._zero_points, name)
            out = linears.integer_linear(self.build, quantized, stored, stacked, bias, name)
        else:
            rows = np.concatenate([self._tensor(f"{linear}.weight") for linear in group])
            self._count(name, FLOAT_BITS, *rows.shape)
            out = linears.float_linear(self.build, x, rows, bias, name)
        if len(group) == 1:
            return (out,)
        if group[0].endswith(names.Q):
            out = self._by_batch(out)
        widths = [self.shape.shape(kind_of(linear))[0] for linear in group]
        sizes = self.build.constant(widths, np.int64)
        outputs = [f"{linear}.out" for linear in group]
        return self.build.ops("Split", out, sizes, name=f"{name}.split", outputs=outputs, axis=-1)

    def _quantize(self, x: ir.Value, width: int, points: ir.Value, name: str) -> Quantized:
        grid = self.checkpoint.scheme.activations
        assert grid is not None, "integer weights only meet integer activations"
        return linears.quantize(self.build, x, width, grid, points, f"{name}.input")

    def _add_norm(
        self, stream: ir.Value, update: ir.Value | None, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """(stream + update, its norm times gain); the stream as it is where nothing is added."""
        gain = self.build.weight(self._tensor(f"{name}.weight"), f"{name}.weight")
        epsilon = self.shape.norm_eps
        if update is None:
            normed = self.build.op(
                "SimplifiedLayerNormalization",
                stream,
                gain,
                name=f"{name}.normed",
                axis=-1,
                epsilon=epsilon,
                stash_type=1,
            )
            return stream, normed
        normed, _, _, total = self.build.ops(
            "SkipSimplifiedLayerNormalization",
            stream,
            update,
            gain,
            name=f"{name}.add_norm",
            outputs=(f"{name}.normed", "", "", f"{name}.stream"),
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return total, normed

    def _by_batch(self, x: ir.Value) -> ir.Value:
        """[tokens, width] -> [batch, new, width]."""
        return self.build.op("Reshape", x, self._new_shape, name=f"{x.name}.by_batch")

    def _rotation(self, x: ir.Value, name: str) -> ir.Value:
        rotation = self.checkpoint.tensors.get(f"{name}.weight")
        if rotation is None:
            return x
        self._count(name, FLOAT_BITS, *rotation.shape)
        return linears.float_linear(self.build, x, rotation.numpy(), None, name)

    def _count(self, name: str, bits: int, rows: int, columns: int) -> None:
        self.multiplications.append(Multiplication(name, bits, rows * columns))

    def _tensor(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self.checkpoint.tensors[name].numpy()
        return array

    def _bias(self, linear: str) -> NDArray[np.float32] | None:
        tensor = self.checkpoint.tensors.get(f"{linear}.bias")
        return None if tensor is None else tensor.numpy()

    def _present_outputs(self, presents: list[Cache]) -> list[ir.Value]:
        outputs = []
        for layer, present in enumerate(presents):
            for kind in ("key", "value"):
                value: ir.Value = getattr(present, kind)
                value.name = f"present.{layer}.{kind}"
                value.type = ir.TensorType(ir.DataType.FLOAT)
                value.shape = _cache_shape(self.shape, "total_length")
                outputs.append(value)
        return outputs


def _inputs(shape: Anatomy) -> dict[str, ir.Value]:
    int64, float32 = ir.DataType.INT64, ir.DataType.FLOAT
    values = [
        ir.val("input_ids", int64, ["batch_size", "new_length"]),
        ir.val("attention_mask", int64, ["batch_size", "total_length"]),
        ir.val("position_ids", int64, ["batch_size", "new_length"]),
        *(
            ir.val(f"past_key_values.{layer}.{kind}", float32, _cache_shape(shape, "past_length"))
            for layer in range(shape.layers)
            for kind in ("key", "value")
        ),
    ]
    return {str(value.name): value for value in values}


def _cache_shape(shape: Anatomy, length: str) -> ir.Shape:
    return ir.Shape(["batch_size", shape.kv_heads, length, shape.head_dim])
