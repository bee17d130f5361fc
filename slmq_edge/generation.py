"""Tokens from a session: which one comes next, and when there are no more.

Greedy decoding takes the most likely token. Sampling, in the order that transformers has::

    p = softmax(logits / temperature)
    top-k: the k most likely tokens
    top-p: of these, the fewest most likely ones that hold the share p of the probability

numpy alone: text is read in ``prompts`` and written in ``detokenizer``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.runner.golden import Decoder

Choose = Callable[[NDArray[np.float32]], int]

STOP, LENGTH, INTERRUPTED = "stop token", "length", "interrupted"
HOTTEST = 10.0  # beyond, text is noise, and who asks for it meant something else


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {  # NaN fits none
    "--temperature": (lambda value: 0 <= value <= HOTTEST, f"0 to {HOTTEST:g}"),
    "--top-p": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    "--top-k": (lambda value: value >= 1, "at least 1"),
    "--seed": (lambda value: value >= 0, "at least 0"),
}


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; temperature 0 is greedy. top_k: None for the whole vocabulary."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0


def sampling(
    temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None
) -> Sampling:
    """Check what was asked for; without a seed, one is drawn.

    Raises:
        UsageError: a number out of its range, or one that greedy decoding would ignore.
    """
    asked: dict[str, float | None] = {
        "--temperature": temperature, "--top-p": top_p, "--top-k": top_k, "--seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        fits, words = _RANGES[name]
        if not fits(value):
            raise UsageError(f"{name} {value:g} is out of its range: {words}")
    if not temperature:
        idle = [name for name in given if name != "--temperature"]
        if idle:
            raise UsageError(
                f"{', '.join(idle)} without a --temperature above 0 would change nothing: "
                "the most likely token is taken"
            )
        return Sampling()
    drawn = int(np.random.default_rng().integers(2**32)) if seed is None else seed
    return Sampling(temperature, 1.0 if top_p is None else top_p, top_k, drawn)


def chooser(how: Sampling) -> Choose:
    """Return a function from logits, float32 [vocab], to the next token.

    With a seed it repeats itself, on logits that are equal to the last bit. It raises SlmqError
    for logits that are not finite.
    """
    generator = np.random.default_rng(how.seed)

    def choose(logits: NDArray[np.float32]) -> int:
        if not np.isfinite(logits).all():
            raise SlmqError(
                "the graph's logits are not finite: slmq-edge profile checks the bundle"
            )
        if not how.temperature:
            return int(logits.argmax())
        ids, shares = candidates(logits, how)
        edges = shares.cumsum()
        place = int(edges.searchsorted(generator.random() * edges[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    return choose


def candidates(
    logits: NDArray[np.float32], how: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that may be drawn, int64 [kept], and their probabilities, of sum 1."""
    with np.errstate(over="ignore", under="ignore"):  # a temperature near 0: -inf is right
        scaled = np.exp((logits.astype(np.float64) - np.float64(logits.max())) / how.temperature)
        shares = scaled / scaled.sum()
    ids = most_likely(logits, len(logits) if how.top_k is None else how.top_k)
    kept = shares[ids] / shares[ids].sum()
    if how.top_p < 1:
        inside = nucleus(kept, how.top_p)
        ids, kept = ids[inside], kept[inside] / kept[inside].sum()
    return ids, kept


def most_likely(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the ids of the ``count`` largest ``logits`` [vocab]; of equal ones, the first."""
    if count >= len(logits):
        return np.arange(len(logits))
    least = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > least)
    return np.concatenate([above, np.flatnonzero(logits == least)[: count - len(above)]])


def nucleus(shares: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Return the places of the fewest largest ``shares`` [n], of sum 1, that sum to ``top_p``."""
    # All that are smaller than (1 - p) / n miss p together, so the rest holds the answer: sorting
    # a whole vocabulary takes as long as a decoding step.
    large = np.flatnonzero(shares >= (1 - top_p) / len(shares))
    order = large[np.argsort(-shares[large], kind="stable")]
    return order[: int(shares[order].cumsum().searchsorted(top_p)) + 1]


@dataclass(frozen=True)
class Token:
    """seconds: of the step that led to it, choosing included; the first one's is the prefill's."""

    id: int
    seconds: float


@dataclass(frozen=True)
class Generated:
    """What came out: the tokens that were chosen, a stop token last where ``reason`` is `STOP`."""

    prompt_tokens: int
    tokens: tuple[Token, ...]
    reason: str

    @property
    def new_tokens(self) -> int:
        """How many tokens are text."""
        return len(self.tokens) - (self.reason == STOP)

    @property
    def first_token_seconds(self) -> float | None:
        """Time to the first token (TTFT), tokenizer excluded, as in a run's ``prefill_seconds``."""
        return self.tokens[0].seconds if self.tokens else None

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second; None where none was chosen."""
        return _rate(self.prompt_tokens, self.first_token_seconds or 0.0)

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first one; None where there was no more."""
        steps = [token.seconds for token in self.tokens[1:]]
        return _rate(len(steps), math.fsum(steps))


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def stream(
    session: Decoder,
    prompt: NDArray[np.int64],
    most: int,
    choose: Choose,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Token]:
    """Yield up to ``most`` tokens after a prompt; what is done with them is not in their time.

    Args:
        session: the loaded graph.
        prompt: int64 [length], at least one token.
        most: at least 1; prompt and ``most`` together fit the context.
        choose: takes logits, float32 [vocab].
        clock: seconds, monotonic.
    """
    started = clock()
    logits, cache = session.prefill(prompt.reshape(1, -1), 1, most)
    for left in reversed(range(most)):
        token = choose(logits[0, -1])
        yield Token(token, clock() - started)
        if left:  # the last token's logits are nobody's
            started = clock()
            logits, cache = session.step(np.array([[token]], np.int64), cache)


def follow(
    tokens: Iterator[Token], prompt_tokens: int, stops: Collection[int], show: Callable[[int], Any]
) -> Generated:
    """Show tokens as they come, until one of ``stops``, which is not shown; Ctrl-C ends it too."""
    taken, reason = [], LENGTH
    try:
        for token in tokens:
            taken.append(token)
            if token.id in stops:
                reason = STOP
                break
            show(token.id)
    except KeyboardInterrupt:
        reason = INTERRUPTED
    return Generated(prompt_tokens, tuple(taken), reason)
