"""A bundle measured on another machine: through processes, a real sshd, and links that are cut."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import results
from slmq_edge.errors import Busy, NotFound, SlmqError
from slmq_edge.remote import follow
from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LinkLost
from slmq_edge.runner import journal
from slmq_edge.runner.agent import state
from slmq_edge.runner.job import Job
from slmq_edge.runner.measure import Workload
from slmq_edge.runner.work import Work
from slmq_edge.tracks import inference
from tests import toy_graph
from tests.relay import Relay
from tests.remote_client import ENDLESS, LONG, OPTIONS, WORK, local
from tests.sshd import Board
from tests.supervised import ROOT, attempt, gone, until

Act = Callable[[], object]
OURS = ("kept", "note", "device", "upload")  # of the host, not of the journal


class Listener:
    """Remembers events, and does something once: at a repetition."""

    def __init__(self, at: int = 0, act: Act = lambda: None) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._at, self._act = at, act

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "repetition" and len(self.of("repetition")) == self._at:
            self._act()

    def of(self, name: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def notes(self) -> str:
        return " | ".join(event["text"] for event in self.of("note"))

    def journal(self) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] not in OURS]


def measure(
    target: Target, bundle: Path, output: Path, work: Workload, told: Listener, **others: Any
) -> results.Run:
    with Remote(target, **others) as machine:
        return inference.profile(bundle, work, output, told, OPTIONS, machine=machine)


def log_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}.journal.jsonl")


def nothing_twice(output: Path, work: Workload, *told: Listener) -> None:
    """All that was told, by however many commands, is a journal with every repetition once."""
    events = [event for listener in told for event in listener.journal()]
    assert attempt(events) == list(range(work.repetitions))
    taken = [event["prefill_seconds"] for event in events if event["event"] == "repetition"]
    assert results.load(output).series["prefill_seconds"].values == tuple(
        taken[-work.repetitions :]
    )
    assert not log_of(output).exists()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A device's folder; what still runs there is ended."""
    made = tmp_path / "device"
    yield made
    for folder in made.glob("runs/*"):
        now = state.read(folder)
        if now["state"] == "running":
            os.kill(now["pid"], signal.SIGKILL)
            until(functools.partial(gone, [now["pid"]]), "the supervisor is gone")


def only_run(home: Path) -> Path:
    (folder,) = (home / "runs").iterdir()
    return folder


