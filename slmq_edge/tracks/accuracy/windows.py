"""A text's perplexity as the quantization papers have it of WikiText-2.

    tokens = tokenizer(lines joined by two newlines)        the whole test set as one text
    perplexity = exp(-mean log p(token | those before it in its window))

Windows of 2048 tokens do not overlap, what is left over at the end is not scored, and the first
token of each window is not predicted (GPTQ, arXiv 2210.17323, and the methods after it). A model
with a shorter context reads shorter windows, and the metric's name says so.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

from slmq_edge.errors import SlmqError
from slmq_edge.tracks.accuracy.questions import Source
from slmq_edge.tracks.accuracy.sequences import Sequence

WINDOW = 2048


@dataclass(frozen=True)
class Text:
    """What is cut into windows.

    task: its name. convention: whose. window: tokens, where the context is as long. tokens: a
    tokenizer's of all of it.
    """

    task: str
    source: Source
    convention: str
    window: int
    tokens: Callable[[Any], list[int]]


def wikitext(task: str, lines: Several[str], source: Source) -> Text:
    """WikiText-2, of whose lines empty ones have no end of line."""

    def tokens(tokenizer: Any) -> list[int]:
        # verbose: transformers would warn of a long text, which is cut into windows.
        found: list[int] = tokenizer("\n\n".join(lines), verbose=False).input_ids
        return found

    return Text(task, source, "papers' convention", WINDOW, tokens)


def length(context_length: int, window: int = WINDOW) -> int:
    """Tokens in a window."""
    return min(window, context_length)


def metric(size: int) -> str:
    """Of windows of so many tokens."""
    return f"token_perplexity_{size}"


def sequences(text: Text, tokenizer: Any, context_length: int) -> list[Sequence]:
    """The windows of a text.

    Raises:
        SlmqError: the text fills none.
    """
    tokens = text.tokens(tokenizer)
    size = length(context_length, text.window)
    starts = range(0, len(tokens) - size + 1, size)
    if not starts:
        raise SlmqError(f"the text has {len(tokens)} tokens: not one window of {size}")
    return [Sequence(tuple(tokens[at : at + size]), size - 1) for at in starts]
