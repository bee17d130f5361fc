"""Token ids -> text, piece by piece: what has been said stays said, and no character is torn.

A token is not a piece of text. It can end within a character of several bytes; and a
SentencePiece-like decoder drops the space before the first word it is given. So a window of
tokens, which begins in the prompt, is decoded again with every new one, and what it has beyond
the text that is known is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"  # what decoders put where the bytes so far are no character
LONGEST = 64  # tokens in the window before it is cut
TAIL = 8  # tokens that stay


class Detokenizer:
    """What `add` and `finish` return is, in a row, the text that the tokens add to the prompt's.

    Where tokens of single bytes follow each other and are no UTF-8, decoders with byte fallback
    revoke what was valid on the way: only there is that text another than the whole's.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(prompt)
        self._known = len(decode(prompt))  # characters of the window's text
        self._cut()

    def add(self, token: int) -> str:
        """Return the text that is certain with one more token; empty within a character."""
        self._window.append(token)
        text = self._decode(self._window)
        certain = text.rstrip(REPLACEMENT)
        new = certain[self._known :]
        self._known = max(self._known, len(certain))
        if certain == text and len(self._window) > LONGEST:
            self._cut()
        return new

    def finish(self) -> str:
        """Return what is held back: a character that was never completed, as U+FFFD."""
        text = self._decode(self._window)
        new = text[self._known :]
        self._known = max(self._known, len(text))
        return new

    def _cut(self) -> None:
        """Keep only the last tokens, if alone they decode to the end of what the window does.

        They do not where a character was torn; and where they are no text, a decoder would drop
        the space before the next word.
        """
        tail = self._window[-TAIL:]
        text = self._decode(tail)
        if text and self._decode(self._window).endswith(text):
            self._window, self._known = tail, len(text)


def decoder_of(tokenizer: Any) -> Decode:
    """Return transformers' decoding without special tokens, and without its cleaning up.

    Cleaning up takes spaces back that were printed: `` .`` becomes ``.`` one token later.
    """

    def decode(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    return decode
