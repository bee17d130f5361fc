"""Runs on a device, asked for as a host asks: the agent in a process of its own, each time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.profiles import Board
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LocalTransport
from slmq_edge.runner import job, journal
from slmq_edge.runner.agent import runs, state
from slmq_edge.runner.measure import Workload
from tests import test_py38, toy_graph
from tests.supervised import attempt, gone, until

SHORT = Workload(prompt_tokens=6, new_tokens=5, repetitions=3, warmups=1, threads=1)
LONG = SHORT._replace(new_tokens=400, repetitions=50)
python38 = test_py38.python38
ENDLESS = LONG._replace(repetitions=100_000)
OWN, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


class Device:
    """A home of its own, and the agent that lives there."""

    def __init__(self, home: Path, bundle: Path, python: str = sys.executable) -> None:
        self.home, self._bundle = home / ".slmq", bundle
        target = Target("the board", "local", python=python)
        self.agent = Agent(LocalTransport(home), target)

    def start(self, work: Workload, name: str = OWN, **others: Any) -> dict[str, Any]:
        wanted = job.Job(
            self._bundle, Path("x"), work, "cpu", False, None, Board(), 0.0, again=False
        )
        request = {"job": wanted.document(), "deadline_seconds": 60.0, **others}
        return self.agent.ask("start", id=name, label="ana@desk", **request)

    def poll(self, name: str = OWN, had: bytes = b"", wait: float = 30.0) -> dict[str, Any]:
        digest = hashlib.sha256(had).hexdigest()
        asked = {"offset": len(had), "sha256": digest, "wait_seconds": wait}
        return self.agent.ask("poll", id=name, **asked)

    def folder(self, name: str = OWN) -> Path:
        return self.home / "runs" / name

    def after(self, repetitions: int) -> state.State:
        """The state of a run that goes on and has taken so many repetitions."""
        until(lambda: len(self.taken()) >= repetitions, f"{repetitions} repetitions")
        now = state.read(self.folder())
        assert now["state"] == "running", now
        return now

    def taken(self) -> list[int]:
        path = self.folder() / "journal.jsonl"
        return attempt(journal.read(path)) if path.exists() else []


@pytest.fixture
def device(tmp_path: Path, bundle: Path) -> Iterator[Device]:
    made = Device(tmp_path, bundle)
    yield made
    for file in made.home.glob("runs/*/state.json"):
        now = json.loads(file.read_text())
        for pid in (now["pid"], now.get("runner")):
            if pid is not None and state.alive(now["pid"], now["pid_ticks"]):
                os.kill(pid, signal.SIGKILL)


def test_a_run_is_started_followed_and_forgotten(device: Device) -> None:
    began = device.start(SHORT)
    assert (began["state"], began["attached"]) == ("running", False)
    ended = device.poll()
    assert (ended["state"], ended["kept"], ended["exit_code"]) == ("done", 3, 0)
    content = (device.folder() / "journal.jsonl").read_bytes()
    assert ended["journal"].encode() == content
    assert (ended["offset"], ended["size"]) == (0, len(content))
    assert ended["sha256"] == hashlib.sha256(content).hexdigest()
    assert attempt(journal.read(device.folder() / "journal.jsonl")) == [0, 1, 2]

    device.start(SHORT)  # sees that there is nothing to do
    again = device.poll(had=content)
    assert (again["state"], again["kept"], again["journal"]) == ("done", 3, "")
    assert again["started"] > ended["ended"]
    assert device.agent.ask("forget", id=OWN) == {"forgotten": True}
    assert not device.folder().exists()
    assert device.agent.ask("forget", id=OWN) == {"forgotten": False}
    with pytest.raises(NotFound, match="there is no run aaaaaaaaaaaa"):
        device.poll()


def test_the_journal_comes_from_where_it_was_left(device: Device) -> None:
    device.start(SHORT)
    device.poll()
    path = device.folder() / "journal.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    had = b"".join(lines[:4])
    found = device.poll(had=had)
    assert (found["offset"], found["journal"].encode()) == (len(had), content[len(had) :])
    with path.open("ab") as stream:
        stream.write(b'{"torn')
    assert device.poll(had=content)["journal"] == ""
    assert device.poll(had=content)["size"] == len(content)
    for other in (b"{}\n", content + b"more\n", had[:-1] + b"x"):
        found = device.poll(had=other)
        assert (found["offset"], found["journal"].encode()) == (0, content)


def test_a_long_journal_comes_in_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_BYTES", 10)
    path = tmp_path / "journal.jsonl"
    lines = [b"1234567\n", b"12\n", b"1" * 30 + b"\n", b"123456789\n", b"\xff1\n"]
    path.write_bytes(b"".join(lines) + b"torn")
    had, answers = b"", 0
    while True:
        answer = runs._journal(path, len(had), hashlib.sha256(had).hexdigest())
        assert answer["offset"] == len(had)
        part = answer["journal"].encode("utf-8", "surrogateescape")
        assert part.endswith(b"\n") == bool(part)
        had, answers = had + part, answers + 1
        if len(had) == answer["size"]:
            break
    assert had == b"".join(lines)
    assert answers == 4
    assert runs._journal(tmp_path / "none", 0, hashlib.sha256().hexdigest())["journal"] == ""


def test_a_second_start_attaches_and_another_run_finds_the_device_busy(device: Device) -> None:
    device.start(ENDLESS)
    now = device.after(2)
    again = device.start(ENDLESS)
    assert (again["state"], again["attached"], again["pid"]) == ("running", True, now["pid"])
    busy = device.start(SHORT, OTHER)
    assert busy["state"] == "busy"
    assert (busy["holder"]["run"], busy["holder"]["label"]) == (OWN, "ana@desk")
    assert 0 < time.time() - busy["holder"]["since"] < 60
    assert not device.folder(OTHER).exists()
    device.agent.ask("stop")
    assert device.poll()["state"] == "stopped"
    assert device.start(SHORT, OTHER)["state"] == "running"  # the lock went with the run
    device.poll(OTHER)


def test_polling_waits_only_where_there_is_something_to_wait_for(device: Device) -> None:
    device.start(ENDLESS)
    device.after(1)
    began = time.monotonic()
    assert device.poll(wait=0.0)["state"] == "running"
    early = time.monotonic() - began
    assert device.poll(wait=2.0)["state"] == "running"
    assert time.monotonic() - began > early + 2.0
    device.agent.ask("stop")
    assert device.poll(wait=50.0)["state"] == "stopped"
    assert device.poll(wait=50.0)["state"] == "stopped"
    assert time.monotonic() - began < 40  # neither waited


@pytest.mark.parametrize("killed", ["runner", "supervisor", "both"])
def test_what_was_killed_goes_on_where_it_was(killed: str, device: Device) -> None:
    device.start(LONG)
    now = device.after(3)
    pids = {"runner": [now["runner"]], "supervisor": [now["pid"]]}
    for pid in pids.get(killed, [now["pid"], now["runner"]]):
        os.kill(pid, signal.SIGKILL)
    until(lambda: gone([now["pid"], now["runner"]]), "both are gone")
    left = device.poll(wait=0.0)
    assert left["state"] == ("killed" if killed == "runner" else "lost")
    kept = device.taken()
    assert 3 <= len(kept) < LONG.repetitions

    assert device.start(LONG)["attached"] is False
    ended = device.poll(had=left["journal"].encode())
    assert ended["state"] == "done"
    assert ended["offset"] == len(left["journal"])  # nothing comes twice
    assert device.taken() == list(range(LONG.repetitions))
    pids_of = [e["pid"] for e in journal.read(device.folder() / "journal.jsonl") if "pid" in e]
    assert len(pids_of) == len(set(pids_of)) == 2
    assert [note["text"] for note in ended["notes"]] == [
        f"resuming: {len(kept)} of 50 repetitions are there already"
    ]


def test_stopping(device: Device) -> None:
    with pytest.raises(NotFound, match="nothing runs there"):
        device.agent.ask("stop")
    device.start(LONG)
    device.after(1)
    with pytest.raises(SlmqError, match="is running: stop it first"):
        device.agent.ask("forget", id=OWN)
    assert device.agent.ask("stop")["id"] == OWN  # whatever has the device
    ended = device.poll()
    assert (ended["state"], ended["text"]) == ("stopped", "it was stopped on request")
    assert ended["kept"] == len(device.taken())
    assert device.agent.ask("stop", id=OWN)["state"] == "stopped"  # again: nothing happens
    assert device.start(LONG)["state"] == "running"  # and it can be started again
    assert device.poll()["state"] == "done"
    assert device.taken() == list(range(LONG.repetitions))


def test_the_deadline_is_kept_there(device: Device) -> None:
    device.start(ENDLESS, deadline_seconds=2.5)
    ended = device.poll()
    assert ended["state"] == "deadline"
    assert 2.4 < ended["ended"] - ended["started"] < 15
    assert ended["kept"] == len(device.taken())


def test_a_refusal_comes_with_its_class(device: Device, tmp_path: Path) -> None:
    device._bundle = toy_graph.write_bundle(tmp_path / "wrong", simulated=1)
    device.start(SHORT)
    ended = device.poll()
    assert ended["state"] == "failed"
    assert ended["refusal"]["error"] == "SlmqError"
    assert "golden check failed" in ended["refusal"]["text"]


def test_a_run_of_another_boot_is_lost(device: Device, tmp_path: Path) -> None:
    """The only part of a reboot that cannot be had here: the kernel's name for this start."""
    device.start(LONG)
    now = device.after(2)
    root = tmp_path / "root"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("another\n")
    (root / "proc" / str(now["pid"])).symlink_to(f"/proc/{now['pid']}")
    request = {"id": OWN, "offset": 0, "sha256": ""}
    seen = runs.poll(device.home, request, root=str(root))
    assert (seen["state"], seen["boot_id"]) == ("lost", "another")
    for pid in (now["runner"], now["pid"]):  # as a reboot does
        os.kill(pid, signal.SIGKILL)
    until(lambda: gone([now["runner"], now["pid"]]), "both are gone")
    assert device.start(LONG)["attached"] is False
    assert device.poll()["state"] == "done"
    assert device.taken() == list(range(LONG.repetitions))


