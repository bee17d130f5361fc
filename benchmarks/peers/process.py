"""The other end of the pipe: start a worker, ask it, and say why when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.cpu_w8a8 import ROOT

PATIENCE = 900.0  # seconds for one answer
MODULE = "benchmarks.peers.worker"
# Threads are told to each runtime; how its OpenMP waits is its own default.
OPENMP = ("OMP_", "GOMP_", "KMP_")


class Failed(Exception):
    """A contestant does not run; the message is its row's reason."""


def environment() -> dict[str, str]:
    """This process's variables, less those that steer OpenMP, with our packages on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OPENMP)}
    return {**kept, "PYTHONPATH": str(ROOT)}


def run(command: list[str]) -> None:
    """Run a program to its end.

    Raises:
        Failed: with the last line that it wrote to stderr.
    """
    done = subprocess.run(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise Failed(reason(done.returncode, done.stderr))


def reason(code: int, stderr: bytes) -> str:
    """One line about a process that ended: its last words, or the signal."""
    if code < 0:
        return f"killed by signal {-code}" + (": out of memory?" if code == -9 else "")
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"exit code {code}")


class Process:
    """A worker in an interpreter; a context manager, whose end is the worker's."""

    def __init__(self, python: Path, module: str = MODULE, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  __exit__ closes it
        self._process = subprocess.Popen(
            [str(python), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(),
        )

    @property
    def returncode(self) -> int | None:
        """The worker's exit status, once it has ended."""
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request, wait for its answer.

        Raises:
            Failed: the worker reports an error, ends, or takes too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"do": do, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        if not select.select([self._process.stdout], [], [], self._patience)[0]:
            self._process.kill()
            raise Failed(f"no answer to {do} within {self._patience:.0f} s")
        answered = self._process.stdout.readline()
        if not answered:
            raise Failed(self._last_words())
        document = json.loads(answered)
        if "error" in document:
            raise Failed(document["error"])
        result: dict[str, Any] = document["result"]
        return result

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        return reason(code, self._stderr.read())
