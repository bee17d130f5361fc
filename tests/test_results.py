"""run.json comes back exactly, garbage is refused by name, and doubts are data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge import assembly, caveats, results
from slmq_edge.caveats import Evidence
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from slmq_edge.reports import format as text
from slmq_edge.reports.profile import render
from slmq_edge.results import Device, Run, Series

BUNDLE = {
    "model": {"name": "toy", "origin": "hub", "revision": "v1"},
    "method": "smoothquant",
    "scheme_requested": "W4A8",
    "lowering": {
        "scheme_ran": "W8A8",
        "int8_gemm_share": 1,
        "weight_storage_bits": {"linears": 8, "lm_head": 32},
        "activation_mode": "per token",
        "weights": "int8 per channel, symmetric",
        "kv_cache": "float32",
        "lm_head": "float",
        "context_length": 64,
    },
    "runtime": {"name": "onnxruntime", "minimum_version": "1.19"},
    "counts": {"parameters": 5, "linear_macs_per_token": 6, "head_macs_per_token": 7},
    "files": {
        "ort/model.onnx": {"bytes": 500_000, "sha256": ""},
        "ort/model.onnx.data": {"bytes": 1_500_000, "sha256": ""},
        "golden.npz": {"bytes": 5, "sha256": ""},
    },
}
ENVIRONMENT = {"cores": 4, "load_average": 0.1, "governor": None, "cpu_flags": ["avx2"]}
WORKLOAD = {
    "prompt_tokens": 8,
    "new_tokens": 4,
    "repetitions": 5,
    "warmups": 1,
    "threads": 4,
}
GOLDEN = {
    "mean_kl": 1e-9,
    "mean_kl_with_past": 2e-9,
    "perplexity": 3.0,
    "reference_perplexity": 3.0,
    "positions_compared": 100,
    "positions_below_margin": 5,
    "greedy_compared": 20,
}


def _round(name: str, index: int, prefill: float, decode: float) -> dict[str, Any]:
    return {
        "event": name,
        "index": index,
        "prefill_seconds": prefill,
        "decode_seconds": decode,
        "decode_step_seconds": [decode / 4] * 4,
        "memory": {"prefill": {"peak": 100 + index}, "decode": {"peak": 200, "other": None}},
    }


def _events(prefills: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5, 0.5)) -> list[dict[str, Any]]:
    begin = {
        "event": "begin",
        "bundle_sha256": "ab" * 32,
        "workload": WORKLOAD,
        "allow_inexact": False,
        "environment": ENVIRONMENT,
        "at": 0.0,
        "pid": 1,
    }
    load = {
        "event": "load",
        "seconds": 0.1,
        "memory": {"start": {"peak": 10}, "load": {"peak": 20}},
        "kv_bytes_per_token": 64,
        "profile": {"kind": "fake", "reasons": {}},
    }
    return [
        begin,
        {"event": "probe", "result": None},
        {"event": "golden", "report": GOLDEN},
        load,
        _round("warmup", 0, 9.0, 9.0),
        *(_round("repetition", i, prefill, 2.0) for i, prefill in enumerate(prefills)),
        {"event": "end", "load_average": 1.0},
    ]


def _run(events: list[dict[str, Any]] | None = None) -> Run:
    facts = {"bandwidth_bytes_per_second": {"value": 1e9, "source": "x"}}
    return assembly.assemble(events or _events(), Device("toy-board", "fake", facts), BUNDLE)


# --- values


def test_statistics_are_those_of_the_values() -> None:
    series = Series("s", (1.0, 2.0, 3.0, 4.0, 100.0))
    assert (series.median, series.spread) == (3.0, 2.0)
    assert Series("s", (7.0,)).spread == 0.0
    assert Series("s", (0.5, 0.25)).rate(10, "tokens/s") == Series("tokens/s", (20.0, 40.0))


def test_a_run_is_assembled_from_its_events() -> None:
    run = _run()
    assert run.created == "1970-01-01T00:00:00+00:00"
    assert run.series["prefill_seconds"] == Series("s", (0.5,) * 5)
    assert run.series["warmup_decode_seconds"] == Series("s", (9.0,))
    assert len(run.series["decode_step_seconds"].values) == 20
    assert run.prefill_rate.median == 16.0
    assert run.decode_rate.median == 2.0
    assert run.memory == {
        "start": {"peak": 10},
        "load": {"peak": 20},
        "prefill": {"peak": 104},  # the largest of all rounds
        "decode": {"peak": 200, "other": None},
    }
    assert run.artifact.bundle_bytes == 2_000_005
    assert run.artifact.scheme_ran == "W8A8"
    assert run.environment["load_average_end"] == 1.0
    assert run.origin == "measured"
    assert run.caveats == ()


def test_repetitions_are_in_order_however_they_were_taken() -> None:
    events = _events((0.1, 0.2, 0.3, 0.4, 0.5))
    events[5:10] = reversed(events[5:10])
    assert _run(events).series["prefill_seconds"].values == (0.1, 0.2, 0.3, 0.4, 0.5)


@pytest.mark.parametrize("name", ["begin", "probe", "golden", "load", "repetition"])
def test_a_journal_without_an_event_makes_no_run(name: str) -> None:
    with pytest.raises(Damaged, match=f"no event '{name}'"):
        _run([event for event in _events() if event["event"] != name])


# --- files


def test_the_round_trip_is_exact(tmp_path: Path) -> None:
    run = _run(_events((0.1, 1 / 3, 0.7)))
    results.save(run, tmp_path / "run.json")
    assert results.load(tmp_path / "run.json") == run
    assert results.to_json(results.load(tmp_path / "run.json")) == results.to_json(run)


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("mine")
    with pytest.raises(SlmqError, match="exists already"):
        results.save(_run(), path)
    assert path.read_text() == "mine"
    results.save(_run(), path, force=True)
    assert results.load(path) == _run()


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(results.to_json(_run()))
    return document


def _delete(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_delete("artifact"), Damaged, "artifact is missing"),
        (_delete("artifact", "counts", "parameters"), Damaged, "parameters is missing"),
        (_delete("series", "decode_seconds"), Damaged, r"series\.decode_seconds"),
        (lambda d: d.update(format="other"), Unsupported, "expected 'slmq-edge-run'"),
        (lambda d: d.update(version=2), Unsupported, "version 2"),
        (lambda d: d.update(version=True), Unsupported, "version True"),
        (lambda d: d.update(extra=1), Damaged, "extra is unknown"),
        (lambda d: d.update(origin="guessed"), Damaged, "origin"),
        (lambda d: d["workload"].update(threads="4"), Damaged, "threads is str, expected int"),
        (lambda d: d["workload"].update(threads=True), Damaged, "threads is bool"),
        (lambda d: d["series"]["load_seconds"].update(values=[]), Damaged, "load_seconds"),
        (lambda d: d["series"]["load_seconds"].update(values=[0]), Damaged, "load_seconds"),
        (
            lambda d: d["series"].update(forward_seconds={"unit": "s", "values": []}),
            Damaged,
            r"series\.forward_seconds is missing, empty or not positive",
        ),
        (lambda d: d["memory"]["load"].update(peak=1.5), Damaged, r"memory\.load\.peak"),
    ],
)
def test_wrong_documents_are_refused_by_name(
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[SlmqError],
    message: str,
) -> None:
    document = _document()
    change(document)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(document))
    with pytest.raises(error, match=rf"wrong\.json.*{message}"):
        results.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"bad\.json"):
        results.load(tmp_path / "bad.json")
    with pytest.raises(NotFound, match=r"none\.json"):
        results.load(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys that lead to every value of a document."""
    items = list(value.items()) if isinstance(value, dict) else []
    items += enumerate(value) if isinstance(value, list) else []
    deeper = [longer for key, inner in items for longer in _paths(inner, (*path, key))]
    return [path, *deeper] if path else deeper


