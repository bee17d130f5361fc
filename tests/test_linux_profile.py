"""What every adapter shares: clocks, heat, throttling and the machine's state, from a fake root."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmq_edge.profiles.linux import Linux

CPU = "sys/devices/system/cpu"
MEMINFO = """MemTotal:        8000000 kB
MemFree:          100000 kB
MemAvailable:    3000000 kB
SwapTotal:       1000000 kB
SwapFree:         400000 kB
"""


def _write(root: Path, files: dict[str, str]) -> Linux:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Linux(str(root))


def test_the_machines_state_in_bytes(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/loadavg": "0.75 0.50 0.25 2/300 4242\n"}
    assert _write(tmp_path, files).system() == {
        "memory_available_bytes": 3_072_000_000,
        "swap_used_bytes": 614_400_000,
        "load_average": 0.75,
    }


def test_no_swap_is_0_and_an_unknown_one_is_none(tmp_path: Path) -> None:
    none = MEMINFO.replace("1000000", "0").replace("400000", "0")
    assert _write(tmp_path, {"proc/meminfo": none}).system()["swap_used_bytes"] == 0
    cut = MEMINFO.partition("SwapFree")[0]
    assert _write(tmp_path, {"proc/meminfo": cut}).system()["swap_used_bytes"] is None


def test_an_old_kernel_tells_no_available_memory(tmp_path: Path) -> None:
    """Free memory is not it: most of what is not free is a cache."""
    old = MEMINFO.replace("MemAvailable", "Other")
    linux = _write(tmp_path, {"proc/meminfo": old})
    assert linux.system()["memory_available_bytes"] is None
    assert "MemAvailable" in linux.facts()["reasons"]["memory_available_bytes"]


def test_without_proc_the_state_is_none_with_reasons(tmp_path: Path) -> None:
    linux = Linux(str(tmp_path))
    state = linux.system()
    assert set(state.values()) == {None}
    assert set(state) <= set(linux.facts()["reasons"])


def test_the_clock_is_the_fastest_cores(tmp_path: Path) -> None:
    kilohertz = {0: "600000\n", 1: "2400000\n", 10: "1500000\n"}
    files = {f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": text for n, text in kilohertz.items()}
    files[f"{CPU}/cpu2/cpufreq/scaling_cur_freq"] = "<unknown>\n"
    files[f"{CPU}/cpufreq/scaling_cur_freq"] = "9999999\n"  # no core
    assert _write(tmp_path, files).clocks() == {"cpu": 2.4e9}


@pytest.mark.parametrize("text", [None, "", "0\n", "<unknown>\n"])
def test_a_clock_that_is_not_told_is_none(tmp_path: Path, text: str | None) -> None:
    files = {} if text is None else {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": text}
    linux = _write(tmp_path, files)
    assert linux.clocks() == {"cpu": None}
    assert "cpufreq" in linux.facts()["reasons"]["clock"]


def _zone(number: int, kind: str, temperature: str) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/temp": temperature}


def test_temperatures_by_the_type_of_their_zone(tmp_path: Path) -> None:
    files = {**_zone(0, "CPU-therm", "45500\n"), **_zone(1, "GPU-therm", "-1500\n")}
    files["sys/class/thermal/cooling_device0/type"] = "fan\n"
    assert _write(tmp_path, files).temperatures() == {"CPU-therm": 45.5, "GPU-therm": -1.5}


@pytest.mark.parametrize("text", ["-256000\n", "-255000\n", "", "n/a\n"])
def test_a_sensor_that_is_off_is_none_with_a_reason(tmp_path: Path, text: str) -> None:
    linux = _write(tmp_path, _zone(0, "PMIC-Die", text))
    assert linux.temperatures() == {"PMIC-Die": None}
    assert "PMIC-Die" in linux.facts()["reasons"]


def test_zones_of_one_type_are_told_apart(tmp_path: Path) -> None:
    files = {**_zone(0, "acpitz", "40000"), **_zone(1, "acpitz", "41000")}
    assert _write(tmp_path, files).temperatures() == {"acpitz": 40.0, "acpitz-1": 41.0}


def test_a_zone_without_a_type_is_none_of_ours(tmp_path: Path) -> None:
    linux = _write(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "40000"})
    assert linux.temperatures() == {}


def test_heat_events_are_counted_once_a_package(tmp_path: Path) -> None:
    files = {}
    for core, (own, package) in enumerate([(3, 7), (5, 7), (0, 7)]):
        folder = f"{CPU}/cpu{core}/thermal_throttle"
        files[f"{folder}/core_throttle_count"] = f"{own}\n"
        files[f"{folder}/package_throttle_count"] = f"{package}\n"
    assert _write(tmp_path, files).throttling() == {"cpu_core": 5, "cpu_package": 7}


def test_what_counts_no_heat_tells_of_none(tmp_path: Path) -> None:
    assert Linux(str(tmp_path)).throttling() == {}


def test_what_a_plain_machine_has_not(tmp_path: Path) -> None:
    linux = Linux(str(tmp_path))
    assert linux.power() == {}
    assert linux.energy() is None
    assert linux.mode() is None
    facts = linux.facts()
    assert facts["kind"] == "linux"
    assert facts["total_rails"] == []
    assert "no counter" in facts["reasons"]["energy"]
    linux.close()


def test_bytes_that_are_no_text_harm_nothing(tmp_path: Path) -> None:
    linux = _write(tmp_path, _zone(0, "soc", "50000"))
    (tmp_path / "sys/class/thermal/thermal_zone0/type").write_bytes(b"\xff\xfesoc\0\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_bytes(b"\xff\xfe\n")
    assert list(linux.temperatures().values()) == [50.0]
    assert linux.system()["load_average"] is None


def test_here_nothing_raises_and_nothing_is_negative() -> None:
    linux = Linux()
    state = linux.system()
    assert all(value is None or value >= 0 for value in state.values())
    assert all(value is None or value > 1e6 for value in linux.clocks().values())
    assert all(value is None or -60 < value < 150 for value in linux.temperatures().values())
    assert all(count is None or count >= 0 for count in linux.throttling().values())
