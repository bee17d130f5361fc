"""Which packages this Python has, as one line of JSON; nothing of them is imported.

A program of its own: the agent runs isolated, and would not see what the user has installed for
himself, which the measurement will.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import slmq_edge
from slmq_edge.errors import SlmqError

# Distributions, not modules: the vendor's wheel of onnxruntime for a GPU has another name.
NAMES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tokenizers",
    "tensorrt",
    "torch",
    "psutil",
)
SECONDS = 60.0


def installed() -> dict[str, str | None]:
    """Return the version of each distribution of `NAMES`; None where it is not installed."""
    return {name: _version(name) for name in NAMES}


def of_user() -> dict[str, str | None]:
    """Return `installed`, as a process finds it that is not isolated.

    Raises:
        SlmqError: this Python does not start.
    """
    archive = os.path.abspath(str(Path(slmq_edge.__file__).parent.parent))
    paths = [archive] + [path for path in [os.environ.get("PYTHONPATH")] if path]
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=os.sep,  # of -m, the folder where a login begins would come first: ~/json.py
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
    )
    try:
        found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        last = words[0] if words else "it said nothing"
        raise SlmqError(
            f"{sys.executable} failed with exit code {done.returncode}: {last}"
        ) from error
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(installed()) + "\n")
