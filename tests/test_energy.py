"""Joules are what a hand calculation says, and are refused where readings cannot give them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge import energy
from slmq_edge.energy import Energy, Window

TENTHS = tuple(i / 10 for i in range(21))  # two seconds


def _window(rail: float | tuple[float | None, ...], **changes: Any) -> Window:
    values = rail if isinstance(rail, tuple) else (rail,) * len(TENTHS)
    plain = Window(2.0, 4, 400, TENTHS, {"VDD_IN": values}, None, ("VDD_IN",))
    return dataclasses.replace(plain, **changes)


def _energy(windows: dict[str, Window], phase: str = "decode") -> Energy:
    found = energy.of(windows, phase)
    assert isinstance(found, Energy), found
    return found


def test_gross_and_above_idle() -> None:
    found = _energy({"idle": _window(4.0, tokens=0), "decode": _window(9.0)})
    assert found.gross_joules == pytest.approx(18.0)
    assert found.above_idle_joules == pytest.approx(10.0)
    assert found.idle_watts == pytest.approx(4.0)
    assert found.tokens_per_joule == pytest.approx(400 / 18)
    assert found.tokens_per_joule_above_idle == pytest.approx(40.0)
    assert found.source == "VDD_IN"


def test_the_trapezoid_follows_arrival_stamps() -> None:
    stamps = (0.0, 0.1, 0.4, 1.0, 1.5, 2.0)
    watts = (0.0, 10.0, 10.0, 20.0, 20.0, 0.0)
    found = _energy({"decode": _window(watts, stamps=stamps)})
    assert found.gross_joules == pytest.approx(0.5 + 3.0 + 9.0 + 10.0 + 5.0)
    assert found.above_idle_joules is None  # idle was not measured


def test_rails_are_added_up_reading_by_reading() -> None:
    rails = {"CPU": (1.0,) * 21, "GPU": (2.0,) * 10 + (None,) + (2.0,) * 10}
    found = _energy({"decode": _window(0.0, watts=rails, total_rails=("CPU", "GPU"))})
    assert found.gross_joules == pytest.approx(6.0)
    assert found.source == "CPU+GPU"
    assert found.samples == 20  # one told of half of the device


def test_a_counter_is_believed_before_a_rail() -> None:
    windows = {
        "idle": _window(1.0, counter_joules=4.0),
        "decode": _window(1.0, counter_joules=30.0),
    }
    found = _energy(windows)
    assert (found.gross_joules, found.source) == (30.0, "counter")
    assert found.above_idle_joules == pytest.approx(26.0)


def test_idle_of_another_source_is_not_taken_away() -> None:
    windows = {"idle": _window(1.0), "decode": _window(1.0, counter_joules=30.0)}
    assert _energy(windows).above_idle_joules is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stamps": TENTHS[:4], "watts": {"VDD_IN": (9.0,) * 4}}, "4 readings .* 5 are needed"),
        ({"total_rails": ()}, "no rail of this board is the whole device"),
        ({"watts": {"VDD_IN": (None,) * 18 + (9.0,) * 3}}, "3 of 21 readings told anything"),
        ({"watts": {"VDD_IN": (None,) * 10 + (9.0,) * 11}}, r"cover 1\.00 of 2\.00 s"),
        ({"watts": {"OTHER": (9.0,) * 21}}, "0 of 21 readings"),
        ({"watts": {"VDD_IN": (-1.0,) * 21}}, "VDD_IN read -2 J over 2.0 s of work"),
        ({"counter_joules": 0.0}, "counter read 0 J"),
    ],
)
def test_what_cannot_be_told_is_not_told(changes: dict[str, Any], reason: str) -> None:
    found = energy.of({"decode": _window(9.0, **changes)}, "decode")
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_a_phase_that_was_not_watched() -> None:
    assert energy.of({}, "prefill") == "not measured"


def test_work_that_takes_no_more_than_idling_has_no_tokens_per_joule_above_it() -> None:
    found = _energy({"idle": _window(5.0), "decode": _window(4.0)})
    assert found.above_idle_joules == pytest.approx(-2.0)
    assert found.tokens_per_joule_above_idle is None


@given(st.lists(st.floats(-5, 400), min_size=5, max_size=60), st.floats(0.1, 100))
def test_the_energy_lies_between_the_extremes(watts: list[float], seconds: float) -> None:
    step = seconds / (len(watts) - 1)
    stamps = tuple(step * i for i in range(len(watts)))
    window = Window(stamps[-1], 1, 1, stamps, {"a": tuple(watts)}, None, ("a",))
    found = energy.joules(window)
    assert not isinstance(found, str)
    assert min(watts) * seconds - 1e-6 <= found[0] <= max(watts) * seconds + 1e-6
