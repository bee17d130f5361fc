"""The runner on aarch64: its archive, every instruction emulated, checks and measures bundles.

``make test-arm64``. Function alone: see ``tests/arm64.py`` for why no time, memory or power of an
emulated run is looked at here, or means anything.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.remote import package
from slmq_edge.runner import job
from slmq_edge.runner.work import write
from tests import arm64, whole_way
from tests.arm64 import DOT_PRODUCTS, EVERYTHING, NO_DOT_PRODUCTS
from tests.test_runtimes import LOCKED, NEWEST
from tests.whole_way import FORMS, TOY, WORK, assert_whole, measured, seen_by

pytestmark = pytest.mark.arm64
FLAGS: dict[str, list[str]] = {
    NO_DOT_PRODUCTS: [],
    DOT_PRODUCTS: ["asimddp"],
    EVERYTHING: ["asimddp", "i8mm", "sve"],
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {form: whole_way.write(form, folder) for form in (TOY, *FORMS)}


def test_it_is_a_python3_as_any_other() -> None:
    """Programs on stdin, isolated, and children that are emulated too: what an agent relies on."""
    python = arm64.python_with(LOCKED)
    program = (
        "import platform, subprocess, sys\n"
        "tell = 'import platform, sys; print(sys.executable, platform.machine())'\n"
        "for flags in ([], ['-I']):\n"
        "    subprocess.run([sys.executable, *flags, '-c', tell], check=True)\n"
        "print(sys.executable, platform.machine(), *sys.argv[1:])\n"
    )
    command = [str(python), "-I", "-", "a b", "$HOME"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*[f"{python} aarch64"] * 2, f"{python} aarch64 a b $HOME"]


def test_the_agent_tells_what_is_there(tmp_path: Path) -> None:
    seen = seen_by(arm64.python_with(LOCKED), tmp_path)
    assert seen["executable"] == str(arm64.python_with(LOCKED))
    assert seen["packages"]["onnxruntime"] == LOCKED
    assert seen["packages"]["numpy"]


@pytest.mark.parametrize("release", [LOCKED, NEWEST])
@pytest.mark.parametrize("form", [TOY, *FORMS])
def test_a_bundle_is_measured(
    form: str, release: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = measured(arm64.python_with(release), bundles[form], tmp_path)
    assert_whole(run, form, tmp_path)
    assert run.device.name == "generic-aarch64"
    there = run.environment
    assert (there["machine"], there["onnxruntime"]) == ("aarch64", release)
    assert there["cpu_model"] == "Arm implementer 0x41 part 0xd0b"  # a Cortex-A76
    assert there["cpu_flags"] == FLAGS[DOT_PRODUCTS]


@pytest.mark.parametrize("release", [LOCKED, NEWEST])
@pytest.mark.parametrize("cpu", [NO_DOT_PRODUCTS, EVERYTHING])
@pytest.mark.parametrize("form", FORMS)
def test_cores_of_other_kinds(
    form: str, cpu: str, release: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Every kind has kernels of its own; where they are not of integers, nothing is measured."""
    events = run_archive(arm64.python_with(release), cpu, bundles[form], tmp_path)
    assert events[0]["environment"]["cpu_flags"] == FLAGS[cpu]
    if cpu == NO_DOT_PRODUCTS and form == "w4a8-b32":
        assert [event.get("event") for event in events] == ["begin", None]
        assert events[-1]["error"] == "Unsupported"
        assert "leaves its input in float on this CPU" in events[-1]["text"]
        return
    names = [event["event"] for event in events]
    assert names == ["begin", "probe", "golden", "load", "warmup", *["repetition"] * 2, "end"]
    assert events[1]["result"]["exact"]


def run_archive(python: Path, cpu: str, bundle: Path, folder: Path) -> list[dict[str, Any]]:
    """Run the archive as it is, without an agent; return what it says, line by line."""
    work = job.Job(bundle, folder / "journal.jsonl", WORK, "cpu", False, power_seconds=0.0)
    write(work, folder / "job.json")
    archive = package.runner_zipapp(folder)
    variables = {**os.environ, "QEMU_CPU": cpu}
    variables.pop("PYTHONPATH", None)
    command = [str(python), str(archive), str(folder / "job.json")]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    refused = bool(events) and "error" in events[-1]
    assert done.returncode == int(refused), done.stderr
    return events
