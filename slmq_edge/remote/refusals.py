"""What ssh and sftp say when they fail, as one line that says what to do about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from slmq_edge.errors import NotFound, SlmqError
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LinkLost

# The first pattern that is found counts. ssh's lines are never translated.
KEY_CHANGED = re.compile("REMOTE HOST IDENTIFICATION HAS CHANGED")
KEY_REVOKED = re.compile("REVOKED HOST KEY")
KEY_UNKNOWN = re.compile("Host key verification failed|host key is known for")
NO_ENTRY = re.compile(r"Permission denied \(|Too many authentication failures")
NO_HOST = re.compile("Could not resolve hostname")
BAD_CONFIG = re.compile(
    "(?i)bad configuration option|keyword .* extra arguments|Can't open user config"
)
NOISE = re.compile("Received message too long")
NO_SFTP = re.compile("subsystem request failed")
NOT_AGREED = re.compile("Unable to negotiate .*")
UNREACHED = re.compile("ssh: connect to host .*|Connection timed out.*|banner exchange.*")
OFFENDING = re.compile(r"Offending .* key in (\S+)")


def refusal(target: Target, words: str, connected: bool) -> SlmqError:
    """Return what an exit code of 255 means.

    Args:
        target: the machine.
        words: what was written to stderr.
        connected: there was a connection before: then a host that cannot be reached may be again.
    """
    for pattern, text in FINAL:
        if pattern.search(words):
            return SlmqError(f"{target.name}: {text(target, words)}")
    last = (words.strip().splitlines() or ["the connection was lost"])[-1]
    if NO_HOST.search(words) and not connected:
        return NotFound(f"{target.name}: no such host: {last}")
    if UNREACHED.search(words) and not connected:
        return SlmqError(
            f"{target.name} cannot be reached: {last}: is it on, and is this its port?"
        )
    return LinkLost(f"{target.name}: {last}")


def by_hand(target: Target, program: str = "ssh") -> str:
    """Return the command that reaches the machine by hand."""
    words = [program]
    if target.config is not None:
        words += ["-F", str(target.config)]
    if target.port is not None:
        words += ["-p", str(target.port)]
    return shlex.join([*words, str(target.host)])


def _changed(target: Target, words: str) -> str:
    where = OFFENDING.search(words)
    found = f" ({where.group(1)})" if where else ""
    return (
        f"its host key is not the one that is known{found}: if the machine was set up anew, remove "
        f"that line, then connect once with: {by_hand(target)}; if not, somebody stands between"
    )


def _unknown(target: Target, words: str) -> str:
    return (
        f"its host key is not known here: connect once with: {by_hand(target)}, and compare what "
        "it shows with: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, run on that machine"
    )


def _no_entry(target: Target, words: str) -> str:
    said = words.strip().splitlines()[-1]
    return (
        f"it does not let us in ({said}): give it your key with: {by_hand(target, 'ssh-copy-id')}, "
        "or unlock your key with: ssh-add"
    )


def _noise(target: Target, words: str) -> str:
    return (
        "sftp is disturbed by a start-up file there (.bashrc?) that writes something: it must not "
        f"where no terminal is; this should print nothing: {by_hand(target)} true"
    )


def _last(target: Target, words: str) -> str:
    return words.strip().splitlines()[-1]


FINAL: tuple[tuple[re.Pattern[str], Callable[[Target, str], str]], ...] = (
    (KEY_CHANGED, _changed),
    (KEY_REVOKED, lambda target, words: "its host key has been revoked: ask who runs it"),
    (KEY_UNKNOWN, _unknown),
    (NO_ENTRY, _no_entry),
    (NOISE, _noise),
    (NO_SFTP, lambda target, words: "it serves no sftp: install openssh-sftp-server there"),
    (BAD_CONFIG, _last),
    (NOT_AGREED, _last),
)
