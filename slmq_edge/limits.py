"""What ``--fail-on`` takes: the most that is accepted of something, for an exit code in CI."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from slmq_edge.errors import UsageError, unknown

NATS = ("kl", "token-kl")  # all else are shares


@dataclass(frozen=True)
class Limit:
    """The most that is accepted. what: of what; value: a fraction, or in the unit of what it is."""

    what: str
    value: float
    text: str


def parse(text: str, known: Collection[str], example: str) -> Limit:
    """Read a limit like ``gap=0.5%``, ``flips=0.02`` or ``kl=0.01``.

    Raises:
        UsageError: it is none, or not of what is ``known``; ``example`` shows how to write one. Or
            a share of 1 or more that is not in percent: nobody means 500 % by 5.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(f"--fail-on {text}: give NAME=VALUE, like {example}")
    if name not in known:
        raise UsageError(unknown("limit", name, tuple(known)))
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e-?\d+)?\s*(%?)", value)
    if found is None:
        raise UsageError(f"--fail-on {text}: {value!r} is no number, like 0.5% or 0.005")
    number = float(value.rstrip("% "))
    if number >= 1 and not found[3] and name not in NATS:
        raise UsageError(f"--fail-on {text}: that is {100 * number:g} %: write {name}={value}%")
    return Limit(name, number / 100 if found[3] else number, f"{name}={value}")
