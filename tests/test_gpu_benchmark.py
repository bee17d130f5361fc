"""benchmarks.gpu: what it does when time runs out, a step fails or it is killed; and its figures.

Steps are real child processes, of a stand-in; the way through the real verbs is a slow test.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gpu
from benchmarks.on_gpu import engine as engines
from benchmarks.on_gpu import foresight, machine, material, paper, steps, table
from benchmarks.on_gpu.record import DONE, DROPPED, FAILED, STOPPED, WAITING, Record, read, unpack
from benchmarks.on_gpu.steps import ALONE, ON_CPU, ON_GPU, Settings, Step
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.results import Device, Run, to_json
from tests.fake_nvml import FakeNvml
from tests.gpu_program import CHAIN, SAME, engine, step, times
from tests.shared import shared
from tests.supervised import ROOT, until
from tests.test_compare import run, with_artifact, with_series


def test_a_step_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    listed = [
        step("broken", does="fail"),
        step("behind it", "broken", lane=ALONE, kind="profile"),
        step("beside it", lane=ON_CPU),
    ]
    call = engine(listed, tmp_path)
    call.carry_out()
    assert call.states == {"broken": FAILED, "behind it": DROPPED, "beside it": DONE}
    entries = read(tmp_path / "out" / "results.json")["steps"]
    assert entries["broken"]["error"] == "error: no such luck"
    assert entries["broken"]["last_lines"] == ["some words", "error: no such luck"]
    assert entries["broken"]["exit_code"] == 1
    assert entries["behind it"]["error"] == "needs broken, which was not done (failed)"
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "=== broken" in log
    assert "no such luck" in log


def test_what_leaves_nothing_has_failed_whatever_it_says(tmp_path: Path) -> None:
    (one,) = [step("profiled", kind="profile")]
    wrong = dataclasses.replace(one.cell, command=("make", "elsewhere.json", "0"))
    call = engine([dataclasses.replace(one, cell=wrong)], tmp_path)
    call.carry_out()
    entry = call.record.entries["profiled"]
    assert (entry["state"], entry["error"]) == (FAILED, "it left no whole profiled.json")


def test_what_does_not_fit_is_dropped_and_a_shorter_one_taken(tmp_path: Path) -> None:
    given = engines.CLOSING_SECONDS + 20.0
    listed = [step("too long", expected=500.0), step("short", expected=1.0)]
    call = engine(listed, tmp_path, given)
    call.carry_out()
    assert call.states == {"too long": DROPPED, "short": DONE}
    why = call.record.entries["too long"]["error"]
    assert why.startswith("expected to take 500 s, and ")
    assert times(tmp_path, "too long") == 0


def test_what_runs_when_the_time_is_over_is_ended(tmp_path: Path) -> None:
    call = engine([step("slow", takes=60.0)], tmp_path, engines.CLOSING_SECONDS + 1.5)
    began = time.monotonic()
    call.carry_out()
    assert time.monotonic() - began < engines.CLOSING_SECONDS + 1.5
    entry = call.record.entries["slow"]
    assert entry["state"] == STOPPED
    assert entry["error"].startswith("not done within the call")


def test_a_step_that_hangs_is_ended_long_before_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LEAST_SECONDS", 0.2)
    call = engine([step("hangs", takes=60.0, expected=0.1), step("next", expected=0.1)], tmp_path)
    call.carry_out()
    assert call.states == {"hangs": STOPPED, "next": DONE}
    assert "4 x its estimate" in call.record.entries["hangs"]["error"]


def test_a_call_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_program", "call", str(tmp_path), "90"]
    results = tmp_path / "out" / "results.json"

    def has_begun() -> bool:
        return times(tmp_path, "long") == 1

    with subprocess.Popen(command, cwd=ROOT) as killed:
        until(has_begun, "the long step begins")
        killed.send_signal(signal.SIGKILL)
    entries = read(results)["steps"]
    assert [entries[name]["state"] for name in ("first", "second")] == [DONE, DONE]
    assert entries["long"]["state"] == "running"
    # A fresh machine: of what was made before nothing is there but results.json.
    (tmp_path / "work" / "second").unlink()
    os.environ["HURRY"] = "1"
    try:
        call = engine(list(CHAIN), tmp_path)
        call.carry_out()
    finally:
        del os.environ["HURRY"]
    assert set(call.states.values()) == {DONE}
    # What the next one needs was made once more, what nobody needs was not.
    counts = {one.id: times(tmp_path, one.id) for one in CHAIN}
    assert counts == {"first": 1, "second": 2, "long": 2, "measured": 1}
    assert len(read(results)["calls"]) == 2


def test_a_step_made_again_in_vain_keeps_what_it_had_found(tmp_path: Path) -> None:
    made = [step("made"), step("next", "made", does="fail")]
    engine(made, tmp_path).carry_out()
    (tmp_path / "work" / "made").unlink()
    broken = [
        dataclasses.replace(
            made[0], cell=dataclasses.replace(made[0].cell, command=("fail", "made", "0"))
        ),
        made[1],
    ]
    call = engine(broken, tmp_path)
    call.carry_out()
    assert call.states == {"made": FAILED, "next": DROPPED}
    entry = call.record.entries["made"]
    assert (entry["state"], entry["again"]["state"]) == (DONE, FAILED)


def test_ctrl_c_ends_what_runs_and_keeps_the_record(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_program", "call", str(tmp_path), "90"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as interrupted:
        until(lambda: times(tmp_path, "long") == 1, "the long step begins")
        interrupted.send_signal(signal.SIGINT)
        interrupted.wait(30)
    entry = read(tmp_path / "out" / "results.json")["steps"]["long"]
    assert (entry["state"], entry["error"]) == (STOPPED, "the call was interrupted")


def test_what_ran_beside_a_step_is_told(tmp_path: Path) -> None:
    listed = [
        step("quantized", takes=1.0, expected=5.0),
        step("exported", lane=ON_CPU, takes=0.2),
        step("measured", lane=ALONE, kind="profile"),
    ]
    call = engine(listed, tmp_path)
    call.carry_out()
    told = {name: entry["beside"] for name, entry in call.record.entries.items()}
    assert told == {"quantized": ["exported"], "exported": ["quantized"], "measured": []}


def test_estimates_are_corrected_by_what_was_seen() -> None:
    one, other = step("a", expected=10.0), step("b", expected=10.0, kind="profile")
    seen = {"kind": "model", "state": DONE, "seconds": 25.0, "estimated_seconds": 10.0}
    assert engines.correction(one, {"x": seen}) == 2.5
    assert engines.correction(other, {"x": seen}) == 1.0
    assert engines.correction(one, {"x": {**seen, "seconds": 1e6}}) == engines.SLOWEST


ANY_STEPS = st.lists(
    st.tuples(
        st.sampled_from((ON_GPU, ON_CPU, ALONE)), st.floats(1, 50), st.booleans(), st.integers(0, 5)
    ),
    max_size=12,
)


@settings(deadline=None)
@given(ANY_STEPS, st.floats(20, 300))
def test_lanes_hold_one_step_each_and_what_is_measured_is_alone(
    drawn: list[tuple[str, float, bool, int]], seconds: float
) -> None:
    listed: list[Step] = []
    for index, (lane, expected, needing, need) in enumerate(drawn):
        needs = (str(need % index),) if needing and index else ()
        listed.append(step(str(index), *needs, lane=lane, expected=expected))
    found = foresight.begins(listed, seconds)
    spans = {
        one.id: (found[one.id], found[one.id] + one.seconds) for one in listed if one.id in found
    }
    lanes = {one.id: one.lane for one in listed}
    for one in listed:
        if one.id not in spans:
            continue
        begin, end = spans[one.id]
        assert end <= seconds - engines.CLOSING_SECONDS
        assert all(spans[need][1] <= begin for need in one.cell.needs)
        for other, (first, last) in spans.items():
            overlap = other != one.id and first < end and begin < last
            assert not (overlap and (one.lane == ALONE or lanes[other] in (one.lane, ALONE)))


def test_the_papers_rows_come_first_and_whole_chains_fit() -> None:
    listed = steps.steps(Settings(Path("/material")))
    assert all(
        need in [s.id for s in listed[:place]]
        for place, one in enumerate(listed)
        for need in one.cell.needs
    )
    order = [one.cell.of for one in listed if one.kind == "profile"]
    assert (order[0]["method"], order[0]["scheme"]) == steps.BASELINE
    places = {tuple(of.values()): place for place, of in enumerate(order)}
    for method in steps.METHODS:
        smollm, qwen = (places[model, method, "w8a8"] for model in (steps.SMOLLM, steps.QWEN))
        assert smollm < qwen
        for model in (steps.SMOLLM, steps.QWEN):
            assert places[model, method, "w8a8"] < places[model, method, "w4a8"]
    found = foresight.begins(listed, gpu.MINUTES * 60)
    fitting = {name for name in found if name.startswith("profile-SmolLM-135M")}
    assert {f"profile-SmolLM-135M-{method}-w8a8" for method in steps.METHODS} <= fitting


def test_results_of_another_gpu_do_not_go_into_the_same_file(tmp_path: Path) -> None:
    Record(tmp_path, SAME).begin({})
    with pytest.raises(SlmqError, match="is of gpu None, this call of NVIDIA H200"):
        Record(tmp_path, {**SAME, "gpu": "NVIDIA H200"})


def test_material_is_packed_whole_or_refused(tmp_path: Path) -> None:
    source = shared(".")
    assert material.pack(source, tmp_path) < material.MOST_BYTES
    material.check(tmp_path)
    text = tmp_path / material.TEST
    text.write_text(text.read_text()[:-1])
    with pytest.raises(Damaged, match="is not what was packed"):
        material.check(tmp_path)
    text.unlink()
    with pytest.raises(NotFound, match=r"lacks data/wikitext2/wiki\.test\.raw: .*--pack"):
        material.check(tmp_path)


def test_the_machine_is_told_with_its_limit_and_clocks() -> None:
    found = machine.gpu(FakeNvml().library())
    assert found["gpu"]["name"] == "NVIDIA A800 80GB PCIe"
    assert found["gpu"]["driver"] == "550.54.15"
    assert found["mode"]["name"] == "300 W limit"
    assert found["clocks_hertz"]["gpu"] == 1410e6
    assert machine.name_of({"gpu": found}) == "NVIDIA A800 80GB PCIe"


GPU = Device("h200", "cuda", {})


def timed(scheme: str, method: str, decode: float, peak: int) -> Run:
    """A run on a GPU, of 128 + 64 tokens, as the torch runtime's are."""
    phases = {
        phase: {
            "cpu_peak_rss": 9 * 10**8,
            "torch_peak_allocated": peak,
            "gpu_process_used": 2 * peak,
        }
        for phase in ("prefill", "decode", "forward")
    }
    base = run("fp32" if scheme == "fp32" else "w8a8", device=GPU, memory=phases)
    changes: dict[str, Any] = {
        "method": method, "scheme_ran": scheme, "bundle_sha256": f"{method}{scheme}",
        "runtime": {"kind": "torch"},
        "weight_storage_bits": {"linears": 16 if scheme == "fp32" else 8},
    }  # fmt: skip
    found = with_artifact(base, **changes)
    return with_series(
        found,
        decode_seconds=(decode,) * 5,
        prefill_seconds=(0.01,) * 5,
        forward_seconds=(0.01,) * 5,
    )


