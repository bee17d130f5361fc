"""Learning R1 and R2: Cayley SGD on the cross entropy of the model as it will be rounded.

With the weights at 16 bits nothing but activations is rounded, and no weight need be rotated: the
stream stays as it is, and the quantizer is wrapped between a rotation and its transpose,

    h -> Q(h R1) R1^T     what the norms put out
    o -> Q(o R2) R2^T     what o_proj reads, head by head

which has the loss of the rotated model and the same gradient along the rotations (METHODS 4.3; the
part across them, which a Cayley step discards, differs by about 3 % and enters the clipping). With
the scheme's own weights, every step rotates and rounds them all. A window is a step (METHODS 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from slmq_edge import anatomy as names
from slmq_edge.decoder import Decoder, Operands, Project, hidden_states, untouched
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Progress, readback
from slmq_edge.quantization.cayley import cayley_step
from slmq_edge.quantization.readback import Losses
from slmq_edge.quantization.rotations import Rotations, rotate_block
from slmq_edge.quantization.rounding import operands_of, straight_through
from slmq_edge.scheme import Scheme

# Positions whose logits exist at one time.
CHUNK = 256


@dataclass(frozen=True)
class Schedule:
    """How far each step goes.

    steps: of one window each; rate: of the first, falling to 0 along a cosine; clip: largest norm
    of all gradients together.
    """

    steps: int
    rate: float
    clip: float

    def rate_at(self, step: int) -> float:
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


# Rotations, tokens int64 [1, length] -> loss.
Loss = Callable[[Rotations, Tensor], Tensor]


def learn(
    loss_of: Loss, start: Rotations, tokens: Tensor, schedule: Schedule, progress: Progress
) -> Rotations:
    """Cayley SGD from ``start``; the windows [windows, length] are taken in order, one a step.

    Raises:
        SlmqError: the loss became infinite or NaN.
    """
    r1, r2 = start.r1.clone().requires_grad_(), start.r2.clone().requires_grad_()
    losses = Losses(r1.device)
    progress(0.0, "learning rotations")
    for step in range(schedule.steps):
        loss = loss_of(Rotations(r1, r2), tokens[step % len(tokens)][None])
        is_read = losses.add(loss, last=step + 1 == schedule.steps)
        if losses.failed is not None:
            failed = losses.failed
            raise SlmqError(
                f"learning the rotations failed: the loss is {losses.read[failed]} at step "
                f"{failed + 1}; try a smaller --rate"
            )
        # Where nothing but keys and values is rounded, the loss may not depend on one of them.
        gradients = torch.autograd.grad(loss, (r1, r2), materialize_grads=True)
        shrink = _shrink(gradients, schedule.clip)
        with torch.no_grad():
            r1, r2 = (
                cayley_step(rotation, gradient * shrink, schedule.rate_at(step))
                for rotation, gradient in zip((r1, r2), gradients, strict=True)
            )
        r1.requires_grad_()
        r2.requires_grad_()
        if is_read:
            told = f"learning rotations, loss {losses.read[-1]:.3f}"
            progress((step + 1) / schedule.steps, told)
    if not all(readback.numbers(r1.isfinite().all(), r2.isfinite().all())):
        raise SlmqError("learning the rotations failed: they are no numbers; try a smaller --rate")
    return Rotations(r1.detach(), r2.detach())


def _shrink(gradients: Sequence[Tensor], largest: float) -> Tensor:
    """What brings the norm of all gradients together down to ``largest``, float64 []."""
    squares = torch.stack([gradient.square().sum() for gradient in gradients])
    norm = squares.to(torch.float64).sum().sqrt()
    return (largest / (norm + 1e-6)).clamp(max=1.0)


def loss_of_activations(model: Decoder, scheme: Scheme) -> Loss:
    """The loss of ``model``, its gains absorbed, with float weights and rounded activations."""
    shape = model.anatomy
    layer_of = {
        shape.block(layer, linear): layer
        for layer in range(shape.layers)
        for linear in names.LINEARS
    }

    def loss(rotations: Rotations, tokens: Tensor) -> Tensor:
        def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
            if linears[0] not in layer_of:
                return model.project(inputs, linears)
            layer, first = layer_of[linears[0]], linears[0]
            grid = scheme.input_grid(first)
            r2 = rotations.r2[layer]
            if grid is not None:
                if first.endswith(names.O):
                    inputs = _by_head(inputs, r2)
                    inputs = _by_head(straight_through(inputs, grid), r2.mT)
                elif first.endswith(names.DOWN):
                    inputs = straight_through(inputs, grid)
                else:
                    inputs = straight_through(inputs @ rotations.r1, grid) @ rotations.r1.mT
            outputs = model.project(inputs, linears)
            if scheme.kv is not None and first.endswith(names.Q):
                query, key, value = outputs
                heads = _by_head(value, r2).reshape(*value.shape[:-1], -1, shape.head_dim)
                rounded = straight_through(heads, scheme.kv).reshape(value.shape)
                return query, key, _by_head(rounded, r2.mT)
            return outputs

        # Values are rounded above, in R2's basis.
        keys = operands_of(scheme, straight_through)

        def operands(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return *keys(query, key, value)[:2], value

        return next_token_loss(model, tokens, project, operands)

    return loss


def loss_of_target(model: Decoder, scheme: Scheme) -> Loss:
    """The loss of the rotated model with weights and activations on the scheme's grids."""

    def loss(rotations: Rotations, tokens: Tensor) -> Tensor:
        rotated = rotated_copy(model, rotations)

        def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
            if not linears[0].startswith("model.layers."):
                return rotated.project(inputs, linears)
            grid = scheme.input_grid(linears[0])
            rounded = inputs if grid is None else straight_through(inputs, grid)
            return tuple(_rounded_linear(rotated, rounded, name, scheme) for name in linears)

        return next_token_loss(rotated, tokens, project, operands_of(scheme, straight_through))

    return loss


