"""A journal that is elsewhere, copied: what is kept of it here, whatever comes."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.remote import follow
from slmq_edge.remote.follow import Copy
from slmq_edge.runner import journal
from slmq_edge.runner.agent import runs

REPETITION = {
    "event": "repetition",
    "index": 0,
    "prefill_seconds": 0.1,
    "decode_seconds": 0.2,
    "decode_step_seconds": [0.2],
    "memory": {},
}
END = {"event": "end", "load_average": None}


def line(**fields: Any) -> str:
    return json.dumps({**REPETITION, **fields}) + "\n"


LINES = [line(index=index) for index in range(5)] + [json.dumps(END) + "\n"]
JOURNAL = "".join(LINES)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_copy_is_what_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Copy(path) as copy:
        assert (copy.size, copy.sha256, copy.taken) == (0, digest(""), 0)
        assert [event["index"] for event in copy.append(LINES[0] + LINES[1])] == [0, 1]
        assert copy.append("") == []
        assert (copy.size, copy.taken) == (len(LINES[0] + LINES[1]), 2)
    with Copy(path) as copy:
        assert (copy.sha256, copy.taken) == (digest(LINES[0] + LINES[1]), 2)
        copy.append("".join(LINES[2:]))
        assert copy.sha256 == digest(JOURNAL)
    assert path.read_text() == JOURNAL
    assert len(journal.read(path)) == len(LINES)


def test_repetitions_that_were_put_aside_do_not_count(tmp_path: Path) -> None:
    """They were measured all the same: a job that fails then has something to be kept."""
    again = json.dumps({"event": "again", "drift": {"decode_seconds": 0.5}}) + "\n"
    with Copy(tmp_path / "journal.jsonl") as copy:
        copy.append(LINES[0] + LINES[1] + again)
        assert (copy.counted, copy.taken) == (0, 2)
        copy.append(LINES[0])
        assert (copy.counted, copy.taken) == (1, 3)


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(LINES[0] + '{"event": "repet')
    with Copy(path) as copy:
        assert (copy.size, copy.taken) == (len(LINES[0]), 1)
        copy.append(LINES[1])
    assert path.read_text() == LINES[0] + LINES[1]


def test_a_copy_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Copy(path), pytest.raises(SlmqError, match=r"journal\.jsonl is in use"):
        Copy(path)
    with Copy(path), pytest.raises(SlmqError, match="in use"):
        journal.Journal(path)  # nor may a run on this machine write to it


def test_what_is_no_journal_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("garbage\n" + LINES[0])
    with pytest.raises(Damaged, match=r"journal\.jsonl is damaged in line 1"):
        Copy(path)
    path.unlink()
    for sent in ("garbage\n", LINES[0] + "{}\n", LINES[0][:-1]):
        with Copy(path) as copy:
            with pytest.raises(Damaged, match="is no event of a journal"):
                copy.append(sent)
            assert copy.size == 0
    assert path.read_text() == ""


def test_beginning_anew_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Copy(path) as copy:
        copy.append(LINES[0])
        copy.begin_anew()
        assert (copy.size, copy.taken) == (0, 0)
        copy.append(LINES[1])
    assert path.read_text() == LINES[1]
    assert (tmp_path / "journal.jsonl.old").read_text() == LINES[0]


class Device:
    """The agent's answers to `poll`, in this process; the journal grows with every question."""

    def __init__(self, path: Path, growth: list[str], last: str = "done") -> None:
        self._path, self._growth, self._last = path, growth, last
        self.waits: list[float] = []
        self.spoilt = False

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert do == "poll"
        self.waits.append(request["wait_seconds"])
        if self._growth:
            with self._path.open("a") as stream:
                stream.write(self._growth.pop(0))
        found = runs._journal(self._path, request["offset"], request["sha256"])
        if self.spoilt:
            found["sha256"] = digest("other")
        state = "running" if self._growth else self._last
        return {**found, "state": state, "notes": [], "heard": 0}


@given(cuts=st.lists(st.integers(0, len(JOURNAL)), max_size=8), most=st.integers(1, 400))
def test_however_it_grows_every_event_comes_once(cuts: list[int], most: int) -> None:
    import tempfile

    edges = [0, *sorted(cuts), len(JOURNAL)]
    growth = [JOURNAL[a:b] for a, b in itertools.pairwise(edges)]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "MOST_BYTES", most)
        device = Device(Path(name) / "there", growth)
        told: list[Any] = []
        with Copy(Path(name) / "here") as copy:
            ended = follow.follow(device, "a", copy, told.append)  # type: ignore[arg-type]
        assert ended["state"] == "done"
        assert told == [json.loads(text) for text in LINES]
        assert (Path(name) / "here").read_text() == JOURNAL


def test_the_device_is_asked_ever_less_often(tmp_path: Path) -> None:
    device = Device(tmp_path / "there", [""] * 12 + [JOURNAL])
    with Copy(tmp_path / "here") as copy:
        follow.follow(device, "a", copy, lambda event: None)  # type: ignore[arg-type]
    longest = [follow.LONGEST_WAIT] * (12 - len(follow.WAITS))
    assert device.waits == [0.0, *follow.WAITS, *longest]
    assert max(device.waits) <= runs.LONGEST_WAIT_SECONDS


def test_a_journal_that_was_started_anew_there_is_so_here(tmp_path: Path) -> None:
    (tmp_path / "here").write_text(line(index=7))
    told: list[Any] = []
    device = Device(tmp_path / "there", [JOURNAL])
    with Copy(tmp_path / "here") as copy:
        follow.follow(device, "a", copy, told.append)  # type: ignore[arg-type]
    assert (tmp_path / "here").read_text() == JOURNAL
    assert (tmp_path / "here.old").read_text() == line(index=7)
    assert "another run" in told[0]["text"]
    assert "kept" not in [event["event"] for event in told]  # none of it counts


def test_what_differs_at_the_end_is_refused(tmp_path: Path) -> None:
    device = Device(tmp_path / "there", [JOURNAL])
    device.spoilt = True
    with (
        Copy(tmp_path / "here") as copy,
        pytest.raises(Damaged, match="is not what the device has"),
    ):
        follow.follow(device, "a", copy, lambda event: None)  # type: ignore[arg-type]