@settings(deadline=None)
@given(st.sampled_from(_paths(_document())), JSON, st.integers(0, 3000))
def test_no_garbage_raises_anything_but_slmqerror(
    tmp_path_factory: pytest.TempPathFactory, keys: tuple[Any, ...], value: Any, cut: int
) -> None:
    document = _document()
    target: Any = document
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    whole = json.dumps(document)
    for content in (whole, whole[:cut]):
        path.write_text(content)
        try:
            run = results.load(path)
        except SlmqError as error:
            assert "fuzzed.json" in str(error)  # noqa: PT017  either outcome is right
        else:
            assert results.from_document(json.loads(results.to_json(run)), "again") == run


# --- doubts


def _evidence(**changes: Any) -> Evidence:
    run = _run()
    seen = Evidence(run.series, ENVIRONMENT, WORKLOAD, GOLDEN, None)
    return dataclasses.replace(seen, **changes)


def _seconds(**values: tuple[float, ...]) -> dict[str, Series]:
    return {**_run().series, **{name: Series("s", v) for name, v in values.items()}}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"series": _seconds(prefill_seconds=(2.0, 1, 1, 1, 1))}, "slow-first-repetition"),
        ({"series": _seconds(decode_seconds=(1, 2, 1, 2, 1.0))}, "unstable-repetitions"),
        ({"series": _seconds(decode_seconds=(1.0, 1, 1, 1))}, "few-repetitions"),
        ({"series": _seconds(load_seconds=(1.0, 1.0))}, "resumed"),
        ({"environment": {**ENVIRONMENT, "load_average": 2.1}}, "background-load"),
        ({"environment": {**ENVIRONMENT, "cores": 2}}, "fewer-cores-than-threads"),
        ({"environment": {**ENVIRONMENT, "cores": 2, "tensorrt": "10.3.0"}}, None),
        ({"environment": {**ENVIRONMENT, "governor": "powersave"}}, "governor"),
        ({"environment": {**ENVIRONMENT, "governor": "performance"}}, None),
        ({"golden": {**GOLDEN, "positions_below_margin": 51}}, "golden-mostly-unclear"),
        ({"probe": {"operator": "X", "exact": True, "largest_error": 0}}, None),
        ({"probe": {"operator": "X", "exact": False, "largest_error": 9}}, "inexact-integers"),
    ],
)
def test_doubts(changes: dict[str, Any], code: str | None) -> None:
    found = caveats.doubts(_evidence(**changes))
    assert [caveat.code for caveat in found] == ([] if code is None else [code])
    assert all(caveat.advice and caveat.values for caveat in found)


