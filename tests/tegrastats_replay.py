"""A tegrastats that prints the lines of a file, over and over, until it is told otherwise.

python tegrastats_replay.py FILE NAME[,NAME] [--after LINES --then exit|hang|cut] --interval MS
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

DATA = Path(__file__).parent / "data" / "tegrastats.txt"


def samples(file: Path = DATA) -> dict[str, str]:
    """Return the lines by the name in the comment above them; a part of a line gets a letter."""
    found: dict[str, str] = {}
    name, part = "", 0
    for line in file.read_text().splitlines():
        if line.startswith("# ") and line[2:3] in "SCF" and line[3:5].isdigit():
            name, part = line[2:5], 0
        elif line and not line.startswith("#"):
            found[name + "abcdefgh"[part] if line.startswith("~") else name] = line.lstrip("~")
            part += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--then", default="exit", choices=["exit", "hang", "cut"])
    parser.add_argument("--interval", type=int, required=True)
    asked = parser.parse_args()
    lines = [samples()[name] for name in asked.names.split(",")]
    printed = 0
    while not asked.after or printed < asked.after:
        time.sleep(asked.interval / 1000)
        say(f"{lines[printed % len(lines)]}\n")
        printed += 1
    if asked.then == "hang":
        time.sleep(60)
    if asked.then == "cut":
        say(lines[0][:-6])
    sys.exit("the driver is gone" if asked.then == "exit" else 1)


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
