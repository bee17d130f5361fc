"""--fail-on of compare: what fails, what cannot be told, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.caveats import Caveat
from slmq_edge.compare import compare
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.regressions import LIMITS, check, limit
from slmq_edge.reports.regressions import WORDS, told
from slmq_edge.results import Run, save
from tests.test_compare import NOISE, invoke, run, slower, with_artifact, with_series


def finding(text: str, baseline: Run, candidate: Run) -> str:
    (found,) = check([compare(baseline, candidate)], [limit(text)])
    return found.finding


@pytest.mark.parametrize(
    ("factor", "text", "expected"),
    [
        (1.2, "decode=5%", "beyond"),
        (1.2, "decode=20%", "within"),
        (1.2, "decode=16.7%", "inconclusive"),  # 1 - 1 / 1.2: the interval holds it
        (0.8, "decode=0", "within"),
        (1.0, "decode=0", "inconclusive"),
        (1.0, "decode=2%", "within"),
    ],
)
def test_a_rate_fails_where_its_whole_interval_is_beyond(
    factor: float, text: str, expected: str
) -> None:
    assert finding(text, slower(run(), 1.0), slower(run(), factor)) == expected


def test_growth_of_bytes_and_seconds_is_of_the_baseline() -> None:
    larger = with_artifact(run(), bundle_bytes=550_000_000)
    assert finding("size=1%", run(), larger) == "beyond"
    assert finding("size=1.9%", run(), larger) == "within"  # 10 of 540 MB
    assert finding("size=0", larger, run()) == "within"
    longer = with_series(run(), prefill_seconds=tuple(1.5 * x for x in NOISE))
    usual = with_series(run(), prefill_seconds=NOISE)
    (found,) = check([compare(usual, longer)], [limit("ttft=5%")])
    assert found.finding == "beyond"
    assert found.loss == pytest.approx(0.5)
    (found,) = check([compare(usual, longer)], [limit("prefill=5%")])
    assert found.finding == "beyond"
    assert found.loss == pytest.approx(1 / 3, rel=1e-3)


def test_what_was_read_once_is_taken_as_it_was_read() -> None:
    more = {phase: {"cpu_peak_rss": 900_000_000} for phase in ("prefill", "decode")}
    assert finding("memory=5%", run(), run(memory=more)) == "beyond"
    assert finding("memory=13%", run(), run(memory=more)) == "within"


def test_a_score_is_held_against_the_baselines_own() -> None:
    usual = slower(run(), 1.0)
    assert finding("score=5%", usual, slower(run(), 3.0)) == "beyond"
    assert finding("score=5%", usual, slower(run("w8a8"), 1.0)) == "within"


def test_times_of_a_run_that_drifted_decide_nothing() -> None:
    doubt = (Caveat("inconclusive", "measure again", {}),)
    drifted = dataclasses.replace(slower(run(), 2.0), caveats=doubt)
    usual = slower(run(), 1.0)
    assert compare(usual, drifted).row("decode_rate").verdict == "inconclusive"
    assert finding("decode=5%", usual, drifted) == "inconclusive"
    assert finding("size=5%", usual, drifted) == "within"


def test_a_limit_that_cannot_be_told_is_no_pass() -> None:
    elsewhere = run(memory={"decode": {"gpu_process_peak": 5}})
    with pytest.raises(SlmqError, match=r"memory=5% cannot be told of none fp32 .*no kind of peak"):
        finding("memory=5%", run(), elsewhere)
    with pytest.raises(SlmqError, match="score=5% cannot be told"):
        finding("score=5%", run(), elsewhere)
    with pytest.raises(SlmqError, match=r"energy=5% cannot be told.*do not have it"):
        finding("energy=5%", run(), run())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode", "give NAME=VALUE, like decode=5%"),
        ("decod=5%", r"unknown limit 'decod' \(did you mean decode\?\)"),
        ("decode=a lot", "is no number"),
        ("decode=-5%", "is no number"),
    ],
)
def test_what_is_no_limit_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        limit(text)


@given(st.sampled_from(LIMITS), st.floats(min_value=0, max_value=0.99, allow_subnormal=False))
def test_a_percentage_is_a_hundredth(name: str, value: float) -> None:
    text = f"{value:.6f}"
    assert limit(f"{name}={text}%").value == pytest.approx(limit(f"{name}={text}").value / 100)


def test_every_limit_has_its_words() -> None:
    assert set(WORDS) == set(LIMITS)
    found = check([compare(slower(run(), 1.0), slower(run(), 1.25))], [limit("decode=5%")])
    line = told(found[0])
    assert line.startswith("SmolLM-135M none fp32 on workbench: decode tokens/s -20.0 % (95 %: -2")
    assert line.endswith("limit decode=5%")


def test_cli_fails_behind_the_table_and_says_what_is_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("base", "slow", "same")]
    for path, factor in zip(paths, (1.0, 1.25, 1.0), strict=True):
        save(slower(run(), factor), path)
    failed = invoke("-b", paths[0], "-c", paths[1], "--fail-on", "decode=5%")
    assert isinstance(failed.exception, SlmqError)
    assert failed.exception.exit_code == 1
    assert "beyond --fail-on decode=5%: SmolLM-135M none fp32" in str(failed.exception)
    assert "SLMQ_infer" in failed.stdout
    open_ = invoke("-b", paths[0], "-c", paths[2], "--fail-on", "decode=0%")
    assert open_.exit_code == 0
    assert open_.stderr.startswith("inconclusive: SmolLM-135M none fp32 on workbench: decode")
    assert invoke("-b", paths[0], "-c", paths[2], "--fail-on", "decode=10%").stderr == ""
    early = invoke("-b", "missing.json", "-c", paths[1], "--fail-on", "decde=5%")
    assert isinstance(early.exception, UsageError)


@pytest.mark.parametrize("text", ["decode=5", "size=1.0"])
def test_a_share_of_one_or_more_must_say_percent(text: str) -> None:
    with pytest.raises(UsageError, match=f"write {text}%"):
        limit(text)
