"""Questions to other processes: what crashes there, or never answers, ends nothing here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple, Sequence

import slmq_edge
from slmq_edge.runner.trial import MARK

SECONDS = 180.0  # a TensorRT engine for a small product takes seconds, on a board a minute
BY_ITSELF = "it ended with"
LONGEST = 300  # characters of an error
# What onnxruntime logs where a provider cannot start, and keeps to itself otherwise.
TELLING = re.compile(r"(Failed to (?:load library|create) .*|error while loading .*|.*Error: .*)")


class Answers(NamedTuple):
    """told: the answers that came. end: why no more did; empty where it ended as it should."""

    told: list[dict[str, Any]]
    end: str
    stderr: str


def trial(words: Sequence[str], seconds: float = SECONDS) -> Answers:
    """Ask `trial` in this Python; the package is found where it was, folder or zip."""
    home = os.path.abspath(str(Path(slmq_edge.__file__).parent.parent))
    paths = [home] + [p for p in [os.environ.get("PYTHONPATH")] if p]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "slmq_edge.runner.trial", *words]
    return ask(command, seconds, variables)


def ask(command: Sequence[str], seconds: float = SECONDS, variables: Any = None) -> Answers:
    """Run a command to its end, and read the lines that begin with `MARK`."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                command,
                cwd=os.sep,  # with -m and -c, modules would be looked for here first
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=variables,
            )
        except OSError as error:
            return Answers([], f"{command[0]} cannot be run: {error.strerror}", "")
        try:
            end = _end(child.wait(seconds))
        except subprocess.TimeoutExpired:
            end = f"no answer within {seconds:.0f} s"
        finally:
            child.kill()
            child.wait()
        told = [json.loads(line[len(MARK) :]) for line in _lines(output) if line.startswith(MARK)]
        return Answers(told, end, "\n".join(_lines(errors)))


def reason(answers: Answers) -> str:
    """The first line of stderr that tells something, or how the process ended."""
    lines = answers.stderr.strip().splitlines()
    telling = [found.group(1) for found in map(TELLING.search, lines) if found]
    died = [] if answers.end.startswith(BY_ITSELF) else [answers.end]
    said = [*telling, *died, *lines[-1:], answers.end]
    return next((one.strip() for one in said if one), "it said nothing")[:LONGEST]


def _end(code: int) -> str:
    if code >= 0:
        return f"{BY_ITSELF} {code}" if code else ""
    try:
        return f"it crashed: {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


def _lines(output: IO[bytes]) -> list[str]:
    output.seek(0)
    return output.read().decode("utf-8", "replace").splitlines()
