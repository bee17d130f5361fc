"""slmq-edge devices: list, show, detect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slmq_edge import devices
from slmq_edge.cli import app
from slmq_edge.devices import Fact
from slmq_edge.errors import NotFound
from slmq_edge.reports import devices as report
from tests.seen import BOARDS
from tests.test_look import ORIN_NANO, plant


def slmq(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["devices", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def detected(name: str) -> report.Detected:
    seen = BOARDS[name][0]
    return report.Detected(
        seen,
        devices.detect(seen),
        devices.gpus(seen),
        devices.release(seen),
        devices.mode_name(seen),
    )


def test_list_has_a_line_for_every_sheet() -> None:
    lines = slmq("list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(devices.known())
    assert lines[0].split() == ["device", "memory", "bandwidth", "INT8", "dense", "FP16", "dense",
                                "adapter"]  # fmt: skip
    (nano,) = [line for line in lines if line.startswith("jetson-orin-nano-8gb ")]
    assert nano.split() == ["jetson-orin-nano-8gb", "8", "GiB", "102.4", "GB/s", "33", "TOPS", "17",
                            "TFLOPS", "jetson"]  # fmt: skip
    (tx2,) = [line for line in lines if line.startswith("jetson-tx2")]
    assert "59.71 GB/s ?" in tx2
    assert "n/a" in tx2


def test_list_as_json() -> None:
    document = json.loads(slmq("list", "--json"))
    assert (document["format"], document["version"]) == ("slmq-edge-devices", 1)
    assert [sheet["name"] for sheet in document["devices"]] == list(devices.known())
    assert all(sheet["facts"] for sheet in document["devices"])


def test_show_gives_every_fact_its_source() -> None:
    text = slmq("show", "jetson-orin-nano-8gb")
    sheet = devices.load("jetson-orin-nano-8gb")
    for fact in sheet.facts.values():
        assert fact.source in text
    for mode in sheet.modes:
        assert any(line.startswith(f"{mode.name} ") for line in text.splitlines())
    assert "in power mode          the best one" in text
    assert "power of the device    VDD_IN" in text
    assert "bandwidth           102.4 GB/s" in text
    assert "throttle            95 degrees C ?" in text


def test_show_says_what_is_not_known_and_why() -> None:
    text = slmq("show", "jetson-nano-4gb")
    assert "tensor cores  none: Maxwell" in text
    assert "power mode" not in slmq("show", "rtx-4090")
    assert "total rails" in slmq("show", "raspberry-pi-5")


def test_show_in_a_mode() -> None:
    text = slmq("show", "jetson-orin-nano-8gb", "--mode", "MODE_15W")
    assert "in power mode          15W" in text
    assert "68.26 GB/s ?" in text
    document = json.loads(slmq("show", "jetson-orin-nano-8gb", "--mode", "7w", "--json"))["device"]
    assert document["mode"] == "7W"
    assert document["facts"]["gpu_frequency_hz"]["value"] == 408e6
    assert document["modes"]["25W"]["watts"] == 25
    assert document["power"]["total_rails"] == [["VDD_IN"]]


def test_what_is_misspelled_is_guessed() -> None:
    with pytest.raises(NotFound, match="did you mean jetson-orin-nano-8gb"):
        slmq("show", "jetson-orin-nano-8g")
    with pytest.raises(NotFound, match="did you mean MAXN_SUPER"):
        slmq("show", "jetson-orin-nano-8gb", "--mode", "MAXN_SUPR")
    with pytest.raises(NotFound, match="nowhere is no folder"):
        slmq("detect", "--root", "nowhere")


def test_detect_below_a_root(tmp_path: Path) -> None:
    root = plant(tmp_path, ORIN_NANO)
    text = slmq("detect", "--root", root, "--machine", "aarch64")
    said = dict(line.split("  ", 1) for line in text.splitlines())
    assert said["device"].strip() == "jetson-orin-nano-8gb"
    assert said["release"].strip() == "L4T 36.4.3 (JetPack 6.2)"
    assert said["power mode"].strip() == "MAXN_SUPER"
    assert said["power modes"].strip() == "15W, 25W, MAXN_SUPER, 7W"
    assert said["of its features"].strip() == "asimddp"
    document = json.loads(slmq("detect", "--root", root, "--machine", "aarch64", "--json"))
    assert document["device"]["name"] == "jetson-orin-nano-8gb"
    assert document["release"] == {"version": "36.4.3", "jetpack": "6.2", "python": "3.10"}
    assert document["seen"]["hostname"] == "orin"
    assert document["mode"] == document["device"]["mode"] == "MAXN_SUPER"


def test_detect_tells_gpus_beside_the_machine() -> None:
    seen = BOARDS["generic-x86_64"][2]
    gpus = (*devices.gpus(seen), ("NVIDIA GeForce GTX 1080", None))
    found = report.Detected(seen, devices.detect(seen), gpus, None, None)
    text = report.detect_terminal(found)
    assert "device        generic-x86_64" in text
    assert "GPU           NVIDIA A800 80GB PCIe (a800-80gb-pcie), NVIDIA GeForce GTX 1080" in text
    document = json.loads(report.detect_json(found))
    assert [gpu["device"] and gpu["device"]["name"] for gpu in document["gpus"]] == [
        "a800-80gb-pcie",
        None,
    ]
    assert document["release"] is None


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_every_board_can_be_told(name: str) -> None:
    found = detected(name)
    assert report.detect_terminal(found).startswith("device")
    assert json.loads(report.detect_json(found))["device"]["name"] == name


@pytest.mark.parametrize("name", devices.known())
def test_every_sheet_can_be_shown(name: str) -> None:
    sheet = devices.load(name)
    text = report.show_terminal(sheet)
    assert all(line == line.rstrip() for line in text.splitlines())
    assert json.loads(report.show_json(sheet))["device"]["facts"] == sheet.as_json()


@pytest.mark.parametrize(
    ("name", "fact", "text"),
    [
        ("cache_bytes", Fact(41943040, "s"), "40 MiB"),
        ("memory_bytes", Fact(8 * 2**30, "s", True), "8 GiB ?"),
        ("memory_transfers_per_second", Fact(6.4e9, "s"), "6400 MT/s"),
        ("effective_bandwidth_bytes_per_second", Fact(11.8e9, "s"), "11.8 GB/s"),
        ("int8_dense_ops_with_dla", Fact(78e12, "s"), "78 TOPS"),
        ("fp16_dense_flops", Fact(0.472e12, "s"), "0.472 TFLOPS"),
        ("memory_bus_bits", Fact(128, "s"), "128 bits"),
        ("power_watts", Fact(300, "s"), "300 W"),
        ("cuda_cores", Fact(6912, "s"), "6912"),
        ("cpu", Fact("4 Cortex-A57", "s"), "4 Cortex-A57"),
        ("x", None, "n/a"),
    ],
)
def test_values_in_their_units(name: str, fact: Fact | None, text: str) -> None:
    assert report.value_text(name, fact) == text
