"""How commands and files reach a machine: what every way must do, and the way that is none."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from slmq_edge.errors import SlmqError
from slmq_edge.remote.target import LOCAL, Target

BLOCK_BYTES = 1 << 20
NOT_FOUND = 127  # a shell's code for a command that is not there
OF_SIGNAL = 128  # a shell's code for a death by signal n: this plus n


class LinkLost(SlmqError):
    """The connection was there, or may have been: what was asked may be asked again."""


class Done(NamedTuple):
    """How a command ended: its exit code (128 + n after signal n) and what it wrote."""

    code: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """A way to one machine."""

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        """Run a command there, in the login's home, and wait for its end.

        A ``timeout`` (seconds) ends the waiting; what was started may live on there.

        Raises:
            LinkLost: worth another try. SlmqError: it is not.
        """

    def put(self, files: Mapping[str, Path], folder: str, progress: Callable[[int], None]) -> None:
        """Send files into a folder that is there, under plain names (hex digits).

        What is there of a file is taken for its beginning, and only the rest is sent.

        Args:
            files: the name there -> the file here.
            folder: absolute.
            progress: told now and then how many bytes of these files are there.

        Raises:
            LinkLost: worth another try. SlmqError: it is not.
        """

    def close(self) -> None:
        """Let go of the connection."""


class LocalTransport:
    """This machine, as if it were another, whose login's home is ``home``."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        variables = {**os.environ, "HOME": str(self._home)}
        variables.pop("PYTHONPATH", None)  # ours, as is the checkout that it may lead to
        try:
            return execute(command, stdin, timeout, cwd=self._home, env=variables)
        except (FileNotFoundError, PermissionError) as error:
            return Done(NOT_FOUND, "", f"{command[0]}: {error.strerror}")

    def put(self, files: Mapping[str, Path], folder: str, progress: Callable[[int], None]) -> None:
        there = 0
        for name, path in files.items():
            copy = Path(folder) / name
            try:
                with path.open("rb") as source, copy.open("ab") as sink:
                    source.seek(sink.tell())
                    there += sink.tell()
                    while block := source.read(BLOCK_BYTES):
                        sink.write(block)
                        there += len(block)
                        progress(there)
            except OSError as error:
                raise SlmqError(f"cannot write {copy}: {error.strerror}") from error

    def close(self) -> None:
        pass


def execute(
    command: Sequence[str],
    stdin: bytes = b"",
    timeout: float | None = None,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run a command of this machine in a session of its own: Ctrl-C reaches us alone.

    Raises:
        LinkLost: ``timeout`` seconds have passed; the command is ended.
        OSError: it cannot be started.
    """
    pipe = subprocess.PIPE
    try:
        with started(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=env) as child:
            stdout, stderr = child.communicate(stdin, timeout)
    except subprocess.TimeoutExpired as error:
        raise LinkLost(f"no answer within {timeout:.0f} s") from error
    code = child.returncode if child.returncode >= 0 else OF_SIGNAL - child.returncode
    return Done(code, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command of this machine in a session of its own: Ctrl-C reaches us alone.

    It ends with the block, and with us: threads of several boards are left where they are by
    Ctrl-C, and what they have started must not go on sending.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as child:
        _CHILDREN.add(child)
        try:
            yield child
        except BaseException:
            end(child)
            raise
        finally:
            _CHILDREN.discard(child)


def end_all() -> None:
    """End all that is started still."""
    for child in tuple(_CHILDREN):
        end(child)


_CHILDREN: set[subprocess.Popen[bytes]] = set()
atexit.register(end_all)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a command and what it started, but for what has a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


def connect(target: Target) -> Transport:
    """Return the way to a machine; nothing is sent before the first command."""
    if target.transport == LOCAL:
        return LocalTransport(Path.home())
    from slmq_edge.remote.ssh import SshTransport

    return SshTransport(target)
