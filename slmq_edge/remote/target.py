"""Which machine is meant: ``local``, or ``ssh://user@host:port``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slmq_edge.errors import UsageError, did_you_mean

LOCAL: Literal["local"] = "local"
SSH: Literal["ssh"] = "ssh"
FORMS = f"{LOCAL} or {SSH}://user@host:port"
# Nothing that ssh could take for an option, sftp for a path, or a shell for anything.
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:%-]*(?<!@)")
AUTHORITY = re.compile(
    r"(?:(?P<user>[^@]*)@)?(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:]*))(?::(?P<port>[^:]*))?"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
PORT = re.compile(r"[0-9]{1,5}")
PORTS = range(1, 65536)


@dataclass(frozen=True)
class Target:
    """A machine, and where we live on it.

    Args:
        name: what the user calls it; opens every line about it.
        transport: how it is reached.
        host: as ssh takes it: ``host``, ``user@host``, a name of the user's ssh_config.
        port: None: the one of the user's ssh_config.
        python: the interpreter there, of Python 3.8 or later.
        home: our folder there, below the login's home or absolute.
        config: an ssh_config to read in place of the user's.

    Raises:
        UsageError: a host that could be anything else, a port that is none, a line break.
    """

    name: str
    transport: Literal["local", "ssh"]
    host: str | None = None
    port: int | None = None
    python: str = "python3"
    home: str = ".slmq"
    config: Path | None = None

    def __post_init__(self) -> None:
        if self.transport == SSH and not HOST.fullmatch(self.host or ""):
            raise UsageError(f"{self.name!r}: {self.host!r} is not the name of a host")
        if self.port is not None and self.port not in PORTS:
            raise UsageError(f"{self.name!r}: {self.port} is not a port: 1 to 65535")
        for field in ("python", "home"):
            value = getattr(self, field)
            if not value or CONTROL.search(value):
                raise UsageError(f"{self.name!r}: {field} cannot be {value!r}")


def parse(text: str) -> Target:
    """Return the machine that the user named.

    Raises:
        UsageError: the text names none; says which forms there are, or what was meant.
    """
    if text == LOCAL:
        return Target(LOCAL, LOCAL)
    scheme, mark, rest = text.partition("://")
    if text.partition(":")[0] == "cuda":
        raise UsageError(
            f"{text!r} is no machine: a GPU of this one is --torch-device {text}, of bundles and "
            "checkpoints for torch"
        )
    if not mark:
        raise UsageError(f"{text!r} is no device: {FORMS}{_meant(text)}")
    if scheme != SSH:
        raise UsageError(
            f"{text!r}: unknown scheme {scheme!r}{did_you_mean(scheme, [SSH])}: {FORMS}"
        )
    found = AUTHORITY.fullmatch(rest.rstrip("/"))
    if found is None:
        raise UsageError(f"{text!r}: an IPv6 address stands in brackets: {SSH}://user@[fe80::1]:22")
    user, host, port = found["user"], found["six"] or found["host"] or "", found["port"]
    if ":" in (user or ""):
        raise UsageError(f"no password in {SSH}://: let the device know your key (ssh-copy-id)")
    if "/" in host or "/" in (port or ""):
        raise UsageError(f"{text!r}: no path: our folder there is home, in an inventory")
    if port is not None and not PORT.fullmatch(port):
        raise UsageError(f"{text!r}: {port!r} is not a port: 1 to 65535")
    login = host if user is None else f"{user}@{host}"
    return Target(text, SSH, login, None if port is None else int(port))


def _meant(text: str) -> str:
    """Guess: a login without its scheme, or a misspelt ``local``."""
    if HOST.fullmatch(text) and ("@" in text or "." in text):
        return f" (did you mean {SSH}://{text}?)"
    return did_you_mean(text, [LOCAL])
