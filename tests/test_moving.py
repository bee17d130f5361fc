"""Streams on their way to a device and back, through memory that two sides share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.quantization.moving import BUFFERS, Near, Staged, moves, way
from slmq_edge.quantization.streams import batches


class Events:
    """CUDA's events, and whether each is waited for before its memory is used again."""

    def __init__(self) -> None:
        self.made: list[Events.Event] = []

    class Event:
        def __init__(self) -> None:
            self.asked = self.waits = 0

        def record(self) -> None:
            assert self.asked == self.waits, "the GPU had not done with this memory"
            self.asked += 1

        def synchronize(self) -> None:
            self.waits = self.asked

    def __call__(self) -> Event:
        self.made.append(self.Event())
        return self.made[-1]


def staged(stream: torch.Tensor) -> tuple[Staged, Events]:
    events = Events()

    def room(count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((count,), torch.nan, dtype=dtype)

    return Staged(stream, torch.device("cpu"), room, events), events


@given(st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_a_stream_that_is_staged_ends_as_one_that_is_near(
    windows: int, size: int, twice: bool
) -> None:
    start = torch.arange(windows * 6.0).view(windows, 2, 3)
    near, far = start.clone(), start.clone()
    plain, (there, events) = Near(near), staged(far)
    parts = [slice(at, min(at + size, windows)) for at in range(0, windows, size)]
    for _ in range(1 + twice):
        for part in parts:
            for one in (plain, there):
                one.put(part, one.get(part) * 2 + 1)
    there.settle()
    assert torch.equal(near, far)
    assert len(events.made) <= 2 * BUFFERS


def test_what_was_put_is_what_is_got_before_it_has_arrived() -> None:
    stream = torch.zeros(4, 3)
    there, _ = staged(stream)
    there.put(slice(0, 2), torch.ones(2, 3))
    assert not stream.any()  # one part later, or when somebody asks
    assert there.get(slice(1, 3)).tolist() == [[1.0] * 3, [0.0] * 3]
    there.put(slice(2, 4), torch.ones(2, 3))
    there.settle()
    assert stream.all()


def test_what_is_got_stays_while_the_next_is_on_its_way() -> None:
    stream = torch.arange(12.0).view(4, 3)
    there, _ = staged(stream)
    got = [there.get(slice(i, i + 1)) for i in range(4)]
    assert torch.equal(torch.cat(got), stream)


def test_on_one_device_there_is_no_way() -> None:
    stream = torch.zeros(2, 3)
    with moves(stream, stream.device) as found:
        assert isinstance(found, Near)
        assert found.get(slice(0, 1)).data_ptr() == stream.data_ptr()
    assert isinstance(way(stream, torch.device("cuda:0")), Staged)


def test_all_has_arrived_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.zeros(5, 8, 3)
    there, _ = staged(stream)
    monkeypatch.setattr("slmq_edge.quantization.moving.way", lambda *_: there)
    with moves(stream, torch.device("cuda:0")) as found:
        for part in batches(stream):
            found.put(part, torch.ones_like(stream[part]))
    assert stream.all()


def test_memory_in_use_is_found_by_these_events() -> None:
    """The stand-in of CUDA's events sees what it is for."""
    event: Any = Events.Event()
    event.record()
    with pytest.raises(AssertionError, match="had not done"):
        event.record()
