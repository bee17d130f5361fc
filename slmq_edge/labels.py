"""Names that tell apart what would be called the same."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any


def distinct(
    names: Sequence[str],
    facts: Sequence[Mapping[str, Any]],
    groups: Sequence[Hashable] | None = None,
) -> list[str]:
    """Names, behind which stand the first facts that tell apart what has the same.

    Args:
        names: one for each thing.
        facts: of each thing, all with the same keys; what a reader knows it by first.
        groups: in which names must be distinct; None: among all. A name that is told apart in one
            group gets the same facts in all, so that like things stay alike.
    """
    within: Sequence[Hashable] = [None] * len(names) if groups is None else groups
    found = list(names)
    for name in dict.fromkeys(names):
        members = [index for index, one in enumerate(names) if one == name]
        told = dict.fromkeys(members, "")
        for fact in facts[members[0]]:
            values = {index: _plain(facts[index][fact]) for index in members}
            if _helps(told, values, within):
                told = {index: f"{told[index]}, {fact} {values[index]}" for index in members}
        seen: dict[tuple[Hashable, str], int] = {}
        for index in members:
            again = seen[within[index], told[index]] = seen.get((within[index], told[index]), 0) + 1
            words = told[index][2:] + (f", number {again}" if again > 1 else "")
            found[index] = f"{name} [{words.removeprefix(', ')}]" if words else name
    return found


def _helps(told: Mapping[int, str], values: Mapping[int, str], within: Sequence[Hashable]) -> bool:
    """Whether two of one group that are called the same differ in these values."""
    kept: dict[tuple[Hashable, str], str] = {}
    return any(
        kept.setdefault((within[index], told[index]), value) != value
        for index, value in values.items()
    )


def _plain(value: Any) -> str:
    return "unknown" if value is None else str(value)
