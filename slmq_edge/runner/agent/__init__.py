"""What a host asks of a device: one request as JSON on stdin, one answer as a line on stdout.

    {"do": "have", "home": "/home/me/.slmq", ...}     ->     slmq-edge: {...}

The answer of a word that fails is ``{"error": class name, "text": one line}``. Whatever else is
on stdout, a login's greeting for one, is not for us: the mark says which line is.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

from slmq_edge.errors import Damaged, SlmqError, Unsupported, unknown

MARK = "slmq-edge: "
# Word -> the function (home, request) -> answer; loaded when it is asked for.
DO = {
    "probe": "slmq_edge.runner.agent.probe:probe",
    "have": "slmq_edge.runner.agent.store:have",
    "place": "slmq_edge.runner.agent.store:place",
    "assemble": "slmq_edge.runner.agent.store:assemble",
    "gc": "slmq_edge.runner.agent.store:gc",
    "start": "slmq_edge.runner.agent.runs:start",
    "poll": "slmq_edge.runner.agent.runs:poll",
    "stop": "slmq_edge.runner.agent.runs:stop",
    "forget": "slmq_edge.runner.agent.runs:forget",
}


def main(arguments: Sequence[str]) -> int:
    """Answer one request; exit code 0, or 1 after an error. A traceback is our bug."""
    os.environ["PYTHONUTF8"] = "1"  # names of files go round whatever the login's locale
    try:
        answer, code = _answer(sys.stdin.buffer.read()), 0
    except SlmqError as error:
        answer, code = {"error": type(error).__name__, "text": str(error)}, 1
    # A login's start-up file may have written half a line before us.
    sys.stdout.write("\n" + MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()
    return code


def _answer(text: bytes) -> dict[str, Any]:
    try:
        request = json.loads(text)
        do, home = str(request["do"]), Path(request["home"])
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"no request: {error!r}") from error
    if do not in DO:
        raise Unsupported(unknown("word", do, tuple(DO)))
    module, _, function = DO[do].partition(":")
    with disk_errors(home):
        answer: dict[str, Any] = getattr(importlib.import_module(module), function)(home, request)
    return answer


@contextlib.contextmanager
def disk_errors(home: Path) -> Iterator[None]:
    """Turn what a disk can say into one line."""
    try:
        yield
    except OSError as error:
        name = error.filename or home
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SlmqError(f"the disk is full: {name} was not written") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise SlmqError(
                f"cannot write {name}: {error.strerror}; choose another home"
            ) from error
        raise
