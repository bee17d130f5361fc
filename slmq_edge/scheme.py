"""Schemes: precision as vocabulary, not flags.

A scheme says how the linears of the decoder blocks are stored and multiplied. Embedding, head,
norms, rotary embedding and attention stay in float unless the scheme says otherwise (METHODS 1.3).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from slmq_edge.errors import Unsupported, UsageError, unknown


@dataclass(frozen=True)
class Grid:
    """A symmetric integer grid: levels -(2^(bits-1) - 1) .. 2^(bits-1) - 1, scale absmax / top.

    per: ``channel``: one scale per output row of a weight [out, in]; ``token``: one scale per
    row of an activation [tokens, in], found at run time.
    """

    bits: int
    per: Literal["channel", "token"]

    @property
    def top(self) -> int:
        """The largest level: 127 for 8 bits, 7 for 4."""
        return int(2 ** (self.bits - 1)) - 1


@dataclass(frozen=True)
class Scheme:
    """What is rounded to what; ``None`` means float.

    head: the grid of the lm_head, and on a tied model of the lookup table, which is the same.
    """

    name: str
    weights: Grid | None
    activations: Grid | None
    head: Grid | None = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Scheme:
        grids = {
            part: Grid(**value[part]) if value[part] is not None else None
            for part in ("weights", "activations", "head")
        }
        return Scheme(name=value["name"], **grids)


WEIGHTS_8 = Grid(8, "channel")
WEIGHTS_4 = Grid(4, "channel")
TOKENS_8 = Grid(8, "token")

SCHEMES: dict[str, Scheme] = {
    "w8a8": Scheme("w8a8", WEIGHTS_8, TOKENS_8),
    "w4a8": Scheme("w4a8", WEIGHTS_4, TOKENS_8),
    "fp32": Scheme("fp32", None, None),
}

HEADS: dict[str, Grid | None] = {"float": None, "int8": WEIGHTS_8}


def scheme(name: str, head: str = "float") -> Scheme:
    """Look a scheme up by name, with the lm_head in ``head``'s precision.

    Raises:
        UsageError: unknown scheme or head precision, or an integer head on a float scheme.
    """
    if name not in SCHEMES:
        raise UsageError(unknown("scheme", name, tuple(SCHEMES)))
    if head not in HEADS:
        raise UsageError(unknown("lm_head precision", head, tuple(HEADS)))
    chosen = dataclasses.replace(SCHEMES[name], head=HEADS[head])
    if chosen.head is not None and chosen.weights is None:
        raise UsageError(f"scheme {name} keeps everything in float: it has no int8 lm_head")
    return chosen


def require_integer(chosen: Scheme, method: str) -> tuple[Grid, Grid]:
    """The weight and activation grids of an integer scheme.

    Raises:
        Unsupported: the scheme is float, for which ``method`` has nothing to do.
    """
    if chosen.weights is None or chosen.activations is None:
        raise Unsupported(
            f"method {method} prepares a model for rounding, and {chosen.name} rounds nothing: "
            "use --method none for the full-precision baseline"
        )
    return chosen.weights, chosen.activations
