"""The Jetson adapter on fake trees of each release: what it reads, and what it must not touch."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import profiles
from slmq_edge.errors import NotFound
from slmq_edge.profiles import nvmap
from slmq_edge.profiles.board import Board, Mode
from slmq_edge.profiles.jetson import Jetson
from tests.boards import BOARDS, DEVFREQ, HWMON, nvmap_clients, plant, replay, stand_in
from tests.test_jtop import jtop_module

ORIN = (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),)
JETSONS = sorted(name for name in BOARDS if name.startswith("jetson"))
NOWHERE = {"tegrastats": ["/no/tegrastats"], "nvpmodel": ["/no/nvpmodel"]}
Make = Callable[..., Jetson]


@pytest.fixture
def jetson(tmp_path: Path) -> Iterator[Make]:
    """Makes the adapter of a board's tree; without stand-ins it finds no program to start."""
    made: list[Jetson] = []

    def make(
        board: str,
        total_rails: Sequence[Sequence[str]] = (),
        source: str | None = None,
        **commands: Sequence[str],
    ) -> Jetson:
        root = tmp_path / board
        if not root.exists():
            plant(root, board)
        rails = tuple(tuple(one) for one in total_rails)
        known = Board(name=board, total_rails=rails, power_source=source)
        made.append(Jetson(str(root), known, {**NOWHERE, **commands}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def reasons(one: Jetson) -> Mapping[str, str]:
    return one.facts()["reasons"]


@pytest.mark.parametrize("board", JETSONS)
def test_every_none_has_a_reason_and_all_of_it_is_json(board: str, jetson: Make) -> None:
    one = jetson(board)
    told = [*one.memory().items(), *one.system().items(), *one.power().items()]
    told += one.throttling().items()
    told += [(f"{name} clock", value) for name, value in one.clocks().items()]
    told += [(f"{name} temperature", value) for name, value in one.temperatures().items()]
    facts = json.loads(json.dumps(one.facts()))
    why = facts["reasons"]
    assert facts["kind"] == "jetson"
    assert {name for name, value in told if value is None} <= set(why)
    assert one.energy() is None
    assert "energy" in reasons(one)


@pytest.mark.parametrize(
    ("board", "sets", "total"),
    [
        ("jetson-nano-jp4", (("POM_5V_IN",),), ["POM_5V_IN"]),
        ("jetson-xavier-nx-jp5", (("VDD_IN",),), ["VDD_IN"]),
        ("jetson-orin-nano-jp6", (("VIN",), ("VDD_IN",)), ["VDD_IN"]),
        ("jetson-agx-orin-jp6", ORIN, list(ORIN[0])),
        ("jetson-agx-orin-jp7", ORIN, list(ORIN[0])),
        ("jetson-agx-thor-jp7", (("VIN",),), ["VIN"]),
        ("jetson-agx-thor-jp7", (), []),
    ],
)
def test_power_comes_from_sysfs(
    board: str, sets: Sequence[Sequence[str]], total: list[str], jetson: Make
) -> None:
    one = jetson(board, sets)
    assert set(total) <= set(one.power())
    facts = one.facts()
    assert facts["total_rails"] == total
    assert facts["power_source"] == "sysfs"
    assert ("total_rails" in facts["reasons"]) == (not total)


def test_a_broken_sensor_is_none_with_a_reason_and_never_0(jetson: Make, tmp_path: Path) -> None:
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]])
    assert one.power()["VDD_IN"] == pytest.approx(16.322064)
    (tmp_path / "jetson-orin-nano-jp6" / HWMON / "hwmon1/curr1_input").unlink()
    power = one.power()
    assert power["VDD_IN"] is None
    assert power["VDD_SOC"] == pytest.approx(3.119952)
    assert "curr1_input: No such file" in reasons(one)["VDD_IN"]
    (tmp_path / "jetson-orin-nano-jp6" / HWMON / "hwmon1/curr1_input").write_text("3254\n")
    assert one.power()["VDD_IN"] == pytest.approx(16.322064)
    assert "VDD_IN" not in reasons(one)


