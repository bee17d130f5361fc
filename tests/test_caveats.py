"""Every doubt about the machine and the repetitions appears when it should, and only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from slmq_edge import caveats
from slmq_edge.caveats import Caveat, Evidence
from slmq_edge.results import Series

STEADY = (1.0,) * 6
QUIET: dict[str, Any] = {
    "clocks_hz": {"cpu": 2.0e9, "gpu": None},
    "temperatures_celsius": {"tj": 45.0},
    "throttling": {"oc3_event_cnt": 7, "capped_now": 0},
    "mode": {"name": "MAXN_SUPER", "id": 2},
    "system": {"swap_used_bytes": 1e6, "load_average": 0.1, "gpu_processes": 0},
}
BOARD = {"maximum_modes": ["MAXN_SUPER"]}


def _state(**changes: Any) -> dict[str, Any]:
    return {**QUIET, **{name: {**QUIET[name], **value} for name, value in changes.items()}}


def _found(
    *states: Mapping[str, Any],
    decode: tuple[float, ...] = STEADY,
    aside: bool = False,
    **environment: Any,
) -> dict[str, Caveat]:
    series = {
        "prefill_seconds": Series("s", STEADY),
        "decode_seconds": Series("s", decode),
        "load_seconds": Series("s", (1.0,)),
    }
    if aside:
        series["unsteady_decode_seconds"] = Series("s", (1.0, 2.0))
    told = states or (QUIET, QUIET)
    seen = Evidence(
        series,
        {"cores": 4, "board": BOARD, **environment},
        {"threads": 4},
        {},
        None,
        tuple(
            {"event": "load" if n == 0 else "repetition", **state} for n, state in enumerate(told)
        ),
    )
    return {caveat.code: caveat for caveat in caveats.doubts(seen)}


def test_a_quiet_machine_raises_no_doubt() -> None:
    assert _found() == {}


def test_throttling_is_a_counter_that_rose_or_a_state_that_was_on() -> None:
    found = _found(QUIET, _state(throttling={"oc3_event_cnt": 9}))
    assert found["throttled"].values == {"rose": {"oc3_event_cnt": 2}}
    assert "oc3_event_cnt 2" in found["throttled"].advice
    found = _found(QUIET, _state(throttling={"capped_now": 1}), QUIET)
    assert found["throttled"].values == {"rose": {"capped_now": 1}}
    assert "throttled" not in _found(_state(throttling={"oc3_event_cnt": None}), QUIET)


@pytest.mark.parametrize(
    ("modes", "code", "words"),
    [
        (["15W", "15W"], "mode-not-maximum", "power mode 15W, where MAXN_SUPER is the fastest"),
        (["15W", "MAXN_SUPER"], "mode-changed", "15W, MAXN_SUPER"),
        ([None, None], "mode-unknown", "nvpmodel -q"),
    ],
)
def test_the_mode_is_part_of_the_figure(modes: list[str | None], code: str, words: str) -> None:
    states = [
        {**QUIET, "mode": None if name is None else {"name": name, "id": 0}} for name in modes
    ]
    found = _found(*states)
    assert list(found) == [code]
    assert words in found[code].advice
    assert _found(*states, board=None) == {}  # a machine without modes


def test_clocks_are_compared_behind_the_rounds_alone() -> None:
    low = _state(clocks_hz={"cpu": 1.0e9})
    assert _found(low, QUIET, QUIET) == {}  # at rest before loading
    assert _found(QUIET, QUIET, low)["clocks-unstable"].values == {"spread": {"cpu": 0.5}}


def test_a_later_process_begins_at_rest_and_after_a_reboot_counts_from_0() -> None:
    loaded = {**_state(clocks_hz={"cpu": 1.0e9}, throttling={"oc3_event_cnt": 0}), "event": "load"}
    after = _state(throttling={"oc3_event_cnt": 0})
    assert _found(QUIET, QUIET, loaded, after) == {}
    two = _state(throttling={"oc3_event_cnt": 2})
    found = _found(QUIET, _state(throttling={"oc3_event_cnt": 8}), loaded, two)
    assert found["throttled"].values == {"rose": {"oc3_event_cnt": 3}}


def test_a_cause_that_is_forgotten_meanwhile_was_there() -> None:
    """A Raspberry Pi's kernel has its firmware forget what was since boot."""
    on, off = (_state(throttling={"oc3_event_cnt": n}) for n in (1, 0))
    assert _found(off, on, off)["throttled"].values == {"rose": {"oc3_event_cnt": 1}}


def test_swap_counts_when_there_is_much_or_it_grows() -> None:
    assert _found(*[_state(system={"swap_used_bytes": 9e7})] * 2)["swap-in-use"]
    grown = _found(QUIET, _state(system={"swap_used_bytes": 2e7}))["swap-in-use"]
    assert grown.values["growth_bytes"] == pytest.approx(1.9e7)
    assert _found(_state(system={"swap_used_bytes": None}), QUIET) == {}


def test_other_processes_on_the_gpu() -> None:
    assert (
        "2 other processes"
        in _found(QUIET, _state(system={"gpu_processes": 2}))["gpu-shared"].advice
    )


def test_a_release_that_allocates_badly() -> None:
    assert "36.5.2" in _found(l4t="36.4.7")["l4t-allocations"].advice
    assert _found(l4t="36.5.2") == {}


def test_a_sensor_is_missed_where_it_is_usual() -> None:
    silent = {"kind": "jetson", "reasons": {"power": "no ina3221 in /sys", "clock_of_x": "y"}}
    assert "power: no ina3221 in /sys" in _found(profile=silent)["sensor-missing"].advice
    assert _found(profile={**silent, "kind": "cpu"}) == {}


def test_drift_is_inconclusive_and_a_second_try_is_said() -> None:
    climbing = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    found = _found(decode=climbing)
    assert (
        "2.00 times as long as the first (decode_seconds, one try)" in found["inconclusive"].advice
    )
    found = _found(decode=climbing, aside=True)
    assert "two tries" in found["inconclusive"].advice
    found = _found(aside=True)
    assert found["measured-again"].values == {"put_aside_median_seconds": {"decode_seconds": 1.5}}
