"""What quantize and export share: from the words of a command line to a checkpoint in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slmq_edge.files import check_not_input, check_space

if TYPE_CHECKING:
    from slmq_edge.quantize import Plan, Request

FLOAT_BYTES = 4
ROOM_BYTES = 2_000_000


def planned(model: str, request: Request, destination: Path) -> Plan:
    """Find every mistake of a request, and whether the disk can hold the result."""
    from slmq_edge.quantize import plan

    found = plan(model, request, note=note)
    check_not_input(destination, found.source.folder)
    check_space(destination, largest_bytes(found))
    return found


def largest_bytes(found: Plan) -> int:
    """Bytes that the result will hardly exceed.

    All linears at their bits and the rest in float32, two rotations, the rotary table, and room
    for tokenizer, graph and golden prompts.
    """
    shape, scheme = found.anatomy, found.request.scheme
    linear_bits = scheme.weights.bits if scheme.weights else 8 * FLOAT_BYTES
    linears = shape.linear_macs_per_token
    floats = shape.parameters - linears + 2 * shape.hidden**2
    floats += shape.max_positions * shape.head_dim
    extras = sum(file.stat().st_size for file in found.source.folder.glob("*.json"))
    return linears * linear_bits // 8 + floats * FLOAT_BYTES + extras + ROOM_BYTES


def note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)
