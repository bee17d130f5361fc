"""The journal loses nothing; the device's code stays Python 3.8 with few imports."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slmq_edge
from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.runner import environment, journal

PACKAGE = Path(slmq_edge.__file__).parent
ON_DEVICE = sorted([*(PACKAGE / "runner").rglob("*.py"), *(PACKAGE / "profiles").glob("*.py")])
END = {"event": "end", "load_average": 0.5}
PROBE = {"event": "probe", "result": None}


def _lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def test_events_come_back_and_are_echoed(tmp_path: Path) -> None:
    echoed: list[str] = []
    with journal.Journal(tmp_path / "j", echoed.append) as log:
        log.append(PROBE)
        assert journal.read(tmp_path / "j") == [PROBE]  # on disk before the next begins
        log.append(END)
    assert journal.read(tmp_path / "j") == [PROBE, END]
    assert [json.loads(line) for line in echoed] == [PROBE, END]


@pytest.mark.parametrize("torn", [b'{"event": "en', b"\x00\x00\x00", b"{}\n", b'"x"\n'])
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(_lines(PROBE) + torn)
    assert journal.read(path) == [PROBE]
    with journal.Journal(path) as log:
        log.append(END)
    assert path.read_bytes() == _lines(PROBE, END)


def test_damage_elsewhere_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(_lines(PROBE) + b"garbage\n" + _lines(END))
    with pytest.raises(Damaged, match="j is damaged in line 2"):
        journal.read(path)


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    with (
        journal.Journal(tmp_path / "j"),
        pytest.raises(SlmqError, match="in use"),
        journal.Journal(tmp_path / "j"),
    ):
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
EVENTS = st.sampled_from(sorted(journal.FIELDS)).flatmap(
    lambda name: st.fixed_dictionaries(
        {"event": st.just(name)}, optional=dict.fromkeys(journal.FIELDS[name], JSON)
    )
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | (EVENTS | JSON).map(lambda e: json.dumps(e).encode())))
def test_garbage_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(b"\n".join(lines))
    try:
        events = journal.read(path)
    except SlmqError as error:
        assert "garbage" in str(error)  # noqa: PT017  either outcome is right
    else:
        assert all(event["event"] in journal.FIELDS for event in events)


# --- the environment


def _machine(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def test_an_x86_machine(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name\t: Some CPU\nflags : fpu avx2 sse\n\n"
            "processor : 1\nmodel name : Other\n",
            "proc/meminfo": "MemTotal:        1000 kB\nMemFree: 5 kB\n",
            "proc/loadavg": "1.25 0.5 0.1 1/99 1234\n",
            "proc/sys/kernel/osrelease": "6.1.0\n",
            "etc/os-release": 'ID=x\nPRETTY_NAME="Some Linux 12"\n',
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
        },
    )
    seen = environment.capture(root)
    assert seen["cpu_model"] == "Some CPU"
    assert seen["cpu_flags"] == ["avx2"]
    assert seen["memory_total_bytes"] == 1_024_000
    assert seen["load_average"] == 1.25
    assert (seen["kernel"], seen["os"]) == ("6.1.0", "Some Linux 12")
    assert (seen["governor"], seen["frequency_hz"]) == ("ondemand", 2_400_000_000)
    assert seen["cores"] == len(os.sched_getaffinity(0))
    assert seen["onnxruntime"]


def test_an_arm_machine(tmp_path: Path) -> None:
    text = "Features\t: fp asimd asimddp\nCPU implementer : 0x41\nCPU part : 0xd0b\nModel : Pi\n"
    seen = environment.capture(_machine(tmp_path, {"proc/cpuinfo": text}))
    assert seen["cpu_model"] == "Arm implementer 0x41 part 0xd0b"
    assert seen["cpu_flags"] == ["asimddp"]


def test_an_arm_machine_whose_kernel_gives_all_cores_one_name(tmp_path: Path) -> None:
    text = (
        "processor : 0\nmodel name : ARMv8 Processor rev 1 (v8l)\nFeatures : fp asimd i8mm sve\n"
        "CPU implementer : 0x41\nCPU architecture: 8\nCPU part : 0xd42\n"
    )
    seen = environment.capture(_machine(tmp_path, {"proc/cpuinfo": text}))
    assert seen["cpu_model"] == "Arm implementer 0x41 part 0xd42"
    assert seen["cpu_flags"] == ["i8mm", "sve"]


def test_what_cannot_be_had_is_null(tmp_path: Path) -> None:
    seen = environment.capture(str(tmp_path))
    from_files = (
        "cpu_model cpu_flags governor frequency_hz load_average memory_total_bytes kernel os"
    )
    assert [seen[name] for name in from_files.split()] == [None] * 8


# --- the code itself


@pytest.mark.parametrize(
    "path",
    [*ON_DEVICE, PACKAGE / "errors.py"],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_the_devices_code_is_python_3_8_and_imports_little(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            imported |= names if module == "slmq_edge" else {module}
    ours = ("slmq_edge.errors", "slmq_edge.runner", "slmq_edge.profiles")
    for name in imported - {"slmq_edge"}:
        top = name.split(".")[0]
        allowed = top in sys.stdlib_module_names or top in ("numpy", "onnxruntime", "tensorrt")
        assert allowed or name.startswith(ours), name


def test_a_real_python_3_8_reads_the_devices_code() -> None:
    python = shutil.which("python3.8")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip("no working python3.8 on PATH")
    check = "import ast,sys\nfor p in sys.argv[1:]: compile(open(p).read(), p, 'exec')"
    subprocess.run([python, "-c", check, *map(str, ON_DEVICE)], check=True)