def without_monitors(root: Path, board: str, kind: str = "ina") -> None:
    plant(root / board, board)
    for name in (root / board / HWMON).glob("*/name"):
        if name.read_text().startswith(kind):
            name.write_text("other\n")


@pytest.mark.parametrize("board", ["jetson-orin-nano-jp6", "jetson-agx-orin-jp7"])
def test_without_monitors_in_sysfs_tegrastats_tells(
    board: str, jetson: Make, tmp_path: Path
) -> None:
    without_monitors(tmp_path, board)
    one = jetson(board, [["VDD_IN"], *ORIN], tegrastats=replay(board))
    power = one.power()
    facts = one.facts()
    assert facts["power_source"] == "tegrastats"
    assert facts["unknown_tokens"] == {}
    assert sum(power[name] or 0 for name in facts["total_rails"]) == pytest.approx(
        16.321 if board == "jetson-orin-nano-jp6" else 13.8
    )


def test_where_sysfs_lacks_the_total_tegrastats_is_asked(jetson: Make, tmp_path: Path) -> None:
    without_monitors(tmp_path, "jetson-agx-thor-jp7", "ina238")
    one = jetson("jetson-agx-thor-jp7", [["VIN"]], tegrastats=replay("jetson-agx-thor-jp7"))
    assert one.power()["VIN"] == 19.78
    assert one.facts()["power_source"] == "tegrastats"
    assert one.clocks()["gpu"] == 314e6
    assert one.clocks()["emc"] == 2.75e9
    deaf = jetson("jetson-agx-thor-jp7", [["VIN"]])
    assert deaf.power()["VDD_GPU"] == pytest.approx(-0.4)
    assert deaf.facts()["power_source"] == "sysfs"
    assert "VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0" in reasons(deaf)["total_rails"]
    assert deaf.facts()["total_rails"] == []


def test_no_source_at_all_says_what_was_looked_for(jetson: Make, tmp_path: Path) -> None:
    without_monitors(tmp_path, "jetson-orin-nano-jp6")
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]])
    assert one.power() == {}
    assert one.facts()["power_source"] is None
    assert "no ina3221 or ina238 in /sys, and tegrastats is not here" in reasons(one)["power"]
    only = jetson("jetson-orin-nano-jp6", source="sysfs")
    assert only.power() == {}
    assert reasons(only)["power"] == "no ina3221 or ina238 in /sys"


def test_a_tegrastats_that_dies_leaves_none_with_its_words(jetson: Make) -> None:
    command = [*replay("jetson-orin-nano-jp6"), "--after", "1"]
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]], "tegrastats", tegrastats=command)
    one.power()
    end = time.monotonic() + 5
    while one.power()["VDD_IN"] is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert set(one.power()) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert "ended with exit code 1: the driver is gone" in reasons(one)["VDD_IN"]
    assert one.facts()["total_rails"] == ["VDD_IN"]


def test_an_unknown_source_is_refused_at_once(jetson: Make) -> None:
    with pytest.raises(NotFound, match=r"'jetop' \(did you mean jtop\?\); known: sysfs"):
        jetson("jetson-orin-nano-jp6", source="jetop")


def test_jtop_where_the_sheet_asks_for_it(jetson: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    power = {"rail": {"VDD_SOC": {"power": 2500}}, "tot": {"power": 9000, "name": "VDD_IN"}}
    monkeypatch.setitem(sys.modules, "jtop", jtop_module(power))
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]], "jtop")
    assert one.power() == {"VDD_SOC": 2.5, "VDD_IN": 9.0}
    assert one.facts()["power_source"] == "jtop"
    assert one.facts()["total_rails"] == ["VDD_IN"]
    one.close()
    assert one.power() == {"VDD_SOC": None, "VDD_IN": None}
    assert reasons(one)["VDD_IN"] == "jtop was ended"


