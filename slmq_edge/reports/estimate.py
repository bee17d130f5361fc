"""An estimate as text and as JSON: projected, never measured, and labelled so."""

from __future__ import annotations

import dataclasses
import json

from slmq_edge.expected import Estimate
from slmq_edge.projection import ORIGIN, Cell
from slmq_edge.reports import bounds
from slmq_edge.reports.format import UNKNOWN, bytes_text, rate_text, section
from slmq_edge.room import Room

FORMAT, VERSION = "slmq-edge-estimate", 1


def render(found: Estimate) -> str:
    """Estimate -> text of several short tables, ending in a newline."""
    mode = "" if found.mode is None else f", {found.mode}"
    what = f"{found.model}, {found.scheme} ({found.target})"
    parts = [
        f"{what} on {found.title}{mode}: {ORIGIN}, not measured",
        section("What it asks for", bounds.asked(found.card)),
        section("What the device allows", bounds.allowed(found.ceilings)),
        section("Projected (nine in ten rows left out of the fit lay so near)", _cells(found)),
        *(section(f"Memory for {one.what}, about", _room(one)) for one in found.rooms),
    ]
    return "\n\n".join(parts) + "\n"


def to_json(found: Estimate) -> str:
    document = {"format": FORMAT, "version": VERSION, "origin": ORIGIN}
    rooms = [
        {**dataclasses.asdict(one), "needed": one.needed, "fits": one.fits} for one in found.rooms
    ]
    whole = {**document, **dataclasses.asdict(found), "rooms": rooms}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _cells(found: Estimate) -> bounds.Rows:
    tokens = {"prefill": found.prompt_tokens, "decode": found.new_tokens}
    reasons = {cell.reason for cell in found.cells}
    if len(reasons) == 1 and None not in reasons:
        return [("prefill and decode", _cell(found.cells[0]))]
    rows = [(f"{cell.phase}, {tokens[cell.phase]} tokens", _cell(cell)) for cell in found.cells]
    return [*rows, ("after", found.basis)]


def _cell(cell: Cell) -> str:
    if cell.per_second is None:
        return f"{UNKNOWN}: {cell.reason}"
    return f"{rate_text(cell.per_second)} [{rate_text(cell.low, 'to')} {rate_text(cell.high)}]"


def _room(room: Room) -> bounds.Rows:
    rows = [(name, bytes_text(count)) for name, count in room.parts.items()]
    whole = bytes_text(room.needed)
    if room.available is None:
        return [*rows, ("all of it", f"{whole}; of this device there are several sizes")]
    verdict = "fits" if room.fits else "does NOT fit"
    return [
        *rows,
        ("all of it", f"{whole} of {bytes_text(room.available)} that are left for it: {verdict}"),
    ]
