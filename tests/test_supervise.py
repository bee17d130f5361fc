"""A supervisor and its runner, in real processes: every way to end, and what is left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from slmq_edge.runner.agent import state
from tests import supervised
from tests.supervised import SLEEPS, gone, until

KEEPS_THREE = """
import json
with open("journal.jsonl", "a") as stream:
    for index in range(3):
        stream.write(json.dumps({"event": "repetition", "index": index}) + "\\n")
"""
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS
# Leaves a process behind that has its output and is in its group.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("child", "w").write(str(child.pid))
"""


def _running(folder: Path) -> state.State:
    until((folder / "there").exists, "the runner is there")
    now = state.read(folder)
    assert now["state"] == "running"
    return now


def test_a_run_comes_to_its_end(tmp_path: Path) -> None:
    began = time.time()
    now = supervised.ended(tmp_path, KEEPS_THREE + "print('words')\n")
    assert (now["state"], now["exit_code"], now["kept"]) == ("done", 0, 3)
    assert now["after"] == "repetition"
    assert began <= now["started"] <= now["ended"] <= time.time()
    assert now["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (tmp_path / "stdout").read_text() == "words\n"
    assert [path.name for path in tmp_path.glob(".state*")] == []


def test_what_is_kept_counts_each_once(tmp_path: Path) -> None:
    """A second try takes the place of the first; passes of a protocol are of no try."""
    passes = [{"event": "forward", "index": index} for index in (0, 1, 1)]
    tries = [{"event": "repetition", "index": 0}, {"event": "again"}]
    scores = {"event": "scores", "first": 7, "logprobs": [-1.0, -2.0], "greedy": [True, False]}
    for events, kept in (([*tries, *passes], 2), ([*passes, *tries, tries[0]], 3), ([scores], 2)):
        lines = "".join(json.dumps(event) + "\n" for event in events)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "journal.jsonl").write_text(lines)
        assert supervised.ended(folder, "")["kept"] == kept


def test_a_refusal_keeps_its_class_and_is_of_this_attempt(tmp_path: Path) -> None:
    refuses = "import json, sys\nprint(json.dumps({'error': 'Damaged', 'text': 'x is bad'}))\n"
    now = supervised.ended(tmp_path, refuses + "sys.exit(1)\n")
    assert now["state"] == "failed"
    assert now["refusal"] == {"error": "Damaged", "text": "x is bad"}
    now = supervised.ended(tmp_path, "raise KeyError('ours')\n")
    assert (now["state"], now["refusal"], now["exit_code"]) == ("failed", None, 1)
    assert "KeyError" in now["text"]
    assert "Traceback" in now["words"]


@pytest.mark.parametrize("program", [SLEEPS, STUBBORN])
def test_the_deadline_ends_the_whole_group(program: str, tmp_path: Path) -> None:
    now = supervised.ended(tmp_path, PARENT + program, deadline_seconds=1.0)
    assert now["state"] == "deadline"
    assert now["exit_code"] == (-signal.SIGTERM if program is SLEEPS else -signal.SIGKILL)
    assert "after 1 s" in now["text"]
    until(lambda: gone([int((tmp_path / "child").read_text())]), "its child is gone too")


def test_what_a_runner_leaves_behind_is_ended(tmp_path: Path) -> None:
    assert supervised.ended(tmp_path, PARENT)["state"] == "done"
    until(lambda: gone([int((tmp_path / "child").read_text())]), "its child is gone too")


def test_the_runner_is_ended_by_somebody(tmp_path: Path) -> None:
    with supervised.begin(tmp_path, KEEPS_THREE + SLEEPS):
        os.kill(_running(tmp_path)["runner"], signal.SIGKILL)
    now = state.read(tmp_path)
    assert (now["state"], now["exit_code"], now["kept"]) == ("killed", -signal.SIGKILL, 3)


