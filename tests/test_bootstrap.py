"""First contact: what is said of a Python that will not do, and the runner brought once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.remote import package
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import Done, LocalTransport
from slmq_edge.runner import agent as device
from slmq_edge.runner import bootstrap

HERE = Target("board", "local", python=sys.executable)
PYZ = f"{package.runner()[0]}.pyz"


class Counting(LocalTransport):
    """Keeps how long each standard input was, and what was run."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.sent: list[int] = []
        self.commands: list[list[str]] = []

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        self.sent.append(len(stdin))
        self.commands.append(list(command))
        return super().run(command, stdin, timeout)


class OldPython(LocalTransport):
    """A device whose Python says that it is of another version; it runs what it is sent."""

    def __init__(self, home: Path, version: tuple[int, int, int]) -> None:
        super().__init__(home)
        self._login, self._version = home, version

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        text = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
            patch.setattr(sys, "version_info", self._version)
            patch.setenv("HOME", str(self._login))
            exec(compile(stdin, "bootstrap", "exec"), {"__name__": "bootstrap"})
        return Done(0, text.getvalue(), "")


class Says(LocalTransport):
    """A device that answers every command with the same."""

    def __init__(self, done: Done) -> None:
        super().__init__(Path())
        self._done = done

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        return self._done


@pytest.fixture
def transport(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def test_the_runner_is_brought_once(transport: Counting, tmp_path: Path) -> None:
    assert Agent(transport, HERE).home == str(tmp_path / ".slmq")
    content = package.runner()[1]
    assert (tmp_path / ".slmq" / "runners" / PYZ).read_bytes() == content
    assert (tmp_path / ".slmq").stat().st_mode & 0o777 == 0o700
    assert len(transport.sent) == 2
    assert transport.sent[0] < 10_000 < len(content) < transport.sent[1]
    transport.sent.clear()
    second = Agent(transport, HERE)
    assert second.home == second.home == str(tmp_path / ".slmq")
    assert len(transport.sent) == 1
    assert transport.sent[0] < 10_000


def test_nothing_of_a_request_is_in_a_command_line(transport: Counting) -> None:
    agent = Agent(transport, HERE)
    with pytest.raises(SlmqError):
        agent.ask("have", files={"$(touch x)": 1})
    words = {word for command in transport.commands for word in command}
    assert not any("touch" in word for word in words)
    assert words == {
        sys.executable,
        "-I",
        "-X",
        "utf8",
        "-",
        f"{agent.home}/runners/{PYZ}",
        "agent",
    }


@pytest.mark.parametrize("version", [(3, 6, 9), (3, 7, 17)])
def test_a_python_that_is_too_old_is_refused_with_what_helps(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    with pytest.raises(Unsupported) as caught:
        Agent(OldPython(tmp_path, version), HERE).ask("probe")
    text = str(caught.value)
    assert ".".join(map(str, version)) in text
    assert "JetPack 4" in text
    assert "3.8 or later" in text
    assert 'python = "python3.8"' in text
    assert not (tmp_path / ".slmq").exists()


def test_the_oldest_python_that_will_do_is_let_in(tmp_path: Path) -> None:
    assert Agent(OldPython(tmp_path, (3, 8, 0)), HERE).home == str(tmp_path / ".slmq")


def test_no_python_is_refused_with_what_helps(tmp_path: Path) -> None:
    target = Target("board", "local", python="python-not-here")
    with pytest.raises(Unsupported, match=r"board: no python-not-here there: install Python 3.8"):
        Agent(LocalTransport(tmp_path), target).ask("probe")


def test_a_python_that_fails_is_quoted() -> None:
    says = Says(Done(1, "hello\n", "a\nFatal Python error: init\nno module named encodings\n"))
    with pytest.raises(SlmqError, match=r"exit code 1: a \| Fatal .* \| no module named encodings"):
        Agent(says, HERE).ask("probe")


@pytest.mark.parametrize(
    ("home", "expected"),
    [("a b 'c'/ä", "{login}/a b 'c'/ä"), ("~/x", "{login}/x"), ("{login}/y", "{login}/y")],
)
def test_home_is_below_the_logins_or_absolute(tmp_path: Path, home: str, expected: str) -> None:
    target = Target("board", "local", python=sys.executable, home=home.format(login=tmp_path))
    agent = Agent(LocalTransport(tmp_path), target)
    assert agent.home == expected.format(login=tmp_path)
    assert (Path(agent.home) / "runners" / PYZ).is_file()


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    target = Target("board", "local", python=sys.executable, home="taken")
    with pytest.raises(SlmqError, match=r"board: cannot write .*taken.*; choose another home"):
        Agent(LocalTransport(tmp_path), target).ask("probe")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_home_without_the_right_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    target = Target("board", "local", python=sys.executable, home="locked/home")
    with pytest.raises(SlmqError, match="Permission denied; choose another home"):
        Agent(LocalTransport(tmp_path), target).ask("probe")


def test_a_full_disk_is_one_line(full_disk: Path) -> None:
    (full_disk / "filler").write_bytes(bytes(free(full_disk) - 8192))
    target = Target("board", "local", python=sys.executable, home=str(full_disk / "home"))
    with pytest.raises(SlmqError, match="the disk is full"):
        Agent(LocalTransport(full_disk), target).ask("probe")
    assert not list((full_disk / "home" / "runners").iterdir())


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_runner_that_is_damaged_is_replaced(transport: Counting, tmp_path: Path) -> None:
    path = Path(Agent(transport, HERE).home) / "runners" / PYZ
    path.write_bytes(path.read_bytes()[:-1])
    Agent(transport, HERE).ask("probe")
    assert path.read_bytes() == package.runner()[1]


def test_a_runner_that_is_removed_meanwhile_is_brought_again(transport: Counting) -> None:
    agent = Agent(transport, HERE)
    path = Path(agent.home) / "runners" / PYZ
    path.unlink()
    assert agent.ask("probe")["python"]
    assert path.is_file()
    path.unlink()
    assert agent.python(["no-such.json"]).code == 1  # a job that is not there, said by the runner
    assert path.is_file()


def test_an_archive_that_came_damaged_is_not_kept(tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        bootstrap.main(str(tmp_path), "0" * 64, "c29tZXRoaW5n")
    assert json.loads(text.getvalue().split(bootstrap.MARK)[1])["runner"] is False
    assert not list(tmp_path.iterdir())


def test_two_hosts_may_come_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        homes = list(pool.map(lambda _: Agent(LocalTransport(tmp_path), HERE).home, range(4)))
    assert set(homes) == {str(tmp_path / ".slmq")}
    assert [path.name for path in (tmp_path / ".slmq" / "runners").iterdir()] == [PYZ]


def test_both_sides_know_each_other_by_one_mark() -> None:
    assert bootstrap.MARK == device.MARK
