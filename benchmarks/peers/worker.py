"""The process of one contestant: a request in JSON per line on stdin, an answer per line on stdout.

    {"do": "load", "runtime": "ours", "path": "...", "threads": 1, "context": 1024}
    {"do": "repeat", "tokens": [...], "depth": 0, "new": 64}
    {"do": "logits", "tokens": [...]}
    {"do": "memory"}

An answer is ``{"result": {...}}`` or ``{"error": "..."}``. End of input ends the process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.runtimes import IMPORTS, RUNTIMES, Runtime

SHOWN = 512
KINDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


class Worker:
    """Answers requests; one model at most."""

    def __init__(self, runtimes: dict[str, Callable[[Path, int, int], Runtime]]) -> None:
        self._runtimes = runtimes
        self._loaded: Runtime | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "repeat": self._repeat,
            "logits": self._logits,
            "memory": memory,
        }
        arguments = {name: value for name, value in request.items() if name != "do"}
        try:
            return {"result": verbs[request["do"]](**arguments)}
        except Exception as error:  # runtimes share no base class; the row says what happened
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}

    def _load(self, runtime: str, path: str, threads: int, context: int) -> dict[str, Any]:
        for module in IMPORTS.get(runtime, ()):
            importlib.import_module(module)
        before = memory()
        started = time.perf_counter()
        self._loaded = self._runtimes[runtime](Path(path), threads, context)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "appends": self._loaded.appends,
            "imported": before,
            "loaded": memory(),
            "system": system(runtime),
        }

    def _repeat(self, tokens: Sequence[int], depth: int, new: int) -> dict[str, Any]:
        assert self._loaded is not None, "load comes first"
        return repetition(self._loaded, tokens, depth, new)

    def _logits(self, tokens: Sequence[int]) -> dict[str, Any]:
        """What follows a prompt: `SHOWN` logits, spread over the vocabulary."""
        assert self._loaded is not None, "load comes first"
        self._loaded.reset()
        self._loaded.feed(tokens)
        found = self._loaded.logits()
        return {"logits": [float(value) for value in found[:: max(1, len(found) // SHOWN)]]}


def repetition(
    runtime: Runtime,
    tokens: Sequence[int],
    depth: int,
    new: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """One prompt from an empty cache, and ``new`` greedy steps.

    Args:
        runtime: loaded.
        tokens: the whole prompt, ``depth`` tokens and those after them.
        depth: how many go in before the appended part, where the runtime can.
        new: how many steps.
        clock: seconds, monotonic.

    Returns:
        whole_seconds, appended_seconds (``None``: cannot be had), decode_seconds, the seconds of
        all threads' work on a CPU, and the new + 1 tokens chosen.
    """
    runtime.reset()
    worked = time.process_time()
    started = middle = clock()
    if depth and runtime.appends:
        runtime.feed(tokens[:depth])
        middle = clock()
        runtime.feed(tokens[depth:])
    else:
        runtime.feed(tokens)
    chosen = [runtime.first()]
    known = clock()
    for _ in range(new):
        chosen.append(runtime.step(chosen[-1]))
    return {
        "whole_seconds": known - started,
        "appended_seconds": known - middle if runtime.appends or not depth else None,
        "decode_seconds": clock() - known,
        "cpu_seconds": time.process_time() - worked,
        "tokens": chosen,
    }


def memory() -> dict[str, int | None]:
    """This process in bytes, as Linux counts: ``VmHWM``, the peak so far, ``VmRSS`` and parts."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return dict.fromkeys(KINDS)
    found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {kind: 1024 * int(found[kind].split()[0]) if kind in found else None for kind in KINDS}


def system(runtime: str) -> str | None:
    """What a runtime says it was compiled for."""
    if runtime != "llama.cpp":
        return None
    import llama_cpp

    return str(llama_cpp.llama_print_system_info().decode())


def serve(requests: TextIO, answers: TextIO, worker: Worker) -> None:
    for line in requests:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout; what libraries print goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, Worker(dict(RUNTIMES)))


if __name__ == "__main__":
    main()
