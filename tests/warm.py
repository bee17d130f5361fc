"""The command line in processes that are forked off one that has imported torch already.

Importing torch and onnxruntime takes longer than most of what tests ask of the command line. The
server imports them once and forks for every request; what it forks has its own folder, variables,
arguments and output, as a process of its own has, and ends as it does.

What decides at import what it does is not imported here: huggingface_hub reads HF_HOME.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "onnxruntime", "onnx_ir", "onnxscript", "slmq_edge.simulation")
CLI = "slmq_edge"


def run(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """What ``python -m slmq_edge ARGUMENTS`` says and ends with."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("stdout", "stderr")]
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(environment),
            "files": [str(file) for file in files],
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, err = (file.read_text("utf-8") for file in files)
    return subprocess.CompletedProcess([CLI, *arguments], code, out, err)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """One for every process that tests run in; it ends when its input does."""
    found = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        found.communicate()

    atexit.register(end)
    return found


def serve() -> None:
    """Fork for every line of stdin, and answer with the exit code; in the server."""
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(request: Mapping[str, Any]) -> NoReturn:
    """Be the command line, to the end of this process."""
    code = 1
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for number, file in enumerate(request["files"], start=1):
            os.dup2(os.open(file, flags, 0o600), number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        sys.path[0] = request["cwd"]
        sys.argv = [CLI, *request["arguments"]]
        runpy.run_module(CLI, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = _code(ended)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _code(ended: SystemExit) -> int:
    if isinstance(ended.code, str):
        sys.stderr.write(f"{ended.code}\n")
        return 1
    return ended.code or 0


if __name__ == "__main__":
    serve()
