"""Laws: what they recover, what they never do; the committed ones are those of the rows."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import projection as benchmark
from benchmarks import published
from slmq_edge import bounds, devices, projection
from slmq_edge.bounds import Card, Ceiling, Ceilings, Work
from slmq_edge.errors import SlmqError, Unsupported, UsageError
from slmq_edge.laws import Law, Point, fit, left_out, off, ratios
from slmq_edge.projection import Cell, capped, project
from slmq_edge.results import ORIGINS, Device, Run
from tests.shared import shared
from tests.test_compare import run as example
from tests.test_compare import with_artifact, with_series

NAMES = ("work", "layers", "once")
ORIN = "tensorrt-edge-llm-orin"


def point(work: float, layers: float, seconds: float, model: str = "m", mode: str = "") -> Point:
    features = {"work": work, "layers": layers, "once": 1.0}
    return Point(features, seconds, model, "board", mode)


def points(law: Law, modes: tuple[str, ...] = ("",)) -> list[Point]:
    found = []
    for mode in modes:
        for work, layers in ((1, 30), (3, 32), (4, 24), (10, 16), (25, 36), (60, 28)):
            bare = point(work, layers, 0.0, f"m{work}", mode)
            seconds = law.seconds(bare.features, mode)
            found.append(dataclasses.replace(bare, seconds=seconds))
    return found


COST = st.floats(1e-3, 1e3)


@given(work=COST, layers=COST, once=COST)
def test_costs_that_made_the_points_are_found(work: float, layers: float, once: float) -> None:
    law = Law({"work": work, "layers": layers / 100, "once": once})
    found = fit(points(law), NAMES)
    assert ratios(found, points(law)) == pytest.approx([1.0] * 6, rel=1e-6)


@given(slow=st.floats(1.5, 9), work=COST, once=COST)
@settings(deadline=None)
def test_a_mode_scales_the_whole(slow: float, work: float, once: float) -> None:
    law = Law({"work": work, "layers": 0.0, "once": once}, {"25W": 1.0, "7W": slow})
    found = fit(points(law, ("7W", "25W")), NAMES)
    assert found.modes["25W"] == 1.0
    assert found.modes["7W"] == pytest.approx(slow, rel=1e-4)
    assert ratios(found, points(law, ("7W", "25W"))) == pytest.approx([1.0] * 12, rel=1e-4)


@given(st.lists(st.tuples(COST, st.floats(1, 100), COST), min_size=1, max_size=12))
def test_no_cost_is_negative_and_no_fit_is_worse_than_one_of_work_alone(
    rows: list[tuple[float, float, float]],
) -> None:
    def error(law: Law) -> float:
        return sum((ratio - 1) ** 2 for ratio in ratios(law, made))

    made = [point(*row) for row in rows]
    whole = fit(made, NAMES)
    assert min(whole.costs.values()) >= 0
    assert max(whole.costs.values()) > 0
    assert error(whole) <= error(fit(made, ("work",))) + 1e-9


def test_what_is_left_out_is_predicted_by_the_others() -> None:
    law = Law({"work": 2.0, "layers": 0.1, "once": 3.0})
    odd = point(5, 20, 5 * law.seconds({"work": 5, "layers": 20, "once": 1}), "odd")
    found = left_out([*points(law), odd], NAMES, published.of_model)
    assert found[-1] == pytest.approx(0.2)
    assert left_out(points(law), NAMES, published.of_device) == []


def test_a_mode_that_no_other_model_has_is_not_predicted() -> None:
    law = Law({"work": 1.0}, {"a": 1.0, "b": 2.0})
    rows = points(law, ("a",)) + points(law, ("b",))[:1]
    found = left_out(rows, ("work",), published.of_model)
    assert found == pytest.approx([1.0] * 6)  # m1 in mode b has no other


def test_errors_are_factors_in_both_directions() -> None:
    found = off([0.5, 2.0, 1.0])
    assert found is not None
    assert (found.median, found.rows) == (2.0, 3)
    assert off([]) is None
    with pytest.raises(ValueError, match="points"):
        fit([], NAMES)


# What is committed.


def test_families_say_what_they_rest_on() -> None:
    for name, family in projection.families().items():
        assert family.name == name
        assert family.source
        assert family.phases["decode"].rows >= benchmark.FEWEST
        assert family.phases["decode"].off_by_model <= benchmark.WORST
        assert min(family.slower, family.faster) >= 1
        assert set(family.phases) <= set(projection.PHASES)
    assert projection.ORIGIN in ORIGINS
    assert set(projection.off_of_runs()) == set(projection.PHASES)


def test_the_committed_laws_are_those_of_the_published_rows() -> None:
    csv = shared("facts/edge_published.csv")
    committed = resources.files(devices.__name__).joinpath("projection.toml").read_text("utf-8")
    dates = {one["fitted"] for one in tomllib.loads(committed)["families"].values()}
    (date,) = dates
    document, toml = benchmark.made(csv, date)
    assert_same(tomllib.loads(toml), tomllib.loads(committed))
    results = benchmark.RESULTS / "projection.json"
    assert_same(document, json.loads(results.read_text("utf-8")))


def assert_same(found: Any, expected: Any) -> None:
    """Equal, numbers to one in a thousand: another BLAS sums in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, int | float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-9)
    else:
        assert found == expected