# --- text


def test_the_report_says_what_ran() -> None:
    shown = render(_run(_events((0.5, 0.5))))
    for words in (
        "toy@v1 on toy-board",
        "W8A8 (asked: W4A8)",
        "2.00 MB (linears 8 bits, lm_head 32 bits)",
        "64 B per token, float32",
        "int8 per channel, symmetric",
        "642 B (weights 34 B, KV 608 B at depth 10)",
        "0.0 % (1557632 tok/s by memory bandwidth)",
        "16.0 tok/s [0.00 tok/s]",
        "2 repetitions say little",
    ):
        assert words in shown
    assert shown.endswith("\n")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (text.bytes_text(999), "999 B"),
        (text.bytes_text(999_999), "1.00 MB"),
        (text.bytes_text(134_500_000), "134 MB"),
        (text.bytes_text(None), "n/a"),
        (text.seconds_text(0.01234), "12.3 ms"),
        (text.seconds_text(61.0), "61.0 s"),
        (text.seconds_text(0.0), "0 ns"),
        (text.rate_text(9.876), "9.88 tok/s"),
        (text.rate_text(12345.6), "12346 tok/s"),
        (text.share_text(0.999), "99.9 %"),
        (text.count_text(134_515_008), "135 M"),
    ],
)
def test_numbers_as_text(found: str, expected: str) -> None:
    assert found == expected


def test_a_run_from_before_grids_were_told_is_still_read() -> None:
    document = json.loads(results.to_json(_run(_events((0.5, 0.5)))))
    for name in ("weights", "kv_cache"):
        assert document["artifact"].pop(name) is not None
    old = results.from_document(document, "old")
    assert (old.artifact.weights, old.artifact.kv_cache) == (None, None)
    assert "weight grid" not in render(old)


# --- power, states, a second attempt


def _window(phase: str, watts: float, tokens: int) -> dict[str, Any]:
    return {
        "event": "power",
        "phase": phase,
        "seconds": 2.0,
        "rounds": 2,
        "tokens": tokens,
        "stamps": [0.0, 0.5, 1.0, 1.5, 2.0],
        "watts": {"VDD_IN": [watts] * 5},
        "counter_joules": None,
        "total_rails": ["VDD_IN"],
    }


