"""Greedy decoding: numpy's choice by default, and a session's own wherever tokens are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slmq_edge.errors import SlmqError
from slmq_edge.profiles.fake import Fake
from slmq_edge.runner import golden, measure, windows
from slmq_edge.runner.greedy import Greedy
from tests import toy_graph
from tests.trt_bundle import ToySession

PROMPT = np.arange(6)
BOUNDS = golden.Limits(kl_limit=1e-4, perplexity_limit=1e-3, logit_noise=1e-5)


class Own(ToySession):
    """Chooses by itself, without any logits on the way; remembers what it chose."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.chosen: list[int] = []
        self._shift = shift

    def first(self, tokens: Any, room: int) -> tuple[Any, Any]:
        return self._noted(super().first(tokens, room))

    def next(self, token: Any, cache: Any) -> tuple[Any, Any]:
        return self._noted(super().next(token, cache))

    def _noted(self, found: tuple[Any, Any]) -> tuple[Any, Any]:
        token = (found[0] + self._shift) % toy_graph.VOCAB
        self.chosen.append(int(token[0, 0]))
        return token, found[1]


def test_the_default_is_the_most_likely_token_of_the_last_position() -> None:
    session = ToySession()
    token, cache = session.first(PROMPT[None], 2)
    assert (token.dtype, token.shape) == (np.dtype(np.int64), (1, 1))
    logits, _ = session.prefill(PROMPT[None], 1)
    assert token[0, 0] == logits[0, -1].argmax()
    following, _ = session.next(token, cache)
    logits, _ = session.step(token, cache)
    assert following[0, 0] == logits[0, -1].argmax()


def test_equal_logits_in_a_batch_choose_the_first_of_each_row() -> None:
    class Flat(Greedy):
        def prefill(
            self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
        ) -> tuple[Any, Any]:
            rows = np.array([[0, 1, 1], [2, 0, 2]], np.float32)
            return rows[:, None], None

        def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
            raise AssertionError

    assert Flat().first(PROMPT.reshape(2, 3), 0)[0].tolist() == [[1], [0]]


def test_timing_and_windows_take_the_sessions_own_choice() -> None:
    session = Own()
    measure.once(session, PROMPT, 3, Fake(), lambda: 0.0)
    assert len(session.chosen) == 4
    workload = measure.Workload(len(PROMPT), 3, 1, 0, 1)
    list(windows.of_work(session, PROMPT, workload, Fake(), 0.0))
    assert len(session.chosen) == 4 + 1 + 1 + 3  # a prompt in each window, and the steps


def test_the_golden_check_is_of_what_is_timed() -> None:
    arrays = toy_graph.golden(toy_graph.weights())
    golden.check(Own(), arrays, BOUNDS)
    with pytest.raises(SlmqError, match="greedy token 0 of prompt 0"):
        golden.check(Own(shift=1), arrays, BOUNDS)
