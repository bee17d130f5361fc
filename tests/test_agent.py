"""What is asked of a device: answers among noise, errors as they were, links that come back."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from slmq_edge import devices, errors
from slmq_edge.errors import Damaged, MissingExtra, NotFound, SlmqError, Unsupported
from slmq_edge.remote import agent as remote
from slmq_edge.remote import patience as waiting
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.patience import Patience
from slmq_edge.remote.ssh import SshTransport
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import Done, LinkLost, LocalTransport, Transport
from slmq_edge.runner import agent as device
from tests.relay import Relay
from tests.sshd import Board, serve

HERE = Target("board", "local", python=sys.executable)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.now, self.slept = 0.0, list[float]()
        if monkeypatch is not None:
            patience = functools.partial(Patience, sleep=self.sleep, clock=lambda: self.now)
            monkeypatch.setattr(remote, "Patience", patience)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Scripted(LocalTransport):
    """Gives one answer after another, or raises it."""

    def __init__(self, *answers: Done | Exception) -> None:
        super().__init__(Path())
        self._answers = iter(answers)
        self.timeouts: list[float | None] = []

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        self.timeouts.append(timeout)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def says(answer: object, code: int = 0, before: str = "\n", after: str = "") -> Done:
    return Done(code, f"{before}{device.MARK}{json.dumps(answer)}\n{after}", "")


HELLO = says({"python": [3, 10, 12], "home": "/home/me/.slmq", "runner": True})


def lost(times: int) -> Iterator[LinkLost]:
    return (LinkLost("the wire is out") for _ in range(times))


# --- answers


def test_an_answer_is_found_among_what_a_login_says() -> None:
    noise = says({"a": 1}, before="Welcome!\nslmq-edge\nmail: 3 new\n", after="bye\n\n")
    assert Agent(Scripted(HELLO, noise), HERE).ask("probe") == {"a": 1}


def test_an_error_comes_back_as_what_it_was() -> None:
    for name in ("Damaged", "NotFound", "Unsupported", "MissingExtra", "SlmqError"):
        answer = says({"error": name, "text": "x is so"}, code=1)
        with pytest.raises(SlmqError) as caught:
            Agent(Scripted(HELLO, answer), HERE).ask("have")
        assert type(caught.value) is getattr(errors, name)
        assert str(caught.value) == "board: x is so"


def test_no_answer_at_all_is_our_bug_with_its_traceback() -> None:
    done = Done(1, "", "Traceback (most recent call last):\n  boom\n")
    with pytest.raises(RuntimeError, match="boom"):
        Agent(Scripted(HELLO, done), HERE).ask("have")


def test_what_reads_gigabytes_has_no_time_out() -> None:
    answers = [says({"a": 1}) for _ in range(4)]
    transport = Scripted(HELLO, *answers)
    agent = Agent(transport, HERE)
    for do in ("probe", "have", "place", "assemble"):
        agent.ask(do)
    assert transport.timeouts == [remote.SECONDS, remote.SECONDS, remote.SECONDS, None, None]


# --- a link that comes and goes


def test_a_lost_link_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, notes = Clock(monkeypatch), list[str]()
    transport = Scripted(HELLO, *lost(4), says({"a": 1}))
    agent = Agent(transport, HERE, reconnect_seconds=60, note=notes.append)
    assert agent.ask("probe") == {"a": 1}
    assert clock.slept == [0.5, 1.0, 2.0, 4.0]
    assert notes[0] == "the wire is out; trying again in 0.5 s"


def test_a_link_that_stays_away_is_given_up_after_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(LinkLost, match="the wire is out"):
        Agent(Scripted(HELLO, *lost(99)), HERE, reconnect_seconds=45).ask("probe")
    assert clock.now == 45
    assert max(clock.slept) == waiting.MOST_SECONDS


def test_a_refusal_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(NotFound):
        Agent(Scripted(NotFound("no such host"), HELLO), HERE).ask("probe")
    assert clock.slept == []


def test_patience_begins_anew_where_the_link_was_there() -> None:
    clock = Clock()
    patience = Patience(10, sleep=clock.sleep, clock=lambda: clock.now)
    for _ in range(3):
        for error in lost(4):
            patience.again(error)
        patience.reset()
    assert clock.slept == 3 * [0.5, 1.0, 2.0, 4.0]


def test_a_board_that_starts_up_is_asked_again(sshd: Board) -> None:
    """The wire is cut and nobody listens for a while; then it goes on."""
    with Relay(sshd.port) as relay:
        transport = SshTransport(sshd.behind(relay.port).target("restart"))

        def note(text: str) -> None:
            notes.append(text)
            relay.refuse(len(notes) < 2)

        notes: list[str] = []
        agent = Agent(transport, sshd.target("restart"), note=note)
        first = agent.ask("probe")
        relay.refuse()
        relay.cut()
        assert agent.ask("probe")["boot_id"] == first["boot_id"]
        assert len(notes) == 2
        transport.close()


def test_a_talkative_login_is_no_hindrance(tmp_path: Path) -> None:
    talk = "ForceCommand printf 'Welcome to '; sh -c \"$SSH_ORIGINAL_COMMAND\"; echo; echo bye"
    with serve(tmp_path / "sshd", talk, "Banner /etc/passwd") as board:
        transport = SshTransport(board.target())
        assert Agent(transport, board.target()).ask("probe")["uid"] >= 0
        transport.close()


# --- on the device


def test_probe_tells_what_a_host_must_know(tmp_path: Path) -> None:
    agent = Agent(LocalTransport(tmp_path), HERE)
    found = agent.ask("probe", profile="fake")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["onnxruntime"]  # of a process that is not isolated
    assert found["disk_free_bytes"] > 0
    assert found["profile"]["kind"] == "fake"
    assert found["executable"] == sys.executable
    assert devices.detect(found).name == devices.detect_here().name
    assert {"clocks_hz", "temperatures_celsius", "mode", "system", "boot_id"} <= set(found)


def test_packages_are_those_that_the_user_has_for_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "onnxruntime_gpu-9.8.7.dist-info").mkdir(parents=True)
    metadata = site / "onnxruntime_gpu-9.8.7.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 9.8.7\n")

    class WithSite(LocalTransport):
        def run(
            self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None
        ) -> Done:
            return super().run(["env", f"PYTHONPATH={site}", *command], stdin, timeout)

    (tmp_path / "json.py").write_text("raise ImportError('what a user has where he logs in')")
    found = Agent(WithSite(tmp_path), HERE).ask("probe")
    assert found["packages"]["onnxruntime-gpu"] == "9.8.7"


@pytest.mark.parametrize(
    ("request_", "kind", "says_"),
    [
        (b"", Damaged, "no request"),
        (b"[]", Damaged, "no request"),
        (b'{"do": "probe"}', Damaged, "home"),
        (b'{"do": "hav", "home": "x"}', Unsupported, "did you mean have?"),
        (b'{"do": "probe", "home": "x", "profile": "jetsn"}', NotFound, "kind of machine"),
        (b'{"do": "probe", "home": "x", "board": {"nam": 1}}', Damaged, "no board"),
        (b'{"do": "have", "home": "x", "files": {"../a": 1}}', Damaged, "not a SHA-256"),
        (b'{"do": "have", "home": "x", "files": {"a": "1"}}', Damaged, "files are"),
        (b'{"do": "gc", "home": "x", "days": -1}', Damaged, "days"),
    ],
)
def test_a_request_that_is_none_is_answered_in_one_line(
    request_: bytes,
    kind: type[SlmqError],
    says_: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONUTF8", "0")  # what main sets is undone
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request_)))
    assert device.main([]) == 1
    answer = json.loads(capsys.readouterr().out.split(device.MARK)[1])
    assert answer["error"] == kind.__name__
    assert says_ in answer["text"]


def test_every_transport_is_one() -> None:
    made: list[Transport] = [LocalTransport(Path()), SshTransport(Target("b", "ssh", "b"))]
    for transport in made:
        transport.close()


def test_an_extra_that_is_missing_there_is_worded_there() -> None:
    answer = says({"error": "MissingExtra", "text": "onnxruntime is not installed: pip ..."}, 1)
    with pytest.raises(MissingExtra, match=r"^board: onnxruntime is not installed: pip \.\.\.$"):
        Agent(Scripted(HELLO, answer), HERE).ask("have")
