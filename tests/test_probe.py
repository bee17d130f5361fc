"""A product in blocks is one of integers only where the kernel rounds its input: it is looked at.

A kernel that leaves it in float, as onnxruntime's does on an Arm core without dot products, is had
here by asking for one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import Unsupported
from slmq_edge.exporters import graph, linears, rows
from slmq_edge.exporters import probe as probes
from slmq_edge.exporters.bundle import SESSION_OPTIONS
from slmq_edge.runner import manifest, probe

ROUNDED, IN_FLOAT = linears.INTEGER_INPUT, linears.FLOAT_INPUT


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write what a probe needs of a bundle into a folder; return its manifest."""

    def bundle(bits: int, accuracy: int) -> dict[str, Any]:
        monkeypatch.setattr(linears, "INTEGER_INPUT", accuracy)
        gemm = {"operator": rows.BLOCK_OPERATOR, "bits": str(bits), "weight": "uint8"}
        (tmp_path / manifest.GRAPH_FOLDER).mkdir()
        graph.save(probes.write_probe(gemm), tmp_path / manifest.PROBE)
        runtime = {"minimum_version": "1.19", "session_options": SESSION_OPTIONS}
        return {"lowering": {"integer_gemm": gemm}, "runtime": runtime}

    return bundle


@pytest.mark.parametrize("bits", [4, 8])
def test_a_kernel_that_rounds_its_input_passes(bits: int, write: Any, tmp_path: Path) -> None:
    bundle = write(bits, ROUNDED)
    assert probe.rounds_input(tmp_path / manifest.PROBE, 1, SESSION_OPTIONS)
    assert probe.run(tmp_path, bundle, 1) == (rows.BLOCK_OPERATOR, True, 0, manifest.GRAPH)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_that_leaves_it_in_float_is_refused(bits: int, write: Any, tmp_path: Path) -> None:
    bundle = write(bits, IN_FLOAT)
    assert probe.largest_error(tmp_path / manifest.PROBE, 1, SESSION_OPTIONS) == 0
    with pytest.raises(Unsupported, match=r"leaves its input in float.*--scheme w8a8"):
        probe.run(tmp_path, bundle, 1)