@pytest.mark.parametrize("name", ["", "../../etc", "a" * 63, "A" * 64, None, 7, "a" * 64 + "\n"])
def test_a_name_that_is_no_run_s_is_refused(name: object, tmp_path: Path) -> None:
    for word in (runs.start, runs.poll, runs.stop, runs.forget):
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            word(tmp_path, {"id": name})
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_that_does_not_come_up_says_why(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    request = {"id": OWN, "job": {"bundle": str(bundle)}, "deadline_seconds": 1.0}
    with pytest.raises(SlmqError, match="did not come up: it said nothing"):
        runs.start(tmp_path, request)
    assert runs._take(tmp_path / "device.lock", tmp_path, "/")[0] is not None  # it is free again


@pytest.mark.py38
def test_a_supervisor_of_python_3_8(python38: str, tmp_path: Path, bundle: Path) -> None:
    """Without packages no runner gets far there; all around it does its part."""
    device = Device(tmp_path, bundle, python38)
    began = device.start(SHORT)
    assert (began["state"], began["attached"]) == ("running", False)
    ended = device.poll()
    assert (ended["state"], ended["exit_code"], ended["refusal"]) == ("failed", 1, None)
    assert "No module named 'numpy'" in ended["text"]
    with pytest.raises(NotFound, match="nothing runs there"):
        device.agent.ask("stop")
    assert device.agent.ask("forget", id=OWN) == {"forgotten": True}
