"""The system's ssh against a real sshd on loopback: what goes round, and what each failure says."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slmq_edge.errors import NotFound, SlmqError
from slmq_edge.remote import ssh
from slmq_edge.remote.refusals import by_hand, refusal
from slmq_edge.remote.ssh import SshTransport
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LinkLost, LocalTransport, Transport
from tests.relay import Relay
from tests.sshd import Board, make_keys, serve

Open = Callable[[Target], SshTransport]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Transports that are closed at the end."""
    made: list[SshTransport] = []

    def open_(target: Target) -> SshTransport:
        made.append(SshTransport(target))
        return made[-1]

    yield open_
    for transport in made:
        transport.close()


@pytest.fixture(params=["local", "ssh"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    if request.param == "local":
        made: Transport = LocalTransport(tmp_path)
    else:
        made = SshTransport(request.getfixturevalue("sshd").target())
    yield made
    made.close()


def refused(board: Board | Target, opened: Open, within: float = 5.0) -> str:
    """What a command is refused with: at once, in one line, and never as a link that was lost."""
    target = board if isinstance(board, Target) else board.target()
    began = time.monotonic()
    with pytest.raises(SlmqError) as caught:
        opened(target).run(["true"])
    assert time.monotonic() - began < within
    assert not isinstance(caught.value, LinkLost)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(target.name)
    return str(caught.value)


# --- commands


@pytest.mark.parametrize(
    "word", ["a b", "'", '"', "$(id)", "`id`", ";ls", "a\nb", "-n", "*", "\\", "ä€", "", "~", "!!"]
)
def test_words_go_round_intact(transport: Transport, word: str) -> None:
    done = transport.run(["printf", "%s|", word, "end"])
    assert (done.code, done.stdout, done.stderr) == (0, f"{word}|end|", "")


def test_standard_input_goes_round_intact(transport: Transport) -> None:
    done = transport.run(["cksum"], stdin=bytes(range(256)) * 4096)
    again = transport.run(["sh", "-c", "head -c 0; cksum"], stdin=bytes(range(256)) * 4096)
    assert done.stdout == again.stdout
    assert done.stdout.split()[1] == str(256 * 4096)


@pytest.mark.parametrize(
    ("script", "codes"),
    [
        ("exit 7", {7}),
        ("kill -KILL $$", {137}),
        ("kill -TERM $$", {143}),
        ("exit 255", {254, 255}),  # ssh's own code is never that of a command
    ],
)
def test_the_end_of_a_command_is_told_from_that_of_the_link(
    transport: Transport, script: str, codes: set[int]
) -> None:
    assert transport.run(["sh", "-c", script]).code in codes


def test_a_program_that_is_not_there_is_what_a_shell_says(transport: Transport) -> None:
    assert transport.run(["no-such-program"]).code == 127


def test_a_time_out_ends_the_waiting(transport: Transport) -> None:
    transport.run(["true"])
    began = time.monotonic()
    with pytest.raises(LinkLost, match=r"no answer within 1 s"):
        transport.run(["sleep", "20"], timeout=1)
    assert time.monotonic() - began < 5
    assert transport.run(["echo", "alive"]).stdout == "alive\n"


def test_one_connection_carries_everything_and_ends_with_us(sshd: Board, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        transport = SshTransport(sshd.behind(relay.port).target())
        for _ in range(3):
            transport.run(["true"])
        (tmp_path / "a").write_bytes(b"a")
        transport.put({"aa": tmp_path / "a"}, _folder(sshd, "one"), lambda done: None)
        assert relay.connections == 1
        (socket,) = _sockets(transport)
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert len(os.fsencode(socket)) + 17 < 104
        transport.close()
        assert not socket.parent.exists()
        until = time.monotonic() + 5
        while relay.open and time.monotonic() < until:
            time.sleep(0.02)
        assert not relay.open


def test_sockets_go_where_their_path_is_short_and_plain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("x" * 90, "a b", "100%d"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        folder = ssh._folder_for_sockets()
        folder.rmdir()
        assert folder.parent == Path("/tmp")


def _sockets(transport: SshTransport) -> list[Path]:
    assert transport._sockets is not None
    return list(transport._sockets.iterdir())


def _folder(board: Board, name: str) -> str:
    folder = board.home / name
    folder.mkdir(parents=True)
    return str(folder)


# --- what it says when it is not let in


def test_an_unknown_host_key_is_shown_how_to_be_learned_and_not_learned(
    sshd: Board, opened: Open
) -> None:
    nobody = sshd.with_config("unknown", f"{sshd.folder}/known_hosts", f"{sshd.folder}/none")
    text = refused(nobody, opened)
    assert "host key is not known here" in text
    assert by_hand(nobody.target()) in text
    assert not (sshd.folder / "none").exists()


@pytest.mark.parametrize("policy", ["yes", "ask", "accept-new"])
def test_a_changed_host_key_is_said_with_its_line(
    sshd: Board, opened: Open, tmp_path: Path, policy: str
) -> None:
    make_keys(tmp_path, "other")
    known = tmp_path / "known"
    host = (sshd.folder / "known_hosts").read_text().split()[0]
    known.write_text(f"# ours\n{host} {(tmp_path / 'other.pub').read_text()}")
    before = known.read_text()
    config = tmp_path / "config"
    text = (sshd.config.read_text()).replace(f"{sshd.folder}/known_hosts", str(known))
    config.write_text(text.replace("StrictHostKeyChecking yes", f"StrictHostKeyChecking {policy}"))
    said = refused(replace(sshd, config=config), opened)
    assert f"not the one that is known ({known}:2)" in said
    assert known.read_text() == before


def test_the_users_own_policy_is_left_to_him(sshd: Board, opened: Open, tmp_path: Path) -> None:
    config = tmp_path / "config"
    text = sshd.config.read_text().replace(f"{sshd.folder}/known_hosts", f"{tmp_path}/new")
    config.write_text(text.replace("Checking yes", "Checking accept-new"))
    assert opened(replace(sshd, config=config).target()).run(["true"]).code == 0
    assert (tmp_path / "new").is_file()


def test_a_key_that_is_not_let_in_is_said_once(sshd: Board, opened: Open, tmp_path: Path) -> None:
    make_keys(tmp_path, "stranger")
    with Relay(sshd.port) as relay:
        stranger = sshd.behind(relay.port, "other").with_config(
            "stranger", f"{sshd.folder}/client_key", f"{tmp_path}/stranger"
        )
        text = refused(stranger, opened)
        assert "does not let us in" in text
        assert "Permission denied (publickey)" in text
        assert by_hand(stranger.target(), "ssh-copy-id") in text
        assert relay.connections == 1


def test_a_port_where_nobody_listens_is_said_at_once(sshd: Board, opened: Open) -> None:
    with Relay(sshd.port) as relay:
        port = relay.port
    text = refused(sshd.target(port=port), opened)
    assert "cannot be reached" in text
    assert "Connection refused" in text


def test_a_name_that_is_none_is_not_found() -> None:
    words = "ssh: Could not resolve hostname boord: Name or service not known\r\n"
    target = Target("b", "ssh", "boord")
    error = refusal(target, words, connected=False)
    assert isinstance(error, NotFound)
    assert "boord" in str(error)
    assert isinstance(refusal(target, words, connected=True), LinkLost)  # the router restarts


def test_what_was_reached_before_may_be_reached_again() -> None:
    target, words = Target("b", "ssh", "b"), "ssh: connect to host b port 22: No route to host\n"
    assert isinstance(refusal(target, words, connected=True), LinkLost)
    assert not isinstance(refusal(target, words, connected=False), LinkLost)
    assert isinstance(refusal(target, "", connected=False), LinkLost)


def test_no_ssh_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlmqError, match=r"no ssh on this machine: .*apt-get install"):
        SshTransport(Target("b", "ssh", "b")).run(["true"])


def test_a_mistake_in_the_users_config_is_his_own_line(sshd: Board, opened: Open) -> None:
    wrong = sshd.with_config("wrong", "Host board\n", "Host board\nStrictHostKeyChekking yes\n")
    with pytest.raises(SlmqError, match="wrong: terminating, 1 bad configuration options"):
        opened(wrong.target()).run(["true"])


def test_a_config_made_for_terminals_does_not_disturb(sshd: Board, opened: Open) -> None:
    lines = "RemoteCommand bash -l\nRequestTTY force\nLocalForward 1 localhost:1\nLogLevel QUIET\n"
    person = sshd.with_config("person", "Host board\n", "Host board\n" + lines)
    done = opened(person.target()).run(["echo", "clean"])
    assert done == (0, "clean\n", "")


# --- the link


def test_a_link_that_is_cut_is_lost_and_found_again(sshd: Board, opened: Open) -> None:
    with Relay(sshd.port) as relay:
        transport = opened(sshd.behind(relay.port).target())
        transport.run(["true"])
        relay.cut_after(20_000)
        with pytest.raises(LinkLost, match="board"):
            transport.run(["sh", "-c", "cat >/dev/null; sleep 20"], stdin=bytes(100_000))
        assert transport.run(["echo", "again"]).stdout == "again\n"
        relay.refuse()
        relay.cut()
        with pytest.raises(LinkLost):
            transport.run(["true"])


# --- files


def test_files_arrive_and_a_part_of_one_is_gone_on_from(sshd: Board, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    for name, whole in {"aa": content, "bb": b"", "cc": b"c", "dd": content}.items():
        (tmp_path / name).write_bytes(whole)
    files = {name: tmp_path / name for name in ("aa", "bb", "cc", "dd")}
    folder = Path(_folder(sshd, "parts"))
    (folder / "aa").write_bytes(content[: 2 << 20])
    (folder / "cc").write_bytes(b"c")
    (folder / "dd").write_bytes(content + b"more")  # no part of the file
    told: list[int] = []
    with Relay(sshd.port) as relay:
        transport = SshTransport(sshd.behind(relay.port).target())
        transport.run(["true"])
        before = relay.sent
        transport.put(files, str(folder), told.append)
        transport.close()
        assert relay.sent - before < (1 << 20) + len(content) + 200_000
    for name, path in files.items():
        assert (folder / name).read_bytes() == path.read_bytes()
    assert told == sorted(told)
    assert told[-1] == 2 * len(content) + 1


@pytest.mark.parametrize("name", ["with blanks", "[a-z]*?", "apo'strophe", "ünï", "$HOME", "#no;!"])
def test_a_folder_is_what_its_name_says(
    transport: Transport, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    source = tmp_path / "from here $(x) 'ä'"
    source.write_bytes(b"abc")
    transport.put({"aa": source}, str(folder), lambda done: None)
    assert [path.name for path in folder.iterdir()] == ["aa"]
    assert (folder / "aa").read_bytes() == b"abc"


def test_a_folder_that_sftp_cannot_name_is_refused(sshd: Board, opened: Open) -> None:
    with pytest.raises(SlmqError, match="choose another home"):
        opened(sshd.target()).put({}, '/tmp/a"\nrm b', lambda done: None)


@pytest.mark.parametrize("fault", ["no folder", "a file in its place"])
def test_what_cannot_be_written_is_said(transport: Transport, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "there"
    if fault != "no folder":
        folder.write_text("a file")
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    with pytest.raises(SlmqError, match="there") as caught:
        transport.put({"aa": source}, str(folder), lambda done: None)
    assert not isinstance(caught.value, LinkLost)


def test_a_login_that_talks_disturbs_sftp_alone_and_is_told_how_to_stop(tmp_path: Path) -> None:
    talk = "ForceCommand printf 'Welcome to '; exec sh -c \"$SSH_ORIGINAL_COMMAND\""
    with serve(tmp_path / "sshd", talk) as board:
        transport = SshTransport(board.target())
        assert transport.run(["echo", "x"]).stdout == "Welcome to x\n"
        (tmp_path / "a").write_bytes(b"a")
        with pytest.raises(SlmqError, match="start-up file") as caught:
            transport.put({"aa": tmp_path / "a"}, _folder(board, "f"), lambda done: None)
        assert not isinstance(caught.value, LinkLost)
        transport.close()


def test_a_board_without_sftp_is_told_what_to_install(tmp_path: Path) -> None:
    with serve(tmp_path / "sshd", sftp=False) as board:
        transport = SshTransport(board.target())
        (tmp_path / "a").write_bytes(b"a")
        with pytest.raises(SlmqError, match="openssh-sftp-server"):
            transport.put({"aa": tmp_path / "a"}, _folder(board, "f"), lambda done: None)
        transport.close()


def test_where_links_cannot_be_made_files_are_staged_as_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("a privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "a").write_bytes(b"abc")
    with ssh._staged({"aa": tmp_path / "a"}) as stage:
        assert (stage / "aa").read_bytes() == b"abc"
    assert not stage.exists()
