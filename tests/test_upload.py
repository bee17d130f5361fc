"""A bundle's way to a device: sent once, gone on with where it was cut off, never wrong."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.remote import upload
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.ssh import SshTransport
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LinkLost, LocalTransport, Transport
from slmq_edge.runner.agent import store
from slmq_edge.runner.manifest import read_bundle, sha256, verify
from tests import toy_graph
from tests.relay import Relay
from tests.sshd import Board

BIG = "ort/model.onnx.data"
MEGABYTE = 1 << 20


def no_progress(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Device:
    """A way to a device, and its folder seen from here."""

    transport: Transport
    agent: Agent
    home: Path

    def push(self, bundle: Path, progress: upload.Progress = no_progress) -> Path:
        return Path(upload.push(self.agent, self.transport, bundle, progress))

    def partial(self, file: Path) -> Path:
        return self.home / store.INCOMING / sha256(file)


@pytest.fixture
def open_device(tmp_path: Path, sshd: Board) -> Iterator[Callable[..., Device]]:
    """Make a device behind an sshd, or behind another way to it; homes are by test."""
    made: list[Transport] = []

    def open_(board: Board = sshd, home: Path = tmp_path / "device") -> Device:
        target = board.target(str(home))
        made.append(SshTransport(target))
        return Device(made[-1], Agent(made[-1], target), home)

    yield open_
    for transport in made:
        transport.close()


def local_device(tmp_path: Path) -> Device:
    transport = LocalTransport(tmp_path)
    target = Target("board", "local", python=sys.executable, home="device")
    return Device(transport, Agent(transport, target), tmp_path / "device")


@pytest.fixture(params=["local", "ssh"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    if request.param == "local":
        return local_device(tmp_path)
    made: Device = request.getfixturevalue("open_device")()
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return toy_graph.write_bundle(tmp_path / "here" / "bundle")


@pytest.fixture
def large(bundle: Path) -> Path:
    """The bundle, with 8 MB of weights beside its graph."""
    (bundle / BIG).write_bytes(os.urandom(8 * MEGABYTE))
    toy_graph.seal(bundle)
    return bundle


def same(folder: Path, bundle: Path) -> bool:
    """Whether a folder is the bundle: its files, and no others."""
    verify(folder, read_bundle(folder)["files"])
    found, expected = (
        {
            path.relative_to(top).as_posix(): sha256(path)
            for path in top.rglob("*")
            if path.is_file()
        }
        for top in (folder, bundle)
    )
    return found == expected


# --- what arrives


def test_a_bundle_arrives_and_is_sent_once(device: Device, large: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = device.push(large, lambda done, total: told.append((done, total)))
    assert folder == device.home / "bundles" / sha256(large / "bundle.json")
    assert same(folder, large)
    total = sum(path.stat().st_size for path in large.rglob("*") if path.is_file())
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    def refuse(*arguments: object) -> None:
        raise AssertionError("nothing is to be sent")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(device.transport), "put", refuse)
        assert device.push(large) == folder


def test_names_go_round_intact(device: Device, bundle: Path) -> None:
    for name in ("with blanks", 'it\'s "quoted" $(x) `y`;', "ünï 模型", "-rf *", "new\nline"):
        (bundle / "ort" / name).write_text(name)
    toy_graph.seal(bundle)
    assert same(device.push(bundle), bundle)


def test_a_home_may_have_an_odd_name(open_device: Callable[..., Device], tmp_path: Path) -> None:
    bundle = toy_graph.write_bundle(tmp_path / "bundle")
    assert same(open_device(home=tmp_path / "ünï [a-z] $(x) 'y' #").push(bundle), bundle)


def test_files_of_another_bundle_are_not_sent_again(tmp_path: Path, large: Path) -> None:
    device = local_device(tmp_path)
    device.push(large)
    (large / "more").write_text("more")
    toy_graph.seal(large)
    sent: list[str] = []
    put = type(device.transport).put

    def spy(
        transport: Transport,
        files: Mapping[str, Path],
        folder: str,
        progress: Callable[[int], None],
    ) -> None:
        sent.extend(path.name for path in files.values())
        put(transport, files, folder, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(device.transport), "put", spy)
        assert same(device.push(large), large)
    assert sorted(sent) == ["bundle.json", "more"]


def test_a_bundle_without_a_file_of_its_manifest_is_refused_first(
    tmp_path: Path, bundle: Path
) -> None:
    device = local_device(tmp_path)
    (bundle / "golden.npz").write_bytes(b"short")
    with pytest.raises(Damaged, match=r"golden\.npz"):
        device.push(bundle)
    with pytest.raises(NotFound):
        device.push(bundle.parent / "bundel")
    assert not device.home.exists()


# --- what went wrong before


@pytest.mark.parametrize("part", [3 * MEGABYTE, 8 * MEGABYTE])
def test_a_part_is_gone_on_with(device: Device, large: Path, part: int) -> None:
    partial = device.partial(large / BIG)
    partial.parent.mkdir(parents=True)
    partial.write_bytes((large / BIG).read_bytes()[:part])
    inode = partial.stat().st_ino
    folder = device.push(large)
    assert same(folder, large)
    assert (folder / BIG).stat().st_ino == inode


@pytest.mark.parametrize("part", [3 * MEGABYTE, 8 * MEGABYTE, 9 * MEGABYTE])
def test_a_part_that_is_wrong_is_found_by_its_digest(
    tmp_path: Path, large: Path, part: int
) -> None:
    device = local_device(tmp_path)
    partial = device.partial(large / BIG)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(part))
    assert same(device.push(large), large)


def test_a_file_that_changed_here_is_said(tmp_path: Path, large: Path) -> None:
    device = local_device(tmp_path)
    content = (large / BIG).read_bytes()
    (large / BIG).write_bytes(content[::-1])
    with pytest.raises(Damaged, match=r"model\.onnx\.data has changed since it was written"):
        device.push(large)
    (large / BIG).write_bytes(content)
    assert same(device.push(large), large)


def test_a_file_that_never_arrives_whole_is_given_up(tmp_path: Path, bundle: Path) -> None:
    class Bad(LocalTransport):
        def put(
            self, files: Mapping[str, Path], folder: str, progress: Callable[[int], None]
        ) -> None:
            for name, path in files.items():
                (Path(folder) / name).write_bytes(bytes(path.stat().st_size))

    target = Target("board", "local", python=sys.executable)
    transport = Bad(tmp_path)
    with pytest.raises(Damaged, match="arrived damaged 3 times"):
        upload.push(Agent(transport, target), transport, bundle, no_progress)


# --- the link


def test_an_upload_that_is_cut_goes_on_where_it_was(
    large: Path, sshd: Board, open_device: Callable[..., Device]
) -> None:
    with Relay(sshd.port) as relay:
        device = open_device(sshd.behind(relay.port))
        device.agent.ask("probe")
        before = relay.sent
        relay.cut_after(7 * MEGABYTE)
        assert same(device.push(large), large)
        assert relay.connections > 1
        # from the beginning it would be 15; what sshd had yet to write is sent twice
        assert 8 * MEGABYTE < relay.sent - before < 12 * MEGABYTE


def test_a_wire_that_is_silent_is_given_up_and_found_again(
    large: Path, sshd: Board, open_device: Callable[..., Device]
) -> None:
    """A wire pulled out says nothing: ssh asks, and has no answer."""
    with Relay(sshd.port) as relay, pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmq_edge.remote.ssh.OPTIONS", QUICK)
        device = open_device(sshd.behind(relay.port))
        device.agent.ask("probe")
        relay.hold_after(2 * MEGABYTE, seconds=4.0)
        assert same(device.push(large), large)
        assert relay.connections > 1


QUICK = (
    "BatchMode=yes",
    "ConnectTimeout=1",
    "ServerAliveInterval=1",
    "ServerAliveCountMax=1",
    "LogLevel=ERROR",
)


def test_an_upload_whose_link_stays_away_keeps_what_arrived(
    large: Path, sshd: Board, open_device: Callable[..., Device]
) -> None:
    with Relay(sshd.port) as relay:
        device = open_device(sshd.behind(relay.port))
        device.agent.ask("probe")
        hasty = Agent(device.transport, sshd.target(str(device.home)), reconnect_seconds=0.2)
        hasty.ask("probe")
        relay.cut_after(6 * MEGABYTE)
        relay.refuse()
        with pytest.raises(LinkLost):
            upload.push(hasty, device.transport, large, no_progress)
        kept = device.partial(large / BIG).stat().st_size
        assert MEGABYTE < kept < 6 * MEGABYTE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "BUSY_SECONDS", 0.05)
        _age(device.home)  # who sent it is known to be gone only after a while
        again = open_device()
        told: list[int] = []
        assert same(again.push(large, lambda done, total: told.append(done)), large)
        assert told[0] >= kept


def _age(home: Path) -> None:
    for path in (home / store.INCOMING).iterdir():
        past = time.time() - store.LEASE_SECONDS - 1
        os.utime(path, (past, past))


# --- at once


def test_two_uploads_at_once_send_it_once(
    large: Path, sshd: Board, open_device: Callable[..., Device]
) -> None:
    with Relay(sshd.port) as relay, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "BUSY_SECONDS", 0.05)
        board = sshd.behind(relay.port)
        devices = [open_device(board) for _ in range(2)]
        for device in devices:
            device.agent.ask("probe")
        before = relay.sent
        with ThreadPoolExecutor(2) as pool:
            folders = list(pool.map(lambda device: device.push(large), devices))
        assert folders[0] == folders[1]
        assert same(folders[0], large)
        assert relay.sent - before < 9 * MEGABYTE
    assert not list((devices[0].home / store.INCOMING).iterdir())


def test_who_waits_takes_over_from_a_sender_who_is_gone(tmp_path: Path, large: Path) -> None:
    device = local_device(tmp_path)
    digest = sha256(large / BIG)
    sizes = {digest: 8 * MEGABYTE}
    device.agent.ask("have", files=sizes, owner="somebody")
    device.partial(large / BIG).write_bytes((large / BIG).read_bytes()[:MEGABYTE])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "BUSY_SECONDS", 0.05)
        threading.Timer(1.0, _age, [device.home]).start()
        began = time.monotonic()
        assert same(device.push(large), large)
        assert time.monotonic() - began >= 1.0


# --- the disk


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free."""
    found = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(found.f_bavail * found.f_frsize - left))
    return filler


