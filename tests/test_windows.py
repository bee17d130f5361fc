"""Windows of energy, steadiness, cooling down: on fakes to the digit, and with real threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge import energy
from slmq_edge.profiles.board import Mode
from slmq_edge.profiles.fake import Fake, FakeClock
from slmq_edge.runner import around, job, journal, manifest, ort, resume, stability, windows
from slmq_edge.runner.greedy import Greedy
from slmq_edge.runner.measure import Workload
from slmq_edge.runner.windows import Sampler
from tests import toy_graph

WORK = Workload(prompt_tokens=6, new_tokens=5, repetitions=6, warmups=1, threads=1)


def _read(window: windows.Window) -> dict[str, Any]:
    read = window._asdict()
    del read["phase"]
    return read


def test_a_sampler_keeps_readings_with_their_stamps() -> None:
    clock = FakeClock()
    fake = Fake(["VDD_IN"], power=[{"VDD_IN": 1.0}, {"VDD_IN": None}, {"VDD_IN": 3.0, "X": 1.0}])
    sampler = Sampler(fake, clock)
    for seconds in (0.5, 0.25, 0.0):
        sampler.sample()
        clock.advance(seconds)
    window = sampler.window("decode", 2, 10)
    assert window.stamps == (0.0, 0.5, 0.75)
    assert window.watts == {"VDD_IN": (1.0, None, 3.0), "X": (None, None, 1.0)}
    assert (window.seconds, window.rounds, window.tokens) == (0.75, 2, 10)
    assert window.total_rails == ("VDD_IN",)
    assert window.counter_joules is None


def test_a_reading_that_has_not_changed_hands_counts_once() -> None:
    """A tegrastats of a line a second is no dozen readings, however often it is asked."""
    clock, line = FakeClock(), {"VDD_IN": 4.0}

    class Slow(Fake):
        def power(self) -> dict[str, float]:
            return line

    sampler = Sampler(Slow(["VDD_IN"]), clock)
    for count in range(9):
        line = line if count % 3 else {"VDD_IN": 4.0}
        sampler.sample()
        clock.advance(0.25)
    window = sampler.window("idle", 0, 0)
    assert window.seconds == 2.0
    assert window.watts["VDD_IN"] == (4.0, None, None) * 3
    assert "3 of 9 readings" in str(energy.joules(energy.Window(**_read(window))))


def test_nothing_of_ours_runs_on_when_a_window_is_over() -> None:
    fake = Fake(power=[{"a": 2.0}])
    assert windows.has_meter(fake)
    assert fake.rests == 1
    windows.idle(fake, 0.01)
    assert fake.rests == 2


def test_a_counter_is_a_difference() -> None:
    clock = FakeClock()
    sampler = Sampler(Fake(energy=[5.0, 6.0, 9.5]), clock)
    for _ in range(3):
        sampler.sample()
    assert sampler.window("idle", 0, 0).counter_joules == 4.5


def test_idle_is_watched_for_as_long_as_asked() -> None:
    window = windows.idle(Fake(power=[{"a": 2.0}], total_rails=["a"]), 0.6, time.monotonic)
    assert window.seconds >= 0.6
    assert len(window.stamps) >= energy.FEWEST
    read = window._asdict()
    assert read.pop("phase") == "idle"
    found = energy.joules(energy.Window(**read))
    assert not isinstance(found, str)
    assert found[0] == pytest.approx(2 * window.seconds)


@pytest.mark.parametrize(
    ("fake", "expected"),
    [
        (Fake(), False),
        (Fake(power=[{"a": None}]), False),
        (Fake(power=[{"a": None, "b": 0.0}]), True),
        (Fake(energy=[0.0]), True),
    ],
)
def test_a_meter_is_what_tells_anything(fake: Fake, expected: bool) -> None:
    assert windows.has_meter(fake) is expected


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def test_work_is_looped_until_the_window_is_long_enough(bundle: Path) -> None:
    session = ort.open_bundle(bundle, manifest.read_bundle(bundle), threads=1)
    fake = Fake(power=[{"a": 2.0}], total_rails=["a"])
    found = list(windows.of_work(session, np.arange(6), WORK, fake, 0.3))
    assert [window.phase for window in found] == ["prefill", "decode"]
    for window, tokens in zip(found, (6, 5), strict=True):
        assert window.seconds >= 0.3
        assert window.rounds > 1
        assert window.tokens == window.rounds * tokens
    only = windows.of_work(session, np.arange(6), WORK, fake, 0.0, ("decode",))
    assert [(window.phase, window.rounds) for window in only] == [("decode", 1)]


def test_a_cache_of_before_can_be_stepped_from_again(bundle: Path) -> None:
    """What the decode window does, and every session must allow."""
    session = ort.open_bundle(bundle, manifest.read_bundle(bundle), threads=1)
    logits, begun = session.prefill(np.arange(6, dtype=np.int64)[None], 1, 5)

    def decode() -> list[Any]:
        token, cache, made = logits[:, -1].argmax(axis=-1).reshape(1, 1), begun, []
        for _ in range(5):
            step, cache = session.step(token, cache)
            token = step[:, -1].argmax(axis=-1).reshape(1, 1)
            made.append(step.copy())
        return made

    for first, second in zip(decode(), decode(), strict=True):
        np.testing.assert_array_equal(first, second)


# --- steadiness


def test_drift_is_that_of_the_last_third() -> None:
    assert stability.drift([1.0, 1.01, 1.0, 1.1, 1.2, 1.21]) == pytest.approx(0.2, abs=0.02)
    assert stability.drift([1.3, 1.3, 1.0, 1.1, 1.0, 1.0]) == pytest.approx(-0.23, abs=0.01)
    assert stability.drift([1.0, 1.3, 1.0, 1.1, 1.2, 1.21]) is None  # the thirds overlap
    assert stability.drift([1.0, 1.0, 1.0, 1.0, 1.01, 1.02]) is None  # small
    assert stability.drift([1.0, 1.0, 2.0, 2.0, 3.0]) is None  # too few


@given(st.lists(st.floats(0.95, 1.0), min_size=0, max_size=30))
def test_noise_of_five_percent_is_no_drift(values: list[float]) -> None:
    found = stability.drift(values)
    assert found is None or abs(found) <= 0.0527  # 1 / 0.95


class Drifting(Greedy):
    """A machine whose decoding takes as long as it is told, round by round."""

    appends = False
    most_positions = None
    kv_bytes_per_token = 8

    def __init__(self, clock: FakeClock, seconds: Sequence[float]) -> None:
        self._clock, self._seconds = clock, list(seconds)

    def prefill(self, tokens: Any, keep: int | None = None, room: int = 0) -> tuple[Any, Any]:
        self._clock.advance(1.0)
        return np.zeros((1, 1, 3), np.float32), 0

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        self._clock.advance(self._seconds.pop(0))
        return np.zeros((1, 1, 3), np.float32), cache

    def device_memory(self) -> None:
        return None


def _repeat(path: Path, seconds: Sequence[float]) -> list[dict[str, Any]]:
    clock = FakeClock()
    work = WORK._replace(new_tokens=1, warmups=0)
    asked = job.Job(path.parent, path, work, "fake", False)
    session: Any = Drifting(clock, seconds)
    with journal.Journal(path) as log:
        todo = resume.todo(journal.read(path), work.repetitions, 0.0)
        begun = around.snapshot(Fake())
        job._repeat(asked, session, np.arange(6), Fake(), todo, begun, log.append, clock)
    return journal.read(path)


def test_unsteady_repetitions_are_taken_again_once(tmp_path: Path) -> None:
    slow, steady = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0], [1.5] * 6
    events = _repeat(tmp_path / "a", [*slow, *steady])
    assert [e["event"] for e in events] == ["repetition"] * 6 + ["again"] + ["repetition"] * 6
    assert events[6]["drift"] == {"decode_seconds": 1.0}
    assert [e["decode_seconds"] for _, e in sorted(resume.repetitions(events).items())] == steady
    assert resume.drifts(events) == {}

    events = _repeat(tmp_path / "b", [*slow, *slow])  # and not a third time
    assert [e["event"] for e in events].count("again") == 1
    assert resume.drifts(events) == {"decode_seconds": 1.0}

    events = _repeat(tmp_path / "c", steady)
    assert [e["event"] for e in events] == ["repetition"] * 6


def test_a_second_attempt_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    slow = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    events = _repeat(path, [*slow, *slow])
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:9]))  # the mark, and two of the second attempt
    todo = resume.todo(journal.read(path), 6, 0.0)
    assert todo == resume.Todo((2, 3, 4, 5), (), again=True)
    events = _repeat(path, slow)
    assert sorted(resume.repetitions(events)) == list(range(6))
    assert [e["event"] for e in events].count("again") == 1


def test_windows_are_missing_until_they_are_there_or_the_job_has_ended() -> None:
    power: dict[str, Any] = {"event": "power", "phase": "idle"}
    assert resume.todo([], 1, 2.0) == resume.Todo((0,), ("idle", "prefill", "decode"), False)
    assert resume.todo([], 1, 0.0).windows == ()
    assert resume.todo([power], 1, 2.0).windows == ("prefill", "decode")
    ended = [power, {"event": "repetition", "index": 0}, {"event": "end"}]
    assert resume.todo(ended, 1, 2.0).nothing


# --- around


def test_cooling_down_ends_at_the_start_or_at_the_limit() -> None:
    clock = FakeClock()
    warm = [{"cpu": 60.0, "off": None}, {"cpu": 55.0}, {"cpu": 52.9}, {"cpu": 40.0}]
    fake = Fake(temperatures=warm)
    assert around.cool_down(fake, {"cpu": 50.0}, 60.0, clock, clock.sleep) == 1.0
    hot = Fake(temperatures=[{"cpu": 90.0}])
    assert around.cool_down(hot, {"cpu": 50.0}, 4.0, clock, clock.sleep) == 4.0
    assert around.cool_down(hot, {"cpu": 50.0}, 0.0, clock, clock.sleep) == 0.0
    assert around.cool_down(hot, {"other": 50.0}, 4.0, clock, clock.sleep) == 0.0


def test_a_snapshot_is_json_with_all_that_a_profile_tells() -> None:
    fake = Fake(
        clocks=[{"cpu": 1.5e9}],
        temperatures=[{"tj": 50.0}],
        throttling=[{"oc3_event_cnt": 4}],
        mode=[Mode("MAXN_SUPER", 2)],
        system=[{"load_average": 0.5}],
    )
    assert around.snapshot(fake) == {
        "clocks_hz": {"cpu": 1.5e9},
        "temperatures_celsius": {"tj": 50.0},
        "throttling": {"oc3_event_cnt": 4},
        "mode": {"name": "MAXN_SUPER", "id": 2},
        "system": {"load_average": 0.5},
    }
    assert around.snapshot(Fake())["mode"] is None


def test_clocks_are_read_before_the_governor_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode may have to be asked of a program, which takes longer than a clock stays up."""
    asked: list[str] = []
    for name in ("clocks", "throttling", "temperatures", "system", "mode"):
        reading = getattr(Fake, name)

        def ask(self: Fake, name: str = name, reading: Any = reading) -> Any:
            asked.append(name)
            return reading(self)

        monkeypatch.setattr(Fake, name, ask)
    around.snapshot(Fake())
    assert asked[:2] == ["clocks", "throttling"]
    assert asked[-1] == "mode"
