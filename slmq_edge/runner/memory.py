"""Memory that is given back to the system while a session lives.

What no kernel has packed for itself lies in a mapped file: a lookup table, scales, gains. Loading
reads all of it and a prompt some rows, and their pages count as resident until the system needs the
room. What is let go of here and read again comes from the page cache, in a microsecond or two.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

SMAPS = Path("/proc/self/smaps")
DONT_NEED = 4  # MADV_DONTNEED


class Mapping(NamedTuple):
    """Bytes of a file in this process's memory, of which none were written to."""

    address: int
    size: int


def return_memory() -> None:
    """Give back what malloc keeps of freed memory, where it can be asked to."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc


def of_folder(folder: Path, smaps: Path = SMAPS) -> list[Mapping]:
    """Where this process has mapped parts of a folder's files and written nothing to them."""
    place = str(folder.resolve())
    return [one for one, file in _unwritten(smaps) if os.path.dirname(file) == place]


def of_addresses(addresses: Iterable[int], smaps: Path = SMAPS) -> list[Mapping]:
    """Mapped parts of files that hold these addresses, where nothing was written to them."""
    wanted = sorted(addresses)

    def holds(one: Mapping) -> bool:
        at = bisect.bisect_left(wanted, one.address)
        return at < len(wanted) and wanted[at] < one.address + one.size

    return [one for one, _ in _unwritten(smaps) if holds(one)]


def _unwritten(smaps: Path) -> Iterator[tuple[Mapping, str]]:
    """Each mapped part of a file and the file; none where the system is no Linux."""
    found: tuple[Mapping, str] | None = None
    with contextlib.suppress(OSError), smaps.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(None, 5)
            if not fields[0].endswith(":"):  # 7f00-7f80 rw-p 00000000 fe:00 42   /a/file
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                is_file = len(fields) == 6 and fields[5].startswith("/")
                found = (Mapping(begin, end - begin), fields[5]) if is_file else None
            elif found is not None and fields[:2] == ["Anonymous:", "0"]:
                yield found  # of others, letting go would undo what was written


def let_go(found: list[Mapping]) -> None:
    """Forget the pages of mappings that are still there: read again, they are the file's."""
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        for one in found:
            advise(ctypes.c_void_p(one.address), ctypes.c_size_t(one.size), DONT_NEED)