def test_every_row_is_used_or_has_a_reason_and_every_law_beats_a_roofline() -> None:
    csv = shared("facts/edge_published.csv")
    used, unused = published.read(csv)
    assert len(used) + len(unused) == len(csv.read_text("utf-8").splitlines()) - 1
    assert all(reason for _, reason in unused)
    document, _ = benchmark.made(csv, "2026-01-01")
    for name, phases in document["families"].items():
        for what in ("fit", "without_its_model"):
            for quantile in ("median", "ninetieth"):
                found = phases["decode"][what][quantile]
                assert found < phases["decode"]["roofline"][quantile], (name, what)
    small = document["families"]["llama.cpp-cuda-orin-nano"]["decode"]["roofline_of_smallest"]
    assert small["model"] == "SmolLM2-135M"
    assert 3 < small["too_fast"] < 7
    # With the weights alone, as they are quoted: 106 MB at 102 GB/s against 159.5 tokens/s.
    (row,) = [
        one.decode
        for one in used
        if one.family == "llama.cpp-cuda-orin-nano"
        and (one.decode.model, one.decode.mode) == ("SmolLM2-135M", "MAXN_SUPER")
    ]
    assert row.seconds == 1 / 159.5
    assert row.features[published.BANDWIDTH] > 101 * 2**20 / 102.4e9
    table = benchmark.text(document)
    assert "tensorrt-edge-llm-orin, decode" in table
    assert "not kept" in table


def test_boards_are_as_their_sheets_have_them() -> None:
    facts = resources.files(devices.__name__).joinpath("facts")
    names = {"bandwidth": "bandwidth_bytes_per_second", "fp16": "fp16_dense_flops"}
    for board in published.BOARDS.values():
        sheet = facts.joinpath(f"{board.sheet}.toml")
        if not sheet.is_file():
            continue
        table = tomllib.loads(sheet.read_text("utf-8"))
        for field, name in names.items():
            value = getattr(board, field)
            places = [table["facts"], *(m.get("facts", {}) for m in table["modes"].values())]
            known = [place[name]["value"] for place in places if name in place]
            assert value is None or value in known, (board.sheet, name)


# Projecting.

CARD = Card(
    weights_bytes=10**9,
    read_bytes=10**9,
    steps_bytes=0,
    table_bytes=0,
    largest_bytes=10**8,
    kv_bytes_per_token=0,
    prompt_tokens=100,
    depth=110.0,
    linears=Work(10**9, 0),
    head=Work(0, 10**8),
    layers=20,
    on_gpu=True,
)
FACTS = {
    bounds.BANDWIDTH: {"value": 100e9, "source": "t"},
    bounds.INT8: {"value": 30e12, "source": "t"},
    bounds.FP16: {"value": 15e12, "source": "t"},
}


def test_a_projection_is_the_law_and_its_interval() -> None:
    family = projection.families()[ORIN]
    known, other = family.devices[0], family.others[0]
    prefill, decode = project(CARD, FACTS, known, family)
    costs = family.phases["decode"].law.costs
    seconds = costs["bandwidth_seconds"] * 0.01 + costs["layers"] * 20 + costs["once"]
    assert decode.per_second == pytest.approx(1 / seconds)
    assert decode.origin == "projected"
    fitted = family.phases["decode"]
    low = max(fitted.off_by_model, family.slower)
    assert decode.low == pytest.approx(1 / seconds / low)
    costs = family.phases["prefill"].law.costs
    peak = 2 * 100 * 10**9 / 30e12 + 2 * 10**8 / 15e12
    whole = costs["peak_seconds"] * peak + costs["layers"] * 20 + costs["once"]
    assert prefill.per_second == pytest.approx(100 / whole)
    (_, far) = project(CARD, FACTS, other, family, stands_in=False)
    (_, near) = project(CARD, FACTS, known, family, stands_in=False)
    assert far.per_second == near.per_second
    assert fitted.off_by_device is not None
    assert near.high == pytest.approx(1 / seconds * fitted.off_by_model)
    assert far.high == pytest.approx(1 / seconds * fitted.off_by_device)


