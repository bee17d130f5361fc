"""A bundle measured the whole way on boards made of files: detection, rails, modes, the report.

What runs is this machine's CPU: of a board there is what it says of itself. No board has run any of
this.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slmq_edge import energy
from slmq_edge.reports.profile import render
from slmq_edge.results import Run
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks import inference
from tests import boards, toy_graph
from tests.test_inference import Listener

WORK = Workload(prompt_tokens=6, new_tokens=5, repetitions=2, warmups=0, threads=1)
SECONDS = 2.0  # of each window: a busy machine reads seldom


@pytest.fixture(autouse=True)
def arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards are Arm machines, and their words are believed on such alone."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def _measured(bundle: Path, board: str, tmp_path: Path) -> Run:
    root = boards.plant(tmp_path / "root", board)
    shutil.rmtree(root / "proc/self")
    (root / "proc/self").symlink_to("/proc/self")  # the process is a real one
    options = inference.Options(power_seconds=SECONDS)
    return inference.profile(
        bundle,
        WORK,
        tmp_path / "run.json",
        Listener(),
        options,
        machine=inference.Local(str(root)),
    )


@pytest.mark.parametrize(
    ("board", "name", "kind", "source"),
    [
        ("jetson-orin-nano-jp6", "jetson-orin-nano-8gb", "jetson", "VDD_IN"),
        ("jetson-agx-thor-jp7", "jetson-agx-thor", "jetson", "VIN"),
        ("jetson-nano-jp4", "jetson-nano-4gb", "jetson", "POM_5V_IN"),
    ],
)
def test_a_jetson(
    bundle: Path, board: str, name: str, kind: str, source: str, tmp_path: Path
) -> None:
    run = _measured(bundle, board, tmp_path)
    assert (run.device.name, run.device.kind) == (name, kind)
    assert run.environment["profile"]["kind"] == kind
    assert run.environment["power_mode"] is not None
    found = energy.of(run.power or {}, "decode")
    assert isinstance(found, energy.Energy), found
    assert found.source == source
    assert found.idle_watts == pytest.approx(found.watts)  # the files never change
    assert found.above_idle_joules == pytest.approx(0, abs=1e-6)
    assert len(run.states) == 1 + WORK.repetitions
    assert run.memory["decode"]["cpu_peak_rss"]
    fastest = run.environment["board"]["maximum_modes"]
    slow = run.states[0]["mode"]["name"] not in fastest
    assert ("mode-not-maximum" in {caveat.code for caveat in run.caveats}) == slow
    shown = render(run)
    assert f"Energy of the whole device ({source}; idle" in shown
    assert str(run.environment["power_mode"]) in shown


def test_a_raspberry_pi_has_rails_and_no_total(bundle: Path, tmp_path: Path) -> None:
    run = _measured(bundle, "raspberry-pi-5", tmp_path)
    assert (run.device.name, run.device.kind) == ("raspberry-pi-5", "raspberrypi")
    shown = render(run)
    assert "not told" in shown
    assert "tok/J" not in shown
