"""What a device is: one TOML sheet per board, every number with its source, and detection.

A sheet::

    title = "Raspberry Pi 5"
    kind = "cpu"                          # the adapter in profiles/
    [detect]
    model = "Raspberry Pi 5 "             # how /proc/device-tree/model begins; or
    nvml = "NVIDIA A800 80GB PCIe"        # what a GPU calls itself; or
    architecture = "x86_64"               # what uname -m says, where no model fits
    [facts.bandwidth_bytes_per_second]
    value = 17.1e9
    source = "who says so"
"""

from __future__ import annotations

import dataclasses
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from slmq_edge.errors import Damaged, NotFound, unknown
from slmq_edge.profiles import Board

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # other systems' names


@dataclass(frozen=True)
class Fact:
    """A value in SI units (the fact's name says which) and who says so."""

    value: float | int | str | bool
    source: str


@dataclass(frozen=True)
class Facts:
    name: str
    title: str
    kind: str
    detect: Mapping[str, str]
    facts: Mapping[str, Fact]

    def as_json(self) -> dict[str, Any]:
        """Return name -> {value, source}, as run.json keeps them."""
        return {name: dataclasses.asdict(fact) for name, fact in self.facts.items()}


def known() -> tuple[str, ...]:
    sheets = resources.files(__name__).joinpath("facts").iterdir()
    return tuple(sorted(s.name.removesuffix(".toml") for s in sheets if s.name.endswith(".toml")))


def load(name: str) -> Facts:
    """Read a device's sheet.

    Raises:
        NotFound: there is none of this name; guesses what was meant.
    """
    if name not in known():
        raise NotFound(unknown("device", name, known()))
    text = resources.files(__name__).joinpath("facts", f"{name}.toml").read_text("utf-8")
    return parse(name, text)


def parse(name: str, text: str) -> Facts:
    """Turn a sheet's text into `Facts`; a fact without a source is refused."""
    try:
        sheet = tomllib.loads(text)
        facts = {key: Fact(**fact) for key, fact in sheet["facts"].items()}
        found = Facts(name, sheet["title"], sheet["kind"], sheet["detect"], facts)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"device sheet {name} is damaged: {error}") from error
    for key, fact in found.facts.items():
        if not isinstance(fact.source, str) or not fact.source.strip():
            raise Damaged(f"device sheet {name}: {key} has no source")
    return found


def board(facts: Facts) -> Board:
    """What a profile must be told of this device."""
    return Board(facts.name)


def of_gpu(name: str) -> Facts | None:
    """Return the sheet of a GPU by the name that it has for itself; None where there is none."""
    sheets = [load(sheet) for sheet in known()]
    return next((sheet for sheet in sheets if sheet.detect.get("nvml") == name), None)


def detect(root: str = "/", machine: str | None = None) -> Facts:
    """Return the sheet of this machine: its board where we know it, else its architecture.

    Args:
        root: where /proc is.
        machine: what ``uname -m`` says; by default, asked.

    Raises:
        NotFound: the architecture has no sheet.
    """
    sheets = [load(name) for name in known()]
    try:
        path = Path(root) / "proc/device-tree/model"
        model = path.read_text("utf-8", errors="replace").strip("\0\n ")
    except OSError:
        model = ""
    for sheet in sheets:
        if "model" in sheet.detect and model.startswith(sheet.detect["model"]):
            return sheet
    said = (machine or platform.machine()).lower()
    architecture = ARCHITECTURES.get(said, said)
    by_architecture = {s.detect["architecture"]: s for s in sheets if "architecture" in s.detect}
    if architecture not in by_architecture:
        raise NotFound(unknown("architecture", architecture, tuple(by_architecture)))
    return by_architecture[architecture]
