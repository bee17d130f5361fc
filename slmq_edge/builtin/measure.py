"""Measure a torch model on the held-out text and questions of the small world.

Used by the training script and the tests, which must not depend on the rest of the
package; `slmq` itself has its own evaluation.
"""

import math
from collections.abc import Sequence
from typing import Any

from slmq_edge.builtin.score import accuracy, pairs, stream
from slmq_edge.builtin.world import Question

WINDOW = 512


def perplexity(model: Any, tokenizer: Any, documents: Sequence[str]) -> float:
    """Return exp of the mean cross-entropy (nats per token) over windows of 512 tokens.

    Windows do not overlap; an incomplete last one is dropped.
    """
    import torch

    ids = torch.tensor(stream(tokenizer, documents))
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    losses = []
    with torch.no_grad():
        for batch in torch.split(windows, 8):
            logits = model(batch).logits[:, :-1].float()
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
                )
            )
    return math.exp(torch.cat(losses).mean().item())


def question_accuracy(model: Any, tokenizer: Any, questions: Sequence[Question]) -> float:
    """Return the share of right answers, 32 choices of similar length at a time."""
    import torch

    rows = [
        (q, c, context, continuation)
        for q, question in enumerate(questions)
        for c, (context, continuation) in enumerate(pairs(tokenizer, question))
    ]
    rows.sort(key=lambda row: len(row[2]) + len(row[3]))
    scores = [[0.0] * len(question.choices) for question in questions]
    for start in range(0, len(rows), 32):
        chunk = rows[start : start + 32]
        longest = max(len(context) + len(end) for _, _, context, end in chunk)
        # Padding stands on the right, where a causal model cannot see it.
        batch = torch.zeros(len(chunk), longest, dtype=torch.long)
        for i, (_, _, context, end) in enumerate(chunk):
            batch[i, : len(context) + len(end)] = torch.tensor(context + end)
        with torch.no_grad():
            logs = model(batch).logits.float().log_softmax(-1)
        for i, (q, c, context, end) in enumerate(chunk):
            positions = torch.arange(len(context) - 1, len(context) + len(end) - 1)
            scores[q][c] = logs[i, positions, torch.tensor(end)].sum().item()
    return accuracy(scores, questions)
