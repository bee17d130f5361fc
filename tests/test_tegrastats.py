"""tegrastats: lines that boards printed, garbage made of them, and a process that misbehaves."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.profiles.tegrastats import (
    Core,
    Engine,
    Iram,
    Microcode,
    Rail,
    Ram,
    Reading,
    Swap,
    Tegrastats,
    Temperature,
    parse,
    pieces,
)
from tests.shared import shared
from tests.tegrastats_replay import samples

SAMPLES = samples()
MIB = 1 << 20
REPLAY = [sys.executable, str(Path(__file__).parent / "tegrastats_replay.py")]
ONCE = ("printed", "ram", "swap", "iram", "cores", "mts")


def read(name: str) -> Reading:
    reading = parse(SAMPLES[name])
    assert reading.unknown == ()
    return reading


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_line_is_known_to_the_last_token(name: str) -> None:
    assert parse(SAMPLES[name]).unknown == ()


def test_so_is_every_line_of_the_collection() -> None:
    text = shared("facts/tegrastats_samples.txt").read_text().splitlines()
    lines = [line.lstrip("~") for line in text if line and not line.startswith("#")]
    assert len(lines) == 28
    for line in lines:
        reading = parse(line)
        assert reading.unknown == ()
        assert len(reading.temperatures) == len(re.findall(r"@-?[\d.]+C", line))
        assert len(reading.rails) == len(re.findall(r" -?\d+(?:mW)?/-?\d+(?:mW)?(?=[ /]|$)", line))


def test_a_nano_of_jetpack_4() -> None:
    reading = read("S06")
    assert reading.printed is None
    assert reading.ram == Ram(1923 * MIB, 3964 * MIB, 2, 2 * MIB)
    assert reading.swap == Swap(191 * MIB, 1982 * MIB, 6 * MIB)
    assert reading.iram == Iram(0, 252 * 1024, 252 * 1024)
    assert reading.cores == tuple(Core(percent, 1.224e9) for percent in (5, 4, 3, 6))
    assert reading.engine("EMC") == Engine("EMC", 0, (1.6e9,), False)
    assert reading.engine("GR3D") == Engine("GR3D", 0, (76e6,), False)
    assert reading.engine("APE") == Engine("APE", None, (25e6,), False)
    assert reading.temperatures[2] == Temperature("PMIC", 50.0, None)
    assert reading.watts() == {"POM_5V_IN": 1.75, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366}
    assert reading.rails[0] == Rail("POM_5V_IN", 1.75, 1.628, None)


def test_a_load_of_0_that_nobody_looked_at_is_unknown() -> None:
    reading = read("S02")
    assert reading.engine("EMC") == Engine("EMC", None, (), False)
    assert reading.engine("GR3D") == Engine("GR3D", None, (), False)
    parts = [parse(SAMPLES[f"F01{part}"]) for part in "abc"]
    assert [part.engine("EMC") for part in parts] == [
        Engine("EMC", 95, (), False),
        Engine("EMC", None, (1.6e9,), False),
        Engine("EMC", 95, (1.6e9,), False),
    ]
    assert parts[1].engine("GR3D") == Engine("GR3D", None, (1.098e9,) * 3, False)
    assert parse("").engine("EMC") is None


def test_cores_that_are_off_and_loads_of_an_xavier() -> None:
    assert read("S12").cores == (
        Core(3, 1.904e9),
        Core(7, 1.906e9),
        Core(1, 1.905e9),
        Core(0, 1.907e9),
        None,
        None,
    )
    assert read("S05").mts == Microcode(1, 9)
    assert read("C04").cores == (Core(1, 1.42e9), Core(2, 1.42e9))


def test_what_an_agx_calls_gpu_is_a_zone_and_a_rail() -> None:
    reading = read("S04")
    assert reading.watts() == {
        "GPU": 0.0, "CPU": 0.31, "SOC": 0.931, "CV": 0.0, "VDDRQ": 0.466, "SYS5V": 1.522,
    }  # fmt: skip
    assert Temperature("GPU", 42.0, None) in reading.temperatures


def test_zones_that_are_off_and_channels_that_lead_nowhere() -> None:
    reading = read("C02")
    assert reading.printed == "02-03-2024 16:07:54"
    assert reading.engine("GR3D2") == Engine("GR3D2", 0, (0.0,), False)
    assert reading.temperatures[0] == Temperature("CV0", None, None)
    assert [rail.name for rail in reading.rails].count("NC") == 2
    assert set(reading.watts()) == {
        "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO",
    }  # fmt: skip


def test_engines_between_rails_and_cold_zones() -> None:
    reading = read("C01")
    assert reading.ram == Ram(4700 * MIB, 7829 * MIB, 1, 512 * 1024)
    assert [one.celsius for one in reading.temperatures[:2]] == [-45.5, -51.0]
    assert [one.name for one in reading.engines] == ["EMC", "GR3D", "APE", "NVENC", "NVDEC"]
    assert [one.name for one in reading.rails] == ["VDD_IN", "VDD_GPU", "VDD_WIFI", "VDD_DDR"]


def test_the_forms_of_jetpack_7() -> None:
    orin = read("C03")
    assert orin.swap is None
    assert orin.temperatures[0] == Temperature("cpu", 52.5, 53.5)
    assert orin.rails[0] == Rail("VDD_GPU_SOC", 5.1, 5.101, 5.102)
    assert orin.engine("PVA0") == Engine("PVA0", None, (), True)
    thor = read("S21")
    assert thor.engine("GR3D") == Engine("GR3D", None, (314e6,) * 3, False)
    assert thor.watts()["VIN"] == 19.78
    assert read("S23").watts()["VDD_GPU"] == -0.392


def test_what_is_not_in_the_grammar_is_kept() -> None:
    reading = parse("RAM 1/2MB (lfb 3x4MB) NEW_UNIT 99 cpu@40C DLA9 on RAM 5/6MB (lfb 7x8MB)\n")
    assert reading.unknown == ("NEW_UNIT", "99", "DLA9", "on", "RAM 5/6MB (lfb 7x8MB)")
    assert reading.ram == Ram(MIB, 2 * MIB, 3, 4 * MIB)
    assert parse("RAM 1179/3983 VDD_IN 2532").unknown == ("RAM", "1179/3983", "VDD_IN", "2532")


def check(line: str) -> None:
    """Each sign of a line is in an item or among the unknown, and each item in the reading."""
    found = list(pieces(line))
    assert "".join("".join(match.group().split()) for _, match in found) == "".join(line.split())
    reading = parse(line)
    items = sum(getattr(reading, kind) is not None for kind in ONCE)
    lists = (reading.temperatures, reading.engines, reading.rails, reading.unknown)
    assert items + sum(map(len, lists)) == len(found)
    assert sum(kind is None for kind, _ in found) <= len(reading.unknown)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    check(text)


@given(st.lists(st.from_regex(r"[A-Z3]{1,4}(_FREQ)? ?@?-?[0-9]*[%C/]?(mW)?[0-9]*", fullmatch=True)))
def test_any_text_of_its_signs_is_read(words: list[str]) -> None:
    check(" ".join(words))


def test_mutated_lines_lose_nothing() -> None:
    dice = random.Random(6)
    lines = list(SAMPLES.values())
    for _ in range(3000):
        check(mutated(dice, lines))


def mutated(dice: random.Random, lines: list[str]) -> str:
    line = dice.choice(lines)
    for _ in range(dice.randint(1, 4)):
        at, to = sorted(dice.choices(range(len(line) + 1), k=2))
        words = line.split(" ")
        change = dice.randrange(6)
        if change == 0:
            line = line[:at]
        elif change == 1:
            line = line[:to] + line[at:]
        elif change == 2:
            dice.shuffle(words)
            line = " ".join(words)
        elif change == 3:
            raw = bytes(dice.randrange(256) for _ in range(dice.randint(1, 5)))
            line = line[:at] + raw.decode("utf-8", errors="replace") + line[at:]
        elif change == 4:
            line = line[:at] + line[to:]
        else:
            line = f"{line} {dice.choice(lines)}"
    return line


def test_numbers_and_lines_without_end() -> None:
    check(f"RAM {'9' * 5000}/1MB (lfb 1x4MB) cpu@{'9' * 5000}C VDD_IN 1/{'1' * 13}")
    began = time.process_time()
    for text in ("CPU [" * 20_000, "A" * 100_000, "1%@1," * 20_000, "x@" * 50_000):
        check(text)
    assert time.process_time() - began < 10


# --- the process


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def replay(*words: str, interval_ms: int = 10) -> Tegrastats:
    return Tegrastats([*REPLAY, *words], interval_ms)


def test_the_latest_line_is_kept_and_the_process_ended() -> None:
    stats = replay("S15,S16")
    assert stats.latest() is None
    assert stats.reason == "tegrastats was not started"
    try:
        assert stats.start()
        assert set(stats.names) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
        until(lambda: stats.watts()["VDD_IN"] == 16.321)
        until(lambda: stats.watts()["VDD_IN"] == 5.251)
        process = stats._process
        assert process is not None
        assert os.getpgid(process.pid) == process.pid != os.getpgrp()
    finally:
        stats.close()
    assert process.poll() == -signal.SIGTERM
    assert stats.watts() == dict.fromkeys(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"))
    assert set(stats.reasons.values()) == {"tegrastats was ended"}
    stats.close()


def test_one_line_is_one_reading() -> None:
    stats = replay("S16", "--after", "1", "--then", "hang")
    try:
        assert stats.start()
        assert stats.watts() is stats.watts()
    finally:
        stats.close()


def test_only_our_process_is_ended() -> None:
    others = subprocess.Popen([*REPLAY, "S15", "--interval", "10"], stdout=subprocess.DEVNULL)
    try:
        stats = replay("S15")
        stats.start()
        stats.close()
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


def test_none_there() -> None:
    stats = Tegrastats(["/no/tegrastats"], 10)
    assert not stats.start()
    assert stats.watts() == {}
    assert "is not here" in str(stats.reason)
    stats.close()
    forbidden = Tegrastats(["/proc/self/status"], 10)
    assert not forbidden.start()
    assert "cannot be started: Permission denied" in str(forbidden.reason)


def test_one_that_dies_says_so_and_with_which_words() -> None:
    stats = replay("S15", "--after", "2")
    stats.start()
    until(lambda: stats.latest() is None)
    assert stats.reason == "tegrastats ended with exit code 1: the driver is gone"
    assert stats.watts() == dict.fromkeys(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"))
    stats.close()


def test_one_that_falls_silent_tells_nothing_old() -> None:
    stats = replay("S15", "--after", "2", "--then", "hang")
    try:
        assert stats.start()
        until(lambda: stats.latest() is None)
        assert re.fullmatch(r"tegrastats has told nothing for \d+\.\d s", str(stats.reason))
    finally:
        stats.close()


def test_a_silent_one_is_not_waited_for_long() -> None:
    stats = Tegrastats([sys.executable, "-c", "import time; time.sleep(60)"], 10)
    began = time.monotonic()
    assert not stats.start(0.2)
    assert time.monotonic() - began < 2
    assert stats.reason == "tegrastats told nothing yet"
    stats.close()
    assert time.monotonic() - began < 5


def test_a_line_that_was_cut_off_is_not_believed() -> None:
    stats = replay("S15", "--after", "1", "--then", "cut")
    taken: list[str] = []
    keep = stats._take
    stats._take = lambda line: taken.append(line) or keep(line)  # type: ignore[method-assign, func-returns-value]
    stats.start()
    until(lambda: stats.latest() is None)
    assert taken == [f"{SAMPLES['S15']}\n"]
    assert stats.reason == "tegrastats ended with exit code 1"
    stats.close()


def test_unknown_tokens_are_counted() -> None:
    stats = Tegrastats(["/no/tegrastats"])
    for number in range(200):
        stats._take(f"RAM 1/2MB (lfb 3x4MB) NEW {number}\n")
    assert stats.unknown["NEW"] == 200
    assert stats.unknown["7"] == 1
    assert sum(stats.unknown.values()) == 400
    assert len(stats.unknown) <= 65
    assert stats._take("cannot open /dev/x\n") == "cannot open /dev/x"


def test_when_its_reader_is_killed_it_ends_by_itself(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from slmq_edge.profiles.tegrastats import Tegrastats\n"
        f"stats = Tegrastats({[*REPLAY, 'S15']!r}, 10)\n"
        "stats.start()\n"
        "print(stats._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    with reader.stdout:
        pid = int(reader.stdout.readline())
    reader.kill()
    reader.wait()
    until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
