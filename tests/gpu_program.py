"""Stand-ins for what benchmarks.gpu starts, and a call of it that is made of them.

python -m tests.gpu_program make PATH SECONDS     does its work, and says in PATH.count that it did
python -m tests.gpu_program fail PATH SECONDS     says why not
python -m tests.gpu_program call OUT WORK SECONDS a call of all that `CHAIN` names
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.on_gpu.engine import Engine
from benchmarks.on_gpu.record import Record
from benchmarks.on_gpu.steps import ALONE, ON_CPU, ON_GPU, Step
from slmq_edge.bench.cells import Cell

MODULE = "tests.gpu_program"
SAME = {"toy": True, "device": "cpu", "target": "torch", "gpu": None, "material_sha256": "0"}


def step(
    name: str,
    *needs: str,
    lane: str = ON_GPU,
    takes: float = 0.0,
    expected: float = 1.0,
    does: str = "make",
    kind: str = "model",
) -> Step:
    output = f"{name}.json" if kind == "profile" else name
    command = (does, output, str(takes))
    return Step(Cell(name, kind, command, needs, (output,), {}), expected, lane, MODULE)


CHAIN = (
    step("first", lane=ON_CPU),
    step("second", "first", takes=0.2),
    step("long", "second", takes=60.0),
    step("measured", "long", lane=ALONE, kind="profile"),
)


def engine(steps: list[Step], folder: Path, seconds: float = 60.0) -> Engine:
    """A call of so many seconds, in ``out`` and ``work`` of a folder."""
    out, work = folder / "out", folder / "work"
    for one in (out, work):
        one.mkdir(parents=True, exist_ok=True)
    record = Record(out, SAME)
    record.begin({"started": "now", "machine": {}})
    return Engine(steps, work, out, record, time.monotonic() + seconds, lambda text: None)


def times(folder: Path, name: str) -> int:
    """How often a stand-in has begun its work."""
    counted = folder / "work" / f"{name}.count"
    return len(counted.read_text()) if counted.exists() else 0


def main(words: list[str]) -> int:
    does, path, seconds = words[0], Path(words[1]), float(words[-1])
    if does == "call":
        engine(list(CHAIN), path, seconds).carry_out()
        return 0
    with Path(f"{path.with_suffix('')}.count").open("a") as counted:
        counted.write(".")
    time.sleep(seconds if not os.environ.get("HURRY") else 0.0)
    if does == "fail":
        sys.stderr.write("some words\nerror: no such luck\n")
        return 1
    path.write_text(json.dumps({"format": "a stand-in's"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
