"""A real sshd on this machine's loopback, as the device: its own keys, and homes for the logins."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slmq_edge.remote.target import Target

HOST = "127.0.0.1"
STARTS_WITHIN = 10.0
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


@dataclass(frozen=True)
class Board:
    """A login on the sshd. home: its HOME; config: the ssh_config that leads to it as ``board``."""

    port: int
    home: Path
    config: Path
    folder: Path

    def target(self, home: str = ".slmq", **fields: object) -> Target:
        made = Target("board", "ssh", "board", None, sys.executable, home, self.config)
        return replace(made, **fields)  # type: ignore[arg-type]

    def behind(self, port: int, name: str = "relayed") -> Board:
        """The same login through another port, with the same trusted key."""
        config = self.config.with_name(name)
        config.write_text(self.config.read_text().replace(f"Port {self.port}", f"Port {port}"))
        known = self.config.with_name("known_hosts")
        line = known.read_text().splitlines()[0].replace(f"]:{self.port} ", f"]:{port} ")
        with known.open("a") as stream:
            stream.write(line + "\n")
        return replace(self, config=config)

    def with_config(self, name: str, before: str, after: str) -> Board:
        """The same login by an ssh_config that says something else."""
        text = self.config.read_text()
        assert before in text
        config = self.config.with_name(name)
        config.write_text(text.replace(before, after))
        return replace(self, config=config)


def find_sshd() -> str:
    """Return the program, or skip the test."""
    found = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if found is None or shutil.which("ssh") is None or not any(map(os.path.exists, SFTP_SERVERS)):
        pytest.skip("needs sshd, sftp-server and ssh: apt-get install openssh-server")
    return found


def make_keys(folder: Path, *names: str) -> None:
    for name in names:
        command = [
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            name,
            "-f",
            str(folder / name),
        ]
        subprocess.run(command, check=True)


@contextlib.contextmanager
def serve(
    folder: Path,
    *extra: str,
    sftp: bool = True,
    address: str = HOST,
    inside: Sequence[str] = (),
) -> Iterator[Board]:
    """Run an sshd that lets the present user in, into a home below ``folder``, by its own key.

    extra: more lines for sshd_config. address: its own. inside: the command that starts it where
    that address is.
    """
    program = find_sshd()
    home = folder / "home"
    home.mkdir(parents=True)
    make_keys(folder, "host_key", "client_key")
    shutil.copyfile(folder / "client_key.pub", folder / "authorized_keys")
    with socket.create_server((HOST, 0)) as found:
        port = found.getsockname()[1]
    _write_configs(folder, (address, port), (_subsystem(), *extra) if sftp else extra)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # for sshd's privilege separation
    log = (folder / "log").open("wb")
    command = [*inside, program, "-D", "-e", "-f", str(folder / "sshd_config")]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as daemon:
        try:
            _wait_for((address, port), daemon, folder / "log")
            yield Board(port, home, folder / "ssh_config", folder)
        finally:
            daemon.terminate()


def _subsystem() -> str:
    return f"Subsystem sftp {next(filter(os.path.exists, SFTP_SERVERS))}"


def _write_configs(folder: Path, place: tuple[str, int], extra: tuple[str, ...]) -> None:
    address, port = place
    (folder / "sshd_config").write_text(
        f"ListenAddress {address}\n"
        f"Port {port}\n"
        f"HostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\n"
        "StrictModes no\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM no\n"
        "MaxStartups 100\n"
        f"SetEnv HOME={folder}/home\n" + "".join(line + "\n" for line in extra)
    )
    (folder / "ssh_config").write_text(
        "Host board\n"
        f"HostName {address}\n"
        f"Port {port}\n"
        f"User {getpass.getuser()}\n"
        f"IdentityFile {folder}/client_key\n"
        "IdentitiesOnly yes\n"
        "IdentityAgent none\n"
        "StrictHostKeyChecking yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\n"
        "GlobalKnownHostsFile /dev/null\n"
    )
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[{address}]:{port} {public}")


def _wait_for(place: tuple[str, int], daemon: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            socket.create_connection(place, timeout=1).close()
        except OSError:
            if daemon.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"sshd does not start:\n{log.read_text()}") from None
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """One sshd for all tests; each takes a ``home`` of its own in its target."""
    with serve(tmp_path_factory.mktemp("sshd")) as board:
        yield board
