"""What quantize and export share: from the words of a command line to a checkpoint in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slmq_edge.files import check_space

if TYPE_CHECKING:
    from slmq_edge.quantize import Plan, Request

FLOAT_BYTES = 4


def planned(model: str, request: Request, destination: Path) -> Plan:
    """Find every mistake of a request, and whether the disk can hold the result."""
    from slmq_edge.quantize import plan

    found = plan(model, request, note=note)
    check_space(destination, largest_bytes(found))
    return found


def largest_bytes(found: Plan) -> int:
    """Bytes that the result cannot exceed: all linears at their bits, the rest in float32."""
    shape, scheme = found.anatomy, found.request.scheme
    linear_bits = scheme.weights.bits if scheme.weights else 8 * FLOAT_BYTES
    linears = shape.linear_macs_per_token
    return linears * linear_bits // 8 + (shape.parameters - linears) * FLOAT_BYTES


def note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)
