"""Power rails in sysfs: found by label whatever their number, then only read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from slmq_edge.profiles.rails import Rails, total
from tests.boards import HWMON, Files, iio, ina238, ina3221, plant


def made(root: Path, *parts: Files) -> Rails:
    for path, text in {path: text for part in parts for path, text in part.items()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Rails(root)


@pytest.mark.parametrize(
    ("board", "watts"),
    [
        ("jetson-nano-jp4", {"POM_5V_IN": 1.75, "POM_5V_GPU": 0, "POM_5V_CPU": 0.366}),
        (
            "jetson-xavier-nx-jp5",
            {"VDD_IN": 2.7636, "VDD_CPU_GPU_CV": 0.65142, "VDD_SOC": 0.65142},
        ),
        (
            "jetson-orin-nano-jp6",
            {"VDD_IN": 16.322064, "VDD_CPU_GPU_CV": 7.102656, "VDD_SOC": 3.119952},
        ),
        (
            "jetson-agx-orin-jp7",
            {"VDDQ_VDD2_1V8AO": 0.3, "VDD_GPU_SOC": 3.12, "VDD_CPU_CV": 0.72, "VIN_SYS_5V0": 5.14},
        ),
        (
            "jetson-agx-thor-jp7",
            {"VDD_GPU": -0.4, "VDD_CPU_SOC_MSS": 5.88, "VIN_SYS_5V0": 5.635, "VIN": 19.78},
        ),
        ("raspberry-pi-5", {}),
    ],
)
def test_rails_by_label(board: str, watts: dict[str, float], tmp_path: Path) -> None:
    rails = Rails(plant(tmp_path, board))
    assert rails.watts() == pytest.approx(watts)
    assert list(rails.names) == list(watts)
    assert rails.reasons == {}


def test_jetpack_4_without_milliwatts_multiplies(tmp_path: Path) -> None:
    rails = made(tmp_path, iio("7-0040", ("VDD_IN", 3000), ("NC", 0)))
    for file in tmp_path.glob("sys/bus/i2c/drivers/*/*/*/in_power*"):
        file.unlink()
    assert Rails(tmp_path).watts() == pytest.approx({"VDD_IN": 3.0})
    assert rails.watts() == {"VDD_IN": None}
    assert "No such file" in rails.reasons["VDD_IN"]


def test_folders_are_links_in_a_real_sysfs(tmp_path: Path) -> None:
    """Which they are: /sys/class and /sys/bus hold links into /sys/devices alone."""
    made(tmp_path, ina3221(7, ("VDD_IN", 5000, 100)), iio("6-0040", ("POM_5V_IN", 1500)))
    for link in (HWMON, "sys/bus/i2c/drivers/ina3221x"):
        for folder in list((tmp_path / link).iterdir()):
            target = tmp_path / "sys/devices" / folder.name
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
            folder.symlink_to(target)
    assert Rails(tmp_path).watts() == pytest.approx({"VDD_IN": 0.5, "POM_5V_IN": 1.5})


def test_a_label_on_two_monitors_gives_two_rails(tmp_path: Path) -> None:
    rails = made(tmp_path, ina3221(9, ("VDD_IN", 5000, 100)), ina3221(10, ("VDD_IN", 5000, 300)))
    assert rails.watts() == pytest.approx({"VDD_IN": 0.5, "VDD_IN-hwmon10": 1.5})


def test_the_input_of_thor_by_its_label_where_it_has_one(tmp_path: Path) -> None:
    label = {f"{HWMON}/hwmon1/label": "VIN_CARRIER\n"}
    rails = made(tmp_path, ina238(1, 5_000_000), label, ina238(2, 7_000_000))
    assert rails.watts() == pytest.approx({"VIN_CARRIER": 5.0, "VIN": 7.0})


def test_a_reading_that_fails_is_none_with_its_reason(tmp_path: Path) -> None:
    rails = made(tmp_path, ina3221(1, ("VDD_IN", 5000, 100), ("VDD_SOC", 5000, 10)))
    (tmp_path / HWMON / "hwmon1/curr2_input").write_text("\n")
    (tmp_path / HWMON / "hwmon1/in1_input").unlink()
    assert rails.watts() == {"VDD_IN": None, "VDD_SOC": None}
    assert "in1_input: No such file" in rails.reasons["VDD_IN"]
    assert "no number" in rails.reasons["VDD_SOC"]


def test_what_leads_nowhere_and_the_drivers_sum_are_no_rails(tmp_path: Path) -> None:
    channels = (("NC", 5000, 1), ("sum of shunt voltages", 5000, 1), ("VDD_IN", 5000, 100))
    assert made(tmp_path, ina3221(1, *channels)).names == ("VDD_IN",)


def test_a_channel_without_a_current_is_no_rail(tmp_path: Path) -> None:
    parts = ina3221(1, ("VDD_IN", 5000, 100))
    del parts[f"{HWMON}/hwmon1/curr1_input"]
    assert made(tmp_path, parts).names == ()


def test_files_are_found_once_and_then_only_read(tmp_path: Path) -> None:
    rails = Rails(plant(tmp_path, "jetson-agx-orin-jp6"))
    for file in tmp_path.glob(f"{HWMON}/*/*_label"):
        file.unlink()
    current = tmp_path / HWMON / "hwmon3/curr1_input"
    current.write_text("200\n")
    assert rails.watts()["VDD_GPU_SOC"] == pytest.approx(4.0)


def test_reading_takes_far_less_than_a_sampling_period(tmp_path: Path) -> None:
    """Of a fake tree: the I2C transfers behind a board's files come on top."""
    rails = Rails(plant(tmp_path, "jetson-agx-orin-jp6"))
    took = []
    for _ in range(200):
        began = time.perf_counter()
        rails.watts()
        took.append(time.perf_counter() - began)
    assert sorted(took)[100] < 5e-3


def test_the_total_is_the_first_set_that_is_whole() -> None:
    sets = (("VDD_IN",), ("GPU", "CPU"), ("CPU",))
    assert total(("CPU", "GPU", "SOC"), sets) == ("GPU", "CPU")
    assert total(("CPU",), sets) == ("CPU",)
    assert total(("VDD_IN", "CPU"), sets) == ("VDD_IN",)
    assert total(("SOC",), sets) == ()
    assert total((), ((),)) == ()
