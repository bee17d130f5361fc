"""What a Tegra keeps of its memory beside /proc/meminfo: GPU buffers by process, free blocks.

nvmap gives Jetson's GPU its memory: no process's resident size counts it. debugfs lists its
clients, to root alone (NVIDIA, CUDA for Tegra); on Thor CUDA does not go through it. Free memory
must lie in one piece where a buffer is wanted: the largest free block, which tegrastats calls lfb,
is computed here from /proc/buddyinfo (proc(5)), which tells how many blocks of each order are free.
"""

from __future__ import annotations

import re
from typing import NamedTuple

CLIENTS = "sys/kernel/debug/nvmap/iovmm/clients"
# A process's name may have blanks in it; the columns are its client, its name, its number, bytes.
CLIENT = re.compile(r"^(\S+)\s+(\S.*?)\s+([0-9]{1,9})\s+([0-9]{1,15})([KMG]?)$")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
ZONE = re.compile(r"^Node\s+[0-9]+,\s+zone\s+\S+\s+([0-9][0-9\s]*)$")


class Client(NamedTuple):
    process: str
    pid: int
    size_bytes: int


class Blocks(NamedTuple):
    """So many free blocks of the largest size there is, each of so many bytes."""

    number: int
    block_bytes: int


def clients(text: str) -> list[Client]:
    """Return the clients that are processes; the head, the kernel's own and the sum are none."""
    found = (CLIENT.match(line.strip()) for line in text.splitlines())
    return [
        Client(match.group(2), int(match.group(3)), int(match.group(4)) * UNITS[match.group(5)])
        for match in found
        if match is not None and match.group(1) == "user"
    ]


def largest_free(buddyinfo: str, page_bytes: int) -> Blocks | None:
    """Return the largest free blocks of all zones of memory together; None where none is told."""
    counts: dict[int, int] = {}
    for line in buddyinfo.splitlines():
        zone = ZONE.match(line.strip())
        for order, free in enumerate(zone.group(1).split() if zone is not None else ()):
            counts[order] = counts.get(order, 0) + int(free)
    orders = [order for order, free in counts.items() if free]
    return Blocks(counts[max(orders)], page_bytes << max(orders)) if orders else None
