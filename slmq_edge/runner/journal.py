"""The journal: one JSON line for every event, on disk before the next begins.

======================  ====================================================================
begin                   bundle_sha256, workload, allow_inexact, environment, at (Unix
                        seconds), pid, board; one for every process that worked on the run
probe                   result: operator, exact, largest_error (null for a bundle of floats)
golden                  report: the fields of `golden.GoldenReport`
placed                  steps {prefill, decode: the fields of `placed.Placed`}: of a graph on a GPU
power                   the fields of `windows.Window`
load                    seconds, memory {phase: {kind: bytes}}, kv_bytes_per_token, profile,
                        session, state
warmup, repetition      index, prefill_seconds, decode_seconds, decode_step_seconds, memory,
                        cooled_seconds, state
forward_warmup,         index, seconds, logits (positions that had some), memory; every tenth with
forward                 state: passes of a protocol, see `forward`
scores                  first, logprobs, greedy: of sequences ``first`` on, see `scoring`
again                   drift {series: share}: the repetitions before it were not steady, and
                        those behind it take their place
end                     load_average, session, profile
======================  ====================================================================

``state`` is what `around.snapshot` sees behind what was timed.

``session`` is what the session says of itself, then and at the end; older journals have none. Where
a device has memory of its own, ``load`` and every round have device_memory {part: bytes}.

A process that was killed leaves at most one torn line, the last; it is dropped. Damage
anywhere else is refused with the line's number.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import IO, Any, Callable, Mapping

from slmq_edge.errors import Damaged, SlmqError

NUMBER = (int, float)
OF_NAMES = ("total_rails",)  # lists of text; all others are of numbers
OF_CHOICES = ("allow_inexact", "greedy")  # true or false, or a list of these
OBJECTS = ("session", "state", "board", "profile")  # that an event may lack
FIELDS: dict[str, dict[str, Any]] = {
    "begin": {
        "bundle_sha256": str,
        "workload": dict,
        "allow_inexact": bool,
        "environment": dict,
        "at": NUMBER,
        "pid": int,
    },
    "probe": {"result": (dict, type(None))},
    "golden": {"report": dict},
    "placed": {"steps": dict},
    "load": {"seconds": NUMBER, "memory": dict, "kv_bytes_per_token": int, "profile": dict},
    "warmup": {
        "index": int,
        "prefill_seconds": NUMBER,
        "decode_seconds": NUMBER,
        "decode_step_seconds": list,
        "memory": dict,
    },
    "power": {
        "phase": str,
        "seconds": NUMBER,
        "rounds": int,
        "tokens": int,
        "stamps": list,
        "watts": dict,
        "counter_joules": (int, float, type(None)),
        "total_rails": list,
    },
    "scores": {"first": int, "logprobs": list, "greedy": list},
    "forward": {"index": int, "seconds": NUMBER, "logits": int, "memory": dict},
    "again": {"drift": dict},
    "end": {"load_average": (int, float, type(None))},
}
FIELDS["repetition"] = FIELDS["warmup"]
FIELDS["forward_warmup"] = FIELDS["forward"]
TIMED = ("repetition", "forward")


class Journal:
    """An open journal: this process alone writes to it. A torn last line is cut off first."""

    def __init__(self, path: Path, echo: Callable[[str], object] = lambda line: None) -> None:
        self._path, self._echo = path, echo
        self._stream: IO[bytes] = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _, whole_bytes = _parse(path)
            self._stream.truncate(whole_bytes)
        except BlockingIOError as error:
            self._stream.close()
            raise SlmqError(f"{path} is in use: another run writes to it") from error
        except BaseException:
            self._stream.close()
            raise

    def append(self, event: dict[str, Any]) -> None:
        """Write one event and wait until it is on disk; then tell whoever listens."""
        line = json.dumps(event, allow_nan=False)
        content = line.encode() + b"\n"
        try:
            whole = self._stream.write(content) == len(content)
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise SlmqError(f"cannot write {self._path}: {error.strerror}") from error
        if not whole:
            raise SlmqError(f"cannot write {self._path}: the disk is full")
        self._echo(line)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the events of a journal without its torn last line, if it has one.

    Raises:
        Damaged: a line other than the last is not an event that we know.
    """
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the whole events, and how many bytes of the file they fill."""
    events: list[dict[str, Any]] = []
    whole_bytes = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        event = parse_event(line) if line.endswith(b"\n") else None
        if event is None:
            if number < len(lines):
                raise Damaged(f"{path} is damaged in line {number}; delete it to start anew")
            break
        events.append(event)
        whole_bytes += len(line)
    return events, whole_bytes


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the event of one line, or None where the line is no event of ours."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    name = event.get("event") if isinstance(event, dict) else None
    fields = FIELDS.get(name) if isinstance(name, str) else None
    if fields is None:
        return None
    for field, kind in fields.items():
        value = event.get(field)
        if field not in event or not isinstance(value, kind) or not _is_sound(field, value):
            return None
    if not all(isinstance(event.get(name, {}), dict) for name in OBJECTS) or not _are_bytes(event):
        return None
    return event  # type: ignore[no-any-return]


def taken(event: Mapping[str, Any]) -> int:
    """How many repetitions, passes of a protocol, or scores of sequences an event holds."""
    if event["event"] == "scores":
        return len(event["logprobs"])
    return int(event["event"] in TIMED)


def _are_bytes(event: dict[str, Any]) -> bool:
    parts = event.get("device_memory", {})
    return isinstance(parts, dict) and all(type(count) is int for count in parts.values())


def _is_sound(field: str, value: object) -> bool:
    """Refuse what JSON allows and arithmetic does not: NaN, true for 1, text in a list."""
    if isinstance(value, list):
        if field in OF_NAMES:
            return all(isinstance(item, str) for item in value)
        if field in OF_CHOICES:
            return all(isinstance(item, bool) for item in value)
        return all(isinstance(item, NUMBER) and _is_sound(field, item) for item in value)
    if isinstance(value, bool):
        return field in OF_CHOICES
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 1 << 63
