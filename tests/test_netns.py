"""A board in a network of its own, whose cable is pulled out: in mid-upload, and in mid-run.

The network is a namespace with a pair of virtual cards, made here and removed here; nothing of it
leads anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import results
from slmq_edge.remote import follow, ssh
from slmq_edge.remote.run import Remote
from slmq_edge.runner import resume
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks import inference
from tests import sshd as servers
from tests import toy_graph
from tests.remote_client import LONG, OPTIONS, WORK
from tests.sshd import Board
from tests.supervised import attempt, until

# RFC 2544: for tests of networks, routed nowhere.
HERE, THERE, BITS = "198.18.77.1", "198.18.77.2", 30
PAYLOAD_BYTES = 48_000_000
ENOUGH_BYTES = 4_000_000
IMPATIENT = {
    "ConnectTimeout=10": "ConnectTimeout=2",
    "ServerAliveInterval=5": "ServerAliveInterval=1",
    "ServerAliveCountMax=3": "ServerAliveCountMax=1",
}


@dataclass(frozen=True)
class Cable:
    """card: ours; its other end has the same name in the namespace."""

    namespace: str
    card: str

    def pull(self) -> None:
        _ip("-n", self.namespace, "link", "set", self.card, "down")

    def plug(self) -> None:
        _ip("-n", self.namespace, "link", "set", self.card, "up")

    def sent_bytes(self) -> int:
        return int(Path(f"/sys/class/net/{self.card}/statistics/tx_bytes").read_text())


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("networks are made by root, with ip")
    mark = secrets.token_hex(3)
    made = Cable(f"slmq-test-{mark}", f"slmq{mark}")
    try:
        _ip("netns", "add", made.namespace)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    try:
        try:
            pair = ("type", "veth", "peer", "name", made.card, "netns", made.namespace)
            _ip("link", "add", made.card, *pair)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no pair of virtual cards can be made here: {error.stderr.strip()}")
        _ip("addr", "add", f"{HERE}/{BITS}", "dev", made.card)
        _ip("link", "set", made.card, "up")
        _ip("-n", made.namespace, "addr", "add", f"{THERE}/{BITS}", "dev", made.card)
        made.plug()
        yield made
    finally:
        for command in (("link", "del", made.card), ("netns", "del", made.namespace)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*command)


@pytest.fixture(scope="module")
def board(cable: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """An sshd in the namespace. It has processes and files in common with us, and no network."""
    folder = tmp_path_factory.mktemp("board")
    inside = ("ip", "netns", "exec", cable.namespace)
    with servers.serve(folder, address=THERE, inside=inside) as made:
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cable that is out is noticed after a second or two, not 15; events come at once."""
    assert set(IMPATIENT) < set(ssh.OPTIONS)
    options = tuple(IMPATIENT.get(option, option) for option in ssh.OPTIONS)
    monkeypatch.setattr(ssh, "OPTIONS", options)
    monkeypatch.setattr(follow, "WAITS", ())
    monkeypatch.setattr(follow, "LONGEST_WAIT", 0.1)


class Watcher:
    """Remembers events. Pulls the cable out, and puts it back when the loss has been noticed."""

    def __init__(self, cable: Cable) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._cable = cable
        self.pulled = threading.Event()

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "note" and "trying again" in event["text"] and self.pulled.is_set():
            self._cable.plug()

    def pull(self) -> None:
        self._cable.pull()
        self.pulled.set()

    def of(self, name: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == name]


def _measured(board: Board, bundle: Path, work: Workload, told: Watcher) -> results.Run:
    above = bundle.parent
    with Remote(board.target(str(above / "device"))) as machine:
        return inference.profile(bundle, work, above / "run.json", told, OPTIONS, machine=machine)


def test_the_cable_is_pulled_in_mid_run(cable: Cable, board: Board, tmp_path: Path) -> None:
    bundle = toy_graph.write_bundle(tmp_path / "bundle")

    class AtTheSecond(Watcher):
        def __call__(self, event: Mapping[str, Any]) -> None:
            super().__call__(event)
            if event["event"] == "repetition" and not self.pulled.is_set():
                self.pull()

    told, work = AtTheSecond(cable), LONG._replace(repetitions=30)
    run = _measured(board, bundle, work, told)
    assert told.pulled.is_set()
    assert any("trying again" in note["text"] for note in told.of("note"))
    assert attempt(told.events) == list(range(work.repetitions))
    assert len(told.of("begin")) == 1  # what ran there did not notice
    taken = [
        e["prefill_seconds"] for e in resume.attempt(told.events) if e["event"] == "repetition"
    ]
    assert run.series["prefill_seconds"].values == tuple(taken)


def test_the_cable_is_pulled_in_mid_upload(cable: Cable, board: Board, tmp_path: Path) -> None:
    bundle = toy_graph.write_bundle(tmp_path / "bundle")
    (bundle / "weights").write_bytes(secrets.token_bytes(1000) * (PAYLOAD_BYTES // 1000))
    toy_graph.seal(bundle)
    told = Watcher(cable)
    incoming = tmp_path / "device" / "incoming"

    def pull_when_it_flows() -> None:
        def flows() -> bool:
            return any(file.stat().st_size > ENOUGH_BYTES for file in incoming.glob("*"))

        until(flows, "the upload has begun")
        told.pull()

    hand = threading.Thread(target=pull_when_it_flows)
    hand.start()
    before = cable.sent_bytes()
    run = _measured(board, bundle, WORK, told)
    hand.join()
    sent = cable.sent_bytes() - before
    assert any("trying again" in note["text"] for note in told.of("note"))
    assert PAYLOAD_BYTES <= sent < 1.2 * PAYLOAD_BYTES, sent  # it went on from where it was
    assert attempt(told.events) == list(range(WORK.repetitions))
    assert run == results.load(tmp_path / "run.json")
