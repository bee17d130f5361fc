"""Which cells may run side by side, how long all will take, and what counts as a whole result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.bench import estimates, folder, matrix, plan
from slmq_edge.bench.cells import Cell, is_whole, with_needs
from slmq_edge.bench.feasible import check
from slmq_edge.bench.folder import Status
from slmq_edge.bench.schedule import may_start
from slmq_edge.reports import bench as report


def cell(kind: str, device: str = "local", name: str | None = None, **fields: Any) -> Cell:
    address = "local" if device == "local" else f"ssh://{device}"
    return Cell(
        name or f"{kind}-{device}", kind, (kind,), fields.pop("needs", ()), (), {}, device, address
    )


QUANTIZE, EVAL, PROFILE = cell("quantize"), cell("eval"), cell("profile")
EXPORT = cell("export")
ON_ORIN, ON_PI = cell("profile", "orin"), cell("profile", "pi")


@pytest.mark.parametrize(
    ("one", "running", "jobs", "may"),
    [
        (QUANTIZE, [], 1, True),
        (EXPORT, [EVAL], 1, False),
        (EXPORT, [EVAL], 2, True),
        # What is timed here is alone here, whatever -j says.
        (PROFILE, [EXPORT], 8, False),
        (EXPORT, [PROFILE], 8, False),
        (QUANTIZE, [EVAL], 8, False),
        (EVAL, [QUANTIZE], 8, False),
        (cell("build"), [EVAL], 8, False),
        (PROFILE, [], 1, True),
        # A board does one at a time, beside whatever runs here or on another.
        (ON_ORIN, [PROFILE], 1, True),
        (PROFILE, [ON_ORIN, ON_PI], 1, True),
        (QUANTIZE, [ON_ORIN], 1, True),
        (ON_ORIN, [ON_PI, EXPORT], 1, True),
        (ON_ORIN, [ON_ORIN], 8, False),
        (cell("eval", "orin"), [ON_ORIN], 8, False),
        # Questions for a board are made here.
        (cell("eval", "orin"), [PROFILE], 8, False),
        (PROFILE, [cell("eval", "orin")], 8, False),
        (cell("eval", "orin"), [EVAL], 1, False),
    ],
)
def test_what_may_start_beside_what(one: Cell, running: list[Cell], jobs: int, may: bool) -> None:
    assert may_start(one, running, jobs) == may


def test_cells_and_what_they_need() -> None:
    chain = [cell("a", name="a"), cell("b", name="b", needs=("a",)), cell("c", name="c"),
             cell("d", name="d", needs=("b",))]  # fmt: skip
    assert [one.id for one in with_needs(chain, ["d"])] == ["a", "b", "d"]
    assert [one.id for one in with_needs(chain, ["c"])] == ["c"]


def test_what_cells_have_taken_corrects_what_others_will_take() -> None:
    def of(model: str, name: str) -> Cell:
        return Cell(name, "quantize", (), (), (), {"model": model})

    cells = [of("a", "a1"), of("a", "a2"), of("b", "b1"), Cell("x", "eval", (), (), (), {})]
    law = {"a1": 10.0, "a2": 20.0, "b1": 40.0, "x": 5.0}
    assert estimates.learned(cells, law, {}) == law
    found = estimates.learned(cells, law, {"a1": 30.0})
    assert found == {"a1": 30.0, "a2": 60.0, "b1": 120.0, "x": 5.0}
    found = estimates.learned(cells, law, {"a1": 30.0, "b1": 20.0})
    assert (found["a2"], found["b1"]) == (60.0, 20.0)


def test_time_left_counts_what_runs_alone_and_what_boards_do_beside() -> None:
    expected = {"export-local": 10.0, "eval-local": 30.0, "profile-local": 8.0}
    cells = [EXPORT, EVAL, PROFILE]
    assert estimates.left(cells, expected, 1) == 48
    assert estimates.left(cells, expected, 2) == 28
    assert estimates.left([*cells, ON_ORIN], {**expected, "profile-orin": 100.0}, 2) == 100
    assert estimates.left([], {}, 1) == 0


def test_more_work_is_estimated_to_take_longer(tmp_path: Path) -> None:
    text = """
    [matrix]
    models = ["demo-llama"]
    methods = [
        "none", "smoothquant", "omniquant", "gptq", "spinquant",
        { name = "twice", method = "gptq", windows = 256 },
        { name = "slow", method = "spinquant", steps = 500 },
        "distill",
        { name = "timed", method = "distill", minutes = 7 },
        { name = "rotated", method = "distill", start = "spinquant", windows = 256, length = 256 },
        { name = "read", method = "distill", learn_from = "text" },
        { name = "longer", method = "distill", set = { epochs = 99 } },
    ]
    schemes = ["w8a8"]
    [profile]
    [analyze]
    methods = ["none", "omniquant"]
    [distributions]
    [[set]]
    method = "twice"
    profile = { repetitions = 1000 }
    """
    (tmp_path / "plan.toml").write_text(text)
    cells = matrix.cells_of(plan.read(tmp_path / "plan.toml", {}), None)
    checked = check(cells)
    assert not checked.refused
    law = {one.id: estimates.seconds(one, checked.made[one.id]) for one in cells}
    assert set(law) == {one.id for one in cells}
    quantize = {one.of["method"]: law[one.id] for one in cells if one.kind == "quantize"}
    assert quantize["none"] < min(quantize["smoothquant"], quantize["gptq"])
    assert quantize["gptq"] < quantize["twice"]
    assert quantize["gptq"] < quantize["spinquant"] < quantize["slow"]
    assert quantize["gptq"] < quantize["omniquant"]
    assert quantize["read"] < quantize["distill"] < min(quantize["rotated"], quantize["longer"])
    assert 7 * 60 < quantize["timed"] < 8 * 60
    # What looks at a model has it prepared first.
    assert law["analyze-demo-llama-none-w8a8"] < law["analyze-demo-llama-omniquant-w8a8"]
    looks = {name: law[f"distributions-demo-llama-{name}-w8a8"] for name in ("spinquant", "slow")}
    assert looks["spinquant"] < looks["slow"]
    assert (
        law["profile-demo-llama-twice-w8a8-ort-local"]
        > 5 * (law["profile-demo-llama-gptq-w8a8-ort-local"])
    )


def test_what_is_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path, "none.json")
    (tmp_path / "run.json").write_text('{"format": "slmq-edge-run"}')
    assert is_whole(tmp_path, "run.json")
    (tmp_path / "run.json").write_text('{"format": "slmq-ed')
    assert not is_whole(tmp_path, "run.json")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    assert not is_whole(tmp_path, "bundle")
    (bundle / "model.onnx").write_bytes(b"12345")
    manifest = {"format": "slmq-edge-bundle", "version": 1, "files": {"model.onnx": {"bytes": 5}}}
    from slmq_edge.runner.manifest import BUNDLE_VERSION

    (bundle / "bundle.json").write_text(json.dumps({**manifest, "version": BUNDLE_VERSION}))
    assert is_whole(tmp_path, "bundle")
    (bundle / "model.onnx").write_bytes(b"1234")
    assert not is_whole(tmp_path, "bundle")
    (bundle / "engines").mkdir()
    assert not is_whole(tmp_path, "bundle/engines")
    (bundle / "engines" / "engine.plan").write_bytes(b"")
    # A build that was killed has written no sidecar behind it.
    assert not is_whole(tmp_path, "bundle/engines")
    sidecar = bundle / "engines" / "engine.json"
    sidecar.write_text('{"golden": null, "golden_error": "mean KL is 1"}')
    assert not is_whole(tmp_path, "bundle/engines")
    sidecar.write_text('{"golden": null, "golden_error": null}')
    assert is_whole(tmp_path, "bundle/engines")


def test_a_status_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    place = tmp_path / "cells" / QUANTIZE.id / "status.json"
    folder.put(tmp_path, QUANTIZE, Status("done", "x", attempts=1))
    assert folder.status(tmp_path, QUANTIZE) == Status("done", "x", attempts=1)
    for text in ("", "{}", '{"state": "asleep", "identity": "x"}', '{"state": 1, "identity": "x"}'):
        place.write_text(text)
        assert folder.status(tmp_path, QUANTIZE) is None


def test_the_last_error_of_a_log_is_what_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("error: of an earlier attempt\n")
    start = log.stat().st_size
    log.write_text(log.read_text() + "reading\nerror: no such model\nnote: kept\n\n")
    assert folder.last_words(log, start) == "no such model"
    log.write_text("Traceback\nKeyError: 'x'\n")
    assert folder.last_words(log, 0) == "KeyError: 'x'"
    assert folder.last_words(tmp_path / "none", 0) == ""


def test_a_summary_says_why_of_all_that_is_not_done() -> None:
    cells = [cell(kind, name=kind) for kind in ("a", "b", "c", "d", "e")]
    found = {
        "a": Status("done", ""), "b": Status("failed", "", error="it broke"),
        "c": Status("skipped", "", error="needs b, which failed"),
        "d": Status("waiting", "", error="no GPU"),
    }  # fmt: skip
    assert report.summary(cells, found).splitlines() == [
        "5 cells: 1 waiting, 1 done, 1 failed, 1 skipped, 1 not tried",
        "failed: b: it broke",
        "waiting: d: no GPU",
        "skipped: c: needs b, which failed",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert report.span(seconds) == text
