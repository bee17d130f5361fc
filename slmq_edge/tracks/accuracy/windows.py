"""WikiText-2's perplexity as the quantization papers have it.

    tokens = tokenizer(lines joined by two newlines)        the whole test set as one text
    perplexity = exp(-mean log p(token | those before it in its window))

Windows of 2048 tokens do not overlap, what is left over at the end is not scored, and the first
token of each window is not predicted (GPTQ, arXiv 2210.17323, and the methods after it). A model
with a shorter context reads shorter windows, and the metric's name says so.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

from slmq_edge.errors import SlmqError
from slmq_edge.tracks.accuracy.sequences import Sequence

WINDOW = 2048


def length(context_length: int) -> int:
    """Tokens in a window."""
    return min(WINDOW, context_length)


def metric(context_length: int) -> str:
    return f"token_perplexity_{length(context_length)}"


def sequences(tokenizer: Any, lines: Several[str], context_length: int) -> list[Sequence]:
    """The windows of a text.

    Raises:
        SlmqError: the text fills none.
    """
    # verbose: transformers would warn of a long text, which is cut into windows.
    tokens: list[int] = tokenizer("\n\n".join(lines), verbose=False).input_ids
    size = length(context_length)
    starts = range(0, len(tokens) - size + 1, size)
    if not starts:
        raise SlmqError(f"the text has {len(tokens)} tokens: not one window of {size}")
    return [Sequence(tuple(tokens[at : at + size]), size - 1) for at in starts]
