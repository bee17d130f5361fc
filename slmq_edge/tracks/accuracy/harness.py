"""lm-eval's view of a scorer: its texts become token sequences, and scores its answers.

Everything that is asked is known before anything is scored, so that one call of the scorer can
sort and batch it: the harness is asked twice. What it does not know the first time, it notes.
Texts become tokens as in lm-eval's own model of Hugging Face: same prefix, same windows, the same
tokens cut from the left of what is longer than the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.tracks.accuracy.sequences import Score, Sequence

UNKNOWN = (math.nan, False)


def start(tokenizer: Any) -> tuple[int, str]:
    """The token that begins a text, BOS or else EOS, and how it is written.

    Raises:
        Unsupported: the tokenizer has neither.
    """
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    found = next((token for token in starts if token is not None), None)
    if found is None:
        raise Unsupported("the tokenizer has neither a BOS nor an EOS token to start a text")
    return int(found), tokenizer.decode(found)


class Harness(TemplateLM):  # type: ignore[misc]
    """A language model that answers from ``scores``, and collects in ``asked`` what it lacks.

    tokenizer: transformers'. cut: (context, continuation) of what did not fit.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.asked: dict[Sequence, None] = {}
        self.scores: Mapping[Sequence, Score] = {}
        self.cut: set[tuple[str, str]] = set()
        self._context_length = context_length
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}
        self._prefix, self._prefix_text = start(tokenizer)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """BOS where there is one, else EOS."""
        return self._prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, with the tokenizer's own BOS unless the text begins with one."""
        key = (string, add_special_tokens)
        if key not in self._encoded:
            if add_special_tokens is None and string.startswith(self._prefix_text):
                add_special_tokens = False
            given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            # verbose: transformers would warn of a long text, which is cut into windows.
            self._encoded[key] = self.tokenizer.encode(string, verbose=False, **given)
        return self._encoded[key]

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """See lm-eval; without its bar."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of whole texts, in windows as long as the context that do not overlap."""
        return [sum(score for score, _ in self._answers(request.args[0])) for request in requests]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Sequences are scored; nothing is generated."""
        raise Unsupported("a task that generates text cannot be scored: choose another")

    def _answers(self, text: str) -> Iterator[tuple[float, bool]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self._prefix,
            max_seq_len=self._context_length,
            context_len=1,
        )
        for context, continuation in map(make_disjoint_window, windows):
            yield self._answer(Sequence((*context, *continuation), len(continuation)))

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [self._answer(self._fitted(*request)) for request in requests]

    def _fitted(
        self, texts: tuple[str, str], context: list[int], continuation: list[int]
    ) -> Sequence:
        """The context without what is too long for the model; its last token is never an input."""
        most, tokens = self._context_length + 1, (*context, *continuation)
        if not continuation or len(continuation) >= most:
            raise SlmqError(
                f"a choice has {len(continuation)} tokens and the model reads "
                f"{self._context_length}: {texts[1].strip()[:60]!r}"
            )
        if len(tokens) > most:
            self.cut.add(texts)
        return Sequence(tokens[-most:], len(continuation))

    def _answer(self, sequence: Sequence) -> tuple[float, bool]:
        score = self.scores.get(sequence)
        if score is None:
            self.asked[sequence] = None
            return UNKNOWN
        return score.logprob, score.greedy
