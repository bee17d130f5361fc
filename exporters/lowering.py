"""The report of a graph: what it does with what the scheme asked for, counted as it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slmq_edge import anatomy as names
from slmq_edge.anatomy import Anatomy, Online
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.exporters import linears
from slmq_edge.exporters.attention import is_fused
from slmq_edge.exporters.graph import IR_VERSION, OPSET
from slmq_edge.exporters.limits import is_in_blocks
from slmq_edge.scheme import Grid, Scheme

FLOAT_BITS = 32
LONGEST_ROTARY_TABLE = 32768

Part = Literal["linear", "head", "rotation"]


@dataclass(frozen=True)
class Lowering:
    """What the graph does with what the scheme asked for.

    scheme_ran: as schemes are named; ``mixed`` where the blocks' linears differ. int8_gemm_share:
    of all multiply-adds by weights and rotations. weight_storage_bits: on disk.
    """

    scheme_ran: str
    int8_gemm_share: float
    weights: str
    activation_mode: str
    kv_cache: str
    online_rotations: list[str]
    attention: str
    lm_head: str
    weight_storage_bits: dict[str, int]
    integer_gemm: dict[str, str] | None
    opset: int
    ir_version: int
    context_length: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Multiplication:
    """A matrix that the graph multiplies by: its grid (``None``: float), and how."""

    name: str
    part: Part
    grid: Grid | None
    is_integer: bool
    macs_per_token: int
    blocks_share: bool = False  # a scale, of weights and of their inputs

    @property
    def bits(self) -> int:
        return FLOAT_BITS if self.grid is None else self.grid.bits

    @property
    def scheme(self) -> str:
        """Its precision, named as schemes are."""
        if self.grid is None:
            return "fp32"
        kind = "b" if self.blocks_share else "g"
        group = "" if self.grid.group is None else f"-{kind}{self.grid.group}"
        return f"w{self.bits}a{8 if self.is_integer else 16}{group}"


def context_length(shape: Anatomy) -> int:
    """Positions for which the graph holds rotary angles."""
    return min(shape.max_positions, LONGEST_ROTARY_TABLE)


def lowering(multiplications: Sequence[Multiplication], checkpoint: Checkpoint) -> Lowering:
    """Sum up the multiplications that were written (attention's own products are not counted)."""
    shape, scheme = checkpoint.anatomy, checkpoint.scheme
    blocks = [one for one in multiplications if one.part == "linear"]
    (head,) = (one for one in multiplications if one.part == "head")
    integer = [one for one in multiplications if one.is_integer]
    total = sum(one.macs_per_token for one in multiplications)
    table = checkpoint.integers.get(names.EMBED)
    return Lowering(
        scheme_ran=_one_or_mixed({one.scheme for one in blocks}),
        int8_gemm_share=sum(one.macs_per_token for one in integer) / total,
        weights=_one_or_mixed({_stored_as(one.grid) for one in blocks}),
        activation_mode=_activation_mode(scheme if integer else None),
        kv_cache=_kv_cache(scheme.kv),
        online_rotations=_online(checkpoint.online),
        attention="GroupQueryAttention" if is_fused(shape) else "standard operators",
        lm_head=_head(head),
        weight_storage_bits={
            "linears": max(one.bits for one in blocks),
            "lm_head": head.bits,
            "embedding": FLOAT_BITS if table is None else table.grid.bits,
        },
        integer_gemm=_integer_gemm(integer, is_in_blocks(scheme)),
        opset=OPSET,
        ir_version=IR_VERSION,
        context_length=context_length(shape),
    )


def _one_or_mixed(found: set[str]) -> str:
    return found.pop() if len(found) == 1 else "mixed"


def _stored_as(grid: Grid | None) -> str:
    return "float32" if grid is None else str(grid)


def _activation_mode(scheme: Scheme | None) -> str:
    if scheme is None or scheme.activations is None:
        return "float32"
    grid = scheme.activations
    symmetry = "symmetric" if grid.symmetric else "asymmetric"
    when = f"static by {scheme.range}" if grid.per == "tensor" else "dynamic"
    shared = "" if grid.group is None else f" and block of {grid.group}"
    return f"per {grid.per}{shared}, {when}, {symmetry}"


def _kv_cache(grid: Grid | None) -> str:
    if grid is None:
        return "float32"
    return f"rounded to int{grid.bits} by token and head, stored as float32"


def _online(online: Online) -> list[str]:
    rotations = {"queries and keys": online.keys, "input of down_proj": online.down}
    return [what for what, taken in rotations.items() if taken]


def _head(head: Multiplication) -> str:
    if head.grid is None:
        return "float"
    return f"int{head.bits}" if head.is_integer else f"int{head.bits} stored, float multiplied"


def _integer_gemm(integer: Sequence[Multiplication], in_blocks: bool) -> dict[str, str] | None:
    if not integer:
        return None
    grouped = any(one.grid is not None and one.grid.group is not None for one in integer)
    gemm = {"operator": linears.OPERATOR, "activation": "uint8", "weight": "uint8"}
    if in_blocks:
        bits = str(max(one.bits for one in integer if one.blocks_share))
        blocks = {"operator": linears.BLOCK_OPERATOR, "activation": "int8 by block", "bits": bits}
        return {**gemm, **blocks}
    return {**gemm, "batch": "groups of inputs"} if grouped else gemm
