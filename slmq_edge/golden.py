"""Golden prompts: what the simulation says, for the device to check itself against.

The layout of the arrays is documented where they are read, in ``slmq_edge.runner.golden``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmq_edge import models
from slmq_edge.builtin import world
from slmq_edge.calibration import PROMPTS, Size, Text, cut
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.simulation import Simulation, token_log_probabilities

FILE = "golden.npz"
CHECKED, GREEDY_TOKENS, TOP = 4, 16, 64
# Promise 2: the artifact's distance from its simulation, where the simulation itself is steadier
# than that. A small model may not be: then four times its own noise is the limit.
KL_LIMIT = 1e-4
PERPLEXITY_LIMIT = 1e-3
NOISE_FACTOR = 4
# The noise is taken over as many tokens as this many multiply-adds allow: seconds, on any model.
NOISE_MACS = 1.5e10
MOST_NOISE_TOKENS = PROMPTS.windows * PROMPTS.length


@dataclass(frozen=True)
class Noise:
    """The simulation in float32 against itself in float64.

    A single flipped rounding moves a logit by far more than float32's own precision (ONNXRUNTIME
    7), and all that follows in its text with it; so this, and no constant, is what an artifact can
    be held to. logit: the largest difference of one. kl, log_perplexity: the largest mean, over the
    second halves of ``CHECKED`` prompts (the fewest positions that a check scores), of the KL
    divergence and of the log-probabilities' difference, in nats.
    """

    logit: float
    kl: float
    log_perplexity: float
    tokens: int

    @property
    def kl_limit(self) -> float:
        """Largest mean KL divergence, in nats, that an artifact may show."""
        return max(KL_LIMIT, NOISE_FACTOR * self.kl)

    @property
    def perplexity_limit(self) -> float:
        """Largest relative difference of the perplexity that an artifact may show."""
        return max(PERPLEXITY_LIMIT, NOISE_FACTOR * self.log_perplexity)


@dataclass(frozen=True)
class Golden:
    """arrays: of ``golden.npz``; limits: the ``golden`` section of ``bundle.json``."""

    arrays: dict[str, NDArray[Any]]
    limits: dict[str, Any]


def record(checkpoint: Checkpoint, tokenizer: Any | None) -> Golden:
    """Run the simulation on the golden prompts, and measure its own noise.

    The prompts are cut from the calibration text, which the model is expected to know; where there
    was none, from English sentences that the built-in world makes for evaluation; and without a
    tokenizer they are token ids drawn evenly from the vocabulary.
    """
    length = min(PROMPTS.length, checkpoint.anatomy.max_positions // 2)
    windows = _windows(checkpoint, tokenizer, length)
    simulation = Simulation(checkpoint)
    noise = measure_noise(checkpoint, simulation, windows)
    prompts = windows[:CHECKED]
    out = simulation.logits(prompts)
    greedy, greedy_margins = _greedy(simulation, prompts)
    top = torch.log_softmax(out.double(), -1).topk(min(TOP, out.shape[-1]), dim=-1)
    arrays = {
        "tokens": prompts.numpy(),
        "top_ids": top.indices.numpy().astype(np.int32),
        "top_logprobs": top.values.numpy().astype(np.float32),
        "target_logprobs": token_log_probabilities(out, prompts).numpy().astype(np.float32),
        "margins": _margins(out).numpy().astype(np.float32),
        "greedy": greedy.numpy(),
        "greedy_margins": greedy_margins.numpy().astype(np.float32),
    }
    limits = {
        "file": FILE,
        "kl_limit": noise.kl_limit,
        "perplexity_limit": noise.perplexity_limit,
        "logit_noise": noise.logit,
        "kl_noise": noise.kl,
        "log_perplexity_noise": noise.log_perplexity,
        "noise_tokens": noise.tokens,
    }
    return Golden(arrays, limits)


def measure_noise(checkpoint: Checkpoint, simulation: Simulation, windows: Tensor) -> Noise:
    """Run the simulation in both precisions over ``windows`` int64 [count, length]."""
    exact = Simulation(checkpoint, torch.float64)
    half = windows.shape[1] // 2
    largest, divergence, difference = 0.0, 0.0, 0.0
    for start in range(0, len(windows), CHECKED):
        window = windows[start : start + CHECKED]
        reference = exact.logits(window)
        out = simulation.logits(window).double()
        largest = max(largest, (out - reference).abs().max().item())
        kl = kl_divergence(reference, out)[:, half - 1 :].mean().item()
        ours, theirs = (token_log_probabilities(x, window) for x in (out, reference))
        moved = (ours - theirs)[:, half - 1 :].mean().abs().item()
        divergence, difference = max(divergence, kl), max(difference, moved)
    return Noise(largest, divergence, difference, windows.numel())


def kl_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) in nats at every position, from logits [..., vocab]."""
    p = torch.log_softmax(reference.double(), -1)
    q = torch.log_softmax(other.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def _windows(checkpoint: Checkpoint, tokenizer: Any | None, length: int) -> Tensor:
    shape = checkpoint.anatomy
    macs = shape.linear_macs_per_token + shape.head_macs_per_token
    affordable = min(MOST_NOISE_TOKENS, math.ceil(NOISE_MACS / macs))
    count = max(CHECKED, affordable // length)
    if checkpoint.prompts is not None:
        return checkpoint.prompts[:count, :length]
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, shape.vocab, (count, length), generator=generator)
    text = Text("golden prompts", tuple(world.heldout_documents()))
    return cut(text, tokenizer, Size(count, length), fewest=CHECKED).tokens


def _margins(out: Tensor) -> Tensor:
    best, second = out.topk(2, dim=-1).values.unbind(-1)
    return best - second


def _greedy(simulation: Simulation, prompts: Tensor) -> tuple[Tensor, Tensor]:
    tokens, margins = prompts, []
    for _ in range(GREEDY_TOKENS):
        last = simulation.logits(tokens)[:, -1]
        margins.append(_margins(last))
        tokens = torch.cat([tokens, last.argmax(-1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :], torch.stack(margins, dim=1)


def tokenizer_for(checkpoint: Checkpoint, folder: Any) -> Any | None:
    """The tokenizer among a checkpoint's files, which lie in ``folder``; ``None`` without one."""
    return models.read_tokenizer(folder) if "tokenizer.json" in checkpoint.extras else None
