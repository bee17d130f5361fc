"""A worker whose runtime is a fake: counts instead of computing. Run as a module by the tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.worker import Worker, serve


class Counting:
    """The next token is the number of tokens seen; ``path`` says what goes wrong."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        if path.name == "damaged":
            raise RuntimeError("the file\nis damaged")
        self.appends = path.name != "whole"
        self.calls: list[tuple[str, int]] = []
        self._path = path

    def reset(self) -> None:
        self.seen = 0
        self.calls.append(("reset", 0))

    def feed(self, tokens: Sequence[int]) -> None:
        if self._path.name == "dies":
            sys.stderr.write("first line\nout of luck\n")
            sys.stderr.flush()
            os._exit(3)
        if self._path.name == "hangs":
            time.sleep(60)
        self.seen += len(tokens)
        self.calls.append(("feed", len(tokens)))

    def logits(self) -> list[float]:
        return [float(self.seen)]

    def first(self) -> int:
        return self.seen

    def step(self, token: int) -> int:
        assert token == self.seen, "the token chosen last"
        self.seen += 1
        return self.seen


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout, Worker({"fake": Counting}))
