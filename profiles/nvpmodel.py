"""Power modes of a Jetson, by name. A number means another mode on another board and release.

NVIDIA's configuration calls some of them MODE_30W and others 15W; without the prefix they are
what data sheets and tables call them. The status file is what nvpmodel keeps of the last choice.
"""

from __future__ import annotations

import re

from slmq_edge.profiles.board import Mode

CONFIGURATION = "etc/nvpmodel.conf"
STATUS = "var/lib/nvpmodel/status"
BLOCK = re.compile(r"^[ \t]*<[ \t]*POWER_MODEL[ \t]+([^<>\n]*)>", re.MULTILINE)
CURRENT = re.compile(r"\bpmode:([0-9]{1,9})(?![0-9])")
QUERIED = re.compile(
    r"^NV Power Mode:[ \t]*([^\s]+)[ \t]*$(?:\s+([0-9]{1,9})[ \t]*$)?", re.MULTILINE
)


def modes(conf: str) -> list[Mode]:
    """Return the modes that /etc/nvpmodel.conf defines, in its order."""
    found = []
    for block in BLOCK.finditer(conf):
        number = re.search(r"\bID=([0-9]{1,9})\b", block.group(1))
        name = re.search(r"\bNAME=([^\s]+)", block.group(1))
        if number is not None and name is not None:
            found.append(Mode(_plain(name.group(1)), int(number.group(1))))
    return found


def current(status: str) -> int | None:
    """Return the number of the mode in /var/lib/nvpmodel/status: ``pmode:0002 fmode:quiet``."""
    found = CURRENT.search(status)
    return int(found.group(1)) if found is not None else None


def queried(output: str) -> Mode | None:
    """Return what ``nvpmodel -q`` printed, the name and on the next line the number."""
    found = QUERIED.search(output)
    if found is None:
        return None
    return Mode(_plain(found.group(1)), int(found.group(2)) if found.group(2) else None)


def _plain(name: str) -> str:
    return name[len("MODE_") :] if re.match(r"MODE_[0-9]", name) else name