def test_a_family_with_modes_projects_the_one_that_is_asked_for() -> None:
    family = projection.families()["llama.cpp-cuda-orin-nano"]
    assert family.modes[0] == "MAXN_SUPER"
    prefill, fast = project(CARD, FACTS, family.devices[0], family)
    assert prefill.per_second is None
    assert "no prefill" in str(prefill.reason)
    (_, slow) = project(CARD, FACTS, family.devices[0], family, "7W")
    assert fast.per_second is not None
    assert slow.per_second == pytest.approx(
        fast.per_second / family.phases["decode"].law.modes["7W"]
    )
    with pytest.raises(UsageError, match=r"did you mean MAXN_SUPER\?"):
        project(CARD, FACTS, family.devices[0], family, "MAXN_SUPPER")


def test_a_family_without_modes_projects_none() -> None:
    family = projection.families()[ORIN]
    cells = project(CARD, FACTS, family.devices[0], family, "15W")
    assert [cell.per_second for cell in cells] == [None, None]
    assert "name no power mode" in str(cells[0].reason)


def test_far_from_what_the_rows_read_nothing_is_projected() -> None:
    family = projection.families()[ORIN]
    for factor, known in ((1.01, True), (0.99, False)):
        count = round(family.span[0] / projection.FARTHEST * factor)
        small = dataclasses.replace(CARD, read_bytes=count)
        cells = project(small, FACTS, family.devices[0], family)
        assert [cell.per_second is not None for cell in cells] == [known, known]
    assert "too far from that" in str(cells[0].reason)


@pytest.mark.parametrize("missing", [bounds.BANDWIDTH, bounds.INT8])
def test_a_missing_fact_leaves_a_cell_empty(missing: str) -> None:
    known = {name: fact for name, fact in FACTS.items() if name != missing}
    family = projection.families()[ORIN]
    cells = project(CARD, known, family.devices[0], family)
    empty = [cell.phase for cell in cells if cell.per_second is None]
    assert empty == [{bounds.BANDWIDTH: "decode", bounds.INT8: "prefill"}[missing]]
    assert any(missing in str(cell.reason) for cell in cells)


def test_without_an_anatomy_there_is_nothing_to_project() -> None:
    family = projection.families()[ORIN]
    cells = project(dataclasses.replace(CARD, layers=None), FACTS, family.devices[0], family)
    assert [cell.per_second for cell in cells] == [None, None]


def test_nothing_is_projected_above_what_is_possible() -> None:
    cells = (Cell("decode", 90.0, 50.0, 130.0), Cell("prefill", None, reason="?"))
    limits = Ceilings((Ceiling("memory", 100.0), Ceiling("other", None, "?")), ())
    assert capped(cells, limits) == (Cell("decode", 90.0, 50.0, 100.0), cells[1])
    doubtful = Ceilings((Ceiling("memory", 10.0, certain=False),), ())
    assert capped(cells, doubtful) == cells


def test_a_family_stands_in_for_its_targets_on_its_boards_alone() -> None:
    found = projection.family_for("trt", "jetson-orin-nx-16gb")
    assert found is not None
    assert found.name == ORIN
    assert projection.family_for("ort", "jetson-orin-nx-16gb") is None
    assert projection.family_for("trt", "a800-80gb-pcie") is None
    assert projection.named(ORIN, "jetson-orin-nx-16gb") == found
    with pytest.raises(UsageError, match="is not of a800"):
        projection.named(ORIN, "a800-80gb-pcie")
    with pytest.raises(UsageError, match=r"did you mean mlc-orin\?"):
        projection.named("mlc-orim", "jetson-orin-nx-16gb")


def test_a_bundle_for_a_gpu_needs_one_and_one_for_a_cpu_is_not_a_gpus() -> None:
    gpu, board = devices.load("a800-80gb-pcie"), devices.load("raspberry-pi-5")
    projection.require_runnable("trt", True, gpu)
    projection.require_runnable("ort", False, board)
    with pytest.raises(Unsupported, match="raspberry-pi-5 has no GPU"):
        projection.require_runnable("trt", True, board)
    with pytest.raises(Unsupported, match="is a GPU"):
        projection.require_runnable("ort", False, gpu)


# One's own runs.


def measured(weights: int, prompt: int = 128, scheme: str = "w8a8", **changes: Any) -> Run:
    """Of a board that reads 10 GB/s, needs 2 ms a token, multiplies 50 G/s, needs 5 ms a prompt."""
    base = with_artifact(
        example(scheme),
        counts=dataclasses.replace(
            example().artifact.counts, linear_macs_per_token=weights, head_macs_per_token=0
        ),
        int8_gemm_share=1.0,
        lm_head="int8",
        kv_bytes_per_token=1000,
        model=f"m{weights}",
    )
    work = dataclasses.replace(base.workload, prompt_tokens=prompt)
    base = dataclasses.replace(base, workload=work, **changes)
    asked = bounds.card_of(base)
    step = asked.bytes_per_token / 10e9 + 0.002
    first = weights * prompt / 50e9 + 0.005
    return with_series(base, decode_seconds=(64 * step,) * 3, prefill_seconds=(first,) * 3)


