"""What is learned from: nothing that is held out, the same at every step however it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from slmq_edge import estimate
from slmq_edge.decoder import Decoder, hidden_states
from slmq_edge.errors import UsageError
from slmq_edge.quantization import lessons
from slmq_edge.quantization.lessons import RUN, Lessons, heard, split, written
from slmq_edge.quantization.sampling import Lesson, write
from tests.decoders import random_qwen3, tokens_for
from tests.students import tiny
from tests.test_methods import ignore

LENGTH = 10
# Windows that are written together here.
A_LOT = 6


@pytest.fixture(autouse=True)
def _small_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MOST", A_LOT)


def windows_of(rows: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row.tolist()) for row in rows}


def runs_of(rows: Tensor) -> set[tuple[int, ...]]:
    """All runs of RUN tokens, the slow way."""
    last = rows.shape[1] - RUN
    return {tuple(row[at : at + RUN]) for row in rows.tolist() for at in range(last + 1)}


# --- what is held out ---------------------------------------------------------------------------


@examples(deadline=None)
@given(
    starts=st.lists(st.integers(0, 400), min_size=2, max_size=20),
    share=st.floats(0.01, 0.99),
    length=st.integers(RUN, RUN + 40),
)
def test_no_run_of_what_is_held_out_is_learned_from(
    starts: list[int], share: float, length: int
) -> None:
    """Windows that are cut where documents start overlap as they like."""
    stream = torch.arange(600)
    tokens = torch.stack([stream[start : start + length] for start in starts])
    found = split(tokens, share)
    assert len(found.train) + len(found.held) + found.left == len(tokens)
    assert len(found.held) == min(len(tokens) - 1, max(1, round(share * len(tokens))))
    assert len(found.train) >= 1
    shared = runs_of(found.train) & runs_of(found.held)
    if shared:  # nothing at all was apart
        assert found.left == 0
        assert all(runs_of(row[None]) & runs_of(found.held) for row in found.train)


def test_what_is_left_out_is_what_overlaps() -> None:
    stream = torch.arange(1000)
    apart = [stream[at : at + 100] for at in range(0, 900, 100)]
    cases = {RUN - 1: 0, RUN: 1}
    for shared, left in cases.items():
        # The last of ten is not held out, the one of the middle is.
        again = torch.cat([apart[5][100 - shared :], stream[900 : 1000 - shared]])
        found = split(torch.stack([*apart, again]), 0.1)
        assert torch.equal(found.held, apart[5][None])
        assert (found.left, len(found.train)) == (left, 9 - left)


def test_held_out_windows_are_spread_over_the_text() -> None:
    tokens = torch.arange(40)[:, None].expand(-1, 4)
    found = split(tokens, 0.1)
    assert found.held[:, 0].tolist() == [5, 15, 25, 35]
    assert sorted(found.train[:, 0].tolist()) == sorted(set(range(40)) - {5, 15, 25, 35})


def test_short_windows_are_compared_whole() -> None:
    tokens = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5, 6, 7]])
    found = split(tokens, 0.25)
    assert found.held.tolist() == [[1, 2, 3]]
    assert found.train.tolist() == [[1, 2, 4], [5, 6, 7]]
    assert found.left == 1


def test_a_text_that_repeats_itself_is_learned_from_all_the_same() -> None:
    found = split(torch.arange(RUN).expand(6, -1), 0.3)
    assert (len(found.train), len(found.held), found.left) == (4, 2, 0)
    assert found.seen
    assert not split(torch.arange(6 * RUN).view(6, -1), 0.3).seen


def test_one_window_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="at least 2") as caught:
        split(torch.zeros(1, 8, dtype=torch.int64), 0.1)
    assert "\n" not in str(caught.value)


# --- what a step sees ---------------------------------------------------------------------------


def lessons_for(
    model: Decoder, batch: int, own: int, seed: int = 0, spill: Path | None = None
) -> tuple[Lessons, Tensor]:
    tokens = tokens_for(model, 7, LENGTH, seed=2)
    text = heard(model, tokens, ignore, spill) if own < batch else None
    return Lessons(model, text, tokens[:, 0], LENGTH, batch, own, seed), tokens


def same(one: Lesson, other: Lesson) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.hidden, other.hidden)


@pytest.mark.parametrize(("batch", "own"), [(3, 0), (4, 2), (3, 3)])
def test_a_step_sees_what_it_sees_whenever_it_is_asked(batch: int, own: int) -> None:
    """Behind any other step, and in another process that goes on from there."""
    model = tiny()
    steps = [0, 1, 2, A_LOT - 1, A_LOT, 2 * A_LOT + 3]
    forwards, backwards = (lessons_for(model, batch, own)[0] for _ in range(2))
    first = {step: forwards.at(step) for step in steps}
    for step in reversed(steps):
        assert same(backwards.at(step), first[step])
        assert same(lessons_for(model, batch, own)[0].at(step), first[step])
    other = lessons_for(model, batch, own, seed=1)[0]
    assert not all(torch.equal(other.at(s).tokens, first[s].tokens) for s in steps)


@pytest.mark.parametrize(("batch", "own", "an_epoch"), [(3, 0, 3), (7, 0, 1), (9, 0, 1), (4, 2, 4)])
def test_an_epoch_sees_every_window_of_the_text_once(batch: int, own: int, an_epoch: int) -> None:
    found, tokens = lessons_for(tiny(), batch, own)
    assert found.steps_per_epoch == an_epoch
    orders = []
    for epoch in range(2):
        seen: list[list[int]] = []
        for step in range(epoch * an_epoch, (epoch + 1) * an_epoch):
            rows = found.at(step).tokens.tolist()
            seen += rows[: len(rows) - own]
        assert sorted(seen) == sorted(tokens.tolist())
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("batch", "own"), [(4, 1), (4, 2), (3, 3)])
def test_what_the_model_writes_never_comes_again(batch: int, own: int) -> None:
    found, tokens = lessons_for(tiny(), batch, own)
    steps = range(A_LOT + 2)
    mine = torch.cat([found.at(step).tokens[-own:] for step in steps])
    assert len(windows_of(mine)) == own * len(steps)
    assert windows_of(mine).isdisjoint(windows_of(tokens))
    assert set(mine[:, 0].tolist()) <= set(tokens[:, 0].tolist())
    assert found.steps_per_epoch == -(-7 // (batch - own or own))


@pytest.mark.parametrize(("batch", "own"), [(3, 0), (4, 2), (2, 2)])
def test_what_the_teacher_knew_is_what_a_forward_pass_knows(batch: int, own: int) -> None:
    model = random_qwen3()
    found = lessons_for(model, batch, own)[0]
    for step in (0, 3):
        lesson = found.at(step)
        whole = hidden_states(model, lesson.tokens)
        torch.testing.assert_close(lesson.hidden, whole, rtol=1e-4, atol=1e-4)


def test_what_is_spilled_is_the_same(tmp_path: Path) -> None:
    model = random_qwen3()
    spilled, inside = lessons_for(model, 4, 2, spill=tmp_path)[0], lessons_for(model, 4, 2)[0]
    assert all(same(spilled.at(step), inside.at(step)) for step in range(4))
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_as_much_as_is_asked_for() -> None:
    """However many fit side by side; from the first tokens that there are."""
    model = tiny()
    first = torch.tensor([3, 5])
    found = written(model, first, 10, LENGTH, seed=0)
    assert found.tokens.shape == (10, LENGTH)
    assert found.hidden.shape == (10, LENGTH, model.anatomy.hidden)
    assert set(found.tokens[:, 0].tolist()) == {3, 5}
    assert len(windows_of(found.tokens)) == 10
    other = written(model, first, 10, LENGTH, seed=0, number=1)
    assert windows_of(found.tokens).isdisjoint(windows_of(other.tokens))


@pytest.mark.parametrize(("room", "together"), [(2**28, A_LOT), (4, 4), (1.5, 1), (0.1, 1)])
def test_windows_side_by_side_have_room_for_their_keys(
    room: float, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of room for so many windows of keys and values, float32."""
    model, seen = random_qwen3(), list[int]()
    shape = model.anatomy
    a_window = 2 * shape.layers * shape.kv_heads * LENGTH * shape.head_dim * 4

    def watched(model: Decoder, first: Tensor, *rest: Any) -> Lesson:
        seen.append(len(first))
        return write(model, first, *rest)

    monkeypatch.setattr(lessons, "write", watched)
    monkeypatch.setattr(estimate, "CACHE", int(room * a_window))
    written(model, torch.tensor([3]), 8, LENGTH, seed=0)
    assert max(seen) == together
    assert sum(seen) == 8
