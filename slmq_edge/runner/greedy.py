"""Greedy decoding: the most likely token each time, chosen wherever a session's logits are.

What is timed is this, and the golden check runs it too. By default the logits come to the host and
numpy chooses; a session on a GPU chooses there, and a token comes in place of 150,000 logits.
"""

from __future__ import annotations

from typing import Any, Protocol


class Steps(Protocol):
    """What choosing is built on; see `runner.golden.Decoder`."""

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]: ...

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]: ...


class Greedy:
    """The default of what is timed, for sessions to inherit."""

    def first(self: Steps, tokens: Any, room: int) -> tuple[Any, Any]:
        """Read a prompt, int64 [batch, length], behind which ``room`` steps follow.

        Returns:
            The token that follows, int64 [batch, 1], and the cache.
        """
        logits, cache = self.prefill(tokens, 1, room)
        return _most_likely(logits), cache

    def forward(self: Steps, tokens: Any, keep: int | None = None) -> int:
        """One pass over a prompt, int64 [batch, length], behind which nothing follows.

        Returns:
            How many positions have logits, once they are there: ``keep``, or all.
        """
        logits, _ = self.prefill(tokens, keep)
        return int(logits.shape[1])

    def next(self: Steps, token: Any, cache: Any) -> tuple[Any, Any]:
        """Read one more token, int64 [batch, 1]; return the one that follows, and the cache."""
        logits, cache = self.step(token, cache)
        return _most_likely(logits), cache


def _most_likely(logits: Any) -> Any:
    """Of the last position's logits [batch, positions, vocab], int64 [batch, 1]."""
    return logits[:, -1].argmax(axis=-1)[:, None]
