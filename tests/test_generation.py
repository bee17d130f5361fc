"""Sampling as defined, tokens timed to the digit: no graph, no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from slmq_edge import generation
from slmq_edge.errors import SlmqError
from slmq_edge.generation import INTERRUPTED, LENGTH, STOP, Sampling, Token, candidates, chooser
from slmq_edge.runner.greedy import Greedy

LOGITS = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32))
SHARES = st.floats(1e-6, 1 - 1e-6)


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    powers = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    return powers / powers.sum()


@settings(deadline=None)
@given(logits=LOGITS, top_p=SHARES, temperature=st.floats(0.05, 5))
def test_a_nucleus_holds_its_share_and_not_a_token_more(
    logits: NDArray[np.float32], top_p: float, temperature: float
) -> None:
    shares = softmax(logits, temperature)
    ids, kept = candidates(logits, Sampling(temperature, top_p))
    assert len(set(ids.tolist())) == len(ids)
    mass = shares[ids].sum()
    assert mass >= top_p - 1e-12
    assert mass - shares[ids].min() < top_p + 1e-12
    others = np.delete(shares, ids)
    assert not len(others) or others.max() <= shares[ids].min()
    np.testing.assert_allclose(kept, shares[ids] / mass, rtol=1e-9)


@settings(deadline=None)
@given(logits=LOGITS, top_k=st.integers(1, 70), temperature=st.floats(0.05, 5))
def test_the_k_most_likely_are_kept(
    logits: NDArray[np.float32], top_k: int, temperature: float
) -> None:
    ids, kept = candidates(logits, Sampling(temperature, top_k=top_k))
    assert len(set(ids.tolist())) == len(ids) == min(top_k, len(logits))
    others = np.delete(logits, ids)
    assert not len(others) or others.max() <= logits[ids].min()
    shares = softmax(logits, temperature)[ids]
    np.testing.assert_allclose(kept, shares / shares.sum(), rtol=1e-9)


@settings(deadline=None)
@given(logits=LOGITS, seed=st.integers(0, 1000), temperature=st.floats(1e-320, 10))
def test_one_candidate_is_the_greedy_one(
    logits: NDArray[np.float32], seed: int, temperature: float
) -> None:
    best = int(logits.argmax())
    assert chooser(Sampling())(logits) == best
    assert chooser(Sampling(temperature, top_k=1, seed=seed))(logits) == best


def test_top_p_counts_within_top_k() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert candidates(logits, Sampling(1, top_p=0.6))[0].tolist() == [0, 1]
    assert candidates(logits, Sampling(1, top_p=0.6, top_k=2))[0].tolist() == [0, 1]
    assert candidates(logits, Sampling(1, top_p=0.5, top_k=2))[0].tolist() == [0]  # 4 / 7


def test_draws_follow_the_probabilities() -> None:
    shares = np.array([0.5, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(shares), -1e30).astype(np.float32)
    draw = chooser(Sampling(1.0, seed=5))
    counts = np.bincount([draw(logits) for _ in range(20_000)], minlength=4)
    assert counts[1] == 0
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.015)  # 4 sigma
    again = chooser(Sampling(1.0, seed=5))
    assert np.bincount([again(logits) for _ in range(20_000)]).tolist() == counts.tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", [Sampling(), Sampling(1.0)])
def test_logits_that_are_no_numbers_are_refused(wrong: float, how: Sampling) -> None:
    with pytest.raises(SlmqError, match="not finite"):
        chooser(how)(np.array([0, wrong, 1], np.float32))


class Counting(Greedy):
    """A decoder of 100 tokens that answers n with n + 1, and takes as long as it is told."""

    def __init__(self) -> None:
        self.now, self.prompts, self.steps = 0.0, list[Any](), 0

    def clock(self) -> float:
        return self.now

    appends = False

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]:
        assert keep == 1
        assert tokens.dtype == np.int64
        self.now += 0.5
        self.prompts.append(tokens.tolist())
        return self._next(tokens), None

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        assert tokens.shape == (1, 1)
        self.now += 0.25
        self.steps += 1
        return self._next(tokens), None

    def _next(self, tokens: Any) -> Any:
        return np.eye(100, dtype=np.float32)[None, None, tokens[0, -1] + 1]


def stream(decoder: Counting, most: int) -> Iterator[Token]:
    prompt = np.array([3, 1, 10])
    return generation.stream(decoder, prompt, most, chooser(Sampling()), decoder.clock)


def test_tokens_are_timed_without_their_reader() -> None:
    decoder, found = Counting(), []
    for token in stream(decoder, 4):
        decoder.now += 100  # a slow terminal
        found.append(token)
    assert found == [Token(11, 0.5), Token(12, 0.25), Token(13, 0.25), Token(14, 0.25)]
    assert decoder.prompts == [[[3, 1, 10]]]
    assert decoder.steps == 3  # nobody asks what follows the last


def test_a_stop_token_ends_it_unseen() -> None:
    decoder, shown = Counting(), list[int]()
    made = generation.follow(stream(decoder, 9), 3, {13, 50}, shown.append)
    assert (shown, made.reason, made.new_tokens) == ([11, 12], STOP, 2)
    assert [token.id for token in made.tokens] == [11, 12, 13]
    assert decoder.steps == 2
    assert made.first_token_seconds == 0.5
    assert made.prefill_rate == 6
    assert made.decode_rate == 4


def test_the_length_ends_it() -> None:
    made = generation.follow(stream(Counting(), 1), 3, {13}, lambda token: None)
    assert (made.reason, made.new_tokens, made.decode_rate) == (LENGTH, 1, None)


def test_an_interrupt_keeps_what_was_there() -> None:
    def show(token: int) -> None:
        if token == 12:
            raise KeyboardInterrupt

    made = generation.follow(stream(Counting(), 9), 3, {13}, show)
    assert (made.reason, made.new_tokens) == (INTERRUPTED, 2)
