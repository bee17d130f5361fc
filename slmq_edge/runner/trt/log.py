"""What TensorRT says while it works: the tail is kept, warnings and errors whole.

TensorRT keeps the first logger that a process gives it, so there is one.
"""

from __future__ import annotations

import collections
import threading
from typing import Any, Callable, Sequence

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

    def add(self, severity: int, text: str) -> None:
        line = " ".join(text.split())
        with self._lock:
            if severity <= INFO:
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
