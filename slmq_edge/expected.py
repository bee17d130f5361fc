"""What to expect of a bundle on a device it has not run on: bounds, a projection, and room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge import bounds, devices, projection
from slmq_edge.assembly import artifact_of
from slmq_edge.bounds import Card, Ceilings
from slmq_edge.errors import Unsupported
from slmq_edge.files import existing_bundle
from slmq_edge.projection import Cell
from slmq_edge.results import Run
from slmq_edge.room import Room, rooms
from slmq_edge.runner import measure
from slmq_edge.runner.manifest import kind_of

MEMORY = "memory_bytes"


@dataclass(frozen=True)
class Request:
    """A bundle on a device by its sheet's name. family: as whose runtime; runs: to fit instead."""

    bundle: Path
    device: str
    prompt_tokens: int
    new_tokens: int
    mode: str | None = None
    family: str | None = None
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """Nothing in it is measured. basis: what the cells rest on, or why there are none."""

    model: str
    scheme: str
    target: str
    device: str
    title: str
    mode: str | None
    prompt_tokens: int
    new_tokens: int
    facts: Mapping[str, Any]
    card: Card
    ceilings: Ceilings
    cells: tuple[Cell, ...]
    basis: str
    rooms: tuple[Room, ...]


def estimate(request: Request) -> Estimate:
    """Put together what a bundle's manifest, a device's sheet and fitted laws say.

    Raises:
        SlmqError: no such bundle, device, mode or family; a device of which the facts are missing;
            a text longer than the context; runs that do not fit the bundle.
    """
    document = existing_bundle(request.bundle)
    work = measure.Workload(request.prompt_tokens, request.new_tokens, 1, 0, 1)
    measure.check_workload(work, document)
    ran, target = artifact_of(document, "", 0), kind_of(document)
    sheet = devices.load(request.device)
    # Laws have a factor for each mode; what a mode allows is in the sheet.
    facts, asked = sheet.as_json(), bounds.card(document, work, sheet.kind)
    now = facts if request.mode is None else sheet.in_mode(request.mode).as_json()
    projection.require_runnable(target, asked.on_gpu, sheet)
    memory = _memory(sheet.name, facts, request.runs)
    seen = request.runs[0].environment if request.runs else {}
    cache = bounds.cache_of(asked, now, sheet.kind, seen)
    limits = sure = bounds.ceilings(asked, now, sheet.kind, cache)
    if cache is None and not asked.on_gpu:  # weights may come out of a cache we know nothing of
        sure = bounds.ceilings(asked, now, sheet.kind, bounds.UNKNOWN_CACHE)
    cells, basis, mode = _cells(request, asked, facts, target, ran.scheme_ran)
    positions = request.prompt_tokens + request.new_tokens
    told = MEMORY not in facts
    return Estimate(
        model=ran.model,
        scheme=ran.scheme_ran,
        target=target,
        device=sheet.name,
        title=sheet.title,
        mode=mode,
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        facts=now,
        card=asked,
        ceilings=limits,
        cells=projection.capped(cells, sure),
        basis=basis,
        rooms=rooms(request.bundle, document, asked, positions, sheet.kind, memory, told),
    )


def _memory(device: str, facts: Mapping[str, Any], runs: Sequence[Run]) -> float | None:
    """Bytes of the device's memory, of its sheet or as a run there saw it, if one of them tells.

    Raises:
        Unsupported: the sheet does not even have a bandwidth, and there are no runs.
    """
    if not runs and bounds.fact(facts, bounds.BANDWIDTH)[0] is None:
        raise Unsupported(
            f"the sheet of {device} has no {bounds.BANDWIDTH}: name a device whose sheet has "
            "(slmq-edge devices list), or measure there and give the runs (--fit)"
        )
    size, _ = bounds.fact(facts, MEMORY)
    told = [run.environment.get("memory_total_bytes") for run in runs]
    return size or next((float(one) for one in told if isinstance(one, int)), None)


def _cells(
    request: Request, asked: Card, facts: Mapping[str, Any], target: str, ran: str
) -> tuple[Sequence[Cell], str, str | None]:
    """Projected cells, what they rest on, and of which power mode they are."""
    device, mode = request.device, request.mode
    if request.runs:
        found = projection.by_runs(asked, target, ran, device, request.runs, mode)
        basis = f"fitted on {len(request.runs)} runs measured on {device}"
        return found, basis, mode or projection.mode_of(request.runs[0])
    if request.family is not None:
        family: projection.Family | None = projection.named(request.family, device)
    else:
        family = projection.family_for(target, device)
    if family is None:
        reason = (
            f"no figures of target {target} on {device} are fitted: profile two bundles there, "
            "one larger than the other, and give their runs (--fit)"
        )
        return [Cell(phase, None, reason=reason) for phase in projection.PHASES], reason, mode
    stands_in = request.family is None
    found = projection.project(asked, facts, device, family, mode, stands_in)
    return found, _basis(family, asked, stands_in), mode or next(iter(family.modes), None)


def _basis(family: projection.Family, asked: Card, stands_in: bool) -> str:
    """On what a family's figures rest, and how far this bundle is from that."""
    least, most = family.span
    rows = family.phases["decode"].rows
    words = [
        f"{family.title}: {rows} published rows, fitted {family.fitted} ({family.source})",
        *([] if family.modes else ["their power modes are not stated"]),
        *(["none is of slmq-edge's own engines: the interval allows for that"] * stands_in),
    ]
    if not least <= asked.bytes_per_token <= most:
        words.append(
            f"they read {least / 1e6:.0f} to {most / 1e6:.0f} MB a token, and this is extrapolated "
            f"to {asked.bytes_per_token / 1e6:.3g} MB"
        )
    return "; ".join(words)
