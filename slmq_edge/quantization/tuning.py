"""Tuning: learn the scales of a rounded model by distillation, its integers held.

    min over f of KL(p_float || p_rounded),     scale' = scale * (1 + f),    f per row or group

Not part of any published method here: an addition to what rounds weights, and off in what is called
upstream. Adam from f = 0, its rate falling along a cosine; activations are rounded straight
through. The float model is kept for it, so memory is that of three models and one batch's
activations. What is learned is kept only where it is nearer to the float model, on the windows of
the first steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder, hidden_states
from slmq_edge.quantization import Task
from slmq_edge.quantization.learning import CHUNK, rounded_operands
from slmq_edge.quantization.rounding import spread, straight_through
from slmq_edge.scheme import Grid, Scheme

RATE = 3e-3
BETAS = (0.9, 0.99)
# Tokens that a step looks at.
STEP_TOKENS = 2048
# Steps whose windows judge, before and after.
JUDGED = 4


@dataclass(frozen=True)
class _Learner:
    """One rounded linear: its value float32 [out, in], and the factors f [out, groups]."""

    value: Tensor
    factors: Tensor
    grid: Grid

    @property
    def weight(self) -> Tensor:
        return self.value * (1 + spread(self.factors, self.value, self.grid))


def tune(
    model: Decoder, integers: dict[str, IntegerWeight], steps: int, task: Task
) -> dict[str, IntegerWeight]:
    """The same integers with learned scales; ``model`` is the float model that they were."""
    assert task.calibration is not None, "CALIBRATION"
    device = model.weights[f"{names.NORM}.weight"].device
    learners = {
        name: _Learner(
            weight.dequantized.to(device),
            torch.zeros_like(weight.scale, device=device, requires_grad=True),
            weight.grid,
        )
        for name, weight in integers.items()
    }
    parameters = [one.factors for one in learners.values()]
    optimizer = torch.optim.Adam(parameters, lr=RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    tokens = task.calibration.tokens.to(device)
    before = _judged(model, learners, tokens, task.scheme)
    for step, window in zip(range(steps), _windows(tokens), strict=False):
        loss = distance(model, learners, window, task.scheme)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        schedule.step()
        task.progress((step + 1) / steps, f"tuning scales, loss {loss.item():.4f}")
    after = _judged(model, learners, tokens, task.scheme)
    if not after < before:
        task.note(f"tuning of scales thrown away: KL {before:.4f} before, {after:.4f} after")
        return integers
    return {
        name: replace(weight, scale=weight.scale * (1 + learners[name].factors.detach().to("cpu")))
        for name, weight in integers.items()
    }


def distance(
    model: Decoder, learners: dict[str, _Learner], tokens: Tensor, scheme: Scheme
) -> Tensor:
    """Mean KL divergence in nats of the rounded model from the float one, over all positions."""
    with torch.no_grad():
        wanted = hidden_states(model, tokens).flatten(0, 1)

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        if linears[0] not in learners:
            return model.project(inputs, linears)
        grid = scheme.input_grid(linears[0])
        rounded = inputs if grid is None else straight_through(inputs, grid)
        return tuple(
            functional.linear(rounded, learners[name].weight, model.weights.get(f"{name}.bias"))
            for name in linears
        )

    found = hidden_states(model, tokens, project, rounded_operands(scheme)).flatten(0, 1)

    def part(ours: Tensor, theirs: Tensor) -> Tensor:
        q, p = (torch.log_softmax(model.linear(x, names.HEAD), -1) for x in (ours, theirs))
        return functional.kl_div(q, p, log_target=True, reduction="sum")

    total = found.new_zeros(())
    for ours, theirs in zip(torch.split(found, CHUNK), torch.split(wanted, CHUNK), strict=True):
        total = total + checkpoint(part, ours, theirs, use_reentrant=False)
    return total / len(found)


def _windows(tokens: Tensor) -> Iterator[Tensor]:
    """Batches of whole windows, over and over."""
    count = max(1, STEP_TOKENS // tokens.shape[1])
    while True:
        yield from torch.split(tokens, count)


@torch.no_grad()
def _judged(model: Decoder, learners: dict[str, _Learner], tokens: Tensor, scheme: Scheme) -> float:
    judges = zip(range(JUDGED), _windows(tokens), strict=False)
    found = [distance(model, learners, window, scheme).item() for _, window in judges]
    mean = sum(found) / len(found)
    return mean if math.isfinite(mean) else math.inf
