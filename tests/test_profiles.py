"""How a device is measured: memory of this process, from /proc or from a fake one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import profiles
from slmq_edge.errors import NotFound
from slmq_edge.profiles.cpu import Cpu
from slmq_edge.profiles.fake import Fake, FakeClock

STATUS = """Name:\tpython
VmPeak:\t  900000 kB
VmHWM:\t  2000 kB
VmRSS:\t  1500 kB
RssAnon:\t  1000 kB
RssFile:\t  500 kB
"""


def _machine(root: Path, status: str | None) -> Cpu:
    folder = root / "proc" / "self"
    folder.mkdir(parents=True)
    if status is not None:
        (folder / "status").write_text(status)
        (folder / "clear_refs").write_text("")
    return Cpu(str(root))


@pytest.mark.parametrize("kind", sorted(profiles.PROFILES))
def test_every_adapter_keeps_the_contract(kind: str) -> None:
    profile = profiles.load(kind)
    profile.reset_peak()
    assert all(value is None or value > 0 for value in profile.memory().values())
    assert profile.facts()["kind"] == kind


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"did you mean cpu\?.*known: cpu, .*fake"):
        profiles.load("cpus")


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    cpu = _machine(tmp_path, STATUS)
    assert cpu.memory() == {
        "cpu_peak_rss": 2_048_000,
        "cpu_rss_anon": 1_024_000,
        "cpu_rss_file": 512_000,
    }
    assert cpu.facts()["reasons"] == {}


def test_a_process_whose_name_is_cut_within_a_letter(tmp_path: Path) -> None:
    cpu = _machine(tmp_path, STATUS)
    status = tmp_path / "proc/self/status"
    status.write_bytes(status.read_bytes().replace(b"python", b"messger\xc3"))
    assert cpu.memory()["cpu_rss_anon"] == 1_024_000


def test_a_reset_writes_5(tmp_path: Path) -> None:
    _machine(tmp_path, STATUS).reset_peak()
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"


def test_without_proc_all_is_none_with_a_reason(tmp_path: Path) -> None:
    cpu = _machine(tmp_path, None)
    assert set(cpu.memory().values()) == {None}
    assert "no /proc/self/status" in cpu.facts()["reasons"]["cpu_peak_rss"]


def test_an_old_kernel_without_rssanon(tmp_path: Path) -> None:
    cpu = _machine(tmp_path, STATUS.replace("RssAnon", "Other"))
    memory = cpu.memory()
    assert memory["cpu_rss_anon"] is None
    assert memory["cpu_rss_file"] == 512_000
    assert "no RssAnon" in cpu.facts()["reasons"]["cpu_rss_anon"]


def test_a_peak_that_cannot_be_reset_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = _machine(tmp_path, STATUS)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    cpu.reset_peak()
    assert cpu.memory()["cpu_peak_rss"] is None
    assert cpu.memory()["cpu_rss_anon"] == 1_024_000
    assert "Permission denied" in cpu.facts()["reasons"]["cpu_peak_rss"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no clear_refs here")
def test_peaks_belong_to_a_phase() -> None:
    cpu = Cpu()
    cpu.reset_peak()
    block = bytearray(b"x" * 60_000_000)
    high = cpu.memory()["cpu_peak_rss"]
    del block
    cpu.reset_peak()
    low = cpu.memory()["cpu_peak_rss"]
    if high is None or low is None:
        pytest.skip("this kernel does not tell or reset peaks")
    assert high - low > 50_000_000


def test_the_fake_repeats_its_last_reading() -> None:
    fake = Fake(memory=[{"a": 1}, {"a": 2}])
    assert [fake.memory() for _ in range(3)] == [{"a": 1}, {"a": 2}, {"a": 2}]


def test_the_fake_clock_moves_when_told() -> None:
    clock = FakeClock()
    clock.advance(1.5)
    assert clock() == clock() == 1.5


def _package(root: Path, name: str, kind: str, microjoules: int, top: int = 1_000_000) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(f"{top}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_energy_is_that_of_all_packages_and_of_no_part_twice(tmp_path: Path) -> None:
    counters = [_package(tmp_path, f"intel-rapl:{n}", f"package-{n}", 100 * n) for n in (0, 1)]
    _package(tmp_path, "intel-rapl:0:0", "core", 5)
    _package(tmp_path, "intel-rapl:2", "psys", 5)
    cpu = Cpu(str(tmp_path))
    assert cpu.energy() == 0.0
    counters[0].write_text("400000\n")
    counters[1].write_text("200100\n")
    assert cpu.energy() == pytest.approx(0.6)
    (tmp_path / "sys/class/powercap/intel-rapl:0:0/energy_uj").write_text("999999")
    assert cpu.energy() == pytest.approx(0.6)


def test_a_counter_that_runs_over_goes_on(tmp_path: Path) -> None:
    counter = _package(tmp_path, "intel-rapl:0", "package-0", 900_000)
    cpu = Cpu(str(tmp_path))
    assert cpu.facts()["energy_of"] == "the processor packages"
    cpu.energy()
    for value, joules in ((950_000, 0.05), (50_000, 0.15), (40_000, 1.14)):
        counter.write_text(str(value))
        assert cpu.energy() == pytest.approx(joules)


def test_without_a_counter_energy_is_none_with_a_reason(tmp_path: Path) -> None:
    cpu = Cpu(str(tmp_path))
    assert cpu.energy() is None
    assert "no RAPL counter" in cpu.facts()["reasons"]["energy"]
    counter = _package(tmp_path, "intel-rapl:0", "package-0", 1)
    assert cpu.energy() is None
    other = Cpu(str(tmp_path))
    assert other.energy() == 0.0
    counter.write_text("not a number")
    assert other.energy() is None
    assert "cannot be read" in other.facts()["reasons"]["energy"]


def test_a_counter_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "intel-rapl:0", "package-0", 1)
    plain = Path.read_text

    def refuse(path: Path, *arguments: Any, **keywords: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "read_text", refuse)
    cpu = Cpu(str(tmp_path))
    assert cpu.energy() is None
    assert "root alone" in cpu.facts()["reasons"]["energy"]