def running(home: Path) -> state.State:
    now = state.read(only_run(home))
    assert now["state"] == "running", now
    return now


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask often: what is done at an event is done soon after it."""
    monkeypatch.setattr(follow, "WAITS", ())
    monkeypatch.setattr(follow, "LONGEST_WAIT", 0.1)


@pytest.fixture(params=["local", "ssh"])
def target(request: pytest.FixtureRequest, home: Path) -> Target:
    if request.param == "local":
        return local(home)
    board: Board = request.getfixturevalue("sshd")
    return board.target(str(home))


def test_a_run_comes_home(target: Target, bundle: Path, home: Path, tmp_path: Path) -> None:
    told, output = Listener(), tmp_path / "new" / "run.json"
    run = measure(target, bundle, output, WORK, told)
    assert results.load(output) == run
    assert [event["event"] for event in told.journal()] == (
        ["begin", "probe", "golden", "load", "warmup"] + ["repetition"] * 3 + ["end"]
    )
    nothing_twice(output, WORK, told)
    sent = told.of("upload")[-1]
    assert sent["bytes"] == sent["total_bytes"] > 1000
    assert [path.name for path in output.parent.iterdir()] == ["run.json"]
    assert list((home / "runs").iterdir()) == []  # and what was stored is there still
    again = Listener()
    measure(target, bundle, tmp_path / "again.json", WORK, again)
    assert [event["bytes"] for event in again.of("upload")] == [sent["total_bytes"]]
    assert again.of("begin")[0]["pid"] != told.of("begin")[0]["pid"]


@pytest.mark.usefixtures("prompt")
def test_ctrl_c_leaves_it_running_and_the_same_command_follows_it(
    target: Target, bundle: Path, home: Path, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    first, output = Listener(2, interrupt), tmp_path / "run.json"
    with pytest.raises(KeyboardInterrupt):
        measure(target, bundle, output, LONG, first)
    assert "goes on by itself: the same command follows it, --stop ends it" in first.notes()
    here = journal.read(log_of(output))
    kept = len(attempt(here))
    assert kept >= 2
    runner = running(home)["runner"]

    second = Listener()
    measure(target, bundle, output, LONG, second)
    assert "following the job that runs there" in second.notes()
    assert second.of("kept")[0]["done"] == kept
    events = [*here, *second.journal()]
    assert attempt(events) == list(range(LONG.repetitions))
    assert [e["pid"] for e in events if e["event"] == "begin"] == [runner]


def test_a_client_that_was_killed_is_followed_by_the_next(
    bundle: Path, home: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run.json"
    names = [str(bundle), str(home), str(output), str(LONG.repetitions)]
    command = [sys.executable, "-m", "tests.remote_client", *names]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        for line in client.stdout:
            if line == b"repetition\n":
                client.kill()
                break
        client.stdout.read()
    here = log_of(output).read_bytes()
    assert running(home)["pid"]
    with log_of(output).open("ab") as stream:
        stream.write(b'{"event": "repet')  # as a kill in mid-write leaves it
    told = Listener()
    measure(local(home), bundle, output, LONG, told)
    events = [json.loads(line) for line in here.splitlines()] + told.journal()
    assert attempt(events) == list(range(LONG.repetitions))
    assert len([event for event in events if event["event"] == "begin"]) == 1
    assert not log_of(output).exists()


@pytest.mark.usefixtures("prompt")
def test_a_runner_that_was_killed_goes_on_when_asked(
    bundle: Path, home: Path, tmp_path: Path
) -> None:
    first = Listener(2, lambda: os.kill(running(home)["runner"], signal.SIGKILL))
    output = tmp_path / "run.json"
    with pytest.raises(SlmqError, match=r"here: killed while measuring: .* the same command goes"):
        measure(local(home), bundle, output, LONG, first)
    second = Listener()
    measure(local(home), bundle, output, LONG, second)
    nothing_twice(output, LONG, first, second)
    assert len({event["pid"] for event in first.of("begin") + second.of("begin")}) == 2


@pytest.mark.usefixtures("prompt")
def test_a_job_that_was_lost_is_started_again(bundle: Path, home: Path, tmp_path: Path) -> None:
    """As a reboot loses it: its processes are gone, and nobody has said why."""
    told = Listener(2, lambda: os.kill(running(home)["pid"], signal.SIGKILL))
    output = tmp_path / "run.json"
    measure(local(home), bundle, output, LONG, told)
    assert "its processes are gone, and nothing says why; starting the job again" in told.notes()
    nothing_twice(output, LONG, told)
    assert len(told.of("begin")) == 2


def test_what_answers_there_may_be_killed(target: Target, bundle: Path, tmp_path: Path) -> None:
    """A system that goes down ends it before the link: that is no bug of ours."""
    home = Path(target.home)
    killed: list[int] = []

    def agents() -> list[int]:
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes().split(b"\0")
                ours = any(word.startswith(bytes(home / "runners")) for word in words)
                if ours and b"agent" in words and b"python" in words[0]:
                    found.append(int(file.parent.name))
        return found

    def kill_one() -> None:
        until(agents, "somebody is asked there")
        for pid in agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                killed.append(pid)

    hand = threading.Thread(target=kill_one)
    told, output = Listener(1, hand.start), tmp_path / "run.json"
    measure(target, bundle, output, LONG, told)
    hand.join()
    assert killed
    assert "what answers there was ended by a signal; trying again" in told.notes()
    nothing_twice(output, LONG, told)
    assert len(told.of("begin")) == 1


@pytest.mark.usefixtures("prompt")
def test_a_job_that_is_always_lost_is_given_up(bundle: Path, home: Path, tmp_path: Path) -> None:
    class Reaper(Listener):
        def __call__(self, event: Mapping[str, Any]) -> None:
            super().__call__(event)
            if event["event"] == "begin":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running(home)["pid"], signal.SIGKILL)

    told = Reaper()
    slow = LONG._replace(prompt_tokens=100, warmups=100_000)
    with pytest.raises(SlmqError, match=r"lost while .*: its processes are gone"):
        measure(local(home), bundle, tmp_path / "run.json", slow, told)
    assert len(told.of("begin")) == 3


@pytest.mark.usefixtures("prompt")
def test_busy_and_stop(bundle: Path, home: Path, tmp_path: Path) -> None:
    def others() -> None:
        with pytest.raises(Busy, match=r"here is busy since \d\d:\d\d with a job of .+@"):
            measure(local(home), bundle, tmp_path / "other.json", WORK, Listener())
        with Remote(local(home)) as machine:
            assert len(machine.stop()) == 64

    output = tmp_path / "run.json"
    with pytest.raises(SlmqError, match="stopped while measuring: it was stopped on request"):
        measure(local(home), bundle, output, ENDLESS, Listener(1, others))
    assert log_of(output).exists()
    with Remote(local(home)) as machine, pytest.raises(NotFound, match="here: nothing runs there"):
        machine.stop()


def test_a_deadline_ends_it_there(bundle: Path, home: Path, tmp_path: Path) -> None:
    with pytest.raises(SlmqError, match=r"here: deadline while .*: it was ended after 3 s"):
        measure(
            local(home), bundle, tmp_path / "run.json", ENDLESS, Listener(), deadline_seconds=3.0
        )


def test_a_refusal_there_is_one_here(home: Path, tmp_path: Path) -> None:
    wrong = toy_graph.write_bundle(tmp_path / "wrong", simulated=1)
    told, output = Listener(), tmp_path / "run.json"
    with pytest.raises(SlmqError, match=r"here: .*golden check failed: mean KL") as caught:
        measure(local(home), wrong, output, WORK, told)
    assert type(caught.value) is SlmqError
    assert not told.of("load")
    assert list((home / "runs").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "wrong"]


def test_a_bug_there_is_one_here(bundle: Path, home: Path, tmp_path: Path) -> None:
    work = WORK._replace(threads="one")  # type: ignore[arg-type]
    with Remote(local(home)) as machine:
        paths = bundle, tmp_path / "journal"
        job = Job(*paths, work, "cpu", False, power_seconds=0.0)
        with pytest.raises(RuntimeError, match="the runner on here failed:\nTraceback"):
            machine.run(job, Listener())


def test_a_journal_of_another_run_is_put_aside(bundle: Path, home: Path, tmp_path: Path) -> None:
    output, told = tmp_path / "run.json", Listener()
    other = b'{"event": "golden", "report": {}}\n'
    log_of(output).write_bytes(other)
    measure(local(home), bundle, output, WORK, told)
    assert "the journal here is of another run" in told.notes()
    assert log_of(output).with_name("run.journal.jsonl.old").read_bytes() == other
    nothing_twice(output, WORK, told)


def test_a_run_that_is_home_is_no_failure(bundle: Path, home: Path, tmp_path: Path) -> None:
    class Full(Remote):
        def run(self, work: Work, progress: Any) -> None:
            super().run(work, progress)

            def ask(do: str, **request: Any) -> Any:
                raise SlmqError("here: cannot write in runs: no space left")

            self._agent.ask = ask  # type: ignore[method-assign]

    said: list[str] = []
    output = tmp_path / "run.json"
    with Full(local(home), say=said.append) as machine:
        inference.profile(bundle, WORK, output, Listener(), OPTIONS, machine=machine)
    assert results.load(output).workload.repetitions == WORK.repetitions
    assert "no space left; the same command would bring" in said[0]


# --- the link


@pytest.fixture
def relayed(sshd: Board) -> Iterator[tuple[Relay, Board]]:
    with Relay(sshd.port) as relay:
        yield relay, sshd.behind(relay.port, f"relayed-{relay.port}")


@pytest.mark.usefixtures("prompt")
def test_a_link_that_is_cut_in_mid_run(
    relayed: tuple[Relay, Board], bundle: Path, home: Path, tmp_path: Path
) -> None:
    relay, board = relayed

    def cut() -> None:
        relay.refuse()
        relay.cut()
        threading.Timer(2.0, lambda: relay.refuse(False)).start()

    told, output = Listener(2, cut), tmp_path / "run.json"
    measure(board.target(str(home)), bundle, output, LONG, told)
    assert "trying again in" in told.notes()
    nothing_twice(output, LONG, told)
    assert len(told.of("begin")) == 1
    assert relay.connections > 1


@pytest.mark.usefixtures("prompt")
def test_a_link_that_is_cut_in_the_middle_of_an_answer(
    relayed: tuple[Relay, Board], bundle: Path, home: Path, tmp_path: Path
) -> None:
    """A question comes with what is here of the journal: an answer that was lost comes again."""
    relay, board = relayed
    ended = threading.Event()

    def cut_often() -> None:
        for _ in range(5):
            if not ended.wait(0.6):
                relay.cut()

    knife = threading.Thread(target=cut_often)
    told, output = Listener(1, knife.start), tmp_path / "run.json"
    try:
        measure(board.target(str(home)), bundle, output, LONG, told)
    finally:
        ended.set()
        knife.join()
    nothing_twice(output, LONG, told)
    assert len(told.of("begin")) == 1
    assert relay.connections > 2


@pytest.mark.usefixtures("prompt")
def test_a_link_that_stays_away_leaves_the_job_alone(
    relayed: tuple[Relay, Board], bundle: Path, home: Path, tmp_path: Path
) -> None:
    relay, board = relayed

    def cut() -> None:
        relay.refuse()
        relay.cut()

    first, output = Listener(1, cut), tmp_path / "run.json"
    with pytest.raises(LinkLost, match="goes on by itself: the same command follows it"):
        measure(board.target(str(home)), bundle, output, LONG, first, reconnect_seconds=1.0)
    until(lambda: state.read(only_run(home))["state"] == "done", "it is done without us")
    relay.refuse(False)
    second = Listener()
    measure(board.target(str(home)), bundle, output, LONG, second)
    events = [*first.journal(), *second.journal()]
    assert attempt(events) == list(range(LONG.repetitions))
    assert results.load(output).series["prefill_seconds"].values == tuple(
        event["prefill_seconds"] for event in events if event["event"] == "repetition"
    )
