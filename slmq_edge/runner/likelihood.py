"""How likely tokens are, given logits.

log p = sum_i (x_i[t_i] - max x_i - log sum_j exp(x_i[j] - max x_i))      natural logarithm
"""

from __future__ import annotations

import math
from typing import Any, Iterator

import numpy as np

from slmq_edge.errors import SlmqError

BLOCK_VALUES = 1 << 18  # logits that are looked at together: they fit a cache


def log_probabilities(logits: Any, targets: Any) -> tuple[Any, Any]:
    """Log-probabilities of tokens, and whether they are the most likely (the first of equals).

    Args:
        logits: float32 [positions, vocab].
        targets: int [rows, positions]: tokens to look up in the same logits.

    Returns:
        float64 [rows, positions] and bool [rows, positions].
    """
    most = logits.max(axis=-1)
    # Steps that are lost in float32 are those of tokens too unlikely to show in the sum.
    total = np.exp(logits - most[:, None]).astype(np.float64).sum(axis=-1)
    at = np.take_along_axis(logits, targets.T, axis=-1).T.astype(np.float64)
    found = at - most.astype(np.float64) - np.log(total)
    return found, targets == logits.argmax(axis=-1)


def score(pieces: Iterator[Any], targets: Any) -> tuple[list[float], list[bool]]:
    """Sum up rows of targets, int [rows, positions], whose logits are the same.

    Args:
        pieces: float32 [some positions, vocab], one behind the other.
        targets: what follows each position.

    Returns:
        For each row the log-probability of all of it, and whether a greedy choice would be it.

    Raises:
        SlmqError: logits that are not finite.
    """
    rows, positions = targets.shape
    logprobs, greedy, start = np.zeros((rows, positions)), np.ones(rows, bool), 0
    for piece in pieces:
        end = start + len(piece)
        with np.errstate(invalid="ignore", over="ignore"):  # it is looked at below
            logprobs[:, start:end], most = _in_blocks(piece, targets[:, start:end])
        greedy &= most.all(axis=-1)
        start = end
        del piece  # before the next one is there
    if start != positions:
        raise SlmqError(f"logits for {start} positions, not {positions}")
    if not np.isfinite(logprobs).all():
        raise SlmqError("the logits of a sequence are not finite: slmq-edge profile checks bundles")
    return [math.fsum(row) for row in logprobs], [bool(one) for one in greedy]


def _in_blocks(logits: Any, targets: Any) -> tuple[Any, Any]:
    """See `log_probabilities`; of many positions, a few at a time."""
    size = max(1, BLOCK_VALUES // logits.shape[-1])
    starts = range(0, len(logits), size)
    found = [log_probabilities(logits[k : k + size], targets[:, k : k + size]) for k in starts]
    logprobs, most = zip(*found)
    return np.concatenate(logprobs, axis=1), np.concatenate(most, axis=1)
