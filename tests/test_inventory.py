"""Several boards: how they are written down, and measured side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import results
from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.remote import inventory
from slmq_edge.remote.follow import Progress
from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import Target
from slmq_edge.tracks import inference
from tests import toy_graph
from tests.remote_client import OPTIONS, WORK
from tests.sshd import Board
from tests.supervised import PATIENCE_SECONDS, ROOT, gone, until

TWO = """
[[board]]
name = "orin"
device = "ssh://me@orin.local:2222"
python = "python3.10"
home = "/data/slmq"

[[board]]
name = "pi-5"
device = "ssh://pi"
config = "keys/ssh_config"
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "boards.toml"
    path.write_text(text)
    return path


def test_an_inventory_is_read(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ssh_config").write_text("")
    config = tmp_path / "keys" / "ssh_config"
    assert inventory.targets(str(_write(tmp_path, TWO))) == (
        Target("orin", "ssh", "me@orin.local", 2222, "python3.10", "/data/slmq"),
        Target("pi-5", "ssh", "pi", None, config=config),
    )


def test_a_single_device_is_one_target() -> None:
    assert inventory.targets("local") == (Target("local", "local"),)
    (one,) = inventory.targets("ssh://me@host.toml")  # a host, whatever its name ends with
    assert one.host == "me@host.toml"
    with pytest.raises(NotFound, match="no inventory at nowhere/boards"):
        inventory.targets("nowhere/boards.toml")
    with pytest.raises(UsageError, match=r"test_inventory\.py is a file: .* ends with \.toml"):
        inventory.targets(__file__)
    with pytest.raises(UsageError, match="is no device"):
        inventory.targets("orin")
    with pytest.raises(UsageError, match="--torch-device cuda:1"):
        inventory.targets("cuda:1")


ONE = '[[board]]\nname = "a"\ndevice = "ssh://a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[board]\n", "is no inventory"),
        ("", "board is missing"),
        ('board = "x"\n', r"boards are written as \[\[board\]\]"),
        ("board = []\n", "names no board"),
        ("[[bord]]\n", r"unknown key 'bord' \(did you mean board\?\)"),
        (ONE + 'pyhton = "x"\n', r"board 1: unknown key 'pyhton' \(did you mean python\?\)"),
        ('[[board]]\nname = "a"\n', "board 1: device is missing"),
        ('[[board]]\ndevice = "local"\n', "board 1: name is missing"),
        (ONE + "home = 3\n", "board 1: home is text"),
        (ONE + ONE, "a and a have the same name"),
        (ONE + '[[board]]\nname = "b"\ndevice = "ssh://a"\n', "b and a have the same device"),
        ('[[board]]\nname = "../a"\ndevice = "local"\n', "'../a' is no name"),
        ('[[board]]\nname = "a"\ndevice = "sssh://a"\n', r"board 1: .*did you mean ssh\?"),
        ('[[board]]\nname = "a"\ndevice = "ssh://-oProxyCommand=x"\n', "is not the name of a host"),
        (ONE + 'config = "none"\n', "board 1: no ssh_config at"),
    ],
)
def test_what_is_no_inventory_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SlmqError, match=message):
        inventory.read(_write(tmp_path, text))


def test_one_board_may_have_two_homes(tmp_path: Path) -> None:
    text = ONE + '[[board]]\nname = "b"\ndevice = "ssh://a"\nhome = "/other"\n'
    assert [board.name for board in inventory.read(_write(tmp_path, text))] == ["a", "b"]


def _targets(*names: str) -> list[Target]:
    return [Target(name, "local") for name in names]


