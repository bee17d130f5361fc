"""Memory that runs out for real: the kernel's kill in a control group, and a limit of addresses."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmq_edge.profiles import Board
from slmq_edge.runner import job, journal
from slmq_edge.runner.agent import state
from slmq_edge.runner.measure import Workload
from slmq_edge.runner.work import write
from tests import supervised, toy_graph
from tests.supervised import until

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 400_000_000
RUNNER = "import runpy, sys\nsys.argv[1:] = ['job.json']\n"
RUNNER += "runpy.run_module('slmq_edge.runner', run_name='__main__', alter_sys=True)\n"
# Takes memory and touches it until the kernel says no to somebody, then waits.
GREEDY = f"""
import time
held = []
for _ in range(19):
    held.append(b"x" * {LIMIT_BYTES // 20})
    time.sleep(0.005)
time.sleep(60)
"""
ADDRESSES = 1 << 29
STARVED = f"""
import resource
import numpy as np
resource.setrlimit(resource.RLIMIT_AS, ({ADDRESSES}, {ADDRESSES}))
np.ones({ADDRESSES}, np.int8)
"""
WORK = Workload(prompt_tokens=6, new_tokens=500, repetitions=60, warmups=1, threads=1)


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group of version 1 that holds `LIMIT_BYTES`."""
    if os.geteuid() != 0:
        pytest.skip("control groups are made by root")
    if not (GROUPS / "memory.limit_in_bytes").exists():
        pytest.skip("there is no memory controller of control groups, version 1")
    made = GROUPS / f"slmq-edge-test-{uuid.uuid4().hex[:8]}"
    try:
        made.mkdir()
        (made / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        with contextlib.suppress(OSError):
            made.rmdir()
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        yield made
    finally:
        for pid in (made / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        until(lambda: not (made / "cgroup.procs").read_text().strip(), "the group is empty")
        made.rmdir()


def _write_job(tmp_path: Path, folder: Path) -> Path:
    """The folder of a run of the toy model; returns its journal."""
    bundle = toy_graph.write_bundle(tmp_path / "bundle")
    folder.mkdir()
    path = folder / "journal.jsonl"
    work = job.Job(bundle, path, WORK, "cpu", False, None, Board(), 0.0, again=False)
    write(work, folder / "job.json")
    return path


def _count(path: Path) -> int:
    events = journal.read(path) if path.exists() else []
    return sum(event["event"] == "repetition" for event in events)


def _kills(group: Path) -> int:
    """Processes of the group that the kernel killed for want of memory."""
    lines = (group / "memory.oom_control").read_text().splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


def test_what_was_measured_outlives_the_kernels_kill(tmp_path: Path, group: Path) -> None:
    """Another process takes the memory in mid-run; the kernel takes the runner, not us."""

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    path = _write_job(tmp_path, tmp_path / "run")
    with supervised.begin(tmp_path / "run", RUNNER, enter=enter) as supervisor:
        until(lambda: _count(path) >= 3, "three repetitions are taken")
        with subprocess.Popen([sys.executable, "-c", GREEDY], preexec_fn=enter) as greedy:
            supervisor.wait(supervised.PATIENCE_SECONDS)
            greedy.kill()
    now = state.read(tmp_path / "run")
    assert now["state"] == "oom_killed", now
    assert (now["exit_code"], supervisor.returncode) == (-signal.SIGKILL, 1)
    assert 3 <= now["kept"] == _count(path) < WORK.repetitions
    # At least the runner; the other may be taken as well before it stops asking.
    assert _kills(group) >= 1

    kept = journal.read(path)
    with supervised.begin(tmp_path / "run", RUNNER, enter=enter) as supervisor:
        supervisor.wait(supervised.PATIENCE_SECONDS)
    now = state.read(tmp_path / "run")
    assert (now["state"], now["kept"]) == ("done", WORK.repetitions)
    events = journal.read(path)
    assert events[: len(kept)] == kept
    counted = supervised.attempt(events)
    assert sorted(counted) == list(range(WORK.repetitions))


def test_a_limit_of_addresses_is_an_error_of_memory(tmp_path: Path) -> None:
    now = supervised.ended(tmp_path, STARVED)
    assert (now["state"], now["exit_code"]) == ("oom_error", 1)
    assert "Unable to allocate" in now["words"]


def test_nvmap_says_that_memory_is_in_pieces(tmp_path: Path) -> None:
    program = "import os, sys\n"
    program += "sys.stderr.write('NvMapMemAllocInternalTagged: 1075072515 error 12\\n')\n"
    now = supervised.ended(tmp_path, program + "sys.stderr.flush()\nos.abort()\n")
    assert now["state"] == "device_oom_fragmented"
    assert "a reboot of the board and the same command help" in now["text"]
