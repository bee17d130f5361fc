"""Cells on a cluster of Ray's; it is of this machine alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmq_edge.bench import folder
from slmq_edge.bench.cells import Cell
from slmq_edge.bench.on_ray import needs
from tests.test_bench_run import NAMES, PLAN
from tests.test_cli import assert_one_line, slmq


@pytest.mark.ray
def test_a_bench_on_a_cluster_goes_on_after_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: make test-ray")
    (tmp_path / "plan.toml").write_text(PLAN)
    command = ("bench", "run", "plan.toml", "-o", "out", "-j", 2, "--engine", "ray")
    ran = slmq(*command, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "6 cells: 6 done" in ran.stdout
    bench = folder.load(tmp_path / "out")
    assert [cell.id for cell in bench.cells] == NAMES
    timed = folder.status(tmp_path / "out", bench.cells[-1])
    assert timed is not None
    assert timed.seconds is not None
    run = tmp_path / "out" / "runs" / "demo-llama-none-w8a8-ort-local.json"
    assert json.loads(run.read_text())["artifact"]["scheme_ran"] == "w8a8"
    # A cell that fails there says why here, and one that is mended is done by either engine.
    run.unlink()
    bundle = tmp_path / "out" / "bundles" / "demo-llama-none-w8a8-ort"
    bundle.rename(bundle.with_name("away"))
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    document["cells"][-1]["needs"] = []
    only = ("--only", NAMES[-1])
    (tmp_path / "out" / "bench.json").write_text(json.dumps(document))
    failed = slmq("bench", "resume", "out", "--engine", "ray", *only, cwd=tmp_path)
    assert failed.returncode == 1, failed.stderr
    assert "no bundle at" in failed.stdout


def cell(kind: str, device: str = "local", address: str = "local", gpu: bool = False) -> Cell:
    return Cell(kind, kind, (kind,), (), (), {}, device, address, gpu)


def test_what_cells_take_of_a_node() -> None:
    host = {"CPU": 8.0, "slmq-local": 1.0}
    beside = {"CPU": 2.0, "GPU": 1.0, "slmq-orin": 1.0}
    both = [host, beside]
    assert needs(cell("export"), both) == {"num_cpus": 1.0, "num_gpus": 0, "resources": {}}
    # What is timed has its node for itself; a board has one cell at a time.
    assert needs(cell("quantize"), both) == {"num_cpus": 8.0, "num_gpus": 0, "resources": {}}
    assert needs(cell("profile"), both) == {
        "num_cpus": 8.0, "num_gpus": 0, "resources": {"slmq-local": 1.0},
    }  # fmt: skip
    assert needs(cell("profile", "orin", "ssh://orin"), both) == {
        "num_cpus": 0.0, "num_gpus": 0, "resources": {"slmq-orin": 1.0},
    }  # fmt: skip
    assert needs(cell("profile", "orin", gpu=True), both) == {
        "num_cpus": 2.0, "num_gpus": 1, "resources": {"slmq-orin": 1.0},
    }  # fmt: skip
    assert needs(cell("profile", "pi", "ssh://pi"), both) is None
    assert needs(cell("profile", gpu=True), both) is None


def test_an_engine_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    refused = slmq("bench", "run", "plan.toml", "--engine", "rai", cwd=tmp_path)
    assert_one_line(refused, 2, "unknown engine 'rai'", "did you mean ray?")