def test_one_that_fails_does_not_end_the_others() -> None:
    both = threading.Barrier(2, timeout=20)
    shown: list[tuple[str, Mapping[str, Any]]] = []

    def work(board: Target, progress: Any) -> Any:
        both.wait()  # side by side, or never
        if board.name == "bad":
            raise SlmqError("bad cannot be reached")
        time.sleep(0.1)
        progress({"event": "end"})
        return "a run"

    outcomes = inventory.side_by_side(
        _targets("bad", "good"), work, lambda name, event: shown.append((name, event))
    )
    assert [(found.name, found.run) for found in outcomes] == [("bad", None), ("good", "a run")]
    assert str(outcomes[0].error) == "bad cannot be reached"
    assert shown == [
        ("bad", {"event": "failed", "text": "bad cannot be reached"}),
        ("good", {"event": "end"}),
    ]


def test_a_bug_is_told_when_the_others_are_at_home() -> None:
    ended: list[str] = []

    def work(board: Target, progress: Any) -> Any:
        if board.name == "bug":
            raise KeyError("ours")
        time.sleep(0.2)
        ended.append(board.name)

    with pytest.raises(KeyError, match="ours"):
        inventory.side_by_side(_targets("bug", "good"), work, lambda name, event: None)
    assert ended == ["good"]


def _said_after_ctrl_c(slow: Target) -> list[str]:
    """Of one board that is done, and one that is not."""
    released, shown = threading.Event(), []

    def work(board: Target, progress: Any) -> Any:
        if board is slow:
            released.wait(20)
        return "a run"

    hand = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    hand.start()
    boards = [*_targets("quick"), slow]
    with pytest.raises(KeyboardInterrupt):
        inventory.side_by_side(boards, work, lambda name, event: shown.append(event["text"]))
    released.set()
    return shown


def test_ctrl_c_leaves_them_at_work() -> None:
    assert _said_after_ctrl_c(Target("slow", "ssh", "slow")) == [f"slow: {inventory.GOES_ON}"]


def test_what_runs_here_is_not_said_to_go_on() -> None:
    assert _said_after_ctrl_c(Target("here", "local")) == [f"here: {inventory.ENDED}"]


def test_what_threads_have_started_ends_with_us(tmp_path: Path) -> None:
    """Ctrl-C leaves threads where they are: an upload in one of them must not go on."""
    program = (
        "import pathlib, threading, time\n"
        "from slmq_edge.remote import transport\n"
        "command = ['sh', '-c', 'echo $$ > pid; mv pid there; exec sleep 60']\n"
        "threading.Thread(target=transport.execute, args=(command,), daemon=True).start()\n"
        "while not pathlib.Path('there').exists():\n"
        "    time.sleep(0.02)\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, env=variables, check=True, timeout=PATIENCE_SECONDS)
    pid = int((tmp_path / "there").read_text())
    until(lambda: gone([pid]), "the end of what a thread has started")


def test_two_boards_over_ssh_of_which_one_fails(sshd: Board, tmp_path: Path) -> None:
    """Two homes of one login are two boards; the third is not there."""
    bundle = toy_graph.write_bundle(tmp_path / "bundle")
    boards = [
        sshd.target(str(tmp_path / "one"), name="one"),
        sshd.target(str(tmp_path / "two"), name="two"),
        sshd.target(str(tmp_path / "old"), name="old", python="python-that-is-not-there"),
    ]
    told: dict[str, list[str]] = {board.name: [] for board in boards}

    def work(board: Target, progress: Progress) -> results.Run:
        output = tmp_path / f"bundle-{board.name}-run.json"
        with Remote(board) as machine:
            return inference.profile(bundle, WORK, output, progress, OPTIONS, machine=machine)

    outcomes = inventory.side_by_side(
        boards, work, lambda name, event: told[name].append(event["event"])
    )
    assert [found.error is None for found in outcomes] == [True, True, False]
    for name in ("one", "two"):
        assert told[name].count("repetition") == WORK.repetitions
        assert results.load(tmp_path / f"bundle-{name}-run.json") in [o.run for o in outcomes]
    assert told["old"] == ["failed"]
    assert [found.name for found in outcomes] == ["one", "two", "old"]
    assert "old: no python-that-is-not-there there" in str(outcomes[2].error)
