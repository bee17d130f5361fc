"""Which JetPack an L4T release is. L4T is the key: the JetPack package is often missing or another.

Sources: NVIDIA's release notes of Jetson Linux and JetPack, and boards' own printouts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# The longest beginning counts; what a beginning alone tells is a range.
RELEASES = {
    "39.2.1": "7.2.1",
    "39.2.0": "7.2",
    "39.0.0": "7.2 EA",
    "38.4.0": "7.1",
    "38.2": "7.0",
    "36.5.2": "6.2.3",
    "36.5.0": "6.2.2",
    "36.4.7": "6.2.1",
    "36.4.4": "6.2.1",
    "36.4.3": "6.2",
    "36.4.0": "6.1",
    "36.3.0": "6.0",
    "35.6": "5.1.4 to 5.1.6",
    "35.5.0": "5.1.3",
    "35.4.1": "5.1.2",
    "35.3.1": "5.1.1",
    "35.2.1": "5.1",
    "35.1.0": "5.0.2",
    "32.7": "4.6.x",
    "32.6.1": "4.6",
    "32.5": "4.5",
    "32.4.4": "4.4.1",
    "39": "7.x",
    "38": "7.x",
    "36": "6.x",
    "35": "5.x",
    "32": "4.x",
    "28": "3.x",
}
PYTHONS = {"4": "3.6", "5": "3.8", "6": "3.10", "7": "3.12"}  # of the Ubuntu beneath
RELEASE_FILE = re.compile(r"#?\s*R(\d+) \(release\), REVISION: ([\d.]+)")
VERSION = re.compile(r"\d+(\.\d+)+")


class L4t(NamedTuple):
    """A release of Jetson Linux. jetpack, python: None where the table does not know it."""

    version: str
    jetpack: str | None
    python: str | None

    def __str__(self) -> str:
        return f"L4T {self.version} (JetPack {self.jetpack or 'unknown'})"


def l4t(release: str) -> L4t | None:
    """Return what a release is.

    Args:
        release: the first line of /etc/nv_tegra_release, the version of the package
            nvidia-l4t-core (36.4.7-20250918154033), or the number alone.

    Returns:
        None where no number is in it.
    """
    line = RELEASE_FILE.match(release.strip())
    number = VERSION.match(release.strip())
    if line is None and number is None:
        return None
    version = ".".join(line.groups()) if line else number.group() if number else ""
    parts = version.rstrip(".").split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    jetpack = next((RELEASES[name] for name in beginnings if name in RELEASES), None)
    return L4t(".".join(parts), jetpack, PYTHONS.get(jetpack[0]) if jetpack else None)
