"""A real Python 3.8, the oldest that the runner is for, and what a JetPack 5 has beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_runtimes import OLDEST, RUNTIMES

NAMED = "SLMQ_EDGE_PYTHON38"
# The newest of both that have wheels for Python 3.8; of what onnxruntime declares, running a graph
# needs numpy alone.
WHEELS = (f"onnxruntime=={OLDEST}", "numpy==1.24.4")


def find() -> str:
    """The Python 3.8 that the environment names, else one on PATH, else one of pyenv.

    Skips where there is none; one that is named and is none fails.
    """
    named = os.environ.get(NAMED)
    if named:
        if not _is_38(named):
            pytest.fail(f"{NAMED}={named} starts no Python 3.8")
        return str(shutil.which(named))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    of_pyenv = sorted(map(str, pyenv.glob("versions/3.8.*/bin/python3.8")))
    for name in ("python3.8", *of_pyenv):
        if _is_38(name):
            return str(shutil.which(name))
    pytest.skip(f"no Python 3.8 on PATH or of pyenv: name one in {NAMED}")


def with_onnxruntime() -> Path:
    """The Python of a virtual environment, made where there is none yet, that runs graphs."""
    home = RUNTIMES / f"onnxruntime-{OLDEST}-py38"
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        subprocess.run([find(), "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", *WHEELS], check=True)
        ready.touch()
    return python


def _is_38(name: str) -> bool:
    """Whether this starts one: what pyenv puts on PATH may be a name alone."""
    found = shutil.which(name)
    if found is None:
        return False
    command = [found, "-c", "import sys; print(*sys.version_info[:2])"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout == "3 8\n"
