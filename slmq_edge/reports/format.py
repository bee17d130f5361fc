"""Numbers as text. Only reports round; everything inside is SI units and full precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

UNKNOWN = "n/a"


def bytes_text(count: float | None) -> str:
    """Return bytes in decimal units: 1 MB is 10^6 bytes, as on a disk's label."""
    if count is None:
        return UNKNOWN
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= 0.9995 * size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= 0.9995 * size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def rate_text(per_second: float | None, unit: str = "tok/s") -> str:
    return UNKNOWN if per_second is None else f"{_three_digits(per_second)} {unit}"


def watts_text(watts: float | None) -> str:
    return UNKNOWN if watts is None else f"{_three_digits(watts)} W"


def share_text(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def count_text(count: float | None) -> str:
    """Return a large number in millions or billions: 134.5 M."""
    if count is None:
        return UNKNOWN
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:.0f}"


def _three_digits(value: float) -> str:
    """Return at least three digits, without an exponent: 9.87, 98.7, 987, 12345."""
    size = abs(value)
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:.{decimals}f}"


def scheme_text(ran: str, stored_bits: Mapping[str, int]) -> str:
    """The scheme that runs; and what holds its weights, where that has more bits than they."""
    stored = stored_bits.get("linears", 0)
    if ran.startswith("w4") and stored > 4:
        return f"{ran} (4-bit numerics, {stored}-bit storage)"
    return ran


def section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title, and below it names and values in two columns."""
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in listed)])