def rotated_copy(model: Decoder, rotations: Rotations) -> Decoder:
    """R1 and R2 merged, differentiable in them; the model itself stays as it is.

    Its blocks only: table and head stay unrotated, and the stream is turned at both ends.
    """
    shape, weights = model.anatomy, dict(model.weights)
    for layer in range(shape.layers):
        rotate_block(shape, layer, weights, rotations.r1, rotations.r2[layer])
    head = weights.get(f"{names.HEAD_ROTATION}.weight")
    weights[f"{names.EMBED_ROTATION}.weight"] = rotations.r1.mT
    weights[f"{names.HEAD_ROTATION}.weight"] = rotations.r1 if head is None else head @ rotations.r1
    return replace(model, weights=weights)


def next_token_loss(
    model: Decoder, tokens: Tensor, project: Project, operands: Operands = untouched
) -> Tensor:
    """Mean next-token cross entropy; logits exist for ``CHUNK`` positions at a time."""
    hidden = hidden_states(model, tokens, project, operands)[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        (out,) = project(rows, (names.HEAD,))
        return functional.cross_entropy(out, wanted, reduction="sum")

    total = hidden.new_zeros(())
    for start in range(0, len(targets), CHUNK):
        rows, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
        total = total + checkpoint(
            part, rows, wanted, use_reentrant=False, preserve_rng_state=False
        )
    return total / len(targets)


def _rounded_linear(model: Decoder, inputs: Tensor, name: str, scheme: Scheme) -> Tensor:
    weight = model.weights[f"{name}.weight"]
    if scheme.weights is not None:
        weight = straight_through(weight, scheme.weights)
    return functional.linear(inputs, weight, model.weights.get(f"{name}.bias"))


def _by_head(x: Tensor, r2: Tensor) -> Tensor:
    """Every head of ``x`` [..., heads * head_dim] times r2 [head_dim, head_dim]."""
    return (x.reshape(*x.shape[:-1], -1, len(r2)) @ r2).reshape(x.shape)
