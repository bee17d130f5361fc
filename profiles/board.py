"""What adapters share: a power mode, and what they must be told of their machine."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

# A throttling cause with this ending is a state of the moment, 0 or 1; any other counts events.
STATE = "_now"


class Mode(NamedTuple):
    """A power mode. id: the board's own number, which means another mode on another board."""

    name: str
    id: int | None = None

    def __str__(self) -> str:
        return self.name if self.id is None else f"{self.name} ({self.id})"


class Board(NamedTuple):
    """What an adapter must know of its machine and cannot ask it: from a fact sheet, by job.json.

    total_rails: sets of rails that add up to the whole device; the first that is there counts.
    maximum_modes: power modes without a limit, best first. power_source: where rails are read, if
    not where the adapter looks first. root: where /proc and /sys are.
    """

    name: str = ""
    total_rails: tuple[tuple[str, ...], ...] = ()
    maximum_modes: tuple[str, ...] = ()
    power_source: str | None = None
    root: str = "/"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Board:
        """Return a board from its fields as JSON, whose tuples are lists.

        Raises:
            TypeError: a field is misspelt, or is not a list where it must be.
        """
        rails = tuple(tuple(rails) for rails in fields.get("total_rails", ()))
        modes = tuple(fields.get("maximum_modes", ()))
        return cls(**{**fields, "total_rails": rails, "maximum_modes": modes})
