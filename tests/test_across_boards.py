"""demo-llama measured twice here and once on a board made of files, and compared the whole way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slmq_edge.across import across
from slmq_edge.compare import compare
from slmq_edge.reports.across import WRITERS
from slmq_edge.results import Run, load
from slmq_edge.runner.measure import Workload
from slmq_edge.sides import side
from slmq_edge.tracks import inference
from tests import boards
from tests.test_inference import Listener
from tests.test_runtimes import make

WORK = Workload(prompt_tokens=8, new_tokens=4, repetitions=5, warmups=1, threads=1)
SCHEMES = ("fp32", "w8a8")
OPTIONS = inference.Options(power_seconds=0.0, again=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    """By scheme: here, here again, and on a Jetson that runs on this machine's CPU."""
    folder = tmp_path_factory.mktemp("across")
    root = boards.plant(folder / "root", "jetson-orin-nano-jp6")
    shutil.rmtree(root / "proc/self")
    (root / "proc/self").symlink_to("/proc/self")
    found: dict[str, list[Run]] = {}
    for scheme in SCHEMES:
        bundle = make("demo-llama", scheme, folder / scheme)
        for name, machine in (("a", None), ("b", None), ("orin", inference.Local(str(root)))):
            path = folder / f"{scheme}-{name}.json"
            with pytest.MonkeyPatch.context() as patch:
                if machine is not None:
                    patch.setattr("platform.machine", lambda: "aarch64")
                inference.profile(bundle, WORK, path, Listener(), OPTIONS, machine=machine)
            found.setdefault(scheme, []).append(load(path))
    return found


def test_every_place_has_its_baseline(runs: dict[str, list[Run]]) -> None:
    found = across([run for of in runs.values() for run in of])
    (matrix,) = found.matrices
    assert found.aside == ()
    assert [place.kind for place in matrix.places] == ["cpu", "jetson"]
    for place in matrix.places:
        (cell,) = place.cells
        assert (cell.method, cell.precision) == ("none w8a8", "float32")
        assert cell.comparison.score.value is not None
        assert cell.decode.low is not None
        # The artifact is the same, and so is its size; what was read is of each place.
        assert cell.size.ratio == matrix.places[0].cells[0].size.ratio
    # Nothing ranks with two: it is said, not left out.
    assert {one.reason for one in matrix.transfers} == {"2 methods on both; a ranking needs 3"}
    for write in WRITERS.values():
        assert "jetson-orin-nano-8gb" in " ".join(write(found).split())


def test_two_runs_of_one_artifact_are_one_side(runs: dict[str, list[Run]]) -> None:
    both = compare(side(*runs["fp32"][:2]), side(*runs["w8a8"][:2]))
    medians = sorted(run.decode_rate.median for run in runs["w8a8"][:2])
    row = both.row("decode_rate")
    assert row.candidate is not None
    assert row.candidate.median == pytest.approx(sum(medians) / 2)
    assert row.candidate.between == pytest.approx(medians[1] - medians[0])
    assert both.row("bundle_bytes").verdict == "better"


def test_a_run_against_its_repetition_is_never_a_size_regression(
    runs: dict[str, list[Run]], tmp_path: Path
) -> None:
    first, second = runs["w8a8"][:2]
    again = compare(first, second)
    assert again.row("bundle_bytes").verdict == "same"
    assert "both runs are of the same bundle" in again.notes