def recorded(folder: Path, *runs: Run) -> dict[str, Any]:
    """A results.json of runs that are there."""
    record = Record(folder, SAME)
    record.begin({"started": "now", "machine": {"gpu": machine.gpu(FakeNvml().library())}})
    for one in runs:
        name = f"SmolLM-135M-{one.artifact.method}-{one.artifact.scheme_ran}"
        left = {"path": f"runs/{name}.json", "document": json.loads(to_json(one))}
        record.update(step(f"profile-{name}", kind="profile"), state=DONE, left=left)
    return read(folder / "results.json")


def test_rows_hold_gains_and_losses_against_float16_on_the_same_gpu(tmp_path: Path) -> None:
    runs = timed("fp32", "none", 0.064, 400 << 20), timed("w8a8", "smoothquant", 0.128, 200 << 20)
    document = gpu.with_figures(recorded(tmp_path, *runs))
    base, row = sorted(document["rows"], key=lambda one: not one["is_baseline"])
    assert base["precision_of_baseline"] == "float16"
    assert row["decode_tokens_per_second"] == 500
    assert row["times_better"]["decode"]["ratio"] == 0.5
    assert row["times_better"]["decode"]["verdict"] == "worse"
    assert (row["memory_kind"], row["times_better"]["memory"]["ratio"]) == (
        "torch_peak_allocated",
        2,
    )
    text = table.markdown(document)
    assert "a TOY" in text
    assert "paper" not in text
    assert "| SmolLM-135M smoothquant w8a8 |" in text
    assert "| 500 | 0.50 [0.50, 0.50] |" in text


