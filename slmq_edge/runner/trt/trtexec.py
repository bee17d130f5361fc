"""An engine by NVIDIA's own program, where this Python has no TensorRT, or where it is asked for.

It needs less memory than Python beside it does. Its lines are those of `commands`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Callable, Sequence

from slmq_edge.errors import NotFound, SlmqError
from slmq_edge.runner.trt import commands, versions
from slmq_edge.runner.trt.log import LINES, WARNING
from slmq_edge.runner.trt.versions import Version

TAIL = 100
LONG_AGO = 5.0  # seconds between two lines about a build that goes on
SECONDS_TO_END = 10.0
LINE = re.compile(r"^\[[^\]]*\] \[([EWI])\] (?:\[TRT\] )?(.*)$")
# What it says last whatever went wrong: of no help to anybody.
EMPTY = (
    "engine could not be created",
    "building engine failed",
    "engine set up failed",
    "failed to",
)


def find(asked: Path | None = None) -> Path:
    """The program that was asked for, that of PATH, or that of NVIDIA's packages.

    Raises:
        NotFound: there is none.
    """
    if asked is not None:
        if not (asked.is_file() and os.access(asked, os.X_OK)):
            raise NotFound(f"{asked} is no program")
        return asked
    for candidate in (shutil.which("trtexec"), commands.USUAL_PLACE):
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise NotFound("there is no trtexec on PATH, nor where NVIDIA's packages put it")


def version(program: Path) -> Version:
    """The release that it is of.

    Raises:
        SlmqError: it cannot be run, or is something else.
    """
    try:
        done = subprocess.run(
            [str(program), "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlmqError(f"{program} cannot be run: {error}") from error
    found = versions.of_banner(done.stdout.decode("utf-8", "replace"))
    versions.traits(found)
    return found


def run(line: Sequence[str], tell: Callable[[str], object]) -> Sequence[str]:
    """Run a build to its end; return the tail of what it said.

    Raises:
        SlmqError: it failed; says what it said.
        KeyboardInterrupt: Ctrl-C; the program is ended first.
    """
    LINES.clear()
    began = told = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise SlmqError(f"{line[0]} cannot be run: {error}") from error
        try:
            while process.poll() is None:
                time.sleep(0.05)
                if time.monotonic() - told > LONG_AGO:
                    told = time.monotonic()
                    tell(f"building: {told - began:.0f} s")
        except BaseException:
            end(process)
            raise
        tail = _tail(output)
    if process.returncode != 0:
        raise SlmqError(f"trtexec failed: {_reason(tail, process.returncode)}")
    for text in tail:
        found = LINE.match(text)
        if found and found.group(1) == "W":
            LINES.add(WARNING, found.group(2))
    return tail


def end(process: subprocess.Popen[bytes], patience: float = SECONDS_TO_END) -> None:
    """End a program, the hard way if it takes more than ``patience`` seconds."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    finally:  # after a second Ctrl-C too
        if process.poll() is None:
            process.kill()
            process.wait()


def _tail(output: IO[bytes]) -> Sequence[str]:
    output.seek(0)
    kept: collections.deque[str] = collections.deque(maxlen=TAIL)
    for line in output:
        kept.append(line.decode("utf-8", "replace").rstrip())
    return list(kept)


def _reason(tail: Sequence[str], code: int) -> str:
    """The first error that names something; the system's, where the program was ended."""
    errors = [found.group(2) for found in map(LINE.match, tail) if found and found.group(1) == "E"]
    telling = [text for text in errors if not text.lower().startswith(EMPTY)]
    if telling or errors:
        return (telling or errors)[0]
    if code < 0:
        return f"it was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return f"it ended with {code} and said nothing"