def test_jtop_that_was_asked_for_has_no_stand_in(
    jetson: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]], "jtop")
    assert one.power() == {}
    assert "jtop is not installed" in reasons(one)["power"]


@pytest.mark.parametrize(
    ("board", "cpu", "gpu", "emc"),
    [
        ("jetson-nano-jp4", 1.224e9, 76.8e6, None),
        ("jetson-xavier-nx-jp5", 1.39776e9, 114.75e6, None),
        ("jetson-orin-nano-jp6", 1.4976e9, 612e6, 2.133e9),
        ("jetson-agx-orin-jp6", 1.4976e9, 306e6, None),
        ("jetson-agx-thor-jp7", 972e6, None, None),
    ],
)
def test_clocks(board: str, cpu: float, gpu: float | None, emc: float | None, jetson: Make) -> None:
    assert jetson(board).clocks() == {"cpu": cpu, "gpu": gpu, "emc": emc}


WATCHED = """
import sys
from slmq_edge.profiles.board import Board
from slmq_edge.profiles.jetson import Jetson

touched = []
units = ("gpu-gpc-0", "gpu-nvd-0")


def watch(event, args):
    if any(unit in str(args) for unit in units):
        touched.append((event, args))


sys.addaudithook(watch)
one = Jetson(sys.argv[1], Board(total_rails=(("VIN",),)), {word: ["/no"] for word in COMMANDS})
one.reset_peak(), one.memory(), one.system(), one.power(), one.clocks(), one.temperatures()
one.throttling(), one.mode(), one.energy()
print(one.facts()["reasons"]["gpu clock"], touched)
"""


@pytest.mark.parametrize("named", [True, False])
def test_thors_frequency_files_are_never_touched(named: bool, tmp_path: Path) -> None:
    """They are pipes here: whoever opens one waits for ever, and every open is recorded."""
    plant(tmp_path, "jetson-agx-thor-jp7")
    if named:  # by the device tree; else, as in a container, only the names of the files protect
        (tmp_path / DEVFREQ / "17000000.gpu").symlink_to("gpu-gpc-0")
    else:
        (tmp_path / "proc/device-tree/compatible").unlink()
    program = f"COMMANDS = {list(NOWHERE)}{WATCHED}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=20
    )
    assert done.stdout.endswith(" []\n"), done.stdout + done.stderr
    assert ("lock up the kernel" in done.stdout) == named


def refuse(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    plain = Path.read_text

    def read_text(path: Path, *arguments: Any, **keywords: Any) -> str:
        if part in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "read_text", read_text)


