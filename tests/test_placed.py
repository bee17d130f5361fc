"""Which operators of a graph for a GPU ran there: told by the record, and refused where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.assembly import assemble
from slmq_edge.errors import Unsupported
from slmq_edge.reports.profile import render
from slmq_edge.results import Device
from slmq_edge.runner import manifest, placed
from slmq_edge.runner.measure import Workload
from slmq_edge.runner.profiled import Operator, Step
from slmq_edge.tracks import inference
from tests import toy_graph

GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
GEMM = Operator("MatMulInteger", GPU, 8, 3e-3, 900, True)
HEAD = Operator("Gemm", GPU, 1, 1e-3, 100, False)
SHAPES = (Operator("Shape", CPU, 3, 5e-4, 0, False), Operator("Gather", CPU, 2, 5e-4, 0, False))


def steps(*operators: Operator) -> dict[str, Step]:
    return {"prefill": Step(operators), "decode": Step(operators)}


def test_shapes_on_the_cpu_are_told_and_allowed() -> None:
    found = placed.check(steps(GEMM, HEAD, *SHAPES), GPU)
    assert found["decode"].macs == 1.0
    assert found["decode"].seconds == pytest.approx(0.8)
    assert placed.as_json(found)["prefill"]["elsewhere"] == {"Shape": 3, "Gather": 2}


@pytest.mark.parametrize(
    ("operators", "said"),
    [
        ((GEMM._replace(provider=CPU), HEAD), "prefill is not a row.*10 %.*MatMulInteger on CPU"),
        ((GEMM, HEAD._replace(provider=CPU)), "90 % of its multiply-adds.*Gemm on CPU"),
        ((GEMM._replace(provider="TensorrtExecutionProvider"), HEAD), "MatMulInteger on Tensorrt"),
        (SHAPES, "0 % of its multiply-adds ran there .no product of matrices did"),
    ],
)
def test_a_product_elsewhere_is_no_row_of_a_gpu(operators: Sequence[Operator], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        placed.check(steps(*operators), GPU)


def test_a_record_that_tells_no_weights_is_judged_by_the_products_themselves() -> None:
    silent = GEMM._replace(macs=0)
    assert placed.check(steps(silent, *SHAPES), GPU)["decode"].macs is None
    with pytest.raises(Unsupported, match="MatMulInteger on CPU"):
        placed.check(steps(silent, silent._replace(provider=CPU)), GPU)


def test_a_run_keeps_it_and_prints_it(tmp_path: Path) -> None:
    bundle = toy_graph.write_bundle(tmp_path / "bundle")
    events: list[Mapping[str, Any]] = []
    inference.profile(
        bundle,
        Workload(prompt_tokens=6, new_tokens=3, repetitions=1, warmups=0, threads=1),
        tmp_path / "run.json",
        events.append,
        inference.Options(power_seconds=0.0, again=False),
    )
    journal = [event for event in events if event["event"] != "device"]
    found = placed.as_json(placed.check(steps(GEMM, HEAD, *SHAPES), GPU))
    journal.insert(3, {"event": "placed", "steps": found})
    run = assemble(journal, Device("A GPU", "cuda", {}), manifest.read_bundle(bundle))
    assert run.environment["placed"] == found
    (told,) = (line for line in render(run).splitlines() if "decode on the GPU" in line)
    assert told.split("decode on the GPU")[1].strip() == (
        "100.0 % of the multiply-adds, 80.0 % of the host's time in operators; "
        "on the CPU: Gather 2, Shape 3"
    )
