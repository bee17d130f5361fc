"""What TensorRT says while it works: the tail is kept, warnings and errors whole.

TensorRT keeps the first logger that a process gives it, so there is one.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import Any, Callable, Iterator, Sequence

TAIL = 100
ERROR, WARNING, INFO = 1, 2, 3  # trt.ILogger.Severity; 0 is an internal error, 4 verbose
LETTERS = "EEWI"


class Lines:
    """Lines by severity; TensorRT logs from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL)
        self._errors: list[str] = []
        self._warnings: list[str] = []
        self._all: list[str] | None = None

    def add(self, severity: int, text: str) -> None:
        with self._lock:
            if self._all is not None:
                self._all.append(text)
            if severity > INFO:  # a large build's are millions
                return
            line = " ".join(text.split())
            self._tail.append(f"{LETTERS[severity]} {line}")
            if severity <= ERROR:
                self._errors.append(line)
            elif severity == WARNING and line not in self._warnings:
                self._warnings.append(line)

    def clear(self) -> None:
        with self._lock:
            self._tail.clear()
            self._errors.clear()
            self._warnings.clear()

    @contextlib.contextmanager
    def everything(self) -> Iterator[list[str]]:
        """All messages of a while, as they are: the builder tells its plan among the verbose."""
        found: list[str] = []
        self._all = found
        try:
            yield found
        finally:
            self._all = None

    @property
    def tail(self) -> Sequence[str]:
        return list(self._tail)

    @property
    def errors(self) -> Sequence[str]:
        return list(self._errors)

    @property
    def warnings(self) -> Sequence[str]:
        return list(self._warnings)


LINES = Lines()
_LOGGERS: dict[int, Any] = {}  # a module's id -> the logger it was given


def logger(trt: Any) -> Any:
    """The logger of this process, which writes to `LINES`."""
    if id(trt) not in _LOGGERS:
        _LOGGERS[id(trt)] = _made(trt, LINES.add)
    return _LOGGERS[id(trt)]


def _made(trt: Any, add: Callable[[int, str], None]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            add(int(severity), msg)

    return Logger()
