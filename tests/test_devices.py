"""What a device is: every number has a source, and numbers that hang together agree."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge import devices
from slmq_edge.devices import Facts, jetpack
from slmq_edge.devices.sheet import first_listed, plain
from slmq_edge.errors import Damaged, NotFound
from slmq_edge.profiles import Board

KINDS = {"cpu", "cuda", "jetson", "raspberrypi"}
# What a GPU or a Jetson must say, or say why not: projections and bounds stand on these.
NEEDED = (
    "compute_capability",
    "cuda_cores",
    "tensor_cores",
    "memory_bytes",
    "bandwidth_bytes_per_second",
    "int8_dense_ops",
    "fp16_dense_flops",
)
ASKED_FOR = {
    "jetson-nano-4gb",
    "jetson-tx2",
    "jetson-xavier-nx-8gb",
    "jetson-xavier-nx-16gb",
    "jetson-agx-xavier-16gb",
    "jetson-agx-xavier-32gb",
    "jetson-agx-xavier-64gb",
    "jetson-orin-nano-4gb",
    "jetson-orin-nano-8gb",
    "jetson-orin-nx-8gb",
    "jetson-orin-nx-16gb",
    "jetson-agx-orin-32gb",
    "jetson-agx-orin-64gb",
    "jetson-agx-thor",
    "jetson-t4000",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "a800-80gb-pcie",
    "a800-80gb-sxm",
    "a100-80gb-sxm",
    "h200",
    "h100-80gb-sxm",
    "rtx-4090",
    "generic-x86_64",
    "generic-aarch64",
}
SHEETS = [devices.load(name) for name in devices.known()]
JETSONS = [sheet for sheet in SHEETS if sheet.kind == "jetson"]
WITH_GPU = [sheet for sheet in SHEETS if sheet.kind in {"jetson", "cuda"}]
SM = {  # family: CUDA cores and tensor cores of a multiprocessor
    "5.3": (128, 0),
    "6.2": (128, 0),
    "7.2": (64, 8),
    "8.0": (64, 4),
    "8.7": (128, 4),
    "8.9": (128, 4),
    "9.0": (128, 4),
    "11.0": (128, 4),
}
# Operations a clock that one core and one tensor core does: INT8 and FP16 peaks are these times
# cores and clock. (Of Nano and TX2 the cores do FP16, two halves at a time.)
FP16_A_CLOCK = {"5.3": (4, 0), "6.2": (4, 0), "7.2": (0, 128), "8.7": (0, 512)}
TABLES = st.sampled_from(["facts", "modes", "power", "detect", "absent"])


def at_each_mode(sheet: Facts) -> list[Facts]:
    return [sheet, *(sheet.in_mode(mode.name) for mode in sheet.modes)]


EACH = [facts for sheet in SHEETS for facts in at_each_mode(sheet)]


def of(facts: Facts) -> str:
    return f"{facts.name}-{facts.mode}" if facts.mode else facts.name


def _unsourced(table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield every number in a sheet that has no source beside it."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _unsourced(value, f"{path}.{key}")
        elif isinstance(value, int | float) and not str(table.get("source", "")).strip():
            yield f"{path}.{key}"


def test_every_device_that_was_asked_for_has_a_sheet() -> None:
    assert set(devices.known()) >= ASKED_FOR


@pytest.mark.parametrize("name", devices.known())
def test_every_number_has_a_source(name: str) -> None:
    text = resources.files(devices).joinpath("facts", f"{name}.toml").read_text("utf-8")
    assert list(_unsourced(tomllib.loads(text))) == []
    facts = devices.load(name)
    assert facts.name == name
    assert facts.title
    assert facts.kind in KINDS


def test_a_number_without_a_source_is_found() -> None:
    assert list(_unsourced({"facts": {"cores": {"value": 4}}})) == [".facts.cores.value"]
    assert list(_unsourced({"modes": {"5W": {"watts": 5}}})) == [".modes.5W.watts"]


SOURCED = '[facts.x]\nvalue = 4\nsource = "s"\n'


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("x = 4", "damaged"),
        ("[facts]\nx = 4", "damaged"),
        ("[facts.x]\nvalue = 4", "source"),
        ('[facts.x]\nvalue = 4\nsource = " "', "x has no source"),
        ('[facts.x]\nsource = "s"', "value"),
        ('[facts.x]\nvalue = 0\nsource = "s"', r"x is 0; what is not there belongs to \[absent\]"),
        ('[facts.x]\nvalue = nan\nsource = "s"', "x is nan"),
        ('[facts.x]\nvalue = [4]\nsource = "s"', "x is no value"),
        ('[facts.x]\nvalue = 4\nsource = "s"\nuncertain = "no"', "x is no value"),
        ('[facts.x]\nvalue = 4\nsource = "s"\nsure = true', "sure"),
        (SOURCED + "[modes.15W]\nwatts = 15", "source"),
        (SOURCED + '[modes.15W]\nwatts = 15\nsource = " "', "mode 15W has no source"),
        (SOURCED + '[modes.15W]\nwatts = 0\nsource = "s"', "mode 15W is 0"),
        (SOURCED + '[modes.15W]\nid = 0\nsource = "s"', "id"),
        (SOURCED + '[modes.0]\nsource = "s"', "mode 0 is a number"),
        (SOURCED + '[modes.A]\nsource = "s"\n[modes.A.facts.x]\nvalue = 2', "source"),
        (SOURCED + '[power]\ntotal_rails = [["VDD_IN"]]', "power has no source"),
        (SOURCED + '[absent]\nx = "no source"', "x is a fact and absent"),
        (SOURCED + "[rails]\ntotal = 1", "rails is no part of a sheet"),
        ("not toml", "damaged"),
    ],
)
def test_sheets_without_sources_are_refused(facts: str, words: str) -> None:
    sheet = f'title = "T"\nkind = "cpu"\n[detect]\narchitecture = "x"\n{facts}\n'
    with pytest.raises(Damaged, match=f"device sheet test.*{words}"):
        devices.parse("test", sheet)


@given(TABLES, st.sampled_from(["1", "[]", '["a"]', '"a"', "true"]))
def test_a_sheet_of_another_shape_is_refused(key: str, value: str) -> None:
    lines = {"title": '"T"', "kind": '"cpu"', "detect": "{}", "facts": "{}"} | {key: value}
    text = "".join(f"{name} = {content}\n" for name, content in lines.items())
    with pytest.raises(Damaged, match="device sheet test"):
        devices.parse("test", text)


def test_an_unknown_device_is_guessed_and_listed() -> None:
    with pytest.raises(NotFound, match=r"did you mean raspberry-pi-5.*known: a100-80gb-pcie"):
        devices.load("raspberry-pi-55")


@pytest.mark.parametrize("sheet", WITH_GPU, ids=of)
def test_what_bounds_stand_on_is_there_or_said_to_be_missing(sheet: Facts) -> None:
    for name in NEEDED:
        assert (name in sheet.facts) != (name in sheet.absent), name


@pytest.mark.parametrize("facts", EACH, ids=of)
def test_bandwidth_is_width_times_transfers(facts: Facts) -> None:
    bits = facts.number("memory_bus_bits")
    transfers = facts.number("memory_transfers_per_second")
    bandwidth = facts.number("bandwidth_bytes_per_second")
    if bits and transfers and bandwidth:
        assert bandwidth == pytest.approx(bits / 8 * transfers, rel=0.005)
    effective = facts.number("effective_bandwidth_bytes_per_second")
    assert effective is None or bandwidth is None or effective < bandwidth


@pytest.mark.parametrize("sheet", WITH_GPU, ids=of)
def test_cores_are_those_of_the_family(sheet: Facts) -> None:
    family = str(sheet.facts["compute_capability"].value)
    cuda, tensor = SM[family]
    multiprocessors = (sheet.number("cuda_cores") or 0) / cuda
    assert multiprocessors == int(multiprocessors)
    expected = multiprocessors * tensor
    printed = sheet.number("tensor_cores") or 0
    if printed != expected:
        assert sheet.facts["tensor_cores"].uncertain


@pytest.mark.parametrize("facts", [facts for facts in EACH if facts.kind == "jetson"], ids=of)
def test_peaks_are_cores_times_clock(facts: Facts) -> None:
    family = str(facts.facts["compute_capability"].value)
    clock, fp16 = facts.number("gpu_frequency_hz"), facts.number("fp16_dense_flops")
    int8 = facts.number("int8_dense_ops")
    if int8 and fp16:
        assert int8 == pytest.approx(2 * fp16, rel=0.04)  # NVIDIA's 33 and 17
    if clock and fp16 and family in FP16_A_CLOCK:
        core, tensor = FP16_A_CLOCK[family]
        cores, tensors = facts.number("cuda_cores") or 0, facts.number("tensor_cores") or 0
        assert fp16 == pytest.approx((core * cores + tensor * tensors) * clock, rel=0.05)
    with_dla = facts.number("int8_dense_ops_with_dla")
    assert with_dla is None or int8 is None or with_dla > int8


@pytest.mark.parametrize("sheet", SHEETS, ids=of)
def test_no_mode_is_above_the_sheet(sheet: Facts) -> None:
    """Facts without a mode are what no mode exceeds, so that they can serve as bounds."""
    for mode in sheet.modes:
        for name, fact in mode.facts.items():
            best, value = sheet.number(name), sheet.in_mode(mode.name).number(name)
            assert value is None or best is None or value <= best, (mode.name, name)
            assert name in sheet.facts, f"{name} in mode {mode.name} replaces nothing"
            assert fact.source


@pytest.mark.parametrize("sheet", JETSONS, ids=of)
def test_a_jetson_says_how_it_is_measured(sheet: Facts) -> None:
    assert sheet.power.total_rails
    assert all(rails for rails in sheet.power.total_rails)
    names = [plain(mode.name) for mode in sheet.modes]
    assert len(set(names)) == len(names)
    assert {plain(name) for name in sheet.power.maximum_modes} <= set(names)
    assert sheet.detect.boards
    assert "jetpack" in sheet.facts
    board = devices.board(sheet)
    assert board == Board(sheet.name, sheet.power.total_rails, sheet.power.maximum_modes)
    assert json.loads(json.dumps(board)) == [*json.loads(json.dumps(list(board)))]


def test_what_has_no_sensor_of_the_whole_says_so() -> None:
    for name in ("raspberry-pi-4", "raspberry-pi-5"):
        sheet = devices.load(name)
        assert sheet.power.total_rails == ()
        assert "total_rails" in sheet.absent


def test_numbers_that_were_promised() -> None:
    nano = devices.load("jetson-orin-nano-8gb")
    assert nano.number("bandwidth_bytes_per_second") == 102.4e9
    slow = nano.in_mode("MODE_15W")
    assert slow.mode == "15W"
    assert slow.number("bandwidth_bytes_per_second") == pytest.approx(68e9, rel=0.01)
    assert slow.number("int8_dense_ops") == 20e12
    assert slow.number("cuda_cores") == 1024
    assert nano.number("compute_capability") is None
    assert nano.number("cores of the moon") is None
    pi = devices.load("raspberry-pi-5")
    assert pi.number("effective_bandwidth_bytes_per_second") == 11.8e9
    a800 = devices.load("a800-80gb-pcie").facts["power_watts"]
    assert (a800.value, a800.uncertain) == (300, True)


def test_a_mode_that_is_not_there() -> None:
    with pytest.raises(NotFound, match=r"unknown power mode '20W'.*known: MAXN_SUPER, 25W"):
        devices.load("jetson-orin-nano-8gb").in_mode("20W")
    with pytest.raises(NotFound, match="rtx-4090 has no power modes"):
        devices.load("rtx-4090").in_mode("MAXN")


def test_facts_for_run_json_have_value_and_source() -> None:
    document = devices.load("jetson-orin-nano-8gb").as_json()
    assert document["cuda_cores"] == {
        "value": 1024,
        "source": "Hugging Face's table of NVIDIA hardware (huggingface.js, hardware-nvidia.ts)",
    }
    assert document["throttle_celsius"]["uncertain"] is True
    assert json.loads(json.dumps(document)) == document


def test_modes_are_told_by_the_spelling_of_the_board() -> None:
    assert first_listed(["MAXN_SUPER", "15W"], ["MODE_15W", "MODE_7W"]) == ("MODE_15W",)
    assert first_listed(["MAXN_SUPER", "15W"], ["15W", "MAXN_SUPER"]) == ("MAXN_SUPER",)
    assert first_listed(["MAXN"], ["MODE_10W"]) == ()


@pytest.mark.parametrize(
    ("said", "version", "is_jetpack", "python"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t186ref, EABI: aarch64, "
         "DATE: Wed Feb  2 21:33:23 UTC 2022", "32.7.1", "4.6.x", "3.6"),
        ("# R34 (release), REVISION: 1.1, GCID: 30414990", "34.1.1", None, None),
        ("# R35 (release), REVISION: 3.1, GCID: 32790763", "35.3.1", "5.1.1", "3.8"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081", "36.4.3", "6.2", "3.10"),
        ("# R38 (release), REVISION: 4.0, GCID: 43443517", "38.4.0", "7.1", "3.12"),
        ("36.4.7-20250918154033", "36.4.7", "6.2.1", "3.10"),
        ("36.4.7", "36.4.7", "6.2.1", "3.10"),
        ("38.2.1", "38.2.1", "7.0", "3.12"),
        ("39.2.0", "39.2.0", "7.2", "3.12"),
        ("35.6.2", "35.6.2", "5.1.4 to 5.1.6", "3.8"),
        ("36.9.1", "36.9.1", "6.x", "3.10"),  # a release after this table
        ("41.0.0", "41.0.0", None, None),
        ("28.2.1", "28.2.1", "3.x", None),
    ],
)  # fmt: skip
def test_l4t_to_jetpack(
    said: str, version: str, is_jetpack: str | None, python: str | None
) -> None:
    assert devices.l4t(said) == (version, is_jetpack, python)


def test_every_line_of_the_table_is_its_own() -> None:
    for release, is_jetpack in jetpack.RELEASES.items():
        found = devices.l4t(f"{release}.0" if "." not in release else release)
        assert found is not None
        assert found.jetpack == is_jetpack


@pytest.mark.parametrize("said", ["", "R", "Ubuntu", "36", "# R36"])
def test_what_is_no_release(said: str) -> None:
    assert devices.l4t(said) is None


@given(st.text(max_size=60))
def test_no_text_breaks_the_table(said: str) -> None:
    found = devices.l4t(said)
    assert found is None or found.version[0].isdigit()
