"""The two kinds of failure: a SlmqError is one helpful line for the user; anything else is our bug.

    SlmqError                exit code 1
    ├── UsageError           the request itself makes no sense: exit code 2
    ├── NotFound             a model, file, name or device that is not there
    ├── Unsupported          an architecture, scheme or operator we do not know
    ├── Damaged              a file that is not what its manifest says
    ├── MissingExtra         an optional dependency that is not installed
    └── Busy                 a device that works for somebody else: exit code 3

The runner imports this file on the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import difflib
from typing import Iterable, Sequence


class SlmqError(Exception):
    """One line that says what is wrong and what to do about it."""

    exit_code = 1


class UsageError(SlmqError):
    """The request itself makes no sense."""

    exit_code = 2


class NotFound(SlmqError):
    """A model, file, name or device that is not there."""


class Unsupported(SlmqError):
    """An architecture, scheme or operator we do not know."""


class Damaged(SlmqError):
    """A file that is not what its manifest says."""


class MissingExtra(SlmqError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'slmq-edge[{extra}]'")


class Busy(SlmqError):
    """A device that works for somebody else: what was asked may be asked later."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean X?)"`` for the nearest known name, or an empty string."""
    listed = list(known)
    inside = [one for one in listed if name and name.lower() in one.lower()]
    close = difflib.get_close_matches(name, listed, n=1) or inside[:1]
    return f" (did you mean {close[0]}?)" if close else ""


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Say that ``name`` is no known ``kind``, guess what was meant, and list what there is."""
    return f"unknown {kind} '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}"


def as_raised(name: str, text: str) -> SlmqError:
    """Return an error that another process raised and told by the name of its class."""
    kind = globals().get(name, SlmqError)
    if not (isinstance(kind, type) and issubclass(kind, SlmqError)):
        kind = SlmqError
    return kind.__new__(kind, text)  # MissingExtra's __init__ would word it again
