"""Scorers for tests of what is asked and what is made of the answers, not of who answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from pathlib import Path
from typing import Any

import torch
import transformers

from slmq_edge.tracks.accuracy.sequences import Score, Sequence


@functools.cache
def model_of(folder: Path) -> Any:
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return found.eval()


class Plain:
    """transformers' own model, a sequence at a time, and nothing that could be wrong with it."""

    def __init__(self, folder: Path) -> None:
        self.model = model_of(folder)
        self.identity: Mapping[str, Any] = {"runtime": "torch", "model": {"name": folder.name}}
        self.tokens_before = 0
        self.context_length = int(self.model.config.max_position_embeddings)

    def score(
        self, sequences: Several[Sequence], progress: Callable[[int, int], None]
    ) -> list[Score]:
        return [self._one(sequence) for sequence in sequences]

    def forget(self) -> None:
        pass

    def _one(self, sequence: Sequence) -> Score:
        tokens = torch.tensor(sequence.tokens)
        with torch.inference_mode():
            logits = self.model(tokens[None, :-1]).logits[0, -sequence.scored :]
        scored = tokens[-sequence.scored :]
        log_p = torch.log_softmax(logits.double(), -1).gather(-1, scored[:, None])
        return Score(float(log_p.sum()), bool((logits.argmax(-1) == scored).all()))
