"""Golden prompts: what the simulation says, for the device to check itself against.

The layout of the arrays is documented where they are read, in ``slmq_edge.runner.golden``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmq_edge import models
from slmq_edge.anatomy import Anatomy
from slmq_edge.builtin import world
from slmq_edge.calibration import PROMPTS, Size, Text, cut
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import Unsupported
from slmq_edge.runner.memory import return_memory
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
ROWS = 64  # positions whose logits, in float64, are held at a time
# (tokens int64 [length], how many are wanted) -> guesses what follows, int64 [at most so many].
Draft = Callable[[NDArray[np.int64], int], NDArray[np.int64]]
SCORED = {
    "top_ids": np.int32,
    "top_logprobs": np.float32,
    "target_logprobs": np.float32,
    "margins": np.float32,
}
MOST_NOISE_TOKENS = PROMPTS.windows * PROMPTS.length


@dataclass(frozen=True)
class Noise:
    """The simulation in the artifact's floats against itself in float64.

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


def record(
    checkpoint: Checkpoint,
    tokenizer: Any | None,
    drafting: Callable[[], Draft | None] = lambda: None,
    floats: torch.dtype = torch.float32,
) -> Golden:
    """Run the simulation on the golden prompts, and measure its own noise in ``floats``.

    drafting: makes what guesses greedy continuations, which the simulation corrects: it decides
    nothing but how long that takes, and is not held longer. Raises what `measure_noise` does.

    The prompts are cut from the calibration text, which the model is expected to know; where there
    was none, from English sentences that the built-in world makes for evaluation; and without a
    tokenizer they are token ids drawn evenly from the vocabulary.
    """
    texts = windows(checkpoint, tokenizer, _affordable(checkpoint))
    simulation = Simulation(checkpoint)
    prompts = texts[:CHECKED]
    greedy, greedy_margins = _greedy(simulation, prompts, drafting())
    return_memory()  # the draft's
    as_artifact = simulation if floats == torch.float32 else Simulation(checkpoint, floats)
    noise = measure_noise(checkpoint, as_artifact, texts)
    arrays = {
        "tokens": prompts.numpy(),
        **_scored(simulation, prompts),
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


def measure_noise(checkpoint: Checkpoint, simulation: Simulation, texts: Tensor) -> Noise:
    """Run the simulation in both precisions over ``texts`` int64 [windows, length].

    Raises:
        Unsupported: in the artifact's floats it becomes infinite or NaN. That is said here, since
            the graph need not where it is checked: onnxruntime 1.23.2 on a CPU stays finite.
    """
    exact = Simulation(checkpoint, torch.float64)
    half = texts.shape[1] // 2
    largest, divergence, difference = 0.0, 0.0, 0.0
    for start in range(0, len(texts), CHECKED):
        window = texts[start : start + CHECKED]
        kls, moves = [], []
        for row, *hidden in zip(
            window, exact.hidden(window), simulation.hidden(window), strict=True
        ):
            followers = torch.cat([row[1:], row[:1]])  # of the last position nothing is known
            parts = (x.split(ROWS) for x in (*hidden, followers))
            pieces = [
                _distances(exact.head(reference), simulation.head(other).double(), targets)
                for reference, other, targets in zip(*parts, strict=True)
            ]
            kl, moved, furthest = torch.cat(pieces, dim=1)
            if not furthest.isfinite().all():
                raise Unsupported(_overflow(hidden[1].dtype))
            kls.append(kl[half - 1 :])
            moves.append(moved[half - 1 : -1])
            largest = max(largest, furthest.max().item())
        divergence = max(divergence, torch.stack(kls).mean().item())
        difference = max(difference, torch.stack(moves).mean().abs().item())
    return Noise(largest, divergence, difference, texts.numel())


def _overflow(floats: torch.dtype) -> str:
    name = str(floats).removeprefix("torch.")
    advice = "the model is damaged, or was quantized beyond use"
    if floats == torch.float16:
        advice = "leave --target out, for a graph of float32"
    return f"the model's activations become infinite or NaN in {name}: {advice}"


def _distances(reference: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    """Of logits float64 [length, vocab]: KL, change of log p(target), largest change of a logit."""
    moved = [
        torch.log_softmax(x, -1).gather(-1, targets[:, None])[:, 0] for x in (other, reference)
    ]
    furthest = (other - reference).abs().amax(-1)
    return torch.stack([kl_divergence(reference, other), moved[0] - moved[1], furthest])


def _scored(simulation: Simulation, prompts: Tensor) -> dict[str, NDArray[Any]]:
    """What is compared at every position of the prompts, a prompt at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in SCORED}
    for prompt, hidden in zip(prompts, simulation.hidden(prompts), strict=True):
        out = simulation.head(hidden)
        top = torch.log_softmax(out.double(), -1).topk(min(TOP, out.shape[-1]), dim=-1)
        found["top_ids"].append(top.indices)
        found["top_logprobs"].append(top.values)
        found["target_logprobs"].append(token_log_probabilities(out[None], prompt[None])[0])
        found["margins"].append(_margins(out))
    return {name: torch.stack(found[name]).numpy().astype(dtype) for name, dtype in SCORED.items()}


def kl_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) in nats at every position, from logits [..., vocab]."""
    p = torch.log_softmax(reference.double(), -1)
    q = torch.log_softmax(other.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def _length(shape: Anatomy) -> int:
    return min(PROMPTS.length, shape.max_positions // 2)


def _affordable(checkpoint: Checkpoint) -> int:
    """How many windows the noise is measured on."""
    shape = checkpoint.anatomy
    macs = shape.linear_macs_per_token + shape.head_macs_per_token
    affordable = min(MOST_NOISE_TOKENS, math.ceil(NOISE_MACS / macs))
    return max(CHECKED, affordable // _length(shape))


def windows(checkpoint: Checkpoint, tokenizer: Any | None, count: int) -> Tensor:
    """Text that the model is expected to know, int64 [at most ``count``, length].

    The checkpoint's own prompts; without them, English sentences of the built-in world; without a
    tokenizer, token ids drawn evenly.
    """
    shape = checkpoint.anatomy
    length = _length(shape)
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


def _greedy(simulation: Simulation, prompts: Tensor, draft: Draft | None) -> tuple[Tensor, Tensor]:
    """The greedy continuation [prompts, GREEDY_TOKENS] of whole prompts, and its margins."""
    found = [_continued(simulation, prompt, draft) for prompt in prompts]
    tokens, margins = (torch.stack(part) for part in zip(*found, strict=True))
    return tokens, margins


def _continued(
    simulation: Simulation, prompt: Tensor, draft: Draft | None
) -> tuple[Tensor, Tensor]:
    """One continuation: guessed ahead, and kept as far as the simulation chooses the same.

    The first token that it chooses otherwise is kept too, so that every pass finds one at least.
    """
    chosen, margins = prompt[:0], torch.empty(0)
    while (missing := GREEDY_TOKENS - len(chosen)) > 0:
        known = torch.cat([prompt, chosen])
        guess = known[:0] if draft is None else torch.from_numpy(draft(known.numpy(), missing - 1))
        tokens = torch.cat([known, guess])
        out = simulation.head(simulation.hidden(tokens[None])[0, len(known) - 1 :])
        choice = out.argmax(-1)
        right = 1 + int((choice[:-1] == guess).cumprod(0).sum())
        chosen = torch.cat([chosen, choice[:right]])
        margins = torch.cat([margins, _margins(out[:right])])
    return chosen, margins


def tokenizer_for(checkpoint: Checkpoint, folder: Any) -> Any | None:
    """The tokenizer among a checkpoint's files, which lie in ``folder``; ``None`` without one."""
    return models.read_tokenizer(folder) if "tokenizer.json" in checkpoint.extras else None
