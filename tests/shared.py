"""Material that is not part of the project: real models and texts, beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def shared(relative: str) -> Path:
    """A path in the shared material; skips the test, with the reason, where it is missing."""
    path = Path(os.environ.get("SLMQ_EDGE_SHARED", BESIDE)) / relative
    if not path.exists():
        pytest.skip(f"no {relative} in the shared material (set SLMQ_EDGE_SHARED)")
    return path