def test_a_disk_without_room_is_refused_before_anything_is_sent(
    large: Path, full_disk: Path, open_device: Callable[..., Device]
) -> None:
    fill(full_disk, 20 * MEGABYTE)  # enough for the file, and too little to spare
    device = open_device(home=full_disk / "home")
    with pytest.raises(SlmqError, match=r"board: not enough disk space in .*: 8 MB more"):
        device.push(large)
    assert not list((device.home / store.INCOMING).iterdir())


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_keeps_the_part(
    large: Path, full_disk: Path, open_device: Callable[..., Device]
) -> None:
    device = open_device(home=full_disk / "home")
    fillers: list[Path] = []

    def put(
        transport: SshTransport,
        files: Mapping[str, Path],
        folder: str,
        progress: Callable[[int], None],
    ) -> None:
        if sha256(large / BIG) in files and not fillers:
            fillers.append(fill(full_disk, 5 * MEGABYTE))  # there was room when it was asked
        real(transport, files, folder, progress)

    real = SshTransport.put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SshTransport, "put", put)
        with pytest.raises(SlmqError, match=r"board: not enough disk space .* MB more are needed"):
            device.push(large)
    assert device.partial(large / BIG).stat().st_size > 4 * MEGABYTE
    fillers[0].unlink()
    _age(device.home)
    assert same(device.push(large), large)
