"""What target ort cannot express, said before any work is done. Imports nothing heavy."""

from __future__ import annotations

from slmq_edge.errors import Unsupported
from slmq_edge.scheme import Grid, Scheme


def check(scheme: Scheme) -> None:
    """Refuse a scheme that this target cannot express; online rotations it always can.

    Raises:
        Unsupported: names the part, the reason and what to do.
    """
    refusals = (
        _operands(scheme),
        _weights(scheme.weights),
        _activations(scheme.activations),
        _table("lm_head", scheme.head),
        _table("lookup table", scheme.embedding),
        _kv(scheme.kv),
    )
    for refusal in refusals:
        if refusal is not None:
            raise Unsupported(f"target ort cannot express this scheme: {refusal}")


def _weights(grid: Grid | None) -> str | None:
    if grid is None or (grid.bits in (4, 8) and grid.per == "channel"):
        return None
    return f"weights of {grid}; it stores 4 or 8 bits per channel or group (w4a8, w8a8, w4a16)"


def _activations(grid: Grid | None) -> str | None:
    if grid is None:
        return None
    if grid.group is not None:
        return "its integer product takes one scale a token for all inputs, not one a group of them"
    if grid.bits != 8 or grid.per not in ("token", "tensor"):
        return f"activations of {grid}; its kernels multiply 8 bits, per token or per tensor"
    if not grid.symmetric and not grid.zero:
        return "activations whose range need not hold zero have zero points that do not fit 8 bits"
    return None


def _table(part: str, grid: Grid | None) -> str | None:
    if grid is None or grid == Grid(8, "channel"):
        return None
    return f"{part} of {grid}; it is float, or int8 per channel, symmetric"


def _kv(grid: Grid | None) -> str | None:
    if grid is None:
        return None
    if grid.group is not None or grid.per != "token":
        return f"keys and values of {grid}; they are rounded by token and head"
    if not grid.symmetric and not grid.zero:
        return "keys and values whose range need not hold zero; use one that does"
    return None


def _operands(scheme: Scheme) -> str | None:
    if scheme.query is not None:
        return (
            "rounded queries, since attention multiplies floats here; leave them in float "
            "(keys and values can be rounded), or stop at the checkpoint for its simulation"
        )
    if scheme.mixed is not None:
        return (
            "o_proj's input with a grid of its own, since one product takes one scale a token; "
            "round it as the other inputs are, or stop at the checkpoint for its simulation"
        )
    return None