def test_runs_of_one_board_tell_its_law() -> None:
    runs = [measured(10**8), measured(4 * 10**8)]
    asked = bounds.card_of(measured(2 * 10**8))
    prefill, decode = projection.by_runs(asked, "ort", "w8a8", "workbench", runs)
    assert decode.per_second == pytest.approx(1 / (asked.bytes_per_token / 10e9 + 0.002))
    assert prefill.per_second == pytest.approx(128 / (2 * 10**8 * 128 / 50e9 + 0.005))
    missed = projection.off_of_runs()
    assert decode.high == pytest.approx((decode.per_second or 0) * missed["decode"])
    assert prefill.low == pytest.approx((prefill.per_second or 0) / missed["prefill"])
    assert {cell.origin for cell in (prefill, decode)} == {"projected"}


def test_runs_are_of_the_mode_that_is_asked_for() -> None:
    slow: Any = {"states": ({"mode": {"name": "7W", "id": 3}},)}
    runs = [measured(10**8, **slow), measured(4 * 10**8, **slow)]
    asked = bounds.card_of(measured(2 * 10**8))
    cells = projection.by_runs(asked, "ort", "w8a8", "workbench", runs, "7W")
    assert cells == projection.by_runs(asked, "ort", "w8a8", "workbench", runs)
    with pytest.raises(SlmqError, match="its power mode is 7W, not 15W"):
        projection.by_runs(asked, "ort", "w8a8", "workbench", runs, "15W")


def test_steps_of_the_bundle_do_not_count_where_those_of_runs_are_not_known() -> None:
    runs = [measured(10**8), measured(4 * 10**8)]
    asked = bounds.card_of(measured(2 * 10**8))
    more = dataclasses.replace(asked, read_bytes=asked.read_bytes + 7, steps_bytes=7)
    both = [projection.by_runs(one, "ort", "w8a8", "workbench", runs) for one in (asked, more)]
    assert both[0] == both[1]


def test_steps_count_on_both_sides_where_all_runs_tell_of_them() -> None:
    """Scales are an eighth of what is read, of runs and of the bundle: nothing of it is lost."""

    def read(run: Any) -> Any:
        return with_artifact(run, read_bytes=bounds.card_of(run).read_bytes * 9 // 8)

    runs = [read(measured(10**8)), read(measured(4 * 10**8))]
    asked = bounds.card_of(measured(4 * 10**8))
    steps = asked.read_bytes // 8
    asked = dataclasses.replace(asked, read_bytes=asked.read_bytes + steps, steps_bytes=steps)
    (_, same) = projection.by_runs(asked, "ort", "w8a8", "workbench", runs)
    assert same.per_second == pytest.approx(runs[1].decode_rate.median, rel=1e-6)


def test_keys_and_values_get_their_own_cost_where_depths_tell_it() -> None:
    runs = [measured(10**8), measured(4 * 10**8), measured(10**8, 400), measured(4 * 10**8, 400)]
    slow = []
    for run in runs:  # keys and values at 2 GB/s
        asked = bounds.card_of(run)
        step = asked.read_bytes / 10e9 + asked.kv_bytes / 2e9 + 0.002
        slow.append(with_series(run, decode_seconds=(64 * step,) * 3))
    asked = bounds.card_of(measured(2 * 10**8, 300))
    (_, decode) = projection.by_runs(asked, "ort", "w8a8", "workbench", slow)
    step = asked.read_bytes / 10e9 + asked.kv_bytes / 2e9 + 0.002
    assert decode.per_second == pytest.approx(1 / step, rel=1e-3)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lambda: measured(10**8), "one a quarter larger"),
        (lambda: measured(4 * 10**8, scheme="fp32"), "its scheme is fp32, not w8a8"),
        (lambda: measured(4 * 10**8, origin="published"), "its origin is published"),
        (lambda: measured(4 * 10**8, device=Device("other", "cpu", {})), "its device is other"),
        (
            lambda: with_artifact(measured(4 * 10**8), runtime={"kind": "trt"}),
            "its target is trt, not ort",
        ),
        (lambda: measured(4 * 10**8, states=({"mode": {"name": "7W", "id": 3}},)), "mode is 7W"),
    ],
)
def test_runs_of_something_else_are_refused(second: Any, said: str) -> None:
    asked = bounds.card_of(measured(2 * 10**8))
    with pytest.raises(SlmqError, match=said):
        projection.by_runs(asked, "ort", "w8a8", "workbench", [measured(10**8), second()])


def test_a_benchmark_without_rows_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="SLMQ_EDGE_SHARED"):
        benchmark.main(tmp_path / "none.csv")
