"""A bundle measured by another Python, as by a board: sent, checked, measured, its run read here.

That Python has nothing of ours but the runner's archive, which is brought to it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmq_edge import results
from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import Target
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks import inference
from tests import toy_graph
from tests.test_runtimes import make

WORK = Workload(prompt_tokens=6, new_tokens=5, repetitions=2, warmups=1, threads=1)
TOY, FORMS = "toy", ("w8a8", "w4a8-b32")
OPERATORS = {
    "toy": "MatMulInteger",
    "w8a8": "MatMulIntegerToFloat",
    "w4a8-b32": "MatMulNBits",
}


def write(form: str, folder: Path) -> Path:
    """Write the toy's bundle, or the demo Llama's in a scheme."""
    if form == TOY:
        return toy_graph.write_bundle(folder / form)
    return make("demo-llama", form, folder / form)


def seen_by(python: Path, home: Path) -> Mapping[str, Any]:
    """What this Python tells of the machine it believes to be on."""
    with Remote(_target(python, home)) as machine:
        return machine.seen


def measured(python: Path, bundle: Path, folder: Path) -> results.Run:
    """Measure a bundle by this Python; ``folder`` gets the device's home and run.json."""
    with Remote(_target(python, folder / "device")) as machine:
        return inference.profile(
            bundle,
            WORK,
            folder / "run.json",
            lambda event: None,
            inference.Options(power_seconds=0.0),
            machine=machine,
        )


def assert_whole(run: results.Run, form: str, folder: Path) -> None:
    """Checked, its integers probed, everything measured and kept: nothing of how long it took."""
    assert results.load(folder / "run.json") == run
    assert run.golden["positions_compared"] > run.golden["positions_below_margin"]
    assert run.probe is not None
    assert (run.probe["operator"], run.probe["exact"]) == (OPERATORS[form], True)
    assert len(run.series["prefill_seconds"].values) == WORK.repetitions
    steps = run.series["decode_step_seconds"].values
    assert len(steps) == WORK.repetitions * WORK.new_tokens
    assert list(run.memory) == ["start", "load", "prefill", "decode"]
    assert not list((folder / "device" / "runs").iterdir())  # it is brought home


def _target(python: Path, home: Path) -> Target:
    return Target("board", "local", python=str(python), home=str(home))