def test_windows_of_power_are_kept_raw_and_reported(tmp_path: Path) -> None:
    events = _events()
    windows = [_window("idle", 4.0, 0), _window("prefill", 12.0, 480), _window("decode", 9.0, 90)]
    run = _run([*events[:3], windows[0], *events[3:-1], *windows[1:], events[-1]])
    assert run.power is not None
    assert run.power["decode"].watts == {"VDD_IN": (9.0,) * 5}
    results.save(run, tmp_path / "run.json")
    assert results.load(tmp_path / "run.json") == run
    shown = render(run)
    assert "Energy of the whole device (VDD_IN; idle 4.00 W)" in shown
    assert "12.0 W, 20.0 tok/J; above idle 30.0 tok/J (5 readings in 2.00 s)" in shown
    assert "9.00 W, 5.00 tok/J; above idle 9.00 tok/J" in shown
    events[-1]["profile"] = {"kind": "cpu", "energy_of": "the processor packages"}
    shown = render(_run([*events[:3], windows[0], *events[3:-1], *windows[1:], events[-1]]))
    assert "Energy of the processor packages (VDD_IN; idle 4.00 W)" in shown


def test_energy_that_was_not_told_says_why() -> None:
    events = _events()
    few = {**_window("decode", 9.0, 90), "stamps": [0.0, 2.0], "watts": {"VDD_IN": [9.0, 9.0]}}
    shown = render(_run([*events[:-1], few, events[-1]]))
    assert "not told: 2 readings in 2.00 s: 5 are needed" in shown
    events[3]["profile"] = {"kind": "cpu", "reasons": {"energy": "no RAPL counter"}}
    assert "not told: no RAPL counter" in render(_run(events))


def test_states_are_kept_and_reported() -> None:
    events = _events()
    state = {
        "clocks_hz": {"gpu": 1.02e9, "emc": None},
        "temperatures_celsius": {"tj": 61.0},
        "mode": {"name": "MAXN_SUPER", "id": 2},
    }
    begun = {**state, "temperatures_celsius": {"tj": 48.0}}
    for event in events:
        if event["event"] in ("load", "warmup", "repetition"):
            event["state"] = begun if event["event"] == "load" else state
    events[0]["environment"] = {**ENVIRONMENT, "power_mode": "MAXN_SUPER (2)"}
    run = _run(events)
    assert len(run.states) == 7
    shown = render(run)
    assert "power mode  MAXN_SUPER (2)" in shown
    assert "1020 MHz" in shown
    assert "tj: 48 at first, 61 degrees C at most" in shown
    assert "emc" not in shown


def test_states_of_a_resumed_run_are_in_the_order_of_time() -> None:
    first, second = _events()[:6], _events()
    del second[5]  # the repetition that the first process took
    events = [*first, *second]
    for count, event in enumerate(events):
        if event["event"] in ("load", "warmup", "repetition"):
            event["state"] = {"throttling": {"oc3": count}, "clocks_hz": {"cpu": 1e9}}
            if event["event"] == "load":
                event["state"]["clocks_hz"] = {"cpu": 2e8}
    run = _run(events)
    counts = [state["throttling"]["oc3"] for state in run.states]
    assert counts == sorted(counts)
    assert [state["event"] for state in run.states].count("load") == 2
    assert "clocks-unstable" not in {caveat.code for caveat in run.caveats}
    assert "1000 MHz" in render(run)


def test_a_second_attempt_replaces_the_first_which_is_kept_aside() -> None:
    events = _events()
    first = [_round("repetition", index, 0.5, 3.0 + index) for index in range(5)]
    again = {"event": "again", "drift": {"decode_seconds": 0.4}}
    run = _run([*events[:5], *first, again, *events[5:]])
    assert run.series["decode_seconds"].values == (2.0,) * 5
    assert run.series["unsteady_decode_seconds"].values == (3.0, 4.0, 5.0, 6.0, 7.0)
    assert "measured-again" in [caveat.code for caveat in run.caveats]
