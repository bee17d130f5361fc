"""What a decoder is made of, as modules whose tensors are buffers: memory is what torch counts.

Linears that read one input are one: their rows lie under each other, each with its own scale, so
that nothing changes but the number of kernels. Where their grids differ they are several weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.errors import Unsupported
from slmq_edge.quantization.hadamard import factors
from slmq_edge.quantization.rounding import Steps
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime import packing, reference
from slmq_edge.torch_runtime.ops import Levels, Ops, Packed


class Weight(nn.Module):
    """An integer weight, see `Packed`."""

    integers: Tensor
    scale: Tensor
    zero: Tensor | None
    row_sums: Tensor | None

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.bits, self.width, self.group = packed.bits, packed.width, packed.group
        for name in ("integers", "scale", "zero", "row_sums"):
            self.register_buffer(name, getattr(packed, name))

    @property
    def packed(self) -> Packed:
        """Itself as operators take it."""
        return Packed(
            self.integers,
            self.bits,
            self.width,
            self.scale,
            self.zero,
            self.group,
            self.row_sums,
        )

    def looked_up(self, rows: Tensor, floats: torch.dtype) -> Tensor:
        """The values of some rows, ``floats`` [len(rows), in]."""
        return reference.values(self.packed, rows).to(floats)


class Values(nn.Module):
    """A float matrix [out, in]."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def looked_up(self, rows: Tensor, floats: torch.dtype) -> Tensor:
        """Some rows, ``floats`` [len(rows), in]."""
        return functional.embedding(rows, self.values).to(floats)


class Linears(nn.Module):
    """The linears that read one input, as one: F [rows, in] -> F [rows, out of all of them]."""

    bias: Tensor | None

    def __init__(self, linears: Sequence[str], bias: Tensor | None, ops: Ops) -> None:
        super().__init__()
        self.names, self._ops = tuple(linears), ops
        self.register_buffer("bias", bias)

    def behind_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """Of what an RMSNorm makes of ``x``."""
        return self(self._ops.normed(x, gain, eps))  # type: ignore[no-any-return]  # a module's call

    def behind_gate(self, gate_up: Tensor) -> Tensor:
        """Of silu(gate) * up."""
        return self(self._ops.gated(gate_up))  # type: ignore[no-any-return]


class FloatLinears(Linears):
    """Floats by floats."""

    def __init__(
        self, linears: Sequence[str], weight: Values, bias: Tensor | None, ops: Ops
    ) -> None:
        super().__init__(linears, bias, ops)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.values, self.bias)


class WeightOnly(Linears):
    """Floats by the values of integers, which are made when they are needed."""

    def __init__(
        self, linears: Sequence[str], weights: Sequence[Weight], bias: Tensor | None, ops: Ops
    ) -> None:
        super().__init__(linears, bias, ops)
        self.weights = nn.ModuleList(weights)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self._ops.weight_only(x, one.packed, None) for one in _weights(self.weights)]
        out = _beside(parts)
        return out if self.bias is None else out + self.bias


