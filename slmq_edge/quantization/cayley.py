"""Cayley SGD: gradient steps that stay on the orthogonal group (Li et al. 2020; METHODS 3.3).

For a rotation R with gradient G, in the transposed variables X = R^T, V = -G^T:

    W^ = V X^T - 1/2 X (X^T V X^T),   W = W^ - W^T          (skew: the tangent direction)
    Y(a) = (I - a/2 W)^-1 (I + a/2 W) X                       (the Cayley transform)

solved by five rounds of Y <- X + a/2 W (X + Y), which is exact to rounding at these step sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 5
SMALLEST = 1e-8


def cayley_step(rotation: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """One step of at most ``rate`` for rotations [..., n, n], each moved by its own gradient."""
    unit = rotation / (rotation.norm(dim=-1, keepdim=True) + SMALLEST)
    velocity = -gradient.mT
    pulled = velocity @ unit
    half = pulled - 0.5 * unit.mT @ (unit @ pulled)
    skew = half - half.mT
    column_sums = skew.abs().sum(dim=-2).amax(dim=-1)
    step = (1.0 / (column_sums + SMALLEST)).clamp(max=rate)[..., None, None]
    start = unit.mT
    moved = start + step * velocity
    for _ in range(ROUNDS):
        moved = start + step / 2 * skew @ (start + moved)
    turned: Tensor = moved.mT.contiguous()
    return turned


def orthogonalize(rotation: Tensor, rounds: int = 8) -> Tensor:
    """The nearest orthogonal matrices, in float64, by Newton-Schulz: X <- X (3 I - X^T X) / 2.

    For matrices [..., n, n] that are orthogonal up to float32's rounding.
    """
    x = rotation.to(torch.float64)
    identity = torch.eye(x.shape[-1], dtype=torch.float64, device=x.device)
    for _ in range(rounds):
        x = x @ (1.5 * identity - 0.5 * x.mT @ x)
    return x
