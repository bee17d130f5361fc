"""The Raspberry Pi adapter, with a vcgencmd that answers as a Pi 4's or a Pi 5's firmware does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.profiles.board import Board
from slmq_edge.profiles.raspberrypi import RaspberryPi, pmic
from tests.boards import PI_4, PI_5, PMIC, plant, stand_in

CAUSES = ("under_voltage", "clock_capped", "throttled", "soft_temperature_limit")


def pi_5(root: Path, answers: dict[str, str] = PI_5, board: Board = Board()) -> RaspberryPi:  # noqa: B008
    plant(root, "raspberry-pi-5")
    return RaspberryPi(str(root), board, stand_in(root, "vcgencmd", answers))


def pi_4(root: Path, vcgencmd: Sequence[str] = ("/no/vcgencmd",)) -> RaspberryPi:
    return RaspberryPi(str(plant(root, "raspberry-pi-4")), Board(), vcgencmd)


def test_rails_have_a_current_and_a_voltage_of_one_name(tmp_path: Path) -> None:
    one = pi_5(tmp_path)
    watts = {"3V7_WL_SW": 0.037, "3V3_SYS": 0.33, "DDR_VDDQ": 0, "VDD_CORE": 2.0, "HDMI": 0.1}
    assert one.power() == pytest.approx(watts)
    facts = one.facts()
    assert facts["kind"] == "raspberrypi"
    assert facts["total_rails"] == []
    assert "5 V input" in facts["reasons"]["total_rails"]
    json.dumps(facts)


def test_a_sheet_may_say_what_adds_up(tmp_path: Path) -> None:
    one = pi_5(tmp_path, board=Board(total_rails=(("VIN",), ("VDD_CORE", "HDMI"))))
    facts = one.facts()
    assert facts["total_rails"] == ["VDD_CORE", "HDMI"]
    assert "total_rails" not in facts["reasons"]


def test_a_pi_4_has_no_power_sensor_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pi_4(tmp_path, stand_in(tmp_path, "vcgencmd", PI_4, code=1))
    assert one.power() == {}
    monkeypatch.setattr(one, "_ask", lambda *words: pytest.fail("asked again"))
    assert one.power() == {}
    why = one.facts()["reasons"]["power"]
    assert "Command not registered" in why
    assert "a Pi before 5 has no sensor" in why
    assert one.facts()["total_rails"] == []


def test_a_reading_that_fails_later_is_none_and_not_missing(tmp_path: Path) -> None:
    one = pi_5(tmp_path)
    one.power()
    part = "".join(line for line in PMIC.splitlines(keepends=True) if "HDMI_V" not in line)
    stand_in(tmp_path, "vcgencmd", {"pmic_read_adc": part})
    assert one.power()["HDMI"] is None
    assert one.power()["VDD_CORE"] == pytest.approx(2.0)
    stand_in(tmp_path, "vcgencmd", {})
    assert set(one.power().values()) == {None}
    assert "pmic_read_adc says: pmic_read_adc: unknown" in one.facts()["reasons"]["VDD_CORE"]


def test_the_clock_that_the_firmware_measures(tmp_path: Path) -> None:
    """The kernel's file says 2.4 GHz all along: it is what was asked for."""
    assert pi_5(tmp_path).clocks() == {"cpu": 1500019456.0}


def test_the_kernels_clock_where_the_firmware_cannot_be_asked(tmp_path: Path) -> None:
    one = pi_4(tmp_path)
    assert one.clocks() == {"cpu": 1.8e9}
    assert "vcgencmd is not installed" in one.facts()["reasons"]["measured cpu clock"]


def test_throttling_now_and_since_boot(tmp_path: Path) -> None:
    found = pi_5(tmp_path).throttling()
    assert found == {
        "under_voltage_now": 0,
        "clock_capped_now": 0,
        "throttled_now": 0,
        "soft_temperature_limit_now": 1,
        "under_voltage": 0,
        "clock_capped": 1,
        "throttled": 1,
        "soft_temperature_limit": 1,
    }


def test_the_kernels_file_is_asked_first(tmp_path: Path) -> None:
    one = pi_4(tmp_path, stand_in(tmp_path, "vcgencmd", PI_4))
    found = one.throttling()
    assert {name for name, bit in found.items() if bit} == {
        "under_voltage_now", "throttled_now", "under_voltage", "throttled",
    }  # fmt: skip
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("what\n")
    assert set(one.throttling().values()) == {0}


def test_a_missing_vcgencmd_is_a_reason(tmp_path: Path) -> None:
    one = RaspberryPi(str(plant(tmp_path, "raspberry-pi-5")), Board(), ["/no/vcgencmd"])
    assert one.power() == {}
    assert one.throttling() == dict.fromkeys(
        [f"{cause}_now" for cause in CAUSES] + list(CAUSES), None
    )
    why = one.facts()["reasons"]
    for name in ("power", "throttling"):
        assert why[name].startswith("vcgencmd is not installed")
    assert one.mode() is None
    assert "no power modes" in why["mode"]
    assert one.temperatures() == {"cpu-thermal": 50.7}


def test_a_user_who_may_not_ask_is_told_how(tmp_path: Path) -> None:
    said = {"get_throttled": "VCHI initialization failed\n", "pmic_read_adc": ""}
    one = pi_5(tmp_path, said)
    assert set(one.throttling().values()) == {None}
    why = one.facts()["reasons"]
    assert "usermod -aG video" in why["throttling"]
    assert "pmic_read_adc says: nothing" in why["power"]
    stand_in(tmp_path, "vcgencmd", PI_5)
    assert one.throttling()["throttled"] == 1
    assert "throttling" not in one.facts()["reasons"]


def test_a_firmware_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmq_edge.profiles.raspberrypi.ASK_SECONDS", 0.2)
    one = pi_4(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert one.clocks() == {"cpu": 1.8e9}
    assert "did not answer within 0.2 s" in one.facts()["reasons"]["measured cpu clock"]


def test_figures_that_are_none() -> None:
    assert pmic("A_A current(1)=1.0A\nA_V volt(2)=2.0A\n") == {}
    assert pmic("A_A current(1)=nanA\nA_V volt(2)=2.0V\n") == {}
    assert pmic("A_A current(1)=1.0A\nB_V volt(2)=2.0V\n") == {}
    assert pmic("A_A current(1)=-1.5A\nA_V volt(2)=2.0V") == {"A": -3.0}


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert all(isinstance(watts, float) for watts in pmic(text).values())
