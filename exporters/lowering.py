"""The report of a graph: what it does with what the scheme asked for, counted as it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmq_edge import anatomy as names
from slmq_edge.anatomy import Anatomy, Online
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.exporters import rows
from slmq_edge.exporters.floats import Floats
from slmq_edge.exporters.rows import Multiplication, Row
from slmq_edge.scheme import Grid, Scheme

LONGEST_ROTARY_TABLE = 32768
# Of the multiply-adds by the blocks' linears, what must run as a scheme says to be called by it.
NAMED_SHARE = 0.95


@dataclass(frozen=True)
class Form:
    """How a flavour writes a graph: its floats, its integer product, its attention, its opset.

    integer: of the product's operands. opset, ir_version: of ONNX; ``None`` of what is
    none. keeps_levels: whether keys and values that are rounded are kept as integers.
    """

    floats: Floats
    operator: str
    integer: str
    attention: str
    opset: int | None = None
    ir_version: int | None = None
    keeps_levels: bool = False


@dataclass(frozen=True)
class Change:
    """What runs in place of what was asked, and its cost against the simulation of that.

    mean_kl: KL(asked || this), nats per token. perplexity_ratio: of this to what was asked.
    tokens: of ``text`` that it was measured on; ranges are found on other windows of it.
    """

    what: str
    mean_kl: float
    perplexity_ratio: float
    tokens: int
    text: str = ""


@dataclass(frozen=True)
class Lowering:
    """What the graph does with what the scheme asked for.

    scheme_ran: the scheme by which at least 95 % of the multiply-adds by the blocks' linears run,
    as schemes are named; ``mixed`` where there is none, so that nothing is called w8a8 of which
    more than a twentieth is something else. Rotations are no linears, and the head has a precision
    of its own, ``lm_head``: both are rows of ``linears``, neither makes or breaks the name.
    int8_gemm_share: of all multiply-adds by weights and rotations, the head's too.
    weight_storage_bits: on disk; of the linears, of most of their weights. linears: a row for each
    matrix that is multiplied by. changes: what runs in place of what was asked, where the target
    cannot do that. protected: full names of the linears whose weights keep 8 bits of 4.
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
    opset: int | None
    ir_version: int | None
    context_length: int
    linears: tuple[Row, ...]
    changes: tuple[Change, ...] = ()
    protected: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def context_length(shape: Anatomy) -> int:
    """Positions for which the graph holds rotary angles."""
    return min(shape.max_positions, LONGEST_ROTARY_TABLE)


def lowering(
    multiplications: Sequence[Multiplication],
    checkpoint: Checkpoint,
    form: Form,
    changes: tuple[Change, ...] = (),
    asked: Scheme | None = None,
) -> Lowering:
    """Sum up the multiplications that were written (attention's own products are not counted).

    checkpoint: as it runs. asked: the scheme that was asked for, where ``changes`` made it another.
    """
    shape, scheme, floats = checkpoint.anatomy, checkpoint.scheme, form.floats
    asked = asked or scheme
    blocks = [one for one in multiplications if one.part == "linear"]
    (head,) = (one for one in multiplications if one.part == "head")
    integer = [one for one in multiplications if one.is_integer]
    total = sum(one.macs_per_token for one in multiplications)
    table = checkpoint.integers.get(names.EMBED)
    return Lowering(
        scheme_ran=scheme_ran(blocks),
        int8_gemm_share=sum(one.macs_per_token for one in integer) / total,
        weights=_weights(blocks, scheme, floats),
        activation_mode=rows.activation_mode(
            scheme.activations if integer else None, scheme, floats
        ),
        kv_cache=_kv_cache(scheme.kv, form),
        online_rotations=_online(checkpoint.online),
        attention=form.attention,
        lm_head=_head(head),
        weight_storage_bits={
            "linears": _most(blocks),
            "lm_head": head.bits,
            "embedding": floats.bits if table is None else table.grid.bits,
        },
        integer_gemm=_integer_gemm(integer, form),
        opset=form.opset,
        ir_version=form.ir_version,
        context_length=context_length(shape),
        linears=tuple(rows.row(one, asked, scheme, shape.tied) for one in multiplications),
        changes=changes,
        protected=() if isinstance(asked.protected, int) else asked.protected,
    )


def scheme_ran(blocks: Sequence[Multiplication]) -> str:
    """The scheme of at least ``NAMED_SHARE`` of the multiply-adds, or ``mixed``."""
    macs: dict[str, int] = {}
    for one in blocks:
        macs[one.scheme] = macs.get(one.scheme, 0) + one.macs_per_token
    name = max(macs, key=lambda scheme: macs[scheme])
    return name if macs[name] >= NAMED_SHARE * sum(macs.values()) else "mixed"


def _weights(blocks: Sequence[Multiplication], scheme: Scheme, floats: Floats) -> str:
    found = {rows.words_of(one.grid, floats) for one in blocks}
    if len(found) == 1:
        return found.pop()
    if not scheme.protects:
        return "mixed"
    return f"{scheme.weights}; {scheme.protects} linears {scheme.protected_grid}"


def _most(blocks: Sequence[Multiplication]) -> int:
    """The bits on disk of most of the weights."""
    weights: dict[int, int] = {}
    for one in blocks:
        weights[one.bits] = weights.get(one.bits, 0) + one.macs_per_token
    return max(weights, key=lambda bits: weights[bits])


def _kv_cache(grid: Grid | None, form: Form) -> str:
    if grid is None:
        return form.floats.name
    stored = "int8 with their steps" if form.keeps_levels else form.floats.name
    return f"rounded to int{grid.bits} by token and head, stored as {stored}"


def _online(online: Online) -> list[str]:
    rotations = {"queries and keys": online.keys, "input of down_proj": online.down}
    return [what for what, taken in rotations.items() if taken]


def _head(head: Multiplication) -> str:
    if head.grid is None:
        return "float"
    group = "" if head.grid.group is None else f" in blocks of {head.grid.group}"
    name = f"int{head.bits}{group}"
    return name if head.is_integer else f"{name} stored, float multiplied"


def _integer_gemm(integer: Sequence[Multiplication], form: Form) -> dict[str, str] | None:
    if not integer:
        return None
    grouped = any(one.grid is not None and one.grid.group is not None for one in integer)
    kind = form.integer
    gemm = {"operator": form.operator, "activation": kind, "weight": kind}
    if any(one.operator == rows.BLOCK_OPERATOR for one in integer):
        bits = sorted({one.bits for one in integer if one.blocks_share})
        blocks = {
            "operator": rows.BLOCK_OPERATOR,
            "activation": "int8 by block",
            "bits": " and ".join(map(str, bits)),
        }
        return {**gemm, **blocks}
    return {**gemm, "batch": "groups of inputs"} if grouped and form.opset is not None else gemm