def test_the_runner_dies_with_its_supervisor(tmp_path: Path) -> None:
    with supervised.begin(tmp_path, STUBBORN) as supervisor:
        runner = _running(tmp_path)["runner"]
        supervisor.kill()
    until(lambda: gone([runner]), "the runner is gone")
    now = state.read(tmp_path)
    assert now["state"] == "lost"
    assert "its processes are gone" in now["text"]


def test_stopped_on_request_or_by_a_shutdown(tmp_path: Path) -> None:
    for asked, name in ((True, "stopped"), (False, "lost")):
        with supervised.begin(tmp_path, SLEEPS) as supervisor:
            _running(tmp_path)
            if asked:
                (tmp_path / "stop").touch()
            supervisor.terminate()
        assert state.read(tmp_path)["state"] == name
        for left in ("stop", "there"):
            (tmp_path / left).unlink(missing_ok=True)


def test_the_lock_is_held_as_long_as_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "device.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with path.open() as other, supervised.begin(tmp_path, SLEEPS, lock=lock) as supervisor:
        runner = _running(tmp_path)["runner"]
        os.close(lock)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        supervisor.kill()
        until(lambda: gone([runner]), "the runner is gone")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_kernel_takes_the_runner_first(tmp_path: Path) -> None:
    with supervised.begin(tmp_path, SLEEPS) as supervisor:
        now = _running(tmp_path)
        scores = [
            int(Path(f"/proc/{pid}/oom_score_adj").read_text())
            for pid in (now["runner"], supervisor.pid)
        ]
        supervisor.terminate()
    assert scores[0] == 800 > scores[1]


def test_waiting_threads_sleep_and_nothing_of_the_supervisor_is_blocked(tmp_path: Path) -> None:
    """The supervisor waits for signals by blocking them; its runner must not inherit that."""
    program = "import os, json, signal\nprint(json.dumps([os.environ['OMP_WAIT_POLICY'], "
    program += "sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), os.getpgrp()]))\n"
    supervised.ended(tmp_path, program)
    policy, blocked, group = json.loads((tmp_path / "stdout").read_text())
    assert (policy, blocked) == ("PASSIVE", [])
    assert group != os.getpgrp()


# --- the state


def test_a_state_of_another_boot_or_another_process_is_lost(tmp_path: Path) -> None:
    own = {"state": "running", "pid": os.getpid(), "pid_ticks": state.ticks(os.getpid())}
    own["boot_id"] = state.boot_id()
    state.write(tmp_path, own)
    assert state.read(tmp_path) == own
    ticks = state.ticks(os.getpid())
    assert ticks is not None
    state.write(tmp_path, {**own, "pid_ticks": ticks - 1})
    assert state.read(tmp_path)["state"] == "lost"  # the number was given to us later

    state.write(tmp_path, own)
    root = tmp_path / "root"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("another\n")
    (root / "proc" / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    now = state.read(tmp_path, str(root))
    assert now["state"] == "lost"
    assert "started anew" in now["text"]


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        until(lambda: state.ticks(child) is None, "it is a zombie")
    finally:
        os.waitpid(child, 0)
    assert state.ticks(child) is None


def test_names_of_processes_may_hold_anything(tmp_path: Path) -> None:
    stat = tmp_path / "proc/7/task/7/stat"
    stat.parent.mkdir(parents=True)
    stat.write_text(f"7 (a) R (b) S {' '.join(map(str, range(4, 53)))}\n")
    assert state.ticks(7, str(tmp_path)) == 22
    stat.write_text("7 (a")
    assert state.ticks(7, str(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[]", '{"state": "run'])
def test_a_state_that_is_none(text: str, tmp_path: Path) -> None:
    assert state.read(tmp_path) == {"state": "none"}
    (tmp_path / "state.json").write_text(text)
    assert state.read(tmp_path) == {"state": "none"}


def test_python_is_that_of_the_supervisor(tmp_path: Path) -> None:
    supervised.ended(tmp_path, "import sys\nprint(sys.executable, sys.flags.isolated)\n")
    assert (tmp_path / "stdout").read_text() == f"{sys.executable} 0\n"
