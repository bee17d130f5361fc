"""A machine behind the system's own ssh and sftp, with all that the user's ssh_config says.

One connection carries everything (not on Windows, whose ssh cannot share one). Which host keys are
trusted is the user's and ssh's own affair: we neither add one nor look away.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from slmq_edge.errors import SlmqError
from slmq_edge.remote.refusals import refusal
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import Done, LinkLost, execute, started

FAILED = 255  # ssh's own code for its own failures
# Fixed: what is to be run comes as arguments. 255 stays ssh's alone, so that it has one meaning,
# and a death by a signal is a code of the shell's, where ssh would say 255 too.
SCRIPT = '"$@"; code=$?; [ $code = 255 ] && code=254; exit $code'
OPTIONS = (
    "BatchMode=yes",  # nobody is there to answer
    "ConnectTimeout=10",
    "ServerAliveInterval=5",  # a dead link is told after 15 s
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",  # no greeting among the reasons
    "RequestTTY=no",
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
)
UNSHARED = ("ControlMaster=no", "ControlPath=none")
PERSIST_SECONDS = 60
# The system's limit for a socket's path is 104 bytes or more, of which ssh takes 17 for a while.
SOCKET, SOCKET_BYTES = "c", 80
PLAIN = re.compile(r"[A-Za-z0-9._/-]+")  # what needs no quotes in ssh's options
QUOTED = re.compile(r'[^"\\\x00-\x1f]+')  # what two quotes are enough for in sftp's
LOOK_SECONDS, LOOK_TIMEOUT = 1.0, 30.0
LAST_WORDS = 3


class SshTransport:
    """See `transport.Transport`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connected = False
        self._sockets: Path | None = None

    def run(self, command: Sequence[str], stdin: bytes = b"", timeout: float | None = None) -> Done:
        remote = shlex.join(["sh", "-c", SCRIPT, "sh", *command])
        with self._named():
            done = execute(
                ["ssh", *self._options("-p"), "--", self._host(), remote], stdin, timeout
            )
        if done.code == FAILED:
            raise self._failure(done.stderr)
        self._connected = True
        return done

    def put(self, files: Mapping[str, Path], folder: str, progress: Callable[[int], None]) -> None:
        if not QUOTED.fullmatch(folder):
            raise SlmqError(
                f"{self._target.name}: sftp cannot name {folder!r}: choose another home"
            )
        there = self._sizes(files, folder)
        batch = [f'cd "{folder}"']
        for name, path in files.items():
            have, whole = there.get(name), path.stat().st_size
            if have is not None and 0 < have < whole:
                batch.append(f"reput {name} {name}")
            elif have is None or have != whole:
                batch.append(f"put {name} {name}")
        if len(batch) > 1:
            with _staged(files) as stage:
                self._send(batch, stage, lambda: progress(self._total(files, folder)))
        progress(self._total(files, folder))

    def close(self) -> None:
        if self._sockets is None:
            return
        with contextlib.suppress(OSError, LinkLost):
            execute(["ssh", *self._options("-p"), "-O", "exit", "--", self._host()], timeout=5)
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._sockets = None

    def _host(self) -> str:
        assert self._target.host is not None
        return self._target.host

    def _options(self, port: str, *, shared: bool = True) -> list[str]:
        """Everything before the host. port: ssh's flag, or sftp's."""
        target, words = self._target, []
        if target.config is not None:
            words += ["-F", str(target.config.absolute())]
        if target.port is not None:
            words += [port, str(target.port)]
        for option in (*OPTIONS, *(self._shared() if shared else UNSHARED)):
            words += ["-o", option]
        return words

    def _shared(self) -> Sequence[str]:
        if os.name != "posix":
            return UNSHARED
        if self._sockets is None:
            self._sockets = _folder_for_sockets()
            weakref.finalize(self, shutil.rmtree, self._sockets, ignore_errors=True)
        socket = self._sockets / SOCKET
        return ("ControlMaster=auto", f"ControlPath={socket}", f"ControlPersist={PERSIST_SECONDS}")

    def _send(self, batch: Sequence[str], stage: Path, look: Callable[[], None]) -> None:
        """Run sftp's commands until the first that fails, in ``stage``; look on meanwhile."""
        code, words = self._sftp(batch, stage, look)
        if code == FAILED or code < 0:  # by SIGPIPE, where ssh has gone from under it
            refused = self._failure(words)
            if isinstance(refused, LinkLost):
                # On a shared connection a subsystem that is not there looks like a lost link.
                code, words = self._sftp([], stage, lambda: None, shared=False)
                refused = self._failure(words) if code == FAILED else refused
            raise refused
        if code != 0:
            last = " | ".join(words.strip().splitlines()[-LAST_WORDS:]) or "sftp did not say why"
            raise SlmqError(f"{self._target.name}: not all was sent: {last}")

    def _sftp(
        self, batch: Sequence[str], stage: Path, look: Callable[[], None], *, shared: bool = True
    ) -> tuple[int, str]:
        """Return sftp's exit code and what it wrote to stderr."""
        user, at, host = self._host().rpartition("@")
        host = f"[{host}]" if ":" in host else host  # sftp takes a colon for the end of the host
        options = self._options("-P", shared=shared)
        command = ["sftp", "-b", "-", *options, "--", f"{user}{at}{host}"]
        with self._named(), tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
            asked.write("".join(f"{line}\n" for line in batch).encode())
            asked.seek(0)
            quiet = subprocess.DEVNULL
            with started(command, stdin=asked, stdout=quiet, stderr=said, cwd=stage) as child:
                while _runs(child):
                    with contextlib.suppress(LinkLost):  # sftp will tell
                        look()
            said.seek(0)
            return child.returncode, said.read().decode("utf-8", "replace")

    def _sizes(self, names: Mapping[str, Path], folder: str) -> dict[str, int]:
        """Return how many bytes of each file are there."""
        done = self.run(["ls", "-ln", "--", folder], timeout=LOOK_TIMEOUT)
        if done.code != 0:
            raise SlmqError(f"{self._target.name}: {done.stderr.strip() or folder}")
        rows = [line.split() for line in done.stdout.splitlines()]
        return {row[-1]: int(row[4]) for row in rows if len(row) > 8 and row[-1] in names}

    def _total(self, names: Mapping[str, Path], folder: str) -> int:
        return sum(self._sizes(names, folder).values())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise SlmqError(
                f"no {error.filename} on this machine: install OpenSSH's client "
                "(apt-get install openssh-client)"
            ) from error
        except LinkLost as error:
            raise LinkLost(f"{self._target.name}: {error}") from error

    def _failure(self, words: str) -> SlmqError:
        return refusal(self._target, words, self._connected)


def _runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _folder_for_sockets() -> Path:
    """Return a new folder, ours alone, whose name neither ssh nor a socket minds."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) + len("/slmq-12345678/c") > SOCKET_BYTES or not PLAIN.fullmatch(
        folder
    ):
        folder = "/tmp"
    return Path(tempfile.mkdtemp(prefix="slmq-", dir=folder))


@contextlib.contextmanager
def _staged(files: Mapping[str, Path]) -> Iterator[Path]:
    """Yield a folder where every file stands under its name there: no other reaches sftp."""
    with tempfile.TemporaryDirectory(prefix="slmq-") as name:
        for digest, path in files.items():
            place = Path(name) / digest
            try:
                place.symlink_to(path.absolute())
            except OSError:  # Windows gives that right to few
                shutil.copyfile(path, place)
        yield Path(name)
