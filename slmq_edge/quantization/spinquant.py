"""SpinQuant: rotate the stream so that no channel stands out, and learn the rotations.

    E' = E R1                                         the stream x' = x R1, norms without gains
    W' = W diag(gamma) R1          q, k, v, gate, up   RMSNorm(x R1) = RMSNorm(x) R1
    W' = R1^T W                    o, down
    W_v[head] <- R2^T W_v[head],  b_v[head] <- R2^T b_v[head],  W_o[:, head] <- W_o[:, head] R2

(Liu et al. 2024, section 3; METHODS 3.1.) R1 [hidden, hidden] is one for the model, R2
[head_dim, head_dim] one for each block. Both start as random Hadamard matrices and learn by Cayley
SGD from the cross entropy of the quantized model; everything is merged, nothing is left for run
time but the two rotations of a tied table, which stays one table (METHODS 4.1):

    x = E[token] R1,     logits = ((RMSNorm(x') R1^T) * gamma) E^T

Differences from the released code: b_v is rotated too; the embedding's mean is kept (METHODS 3.8);
windows are spread over the text; weights are rounded without clip search; there is no random QR
retraction while learning, instead rotations are made exactly orthogonal at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.anatomy import FEEDS, Anatomy
from slmq_edge.calibration import Size
from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import Prepared, Progress, Task
from slmq_edge.quantization.cayley import cayley_step, orthogonalize
from slmq_edge.quantization.hadamard import hadamard
from slmq_edge.quantization.rounding import straight_through
from slmq_edge.scheme import Scheme, require_integer

CALIBRATION = Size(windows=128, length=2048)


@dataclass(frozen=True)
class Settings:
    """Learning of the rotations; the defaults are the released code's (METHODS 3.2).

    steps: optimizer steps of one window each, 0 keeps the random Hadamard matrices; rate: of the
    first step, falling to 0 along a cosine; clip: largest norm of all gradients together.
    """

    steps: int = 100
    rate: float = 1.5
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UsageError(f"--steps counts optimizer steps, and cannot be {self.steps}")


@dataclass(frozen=True)
class Rotations:
    """r1 [hidden, hidden], r2 [layers, head_dim, head_dim]."""

    r1: Tensor
    r2: Tensor


def prepare(model: Decoder, task: Task) -> Prepared:
    """Absorb the norms' gains, learn R1 and R2, and merge them.

    Raises:
        Unsupported: the scheme rounds nothing.
        SlmqError: the loss became infinite or NaN.
    """
    settings: Settings = task.settings
    require_integer(task.scheme, "spinquant")
    assert task.calibration is not None, "spinquant.CALIBRATION"
    absorbed = absorb_gains(model)
    device = model.weights[f"{names.NORM}.weight"].device
    start = initial_rotations(model.anatomy, settings.seed)
    start = Rotations(start.r1.to(device), start.r2.to(device))
    learned = start
    if settings.steps:
        tokens = task.calibration.tokens.to(device)
        learned = learn(absorbed, start, tokens, task.scheme, settings, task.progress)
    exact = Rotations(orthogonalize(learned.r1), orthogonalize(learned.r2))
    dtype = model.weights[f"{names.NORM}.weight"].dtype
    rotated = rotate(absorbed.to(torch.float64), exact)
    return Prepared(rotated.to(dtype))


def absorb_gains(model: Decoder) -> Decoder:
    """Move every norm's gain into the linears that read it, leaving gains of one.

    The final gain goes into an untied head; on a tied model it becomes a diagonal head rotation,
    because the table is also the lookup. The products are taken in float64.
    """
    weights = dict(model.weights)

    def absorb(norm: str, linears: tuple[str, ...]) -> None:
        gain = weights[f"{norm}.weight"]
        for name in (f"{linear}.weight" for linear in linears):
            scaled = weights[name].to(torch.float64) * gain.to(torch.float64)
            weights[name] = scaled.to(gain.dtype)
        weights[f"{norm}.weight"] = torch.ones_like(gain)

    shape = model.anatomy
    for layer in range(shape.layers):
        for feed in FEEDS:
            linears = tuple(shape.block(layer, name) for name in feed.linears)
            absorb(shape.block(layer, feed.norm), linears)
    if shape.tied:
        weights[f"{names.HEAD_ROTATION}.weight"] = torch.diag(weights[f"{names.NORM}.weight"])
        absorb(names.NORM, ())
    else:
        absorb(names.NORM, (names.HEAD,))
    return Decoder(shape, weights)


def rotate(model: Decoder, rotations: Rotations) -> Decoder:
    """Merge R1 and R2 into a model whose gains are absorbed; differentiable in the rotations."""
    r1, r2 = rotations.r1, rotations.r2
    shape, weights = model.anatomy, dict(model.weights)
    for layer in range(shape.layers):
        _rotate_block(shape, layer, weights, r1, r2[layer])
    if shape.tied:
        head = weights[f"{names.HEAD_ROTATION}.weight"]
        weights[f"{names.EMBED_ROTATION}.weight"] = r1.mT
        weights[f"{names.HEAD_ROTATION}.weight"] = head @ r1
    else:
        for table in (names.EMBED, names.HEAD):
            weights[f"{table}.weight"] = weights[f"{table}.weight"] @ r1
    return Decoder(shape, weights)


def _rotate_block(
    shape: Anatomy, layer: int, weights: dict[str, Tensor], r1: Tensor, r2: Tensor
) -> None:
    def key(linear: str, kind: str = "weight") -> str:
        return f"{shape.block(layer, linear)}.{kind}"

    for name in (key(linear) for feed in FEEDS for linear in feed.linears):
        weights[name] = weights[name] @ r1
    for linear in (names.O, names.DOWN):
        weights[key(linear)] = r1.mT @ weights[key(linear)]
        if key(linear, "bias") in weights:
            weights[key(linear, "bias")] = weights[key(linear, "bias")] @ r1
    # v's rows and o's columns, head by head: [heads, head_dim, ...]
    per_head = weights[key(names.V)].view(shape.kv_heads, shape.head_dim, shape.hidden)
    weights[key(names.V)] = (r2.mT @ per_head).reshape(shape.kv_width, shape.hidden)
    if key(names.V, "bias") in weights:
        bias = weights[key(names.V, "bias")].view(shape.kv_heads, shape.head_dim)
        weights[key(names.V, "bias")] = (bias @ r2).reshape(shape.kv_width)
    columns = weights[key(names.O)].reshape(shape.hidden, shape.heads, shape.head_dim)
    weights[key(names.O)] = (columns @ r2).reshape(shape.hidden, shape.query_width)


def initial_rotations(shape: Anatomy, seed: int) -> Rotations:
    """Random-sign Hadamard matrices diag(+-1) H / sqrt(n), float32.

    Where no Hadamard matrix of the order is constructed: QR of a Gaussian matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    r2 = [_random_rotation(shape.head_dim, generator) for _ in range(shape.layers)]
    return Rotations(_random_rotation(shape.hidden, generator), torch.stack(r2))


