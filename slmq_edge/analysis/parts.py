"""Parts: what of a quantized model can be rounded alone, and the cases that measure it.

Parts are the linears of the blocks, and what else a scheme rounds: the lookup table, the head, and
what attention multiplies. All of a block's are measured at once too, and all of the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq_edge import anatomy as names
from slmq_edge.analysis.damage import START, Case, Damage, Kind, attention_of
from slmq_edge.anatomy import LINEARS

if TYPE_CHECKING:
    from slmq_edge.analysis.outliers import Outliers
    from slmq_edge.checkpoint import Checkpoint, IntegerWeight

# How a part is called that is no linear of a block.
HEAD, TABLE, OPERANDS, BLOCK, WHOLE = "lm_head", "lookup table", "attention", "block", "model"


@dataclass(frozen=True)
class Part:
    """A part that is rounded alone.

    name: full name. kind: the linear's name within its block, or one of those above. layer: its
    block. bits: of its weights, ``None`` where none are rounded, or not to one grid. weights: how
    many. damage: by what is rounded of it; ``both`` is always there, and what is not rounded is
    not. weight_outliers, input_outliers: of linears of the blocks.
    """

    name: str
    kind: str
    layer: int | None
    bits: int | None
    weights: int
    damage: Mapping[Kind, Damage]
    weight_outliers: Outliers | None = None
    input_outliers: Outliers | None = None

    @property
    def kl(self) -> float:
        """Mean KL with all of it rounded."""
        return self.damage["both"].kl


@dataclass(frozen=True)
class Cases:
    """What is measured of a checkpoint: every part alone, every block, and the whole."""

    checkpoint: Checkpoint

    def all(self) -> list[Case]:
        """Each once: of one part with nothing else in its block, the block is the same case."""
        found = [*self.single, *self.blocks, self.whole]
        return list(dict.fromkeys(case for one in found for case in one.cases.values()))

    @property
    def single(self) -> list[Members]:
        """In the order in which they run."""
        shape, scheme = self.checkpoint.anatomy, self.checkpoint.scheme
        found = []
        if names.EMBED in self.checkpoint.integers:
            found.append(self._members(names.EMBED, TABLE, None, (names.EMBED,)))
        for layer in range(shape.layers):
            for kind in LINEARS:
                name = shape.block(layer, kind)
                found.append(self._members(name, kind, layer, (name,)))
            if scheme.kv is not None or scheme.query is not None:
                name = attention_of(layer)
                found.append(self._members(name, OPERANDS, layer, (name,)))
        if self.checkpoint.integer_weight(names.HEAD) is not None:
            found.append(self._members(names.HEAD, HEAD, None, (names.HEAD,)))
        return found

    @property
    def blocks(self) -> list[Members]:
        layers = range(self.checkpoint.anatomy.layers)
        single = self.single
        return [
            self._members(
                f"model.layers.{layer}",
                BLOCK,
                layer,
                tuple(one.name for one in single if one.layer == layer),
            )
            for layer in layers
        ]

    @property
    def whole(self) -> Members:
        return self._members(WHOLE, WHOLE, None, tuple(one.name for one in self.single))

    def _members(self, name: str, kind: str, layer: int | None, parts: tuple[str, ...]) -> Members:
        checkpoint, shape = self.checkpoint, self.checkpoint.anatomy
        first = shape.layers if parts == (names.HEAD,) else (layer or 0)
        first = START if names.EMBED in parts else first
        stored = {part: _stored(checkpoint, part) for part in parts}
        integers = [weight for weight in stored.values() if weight is not None]
        bits = {weight.grid.bits for weight in integers}
        reads = [part for part in parts if part != names.EMBED and stored[part] is not None]
        rounds_inputs = any(checkpoint.scheme.input_grid(part) is not None for part in reads)
        kinds: list[Kind] = []
        if integers:
            kinds.append("weights")
        if rounds_inputs or any(part.endswith(".self_attn") for part in parts):
            kinds.append("activations")
        both: tuple[Kind, ...] = ("both", *kinds) if len(kinds) == 2 else tuple(kinds)
        return Members(
            name,
            kind,
            layer,
            bits.pop() if len(bits) == 1 else None,
            sum(weight.integers.numel() for weight in integers),
            {which: Case(frozenset(parts), which, first) for which in both},
        )


def _stored(checkpoint: Checkpoint, part: str) -> IntegerWeight | None:
    if part == names.EMBED:
        return checkpoint.integers.get(part)
    return checkpoint.integer_weight(part)


@dataclass(frozen=True)
class Members:
    """What is rounded together, and by which cases; the rest as of ``Part``."""

    name: str
    kind: str
    layer: int | None
    bits: int | None
    weights: int
    cases: Mapping[Kind, Case]

    def part(self, found: Mapping[Case, Damage]) -> Part:
        damage: dict[Kind, Damage] = {which: found[case] for which, case in self.cases.items()}
        # Where only one of the two is rounded, that is both.
        (*_, last) = damage.values()
        damage = {"both": damage.get("both", last), **damage}
        return Part(self.name, self.kind, self.layer, self.bits, self.weights, damage)