def test_the_papers_tables_stand_beside_with_what_differs(tmp_path: Path) -> None:
    runs = timed("fp32", "none", 0.064, 400 << 20), timed("w8a8", "smoothquant", 0.128, 200 << 20)
    beside = gpu.with_figures(recorded(tmp_path, *runs))["beside_the_paper"]
    rows = {(row["method"], row["scheme"]): row for row in beside["table3"]}
    assert rows["none", "fp16"]["ours"]["memory_mib"] == 400
    assert rows["none", "fp16"]["paper"]["memory"] == "264.5"
    quantized = rows["smoothquant", "w8a8"]
    # The paper's own convention makes the paper's own figures: MACs of the head alone.
    assert f"{quantized['ours']['macs_giga']:.2f}" == "3.62"
    assert quantized["ours"]["parameters_millions"] == pytest.approx(134.515)
    assert quantized["ours"]["slmq_infer_paper"] != quantized["ours"]["slmq_infer_measured"]
    assert rows["omniquant", "w8a8"]["ours"] is None
    assert beside["differs"][0] == "the GPU is NVIDIA A800 80GB PCIe, as the paper's is an A800"
    assert "this one NVIDIA H200" in paper.differs({"gpu": {"gpu": {"name": "NVIDIA H200"}}})[0]
    document = gpu.with_figures(recorded(tmp_path, *runs))
    text = table.markdown({**document, "same": {**SAME, "toy": False}})
    assert "| SmolLM-135M none fp16 | 400 | 264.5 |" in text
    assert "* the GPU is NVIDIA A800 80GB PCIe" in text
    assert "none was seen" in paper.differs({"gpu": {"gpu": {"name": None}}})[0]


