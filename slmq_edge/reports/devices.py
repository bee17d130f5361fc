"""Fact sheets, and which one a machine's is, as text. Pure."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slmq_edge.devices import Fact, Facts, L4t, PowerMode
from slmq_edge.reports.format import UNKNOWN, bytes_text

FORMAT, VERSION = "slmq-edge-devices", 1
LISTED = {  # a fact -> its column
    "memory_bytes": "memory",
    "bandwidth_bytes_per_second": "bandwidth",
    "int8_dense_ops": "INT8 dense",
    "fp16_dense_flops": "FP16 dense",
}
UNITS = (  # how a fact's name ends -> what its value is divided by, and the unit then
    ("_transfers_per_second", 1e6, "MT/s"),
    ("_bytes_per_second", 1e9, "GB/s"),
    ("_frequency_hz", 1e6, "MHz"),
    ("_ops", 1e12, "TOPS"),
    ("_ops_with_dla", 1e12, "TOPS"),
    ("_flops", 1e12, "TFLOPS"),
    ("memory_bytes", 2**30, "GiB"),
    ("cache_bytes", 2**20, "MiB"),
    ("_bits", 1, "bits"),
    ("_watts", 1, "W"),
    ("_celsius", 1, "degrees C"),
)
UNIT = re.compile(r"_(bytes|bytes_per_second|per_second|hz|ops|flops|bits|watts|celsius)$")


class Detected(NamedTuple):
    """What a machine was taken for. gpus: the name that each has for itself, and its sheet."""

    seen: Mapping[str, Any]
    device: Facts
    gpus: tuple[tuple[str, Facts | None], ...]
    release: L4t | None
    mode: str | None


def value_text(name: str, fact: Fact | None) -> str:
    """Return a fact's value in the unit that its name asks for; ``?`` after an uncertain one."""
    if fact is None:
        return UNKNOWN
    mark = " ?" if fact.uncertain else ""
    if isinstance(fact.value, str | bool):
        return f"{fact.value}{mark}"
    for ending, size, unit in UNITS:
        if name.endswith(ending):
            return f"{fact.value / size:.4g} {unit}{mark}"
    return f"{fact.value:g}{mark}"


def list_terminal(sheets: Sequence[Facts]) -> str:
    rows = [
        (s.name, *(value_text(name, s.facts.get(name)) for name in LISTED), s.kind) for s in sheets
    ]
    return _columns([("device", *LISTED.values(), "adapter"), *rows])


def list_json(sheets: Sequence[Facts]) -> str:
    return _document(devices=[_sheet(sheet) for sheet in sheets])


def show_terminal(facts: Facts) -> str:
    """The head, the facts with their sources, what is not known, and the power modes."""
    power = facts.power
    head = [
        ("device", facts.name),
        ("title", facts.title),
        ("adapter", facts.kind),
        ("in power mode", facts.mode or ("the best one" if facts.modes else "")),
        ("power of the device", " or ".join(" + ".join(rails) for rails in power.total_rails)),
        ("modes without a limit", ", ".join(power.maximum_modes)),
        ("by", f"{power.source}{' ?' if power.uncertain else ''}"),
    ]
    parts = [_columns([row for row in head if row[1]])]
    rows = [(_words(n), value_text(n, fact), fact.source) for n, fact in facts.facts.items()]
    parts.append(_columns([("fact", "value", "source"), *rows]))
    if facts.absent:
        missing = [(_words(name), why) for name, why in facts.absent.items()]
        parts.append(_columns([("not known", "why"), *missing]))
    if facts.modes:
        parts.append(_columns([("power mode", "budget", "differs in", "source"),
                               *map(_mode_row, facts.modes)]))  # fmt: skip
    return "\n".join(parts)


def show_json(facts: Facts) -> str:
    return _document(device=_sheet(facts))


def detect_terminal(found: Detected) -> str:
    """Which device it is, and by what."""
    seen = found.seen
    nvpmodel = seen.get("nvpmodel") or {}
    gpus = [name if sheet is None else f"{name} ({sheet.name})" for name, sheet in found.gpus]
    rows = [
        ("device", found.device.name),
        ("title", found.device.title),
        ("adapter", found.device.kind),
        ("GPU", ", ".join(gpus)),
        ("model", seen.get("model")),
        ("compatible", ", ".join(seen.get("compatible") or ())),
        ("release", str(found.release) if found.release else None),
        ("power mode", found.mode),
        ("power modes", ", ".join(mode["name"] for mode in nvpmodel.get("modes") or ())),
        ("memory", bytes_text(seen.get("memory_total_bytes"))),
        ("CPU", seen.get("cpu_model")),
        ("of its features", ", ".join(seen.get("cpu_features") or ())),
        ("architecture", seen.get("machine")),
        ("kernel", seen.get("kernel")),
        ("system", seen.get("os")),
    ]
    return _columns([(name, str(text)) for name, text in rows if text])


def detect_json(found: Detected) -> str:
    return _document(
        device=_sheet(found.device),
        gpus=[
            {"name": name, "device": None if sheet is None else _sheet(sheet)}
            for name, sheet in found.gpus
        ],
        release=None if found.release is None else found.release._asdict(),
        mode=found.mode,
        seen=dict(found.seen),
    )


def _document(**content: Any) -> str:
    document = {"format": FORMAT, "version": VERSION, **content}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _sheet(facts: Facts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "title": facts.title,
        "kind": facts.kind,
        "mode": facts.mode,
        "facts": facts.as_json(),
        "absent": dict(facts.absent),
        "power": dataclasses.asdict(facts.power),
        "modes": {mode.name: _mode(mode) for mode in facts.modes},
    }


def _mode(mode: PowerMode) -> dict[str, Any]:
    return {
        "watts": mode.watts,
        "source": mode.source,
        **({"uncertain": True} if mode.uncertain else {}),
        "facts": {name: fact.as_json() for name, fact in mode.facts.items()},
    }


def _mode_row(mode: PowerMode) -> tuple[str, ...]:
    differs = [f"{_words(name)} {value_text(name, fact)}" for name, fact in mode.facts.items()]
    mark = " ?" if mode.uncertain else ""
    budget = "-" if mode.watts is None else f"{mode.watts:g} W{mark}"
    return f"{mode.name}{mark}", budget, ", ".join(differs) or "-", mode.source


def _words(name: str) -> str:
    """A fact's name without its unit, which stands behind the value."""
    return UNIT.sub("", name).replace("_", " ")


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, two blanks apart; the last column is as wide as it is."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"