def _random_rotation(order: int, generator: torch.Generator) -> Tensor:
    matrix = hadamard(order)
    if matrix is not None:
        signs = torch.randint(0, 2, (order, 1), generator=generator) * 2.0 - 1.0
        return (signs * matrix / math.sqrt(order)).to(torch.float32)
    gaussian = torch.randn(order, order, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    uniform: Tensor = q * r.diagonal().sign()
    return uniform.to(torch.float32)


def learn(
    model: Decoder,
    start: Rotations,
    tokens: Tensor,
    scheme: Scheme,
    settings: Settings,
    progress: Progress,
) -> Rotations:
    """Cayley SGD on the next-token cross entropy of the model whose blocks ``scheme`` rounds.

    The windows [windows, length] are taken in order, one a step. Because the weights will be
    rounded to nearest, they are rounded while learning too (METHODS 3.2).
    """
    frozen = model.to(torch.float32)
    r1, r2 = start.r1.clone().requires_grad_(), start.r2.clone().requires_grad_()
    for step in range(settings.steps):
        window = tokens[step % len(tokens)][None]
        loss = quantized_loss(rotate(frozen, Rotations(r1, r2)), window, scheme)
        if not torch.isfinite(loss):
            raise SlmqError(
                f"learning the rotations failed: the loss is {loss.item()} at step {step + 1}; "
                "try a smaller --rate"
            )
        gradients = torch.autograd.grad(loss, (r1, r2))
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        shrink = min(1.0, settings.clip / (float(norm) + 1e-6))
        rate = settings.rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        with torch.no_grad():
            r1, r2 = (
                cayley_step(rotation, gradient * shrink, rate)
                for rotation, gradient in zip((r1, r2), gradients, strict=True)
            )
        r1.requires_grad_()
        r2.requires_grad_()
        progress((step + 1) / settings.steps, f"learning rotations, loss {loss.item():.3f}")
    return Rotations(r1.detach(), r2.detach())


def quantized_loss(model: Decoder, tokens: Tensor, scheme: Scheme) -> Tensor:
    """Mean next-token cross entropy with straight-through rounding, differentiable."""
    weights_grid, activations_grid = require_integer(scheme, "spinquant")

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        if linears == (names.HEAD,):
            return model.project(inputs, linears)
        rounded = straight_through(inputs, activations_grid)
        return tuple(
            functional.linear(
                rounded,
                straight_through(model.weights[f"{name}.weight"], weights_grid),
                model.weights.get(f"{name}.bias"),
            )
            for name in linears
        )

    out = logits(model, tokens, project)
    return functional.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
