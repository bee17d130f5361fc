"""Which machine is meant; and that no name of one is taken for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.errors import UsageError
from slmq_edge.remote import ssh
from slmq_edge.remote.target import HOST, Target, parse
from slmq_edge.remote.transport import Done
from tests.sshd import find_sshd


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("ssh://jetson", "jetson", None),
        ("ssh://nano@192.168.1.7", "nano@192.168.1.7", None),
        ("ssh://me@board.local:2222", "me@board.local", 2222),
        ("ssh://board:22/", "board", 22),
        ("ssh://me@[fe80::1%eth0]:2222", "me@fe80::1%eth0", 2222),
        ("ssh://[2001:db8::1]", "2001:db8::1", None),
    ],
)
def test_a_target_is_a_login_and_a_port(text: str, host: str, port: int | None) -> None:
    target = parse(text)
    assert (target.name, target.transport, target.host, target.port) == (text, "ssh", host, port)
    assert (target.python, target.home, target.config) == ("python3", ".slmq", None)


def test_local_is_a_target() -> None:
    assert parse("local") == Target("local", "local")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "local or ssh://user@host:port"),
        ("locl", "did you mean local?"),
        ("me@board", "did you mean ssh://me@board?"),
        ("shh://board", "did you mean ssh?"),
        ("http://board", "unknown scheme 'http'"),
        ("ssh://", "'' is not the name of a host"),
        ("ssh://-oProxyCommand=x", "is not the name of a host"),
        ("ssh://me@", "'me@' is not the name of a host"),
        ("ssh://-l@board", "is not the name of a host"),
        ("ssh://board;ls", "is not the name of a host"),
        ("ssh://bo ard", "is not the name of a host"),
        ("ssh://board\n", "is not the name of a host"),
        ("ssh://fe80::1:22", "stands in brackets"),
        ("ssh://board:0", "0 is not a port"),
        ("ssh://board:" + "9" * 5000, "is not a port"),
        ("ssh://board:65536", "65536 is not a port"),
        ("ssh://board:", "'' is not a port"),
        ("ssh://board:²", "'²' is not a port"),
        ("ssh://board/folder", "no path"),
        ("ssh://board:22/folder", "no path"),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse("ssh://me:hunter2@board")
    assert "hunter2" not in str(caught.value)
    assert "ssh-copy-id" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{"host": "-oProxyCommand=x"}, {"host": None}, {"port": -1}, {"python": ""}, {"home": "a\nb"}],
)
def test_a_target_that_parse_did_not_make_is_held_to_the_same(fields: dict[str, Any]) -> None:
    good: dict[str, Any] = {"name": "b", "transport": "ssh", "host": "board"}
    with pytest.raises(UsageError, match="'b'"):
        Target(**{**good, **fields})


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["-", "-o", "--", "@", ":", "[", "]", "%", " ", "'", '"', "$(x)", "22"]),
        st.text(max_size=4),
        st.from_regex(r"[a-z0-9.]{1,5}", fullmatch=True),
    ),
    max_size=7,
).map("".join)


def command_lines(target: Target, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that reach ssh for a command and for leaving."""
    seen: list[list[str]] = []

    def execute(command: Sequence[str], *rest: object, **more: object) -> Done:
        seen.append(list(command))
        return Done(0, "", "")

    with monkeypatch.context() as patch:
        patch.setattr(ssh, "execute", execute)
        transport = ssh.SshTransport(target)
        transport.run(["true"])
        transport.close()
    return seen


@given(text=PIECES)
def test_nothing_of_a_target_is_taken_for_an_option(text: str) -> None:
    """Every word before ``--`` is ours or a port, and after it stands a host."""
    try:
        target = parse(f"ssh://{text}")
    except UsageError:
        return
    with pytest.MonkeyPatch.context() as monkeypatch:
        plain = command_lines(Target("plain", "ssh", "plain"), monkeypatch)
        for ours, words in zip(plain, command_lines(target, monkeypatch), strict=True):
            end, our_end = words.index("--"), ours.index("--")
            port = [] if target.port is None else ["-p", str(target.port)]
            assert len(words[1:end]) == len(port) + len(ours[1:our_end])
            assert words[1 : 1 + len(port)] == port
            fixed = [word for word in words[1 + len(port) : end] if "ControlPath=" not in word]
            assert fixed == [word for word in ours[1:our_end] if "ControlPath=" not in word]
            assert HOST.fullmatch(words[end + 1])


def test_ssh_itself_takes_what_follows_for_a_host(tmp_path: Path) -> None:
    """The second lock: a host that got past the pattern still starts nothing here."""
    find_sshd()
    target = Target("board", "ssh", "board")
    made = tmp_path / "made"
    object.__setattr__(target, "host", f"-oProxyCommand=touch {made}")
    transport = ssh.SshTransport(target)
    with pytest.raises(Exception, match="board"):
        transport.run(["true"], timeout=10)
    transport.close()
    assert not made.exists()
