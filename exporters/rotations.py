"""Hadamard rotations that the graph takes as it runs (METHODS 3.1, 3.7).

R3    a head's row x [head_dim]:  x R                  one small matrix, shared by all heads
R4    down_proj's input x [n]:    A X B^T / sqrt(n)    X is x as [len(A), len(B)]
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from slmq_edge.exporters.graph import Builder
from slmq_edge.quantization.hadamard import factors, rotate_last


def of_heads(head_dim: int) -> NDArray[np.float32]:
    """R of ``rotate_last(x) = x R``, float32 [head_dim, head_dim].

    Whole, not in factors: for rows this short one product costs less than two and their reshapes.
    """
    matrix: NDArray[np.float32] = (
        rotate_last(torch.eye(head_dim, dtype=torch.float64)).float().numpy()
    )
    return matrix


def rotate_rows(build: Builder, x: ir.Value, width: int, name: str) -> tuple[ir.Value, int]:
    """``rotate_last`` of ``x`` [batch, new, width], and its multiply-adds for one token."""
    found = factors(width)
    assert found is not None, "a method rotates only where a Hadamard matrix is known"
    first, second = (matrix.numpy() for matrix in found)
    tall = build.constant([0, 0, len(first), len(second)], np.int64)
    rows = build.op("Reshape", x, tall, name=f"{name}.tall")
    left = build.float_constant(first)
    rows = build.op("MatMul", left, rows, name=f"{name}.left")
    right = build.float_constant(second.T / math.sqrt(width))
    rows = build.op("MatMul", rows, right, name=f"{name}.right")
    flat = build.constant([0, 0, width], np.int64)
    rotated = build.op("Reshape", rows, flat, name=f"{name}.rotated")
    return rotated, width * (len(first) + len(second))