def test_what_comes_home_is_read_by_the_verbs(tmp_path: Path) -> None:
    runs = timed("fp32", "none", 0.064, 400 << 20), timed("w8a8", "smoothquant", 0.128, 200 << 20)
    document = recorded(tmp_path, *runs)
    first, second = unpack(document, tmp_path / "home")
    assert first.read_text() == to_json(runs[0])
    assert second.relative_to(tmp_path).as_posix() == "home/runs/SmolLM-135M-smoothquant-w8a8.json"


def test_a_call_without_a_gpu_is_refused_in_a_line(tmp_path: Path) -> None:
    asked = Settings(shared("."))
    with pytest.raises(SlmqError, match="torch sees no CUDA device here"):
        gpu.call(asked, steps.steps(asked), tmp_path / "out", tmp_path / "work", 60)
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(UsageError, match="no step is called so"):
        gpu._chosen(list(CHAIN), "nothing*")
    kept = gpu._chosen(list(CHAIN), "long")
    assert [one.id for one in kept] == ["first", "second", "long"]
    assert {one.id: WAITING for one in kept}


@pytest.mark.slow
def test_the_whole_way_at_toy_size(tmp_path: Path) -> None:
    """The real verbs, one after the other: drawn, quantized, exported, measured, compared."""
    shared("configs/SmolLM-135M")
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--material", str(shared("."))]
    command += ["-o", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--minutes", "5"]
    for only in ("profile-SmolLM-135M-none-fp32", "profile-SmolLM-135M-smoothquant-w8a8"):
        subprocess.run([*command, "--only", only], cwd=ROOT, check=True)
    document = read(tmp_path / "out" / "results.json")
    assert {entry["state"] for entry in document["steps"].values()} == {DONE}
    rows = {row["method"]: row for row in document["rows"]}
    assert rows["none"]["is_baseline"]
    assert rows["smoothquant"]["times_better"]["decode"]["ratio"] > 0
    (cost,) = document["costs"]
    assert cost["method"] == "smoothquant"
    assert cost["seconds"] > 0
    home = unpack(document, tmp_path / "home")
    assert {path.name for path in home} >= {"checkpoint.json", "bundle.json"}