def test_a_plain_user_is_told_what_needs_root(
    jetson: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = jetson("jetson-orin-nano-jp6")
    refuse(monkeypatch, "sys/kernel/debug")
    assert one.clocks()["emc"] is None
    assert one.memory()["nvmap_process"] is None
    system = one.system()
    assert system["gpu_processes"] is None
    assert system["nvmap_used_bytes"] == 2_600_000 * 1024
    for name in ("emc clock", "nvmap_process", "gpu_processes"):
        assert "readable by root alone" in reasons(one)[name]


def test_gpu_memory_of_this_process(jetson: Make, tmp_path: Path) -> None:
    one = jetson("jetson-orin-nano-jp6")
    assert one.memory()["nvmap_process"] is None
    assert one.system()["gpu_processes"] == 2
    assert "no client of nvmap" in reasons(one)["nvmap_process"]
    rows = [
        ("user", "python3", os.getpid(), "1024K"),
        ("user", "python3", os.getpid(), "2M"),
        ("user", "Xorg", 77, "1K"),
    ]
    root = tmp_path / "jetson-orin-nano-jp6"
    for name, text in nvmap_clients(*rows).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    assert one.memory()["nvmap_process"] == 3 << 20
    assert one.system()["gpu_processes"] == 1
    assert "nvmap_process" not in reasons(one)
    for comm in ("proc/self/comm", f"proc/{os.getpid()}/comm"):
        (root / comm).write_text("other\n")  # a container's numbers are other processes outside
    assert one.memory()["nvmap_process"] is None
    assert one.system()["gpu_processes"] is None
    assert "container" in reasons(one)["gpu_processes"]


def test_clients_with_blanks_in_their_names() -> None:
    text = nvmap_clients(("user", "Web Content", 12, "7K"), ("vi", "kernel", 0, "9K"))
    assert nvmap.clients(text[nvmap.CLIENTS]) == [nvmap.Client("Web Content", 12, 7 << 10)]
    assert nvmap.clients("garbage\n\n") == []


def test_the_largest_free_block(jetson: Make, tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    system = jetson("jetson-nano-jp4").system()
    assert system["largest_free_block_bytes"] == page << 9
    assert system["largest_free_blocks"] == 2
    two_zones = "Node 0, zone DMA 5 0 3\nNode 0, zone Normal 9 1 4\nnonsense\n"
    assert nvmap.largest_free(two_zones, 4096) == nvmap.Blocks(7, 16384)
    assert nvmap.largest_free("Node 0, zone DMA 0 0\n", 4096) is None
    assert nvmap.largest_free("", 4096) is None


def test_a_hidden_buddyinfo_leaves_lfb_to_tegrastats(jetson: Make, tmp_path: Path) -> None:
    board = "jetson-orin-nano-jp6"
    one = jetson(board, [["VDD_IN"]], "tegrastats", tegrastats=replay(board))
    (tmp_path / board / "proc/buddyinfo").unlink()
    assert one.system()["largest_free_block_bytes"] is None
    assert "cannot be read" in reasons(one)["largest_free_block_bytes"]
    one.power()
    assert one.system()["largest_free_block_bytes"] == 4 << 20
    assert one.system()["largest_free_blocks"] == 12


def test_thors_gpu_memory_is_not_0(jetson: Make) -> None:
    one = jetson("jetson-agx-thor-jp7")
    system = one.system()
    assert system["nvmap_used_bytes"] is None
    assert system["gpu_processes"] is None
    assert one.memory()["nvmap_process"] is None
    assert "does not go through nvmap" in reasons(one)["nvmap_process"]


def test_zones_that_are_off_and_placeholders_are_none(jetson: Make) -> None:
    orin = jetson("jetson-orin-nano-jp6")
    assert orin.temperatures() == {
        "cpu-thermal": 57.125, "gpu-thermal": 58.625, "cv0-thermal": None, "soc0-thermal": 56.625,
    }  # fmt: skip
    assert "has no power" in reasons(orin)["cv0-thermal temperature"]
    nano = jetson("jetson-nano-jp4")
    assert nano.temperatures()["PMIC-Die"] is None
    assert reasons(nano)["PMIC-Die temperature"] == "a placeholder"


def test_without_zones_tegrastats_tells_where_it_runs(jetson: Make, tmp_path: Path) -> None:
    board = "jetson-agx-orin-jp7"
    plant(tmp_path / board, board)
    for file in (tmp_path / board).glob("sys/class/thermal/*/type"):
        file.unlink()
    one = jetson(board, ORIN, "tegrastats", tegrastats=replay(board))
    assert one.temperatures() == {}
    one.power()
    assert one.temperatures() == {"cpu": 52.5, "gpu": 47.5}


def test_alarms_have_names_where_they_are_known(jetson: Make, tmp_path: Path) -> None:
    orin = jetson("jetson-agx-orin-jp6")
    assert orin.throttling() == {
        "oc1_under_voltage": 0, "oc2_average_current": 2, "oc3_peak_current": 11,
    }  # fmt: skip
    (tmp_path / "jetson-agx-orin-jp6" / HWMON / "hwmon4/oc3_event_cnt").write_text("12\n")
    assert orin.throttling()["oc3_peak_current"] == 12
    assert jetson("jetson-agx-thor-jp7").throttling() == {"oc1": 0, "oc2": 0, "oc3": 0}
    nano = jetson("jetson-nano-jp4")
    assert nano.throttling() == {}
    assert "no soctherm_oc" in reasons(nano)["throttling"]


@pytest.mark.parametrize(
    ("board", "mode"),
    [
        ("jetson-nano-jp4", Mode("MAXN", 0)),
        ("jetson-xavier-nx-jp5", Mode("20W_6CORE", 8)),
        ("jetson-orin-nano-jp6", Mode("15W", 0)),
        ("jetson-agx-orin-jp6", Mode("30W", 2)),
        ("jetson-agx-thor-jp7", Mode("120W", 1)),
    ],
)
def test_the_mode_by_its_name(board: str, mode: Mode, jetson: Make) -> None:
    assert jetson(board).mode() == mode


def test_without_its_files_nvpmodel_is_asked(jetson: Make, tmp_path: Path) -> None:
    board = "jetson-orin-nano-jp6"
    answers = {"-q": "NV Power Mode: MAXN_SUPER\n2\n"}
    one = jetson(board, nvpmodel=stand_in(tmp_path, "nvpmodel", answers))
    status = tmp_path / board / "var/lib/nvpmodel/status"
    status.write_text("pmode:0099\n")
    assert one.mode() == Mode("MAXN_SUPER", 2)
    status.unlink()
    assert one.mode() == Mode("MAXN_SUPER", 2)
    assert "mode" not in reasons(one)
    mute = jetson(board, nvpmodel=stand_in(tmp_path, "mute", {"-q": "NVPM ERROR: not root\n"}, 1))
    assert mute.mode() is None
    assert reasons(mute)["mode"] == "nvpmodel -q says: NVPM ERROR: not root"
    none = jetson(board)
    assert none.mode() is None
    assert "/etc/nvpmodel.conf" in reasons(none)["mode"]
    assert "No such file or directory" in reasons(none)["mode"]


def test_nothing_is_started_before_power_or_facts_are_asked_for(jetson: Make) -> None:
    command = replay("jetson-orin-nano-jp6")
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]], "tegrastats", tegrastats=command)
    one.memory()
    one.system()
    one.clocks()
    one.temperatures()
    assert threading.active_count() == 1 or not any(
        thread.name == "tegrastats" for thread in threading.enumerate()
    )
    one.power()
    assert any(thread.name == "tegrastats" for thread in threading.enumerate())
    one.close()
    assert not any(thread.name == "tegrastats" for thread in threading.enumerate())


def test_tegrastats_rests_where_no_power_is_asked_for(jetson: Make) -> None:
    def runs() -> bool:
        return any(thread.name == "tegrastats" for thread in threading.enumerate())

    command = replay("jetson-orin-nano-jp6")
    one = jetson("jetson-orin-nano-jp6", [["VDD_IN"]], "tegrastats", tegrastats=command)
    facts = one.facts()
    assert facts["total_rails"] == ["VDD_IN"]
    assert not runs()
    rails = dict(one.power())
    assert rails["VDD_IN"] is not None
    assert runs()
    one.rest()
    assert not runs()
    assert one.facts() == facts
    assert not runs()
    assert set(one.power()) == set(rails)
    assert one.power()["VDD_IN"] is not None


def test_a_machine_that_is_no_jetson(tmp_path: Path) -> None:
    one = Jetson(str(tmp_path), commands=NOWHERE)
    for call in (one.memory, one.system, one.clocks):
        assert set(call().values()) == {None}
    assert one.power() == {}
    assert one.mode() is None
    assert profiles.load("jetson", Board(power_source="sysfs")).facts()["kind"] == "jetson"