class IntegerLinears(Linears):
    """Integers by integers: the input is rounded once for all of them."""

    static_scale: Tensor | None
    static_zero: Tensor | None

    def __init__(
        self,
        linears: Sequence[str],
        weights: Sequence[Weight],
        bias: Tensor | None,
        reads: Grid,
        static: Steps | None,
        floats: torch.dtype,
        ops: Ops,
    ) -> None:
        super().__init__(linears, bias, ops)
        self.weights = nn.ModuleList(weights)
        self.reads, self._floats = reads, floats
        self.register_buffer("static_scale", None if static is None else static.scale)
        self.register_buffer("static_zero", None if static is None else static.zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiplied(self.rounded(x))

    def rounded(self, x: Tensor) -> Levels:
        """The input as it is multiplied."""
        scale = self.static_scale
        static = None if scale is None else Steps(scale, self.static_zero)
        return self._ops.round_rows(x, self.reads, static)

    def multiplied(self, x: Levels) -> Tensor:
        """F [rows, out] of a rounded input."""
        parts, start = [], 0
        for weight in _weights(self.weights):
            packed = weight.packed
            bias = None if self.bias is None else self.bias[start : start + packed.rows]
            parts.append(self._ops.linear(x, packed, bias, self._floats))
            start += packed.rows
        return _beside(parts)

    def behind_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        if self.static_scale is not None:
            return super().behind_norm(x, gain, eps)
        return self.multiplied(self._ops.normed_rounded(x, gain, eps, self.reads))

    def behind_gate(self, gate_up: Tensor) -> Tensor:
        if self.static_scale is not None:
            return super().behind_gate(gate_up)
        return self.multiplied(self._ops.gated_rounded(gate_up, self.reads))


class Rotation(nn.Module):
    """A Hadamard rotation taken while the model runs: `hadamard.rotate_last`, its factors held."""

    first: Tensor
    second: Tensor

    def __init__(self, order: int, floats: torch.dtype) -> None:
        super().__init__()
        found = factors(order)
        assert found is not None, "whoever rotates has asked"
        self.register_buffer("first", found[0].to(floats))
        self.register_buffer("second", found[1].to(floats))
        self._root = math.sqrt(order)

    def forward(self, x: Tensor) -> Tensor:
        tall = x.reshape(*x.shape[:-1], len(self.first), len(self.second))
        return (self.first @ tall @ self.second.mT).reshape(x.shape) / self._root


class Maker:
    """Makes modules of a checkpoint's tensors, its floats as ``floats``."""

    def __init__(self, checkpoint: Checkpoint, floats: torch.dtype, ops: Ops) -> None:
        self.checkpoint, self.floats, self.ops = checkpoint, floats, ops

    def tensor(self, name: str) -> Tensor:
        """A float tensor by its full name.

        Raises:
            Unsupported: the floats cannot hold it.
        """
        found = self.checkpoint.tensors[name].to(self.floats).contiguous()
        if not torch.isfinite(found).all():
            short = str(self.floats).removeprefix("torch.")
            raise Unsupported(f"{name} has values that {short} cannot hold")
        return found

    def optional(self, name: str) -> Values | None:
        """A float matrix that need not be there."""
        return Values(self.tensor(name)) if name in self.checkpoint.tensors else None

    def table(self) -> Weight | Values:
        """The lookup table; of a tied model it is the head's weight too, where that has none."""
        found = self.checkpoint.integers.get(names.EMBED)
        if found is None:
            return Values(self.tensor(f"{names.EMBED}.weight"))
        tied = self.checkpoint.integer_weight(names.HEAD) is found
        reads = self.checkpoint.scheme.input_grid(names.HEAD) if tied else None
        return Weight(packing.packed([found], reads))

    def head(self, table: Weight | Values) -> Linears:
        """The head, which shares the table's memory where it is the same matrix."""
        shared = self.checkpoint.anatomy.tied and names.HEAD not in self.checkpoint.integers
        return self.linears((names.HEAD,), table if shared else None)

    def linears(self, linears: tuple[str, ...], shared: Weight | Values | None = None) -> Linears:
        """Linears by their full names, all of one input; shared: what is their weight already."""
        bias = self._bias(linears)
        found = [self.checkpoint.integer_weight(name) for name in linears]
        integers = [weight for weight in found if weight is not None]
        if not integers:
            weight = shared if isinstance(shared, Values) else self._values(linears)
            return FloatLinears(linears, weight, bias, self.ops)
        assert len(integers) == len(found), "all are integers, or none is"
        reads = self.checkpoint.scheme.input_grid(linears[0])
        weights = [shared] if isinstance(shared, Weight) else _stacked(integers, reads)
        if reads is None:
            return WeightOnly(linears, weights, bias, self.ops)
        static = self.checkpoint.inputs[linears[0]] if reads.per == "tensor" else None
        return IntegerLinears(linears, weights, bias, reads, static, self.floats, self.ops)

    def _values(self, linears: tuple[str, ...]) -> Values:
        return Values(torch.cat([self.tensor(f"{name}.weight") for name in linears]))

    def _bias(self, linears: tuple[str, ...]) -> Tensor | None:
        """[out] of all, zeros where one of them has none; ``None`` where none has."""
        tensors = self.checkpoint.tensors
        if not any(f"{name}.bias" in tensors for name in linears):
            return None
        sizes = [self.checkpoint.anatomy.shape(_part(name))[0] for name in linears]
        return torch.cat(
            [
                self.tensor(f"{name}.bias")
                if f"{name}.bias" in tensors
                else torch.zeros(size, dtype=self.floats)
                for name, size in zip(linears, sizes, strict=True)
            ]
        )


def _part(linear: str) -> str:
    """A linear's name within its block."""
    return linear if linear == names.HEAD else linear.split(".", 3)[3]


def _stacked(weights: Sequence[IntegerWeight], reads: Grid | None) -> list[Weight]:
    """One weight where all have one grid; else one for each."""
    if len({weight.grid for weight in weights}) == 1:
        return [Weight(packing.packed(weights, reads))]
    return [Weight(packing.packed([weight], reads)) for weight in weights]


def _weights(held: nn.ModuleList) -> list[Weight]:
    return [one for one in held if isinstance(one, Weight)]


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
