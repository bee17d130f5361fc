"""Hadamard matrices, constructed: H of +-1 with H H^T = n I.

    Sylvester   H_2n = [[H_n, H_n], [H_n, -H_n]]
    Paley I     n = q + 1,   q = 3 mod 4 prime:  H = I + C,  C skew, bordered Jacobsthal matrix
    Paley II    n = 2(q + 1), q = 1 mod 4 prime: H = C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]

The Jacobsthal matrix is Q_ij = chi(i - j), chi the quadratic character of GF(q) (METHODS 3.7).
Orders of the models at hand: 64, 576 = 36 * 16, 896 = 28 * 32, 1536 = 12 * 128, 4864 = 76 * 64.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def hadamard(order: int) -> Tensor | None:
    """A Hadamard matrix float64 [order, order] of +-1, or ``None`` where we construct none.

    The largest power of two that leaves a constructible base is split off.
    """
    powers = (order & -order).bit_length() - 1
    for sylvester in range(powers, -1, -1):
        base = _base(order >> sylvester)
        if base is not None:
            return torch.kron(base, _sylvester(sylvester))
    return None


@lru_cache(maxsize=16)
def factors(order: int) -> tuple[Tensor, Tensor] | None:
    """A and B float64 with A x B a Hadamard matrix of ``order``; ``None`` where we construct none.

    B is Sylvester's, and the split is the one that costs least: multiplying a row by A x B takes
    order * (len(A) + len(B)) multiply-adds (METHODS 3.7).
    """
    powers = (order & -order).bit_length() - 1
    splits = [(1 << power, order >> power) for power in range(powers + 1)]
    for cut, rest in sorted(splits, key=sum):
        first = hadamard(rest)
        if first is not None:
            return first, _sylvester(cut.bit_length() - 1)
    return None


def rotate_last(x: Tensor) -> Tensor:
    """``x`` [..., n] times (A x B)^T / sqrt(n): every row becomes A X B^T, X its [len(A), len(B)].

    Raises:
        ValueError: no Hadamard matrix of order n is constructed; whoever rotates asks first.
    """
    order = x.shape[-1]
    first, second = _factors_at(order, x.dtype, x.device)
    tall = x.reshape(*x.shape[:-1], len(first), len(second))
    return (first @ tall @ second.mT).reshape(x.shape) / math.sqrt(order)


@lru_cache(maxsize=32)
def _factors_at(order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    found = factors(order)
    if found is None:
        raise ValueError(f"no Hadamard matrix of order {order}")
    first, second = (matrix.to(device, dtype) for matrix in found)
    return first, second


def _base(order: int) -> Tensor | None:
    if order in (1, 2):
        return _sylvester(order - 1)
    if order % 4:
        return None
    if _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return _paley_two(order // 2 - 1)
    if _is_prime(order - 1):
        return _paley_one(order - 1)
    return None


def _sylvester(power: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(power):
        matrix = torch.kron(two, matrix)
    return matrix


def _paley_one(q: int) -> Tensor:
    core = _bordered(q, corner=-1.0)
    return torch.eye(q + 1, dtype=torch.float64) + core


def _paley_two(q: int) -> Tensor:
    core = _bordered(q, corner=1.0)
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(core, one) + torch.kron(torch.eye(q + 1, dtype=torch.float64), other)


def _bordered(q: int, corner: float) -> Tensor:
    """The Jacobsthal matrix of GF(q) with a border of ones; ``corner`` signs the left one."""
    squares = {(i * i) % q for i in range(1, q)}
    character = [0.0, *(1.0 if i in squares else -1.0 for i in range(1, q))]
    index = (torch.arange(q)[:, None] - torch.arange(q)[None, :]) % q
    core = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    core[0, 1:] = 1.0
    core[1:, 0] = corner
    core[1:, 1:] = torch.tensor(character, dtype=torch.float64)[index]
    return core


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))
