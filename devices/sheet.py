"""A fact sheet: one board or GPU, every number with who says so.

A sheet::

    title = "Jetson Orin Nano 8GB"
    kind = "jetson"                       # the adapter in profiles/
    [detect]                              # see detection.py
    boards = ["p3767-0003", "p3767-0005"]
    models = ["Orin Nano"]
    [facts.bandwidth_bytes_per_second]    # what holds without a power limit
    value = 102.4e9
    source = "who says so, or 'derived: ' and how"
    [facts.cpu_frequency_hz]
    value = 1.7e9
    source = "..."
    uncertain = true                      # sources disagree, or nobody checked
    [absent]                              # why a number that others have is missing here
    cache_bytes = "no source"
    [power]
    total_rails = [["VDD_IN"]]            # sets that add up to the device; the first there counts
    maximum_modes = ["MAXN_SUPER", "15W"] # without a limit, best first
    source = "..."
    [modes.15W]                           # by name: a number means another mode on another board
    watts = 15
    source = "..."
    [modes.15W.facts.bandwidth_bytes_per_second]
    value = 68.3e9                        # in the place of the fact above, in this mode
    source = "..."
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slmq_edge.errors import Damaged, NotFound, unknown

PREFIX = "MODE_"  # some releases of nvpmodel.conf write it before a mode's name, others do not


@dataclass(frozen=True)
class Fact:
    """A value in SI units (the fact's name says which) and who says so."""

    value: float | int | str | bool
    source: str
    uncertain: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return value and source, and ``uncertain`` where it is."""
        document = dataclasses.asdict(self)
        return document if self.uncertain else {key: document[key] for key in ("value", "source")}


@dataclass(frozen=True)
class PowerMode:
    """A power mode. watts: its budget, None where it has none. facts: those that differ in it."""

    name: str
    source: str
    watts: float | None = None
    uncertain: bool = False
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class Power:
    """How power is told here: see `profiles.board.Board`."""

    total_rails: tuple[tuple[str, ...], ...] = ()
    maximum_modes: tuple[str, ...] = ()
    source: str = ""
    uncertain: bool = False


@dataclass(frozen=True)
class Signs:
    """How a machine is known to be this one; see `detection`."""

    boards: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    nvml: tuple[str, ...] = ()
    architecture: str = ""


@dataclass(frozen=True)
class Facts:
    """A sheet, as it is (`parse`) or as it holds in one power mode (`in_mode`)."""

    name: str
    title: str
    kind: str
    detect: Signs
    facts: Mapping[str, Fact]
    absent: Mapping[str, str] = field(default_factory=dict)
    power: Power = Power()
    modes: tuple[PowerMode, ...] = ()
    mode: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return name -> {value, source}, as run.json keeps them."""
        return {name: fact.as_json() for name, fact in self.facts.items()}

    def number(self, name: str) -> float | None:
        """Return a fact's value if it is there and a number."""
        value = self.facts[name].value if name in self.facts else None
        return None if value is None or isinstance(value, str | bool) else float(value)

    def mode_named(self, name: str) -> PowerMode | None:
        """Return a power mode by a name as nvpmodel.conf or a user may write it."""
        return next((mode for mode in self.modes if plain(mode.name) == plain(name)), None)

    def in_mode(self, name: str) -> Facts:
        """Return these facts as they are in a power mode.

        Raises:
            NotFound: the sheet knows no such mode; guesses what was meant.
        """
        mode = self.mode_named(name)
        if mode is None and not self.modes:
            raise NotFound(f"{self.name} has no power modes")
        if mode is None:
            raise NotFound(unknown("power mode", name, [mode.name for mode in self.modes]))
        return dataclasses.replace(self, facts={**self.facts, **mode.facts}, mode=mode.name)


def plain(mode: str) -> str:
    """Return a mode's name without what differs from one nvpmodel.conf to another."""
    return mode.upper().removeprefix(PREFIX)


def first_listed(modes: Iterable[str], listed: Iterable[str]) -> tuple[str, ...]:
    """Return the first of ``modes`` that ``listed`` has, in the spelling of ``listed``."""
    spelled = {plain(name): name for name in listed}
    return tuple(spelled[plain(mode)] for mode in modes if plain(mode) in spelled)[:1]


def parse(name: str, text: str) -> Facts:
    """Turn a sheet's text into `Facts`.

    Raises:
        Damaged: not TOML, not a sheet, a number without a source, or a mode that is a number.
    """
    try:
        sheet = tomllib.loads(text)
        found = Facts(
            name,
            sheet.pop("title"),
            sheet.pop("kind"),
            Signs(**_tuples(sheet.pop("detect"))),
            _facts(sheet.pop("facts")),
            {**sheet.pop("absent", {})},
            Power(**_tuples(sheet.pop("power", {}))),
            tuple(_mode(*item) for item in sheet.pop("modes", {}).items()),
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"device sheet {name} is damaged: {error}") from error
    if problem := next(_problems(found, sheet), None):
        raise Damaged(f"device sheet {name}: {problem}")
    return found


def _facts(table: Mapping[str, Any]) -> dict[str, Fact]:
    return {key: Fact(**fact) for key, fact in table.items()}


def _mode(name: str, table: Mapping[str, Any]) -> PowerMode:
    return PowerMode(name, **{**table, "facts": _facts(table.get("facts", {}))})


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML's arrays, and the arrays in them, as tuples."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {key: frozen(value) for key, value in table.items()}


def _problems(found: Facts, left: Mapping[str, Any]) -> Iterator[str]:
    """Say, one by one, why a sheet is none."""
    yield from (f"{key} is no part of a sheet" for key in left)
    facts = {**found.facts}
    for mode in found.modes:
        facts |= {f"{key} in mode {mode.name}": fact for key, fact in mode.facts.items()}
        watts = 1 if mode.watts is None else mode.watts
        facts[f"mode {mode.name}"] = Fact(watts, mode.source, mode.uncertain)
        if mode.name.isdecimal():
            yield f"mode {mode.name} is a number, which means another mode on another board"
    if found.power != Power():
        facts["power"] = Fact(1, found.power.source, found.power.uncertain)
    for key, fact in facts.items():
        if not isinstance(fact.source, str) or not fact.source.strip():
            yield f"{key} has no source"
        if not isinstance(fact.value, str | int | float) or not isinstance(fact.uncertain, bool):
            yield f"{key} is no value"
        elif not isinstance(fact.value, str) and not (math.isfinite(fact.value) and fact.value > 0):
            yield f"{key} is {fact.value}; what is not there belongs to [absent], with the reason"
    yield from (f"{key} is a fact and absent" for key in found.absent if key in found.facts)
