"""A decoder with a KV cache for ONNX Runtime, from Anatomy and Checkpoint, in one of ``flavours``.

Inputs and outputs are named as optimum names them: ``input_ids``, ``attention_mask``,
``position_ids``, ``past_key_values.N.key|value``; ``logits``, ``present.N.key|value``. For how many
of the last positions logits are computed is an overridable initializer, ``logits_to_keep``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.exporters import linears, lookup, rotations, weights
from slmq_edge.exporters.attention import Attention, Cache, as_outputs
from slmq_edge.exporters.flavours import ORT, Flavour
from slmq_edge.exporters.floats import Floats
from slmq_edge.exporters.graph import MICROSOFT, Builder, onnx_type
from slmq_edge.exporters.limits import check, is_in_blocks
from slmq_edge.exporters.lowering import Lowering, context_length, lowering
from slmq_edge.exporters.roundings import Quantized
from slmq_edge.exporters.rows import BLOCK_OPERATOR, Multiplication, Part, joint_name
from slmq_edge.exporters.weights import Blocks
from slmq_edge.runner.ort import IN_PLACE, KV_CACHE
from slmq_edge.scheme import Grid

KEEP_ALL = 2**31 - 1


def write(checkpoint: Checkpoint, flavour: Flavour = ORT) -> tuple[ir.Model, Lowering]:
    """The graph of a checkpoint, and the report of how it was lowered.

    ``flavours.ORT_SIGNED`` is exact, and fast on the newest runtimes, only on a CPU whose kernels
    do not saturate.

    Raises:
        Unsupported: a scheme that this flavour cannot express (``check``), or zero points or
            weights that do not fit its types.
    """
    check(checkpoint.scheme, target=flavour.target)
    writer = _Writer(checkpoint, flavour)
    return writer.model(), lowering(
        writer.multiplications, checkpoint, flavour.form(checkpoint.anatomy)
    )


class _Writer:
    """Walks the anatomy once, writing nodes as it goes, and counts what it multiplies by."""

    def __init__(self, checkpoint: Checkpoint, flavour: Flavour) -> None:
        self.checkpoint, self.shape = checkpoint, checkpoint.anatomy
        self.flavour, self.floats = flavour, flavour.floats
        self.build = Builder(self.floats)
        self.inputs = _inputs(self.shape, self.floats)
        self.multiplications: list[Multiplication] = []
        build = self.build
        self._keep = build.weight(np.array([KEEP_ALL], np.int64), "logits_to_keep")
        self._integers = flavour.integers(build, checkpoint)
        self._blocks = self._table_in_blocks()
        self._table = self._blocks.integers if self._blocks else self._stored_table()
        self._rounds_inputs = checkpoint.scheme.activations is not None

    def model(self) -> ir.Model:
        build, shape = self.build, self.shape
        attention = Attention(
            build,
            shape,
            self.inputs["attention_mask"],
            self.inputs["position_ids"],
            context_length(shape),
            rotations.of_heads(shape.head_dim) if self.checkpoint.online.keys else None,
            self.checkpoint.scheme.kv,
        )
        stream = self._embed()
        update: ir.Value | None = None
        presents: list[Cache] = []
        for layer in range(shape.layers):
            stream, update, present = self._block(layer, stream, update, attention)
            presents.append(present)
        _, normed = self._add_norm(stream, update, names.NORM)
        out = self._head(normed)
        about = {KV_CACHE: IN_PLACE} if attention.fused else {}
        return self.build.model(
            [*self.inputs.values(), self._keep],
            [out, *as_outputs(presents, self.floats, _cache_shape(shape, "total_length"))],
            about,
        )

    def _block(
        self, layer: int, stream: ir.Value, update: ir.Value | None, attention: Attention
    ) -> tuple[ir.Value, ir.Value, Cache]:
        """One block; additions to the stream are left to the norm that follows them."""
        build, shape = self.build, self.shape
        stream, normed = self._add_norm(stream, update, shape.block(layer, ATTENTION_FEED.norm))
        qkv = self._multiply(normed, tuple(shape.block(layer, name) for name in QKV))
        past = Cache(
            self.inputs[f"past_key_values.{layer}.key"],
            self.inputs[f"past_key_values.{layer}.value"],
        )
        norms = shape.blocks(layer, (names.Q_NORM, names.K_NORM)) if shape.qk_norm else ()
        gains = [self._tensor(f"{norm}.weight") for norm in norms]
        name = shape.block(layer, "self_attn")
        mixed, present = attention(qkv, past, name, gains)
        if self.checkpoint.online.keys:
            macs = (shape.heads + shape.kv_heads) * shape.head_dim**2
            self._count(f"{name}.spread", "rotation", None, False, macs)
        update = self._multiply(mixed, (shape.block(layer, names.O),))
        stream, normed = self._add_norm(stream, update, shape.block(layer, MLP_FEED.norm))
        both = self._multiply(normed, tuple(shape.block(layer, name) for name in GATE_UP))
        gate, up = self._halves(both, shape.block(layer, "mlp"))
        active = build.op(
            "QuickGelu",
            gate,
            name=f"{shape.block(layer, 'mlp')}.silu",
            domain=MICROSOFT,
            alpha=1.0,
        )
        product = build.op("Mul", active, up, name=f"{shape.block(layer, 'mlp')}.product")
        if self.checkpoint.online.down:
            name = f"{shape.block(layer, 'mlp')}.spread"
            product, macs = rotations.rotate_rows(build, product, shape.ffn, name)
            self._count(name, "rotation", None, False, macs)
        update = self._multiply(product, (shape.block(layer, names.DOWN),))
        return stream, update, present

    def _embed(self) -> ir.Value:
        """Rows of the lookup table, [batch, new, hidden]."""
        build, tokens = self.build, self.inputs["input_ids"]
        weight = self.checkpoint.integers.get(names.EMBED)
        if self._blocks is not None:
            rows = lookup.block_rows(build, self._blocks, tokens, self.shape.hidden)
        elif weight is not None:
            rows = lookup.byte_rows(build, self._table, weight, tokens, self._integers)
        else:
            rows = build.op("Gather", self._table, tokens, name="embed.stored", axis=0)
        return self._rotation(rows, names.EMBED_ROTATION)

    def _table_in_blocks(self) -> Blocks | None:
        """The lookup table as a head of 4 bits reads it; ``None`` where it has other bits."""
        table = self.checkpoint.integers.get(names.EMBED)
        if table is None or table.grid.bits != 4:
            return None
        return weights.blocks(self.build, table, "embed")

    def _stored_table(self) -> ir.Value:
        """The lookup table, row-major: a tied head shares this one copy (ONNXRUNTIME 10)."""
        table = self.checkpoint.integers.get(names.EMBED)
        if table is None:
            return self.build.float_weight(self._tensor(f"{names.EMBED}.weight"), "embed.weight")
        return self._integers.store_table(table.integers.numpy())

    def _head(self, normed: ir.Value) -> ir.Value:
        """Logits of the last ``logits_to_keep`` positions, [batch, kept, vocab]."""
        build = self.build
        start = build.op("Neg", self._keep, name="logits.start")
        end, axis = build.constant([KEEP_ALL], np.int64), build.constant([1], np.int64)
        kept = build.op("Slice", normed, start, end, axis, name="logits.kept")
        kept_shape = build.op("Shape", kept, name="logits.kept_shape", start=0, end=2)
        flat_rows = build.constant([-1, self.shape.hidden], np.int64)
        rows = build.op("Reshape", kept, flat_rows, name="logits.kept_rows")
        rows = self._rotation(rows, names.HEAD_ROTATION)
        flat = self._multiply_head(rows)
        vocab = build.constant([self.shape.vocab], np.int64)
        size = build.op("Concat", kept_shape, vocab, name="logits.shape", axis=0)
        out = build.op("Reshape", flat, size, name="logits")
        out.type = ir.TensorType(ir.DataType.FLOAT)
        out.shape = ir.Shape(["batch_size", "new_length", self.shape.vocab])
        return out

    def _multiply_head(self, rows: ir.Value) -> ir.Value:
        """Logits, float32 [rows, vocab]."""
        build, weight = self.build, self.checkpoint.integer_weight(names.HEAD)
        grid = None if weight is None else weight.grid
        is_integer = weight is not None and self._rounds_inputs
        in_blocks = grid is not None and grid.bits == 4
        size = self.shape.vocab * self.shape.hidden
        self._count(names.HEAD, "head", grid, is_integer, size, in_blocks)
        # A tied head that has a grid of its own is a tensor of its own too.
        is_table = self.shape.tied and names.HEAD not in self.checkpoint.integers
        if weight is not None and in_blocks:
            found = self._blocks if is_table else None
            found = found or weights.blocks(build, weight, names.HEAD)
            return self._block_linear(rows, found, weight, None, names.HEAD)
        if weight is not None and is_integer:
            levels = weight.integers.numpy()
            turned = self._integers.turned_table(self._table, levels) if is_table else None
            quantized = self._integers.quantize(
                rows, names.HEAD, self.shape.hidden, f"{names.HEAD}.input", False
            )
            stored = turned or self._integers.store(weight, names.HEAD)
            return self._integers.multiply(quantized, stored, weight, None, names.HEAD)
        if is_table:
            table = self._table if weight is None else self._table_as_floats()
            flat = build.op("Gemm", rows, table, name="lm_head.matmul", transB=1)
        else:
            values = self._float_weight((names.HEAD,), weight, names.HEAD)
            flat = linears.float_linear(build, rows, values, None, names.HEAD)
        return build.as_float32(flat, names.HEAD)

    def _block_linear(
        self,
        x: ir.Value,
        blocks: Blocks,
        weight: IntegerWeight,
        bias: NDArray[np.float32] | None,
        name: str,
    ) -> ir.Value:
        accuracy = linears.INTEGER_INPUT if self._rounds_inputs else linears.FLOAT_INPUT
        return linears.block_linear(self.build, x, blocks, weight, bias, name, accuracy)

    def _float_weight(
        self, group: tuple[str, ...], weight: IntegerWeight | None, name: str
    ) -> ir.Value:
        """Linears side by side as floats [in, out]: their own, or what ``weight`` stands for."""
        if weight is None:
            rows = np.concatenate([self._tensor(f"{linear}.weight") for linear in group])
            return self.build.float_weight(rows.T, f"{name}.weight")
        values = weights.dequantize(self.build, weight, name)
        return self.build.as_floats(values, f"{name}.weight")

    def _table_as_floats(self) -> ir.Value:
        """The whole 8-bit table as floats [vocab, hidden], turned into them at load."""
        scale = self.checkpoint.integers[names.EMBED].scale.numpy()
        centred = self._integers.centred(self._table, "lm_head")
        scales = self.build.weight(scale, "lm_head.scale")
        values = self.build.op("Mul", centred, scales, name="lm_head.weight")
        return self.build.as_floats(values, "lm_head.weight")

    def _halves(self, x: ir.Value, name: str) -> tuple[ir.Value, ...]:
        """gate and up, which were multiplied as one."""
        outputs = (f"{name}.gate", f"{name}.up")
        sizes = self.build.constant([self.shape.ffn] * 2, np.int64)
        return self.build.ops("Split", x, sizes, name=f"{name}.split", outputs=outputs, axis=-1)

    def _multiply(self, x: ir.Value, group: tuple[str, ...]) -> ir.Value:
        """Linears that share an input, side by side: quantized once, multiplied once for each grid.

        Output channels are independent: stacking the rows of several linears changes no number.
        """
        build, whole = self.build, joint_name(group)
        rounded: Quantized | None = None
        products = []
        for alike in self._runs(group):
            name = joint_name(alike)
            biases = [bias for bias in map(self._bias, alike) if bias is not None]
            bias = np.concatenate(biases) if biases else None
            weight = self._stacked(alike)
            if weight is None or not self._is_by_rows(weight):
                products.append(self._multiply_floats(x, alike, weight, bias, name))
                continue
            if rounded is None:
                width = weight.integers.shape[1]
                rounded = self._integers.quantize(x, group[0], width, f"{whole}.input", True)
            self._count(name, "linear", weight.grid, True, weight.integers.numel())
            stored = self._integers.store(weight, name)
            product = self._integers.multiply(rounded, stored, weight, bias, name)
            products.append(build.as_floats(product, name))
        if len(products) == 1:
            return products[0]
        return build.op("Concat", *products, name=f"{whole}.side_by_side", axis=-1)

    def _runs(self, group: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Linears that stand side by side, cut where their grids differ."""

        def grid(linear: str) -> Grid | None:
            weight = self.checkpoint.integer_weight(linear)
            return None if weight is None else weight.grid

        return [tuple(run) for _, run in itertools.groupby(group, grid)]

    def _stacked(self, alike: tuple[str, ...]) -> IntegerWeight | None:
        found = [self.checkpoint.integer_weight(linear) for linear in alike]
        integers = [weight for weight in found if weight is not None]
        return weights.stack(integers) if integers else None

    def _is_by_rows(self, weight: IntegerWeight) -> bool:
        """Whether inputs that were rounded before are multiplied by it."""
        return self._rounds_inputs and not self._is_in_blocks(weight)

    def _is_in_blocks(self, weight: IntegerWeight) -> bool:
        if not is_in_blocks(self.checkpoint.scheme):
            return False
        packs = weight.grid.bits == 4 and weights.are_levels(weight)
        return self._rounds_inputs or packs

    def _multiply_floats(
        self,
        x: ir.Value,
        alike: tuple[str, ...],
        weight: IntegerWeight | None,
        bias: NDArray[np.float32] | None,
        name: str,
    ) -> ir.Value:
        """``x`` times floats, or times blocks whose kernel takes floats and rounds them itself."""
        if weight is not None and self._is_in_blocks(weight):
            macs = weight.integers.numel()
            self._count(name, "linear", weight.grid, self._rounds_inputs, macs, in_blocks=True)
            blocks = weights.blocks(self.build, weight, name)
            return self._block_linear(x, blocks, weight, bias, name)
        values = self._float_weight(alike, weight, name)
        macs = sum(math.prod(self.shape.shape(names.kind_of(linear))) for linear in alike)
        self._count(name, "linear", None if weight is None else weight.grid, False, macs)
        return linears.float_linear(self.build, x, values, bias, name)

    def _add_norm(
        self, stream: ir.Value, update: ir.Value | None, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """(stream + update, its norm times gain); the stream as it is where nothing is added."""
        gain = self.build.float_weight(self._tensor(f"{name}.weight"), f"{name}.weight")
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

    def _rotation(self, x: ir.Value, name: str) -> ir.Value:
        rotation = self.checkpoint.tensors.get(f"{name}.weight")
        if rotation is None:
            return x
        self._count(name, "rotation", None, False, rotation.numel())
        stored = self.build.float_weight(rotation.numpy().T, f"{name}.weight")
        return linears.float_linear(self.build, x, stored, None, name)

    def _count(
        self,
        name: str,
        part: Part,
        grid: Grid | None,
        is_integer: bool,
        macs: int,
        in_blocks: bool = False,
    ) -> None:
        as_floats = "Gemm" if part == "head" and self.shape.tied else "MatMul"
        operator = self.flavour.operator if is_integer else as_floats
        operator = BLOCK_OPERATOR if in_blocks else operator
        shared = in_blocks and is_integer
        self.multiplications.append(
            Multiplication(name, part, grid, is_integer, macs, operator, shared, self.floats)
        )

    def _tensor(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self.checkpoint.tensors[name].numpy()
        return array

    def _bias(self, linear: str) -> NDArray[np.float32] | None:
        tensor = self.checkpoint.tensors.get(f"{linear}.bias")
        return None if tensor is None else tensor.numpy()


def _inputs(shape: Anatomy, floats: Floats) -> dict[str, ir.Value]:
    int64 = ir.DataType.INT64
    values = [
        ir.val("input_ids", int64, ["batch_size", "new_length"]),
        ir.val("attention_mask", int64, ["batch_size", "total_length"]),
        ir.val("position_ids", int64, ["batch_size", "new_length"]),
        *(
            ir.val(
                f"past_key_values.{layer}.{kind}",
                onnx_type(floats),
                _cache_shape(shape, "past_length"),
            )
            for layer in range(shape.layers)
            for kind in ("key", "value")
        ),
    ]
    return {str(value.name): value for value in values}


def _cache_shape(shape: Anatomy, length: str) -> tuple[int | str, ...]:
    return "batch_size", shape.kv_heads, length, shape.head_dim
