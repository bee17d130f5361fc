"""An exported graph in onnxruntime, and how close it must come to its simulation.

Mean KL at most 1e-4 over the full vocabulary, perplexity within 0.1 % (or four times the
simulation's own float32-against-float64 noise, where that is larger), argmax equal wherever the
simulation's margin exceeds twice that noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from slmq_edge.exporters import graph
from slmq_edge.golden import Noise, kl_divergence
from slmq_edge.runner.ort import Session
from slmq_edge.simulation import token_log_probabilities


def session(model: ir.Model, folder: Path) -> Session:
    path = folder / "model.onnx"
    graph.save(model, path)
    return Session(path, threads=1, settings={})


def assert_close(
    reference: torch.Tensor, out: torch.Tensor, tokens: torch.Tensor, noise: Noise
) -> None:
    assert kl_divergence(reference, out).mean() <= noise.kl_limit
    ours = token_log_probabilities(out, tokens).mean().exp()
    theirs = token_log_probabilities(reference, tokens).mean().exp()
    assert abs(ours / theirs - 1) <= noise.perplexity_limit
    best, second = reference.topk(2, dim=-1).values.unbind(-1)
    clear = best - second > 2 * noise.logit
    assert clear.float().mean() > 0.25
    assert torch.equal(out.argmax(-1)[clear], reference.argmax(-1)[clear])


def greedy(running: Session, prompt: NDArray[np.int64], count: int) -> list[int]:
    """What a session generates behind a prompt [1, length]."""
    out, cache = running.prefill(prompt, 1, count)
    found = []
    for _ in range(count):
        found.append(int(out[0, -1].argmax()))
        out, cache = running.step(np.array([[found[-1]]], np.int64), cache)
    return found


def artifact_logits(running: Session, tokens: torch.Tensor) -> torch.Tensor:
    out, _ = running.prefill(tokens.numpy())
    return torch.from_numpy(out)


def artifact_logits_with_past(running: Session, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Positions first - 1 on: a prompt of ``first`` tokens, then one token at a time."""
    out, cache = running.prefill(tokens[:, :first].numpy(), keep=1)
    rows = [out]
    for position in range(first, tokens.shape[1]):
        out, cache = running.step(tokens[:, position : position + 1].numpy(), cache)
        rows.append(out)
    return torch.from_numpy(np.concatenate(rows, axis=1))
