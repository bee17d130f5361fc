"""What a device is: every number has a source, and detection never guesses."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import devices, profiles
from slmq_edge.errors import Damaged, NotFound


def _unsourced(table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield every number in a sheet that has no source beside it."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _unsourced(value, f"{path}.{key}")
        elif isinstance(value, int | float) and not str(table.get("source", "")).strip():
            yield f"{path}.{key}"


@pytest.mark.parametrize("name", devices.known())
def test_every_number_has_a_source(name: str) -> None:
    text = resources.files(devices).joinpath("facts", f"{name}.toml").read_text("utf-8")
    assert list(_unsourced(tomllib.loads(text))) == []
    facts = devices.load(name)
    assert facts.name == name
    assert facts.title
    assert facts.kind in {*profiles.PROFILES, "cuda"}  # cuda's adapter is still to come


def test_a_number_without_a_source_is_found() -> None:
    assert list(_unsourced({"facts": {"cores": {"value": 4}}})) == [".facts.cores.value"]


@pytest.mark.parametrize(
    "facts",
    ["x = 4", "[facts.x]\nvalue = 4", '[facts.x]\nvalue = 4\nsource = " "', "not toml"],
)
def test_sheets_without_sources_are_refused(facts: str) -> None:
    sheet = f'title = "T"\nkind = "cpu"\n[detect]\narchitecture = "x"\n{facts}\n'
    with pytest.raises(Damaged, match="device sheet test"):
        devices.parse("test", sheet)


def test_an_unknown_device_is_guessed_and_listed() -> None:
    with pytest.raises(NotFound, match=r"did you mean raspberry-pi-5.*known: a800-80gb-pcie"):
        devices.load("raspberry-pi-55")


@pytest.mark.parametrize(
    ("model", "machine", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0\0", "aarch64", "raspberry-pi-5"),
        ("Raspberry Pi 500 Rev 1.0\0", "aarch64", "generic-aarch64"),
        ("Raspberry Pi 4 Model B Rev 1.5\0", "aarch64", "generic-aarch64"),
        (None, "x86_64", "generic-x86_64"),
        (None, "AMD64", "generic-x86_64"),
        (None, "arm64", "generic-aarch64"),
    ],
)
def test_detection(tmp_path: Path, model: str | None, machine: str, expected: str) -> None:
    if model is not None:
        (tmp_path / "proc/device-tree").mkdir(parents=True)
        (tmp_path / "proc/device-tree/model").write_text(model)
    assert devices.detect(str(tmp_path), machine).name == expected


def test_an_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="unknown architecture 'vax'"):
        devices.detect(str(tmp_path), "vax")
