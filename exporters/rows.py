"""The report of a graph linear by linear: what was asked of each, and what is executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slmq_edge.exporters.floats import FLOAT32, Floats
from slmq_edge.scheme import Grid, Scheme

# Operators that read weights as they are stored; all others find them unpacked, as bytes where
# they multiply integers and as floats where they do not (ONNXRUNTIME 14).
BLOCK_OPERATOR = "MatMulNBits"
PACKED_OPERATORS = (BLOCK_OPERATOR,)

Part = Literal["linear", "head", "rotation"]


@dataclass(frozen=True)
class Multiplication:
    """A matrix that the graph multiplies by: its grid (``None``: float), and how.

    operator: of ONNX or torch. blocks_share: a scale, of weights and of their inputs. floats:
    of the graph. exact: whether sums of integers are exact on whatever its target is for. stored:
    bits on disk and in memory, where the operator does not tell.
    """

    name: str
    part: Part
    grid: Grid | None
    is_integer: bool
    macs_per_token: int
    operator: str
    blocks_share: bool = False
    floats: Floats = FLOAT32
    exact: bool = True
    stored: int | None = None

    @property
    def bits(self) -> int:
        """On disk."""
        if self.stored is not None:
            return self.stored
        return self.floats.bits if self.grid is None else self.grid.bits

    @property
    def memory_bits(self) -> int:
        """After load."""
        if self.stored is not None or self.grid is None or self.operator in PACKED_OPERATORS:
            return self.bits
        return 8 if self.is_integer else self.floats.bits

    @property
    def scheme(self) -> str:
        """Its precision, named as schemes are."""
        if self.grid is None:
            return self.floats.scheme
        kind = "b" if self.blocks_share else "g"
        group = "" if self.grid.group is None else f"-{kind}{self.grid.group}"
        return f"w{self.grid.bits}a{8 if self.is_integer else 16}{group}"


@dataclass(frozen=True)
class Row:
    """One multiplication, for the report.

    asked_weights, asked_activations: grids, in words; ``None`` for a rotation, of which no scheme
    speaks. scheme: what is executed, as schemes are named. storage_bits: on disk. memory_bits:
    after load. activation_mode: how the input is rounded when it runs. exact: whether the integer
    sums are, on whatever the target is for; ``None`` where floats are multiplied.
    """

    name: str
    part: Part
    asked_weights: str | None
    asked_activations: str | None
    scheme: str
    operator: str
    integer: bool
    storage_bits: int
    memory_bits: int
    activation_mode: str
    exact: bool | None
    macs_per_token: int


def joint_name(group: tuple[str, ...]) -> str:
    """``...self_attn.q_k_v_proj`` for the three that share an input."""
    if len(group) == 1:
        return group[0]
    place = group[0].rpartition(".")[0]
    parts = [linear.rpartition(".")[2].removesuffix("_proj") for linear in group]
    return f"{place}.{'_'.join(parts)}_proj"


def row(one: Multiplication, asked: Scheme, ran: Scheme, tied: bool) -> Row:
    """What a scheme asked of a multiplication, and what became of it in the one that ran."""
    grids = {"linear": _asked(one, asked), "head": asked.lm_head(tied), "rotation": None}
    inputs = asked.input_grid(one.name) if grids[one.part] is not None else None
    rounded = ran.input_grid(one.name) if one.is_integer else None
    is_rotation = one.part == "rotation"
    return Row(
        name=one.name,
        part=one.part,
        asked_weights=None if is_rotation else words_of(grids[one.part], one.floats),
        asked_activations=None if is_rotation else words_of(inputs, one.floats),
        scheme=one.scheme,
        operator=one.operator,
        integer=one.is_integer,
        storage_bits=one.bits,
        memory_bits=one.memory_bits,
        activation_mode=activation_mode(rounded, ran, one.floats),
        exact=one.exact if one.is_integer else None,
        macs_per_token=one.macs_per_token,
    )


def _asked(one: Multiplication, asked: Scheme) -> Grid | None:
    """The grid that a scheme asks of linears, which stand side by side only where it is one."""
    keeps_8 = bool(asked.protects) and one.grid is not None and one.grid.bits == 8
    return asked.protected_grid if keeps_8 else asked.weights


def words_of(grid: Grid | None, floats: Floats) -> str:
    """A grid in words; the graph's floats where there is none."""
    return floats.name if grid is None else str(grid)


def activation_mode(grid: Grid | None, scheme: Scheme, floats: Floats) -> str:
    """How inputs of that grid are rounded when they come, in words; ``None``: not at all."""
    if grid is None:
        return floats.name
    symmetry = "symmetric" if grid.symmetric else "asymmetric"
    when = f"static by {scheme.range}" if grid.per == "tensor" else "dynamic"
    shared = "" if grid.group is None else f" and block of {grid.group}"
    return f"per {grid.per}{shared}, {when}, {symmetry}"
