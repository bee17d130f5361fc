"""How the built-in models are scored: question accuracy and the text for perplexity.

A choice scores `sum(log p)` over the tokens of `" " + choice` after `<s>` and the question,
with no length normalisation; the choice with the highest sum is the model's answer. The
sum is exact because the tokenizer never merges across a space, so question and choice
may be tokenized apart.

Nothing here needs torch: a model is a function from (context, continuation) to a number.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from slmq_edge.builtin.world import Question

LogLikelihood = Callable[[list[int], list[int]], float]


def pairs(tokenizer: Any, question: Question) -> list[tuple[list[int], list[int]]]:
    """Return (context, continuation) token ids, one pair per choice."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    context = [tokenizer.bos_token_id, *encode(question.question)]
    return [(context, encode(" " + choice)) for choice in question.choices]


def accuracy(scores: Sequence[Sequence[float]], questions: Sequence[Question]) -> float:
    """Return the share of questions whose right choice has the highest score, 0 to 1."""
    right = sum(
        max(range(len(row)), key=row.__getitem__) == question.answer
        for row, question in zip(scores, questions, strict=True)
    )
    return right / len(questions)


def score_questions(
    loglikelihood: LogLikelihood, tokenizer: Any, questions: Sequence[Question]
) -> float:
    """Return the accuracy of a model given as `loglikelihood(context, continuation)`."""
    scores = [[loglikelihood(*pair) for pair in pairs(tokenizer, q)] for q in questions]
    return accuracy(scores, questions)


def stream(tokenizer: Any, documents: Iterable[str]) -> list[int]:
    """Return the token ids of `<s> document <s> document ...`, the text for perplexity.

    A tokenizer without BOS begins documents with its EOS.
    """
    # verbose: transformers would warn of a long document, which is cut into windows.
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False).input_ids
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next(token for token in starts if token is not None)
    return [token for ids in encoded for token in (start, *ids)]
