"""Integer weights as they lie in memory: int8, or two levels of 4 bits a byte.

Neighbours share a byte, so that a kernel that reads a row reads it from left to right; on disk
(`slmq_edge.packing`) a byte holds what is half a tensor apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.errors import Unsupported
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime.ops import WIDEST, Packed

HALF_BYTE = 8


def packed(weights: Sequence[IntegerWeight], reads: Grid | None = None) -> Packed:
    """Weights of one grid that read one input, as one: their rows under each other.

    Args:
        weights: all of one grid and width.
        reads: the grid of what they multiply; ``None``: floats.

    Raises:
        Unsupported: the weight is so wide that a sum of products need not fit 32 bits.
    """
    grid, width = weights[0].grid, weights[0].integers.shape[1]
    if width > WIDEST:
        raise Unsupported(
            f"a linear of {width} inputs: its integer sums need more than 32 bits; the torch "
            f"runtime takes up to {WIDEST}"
        )
    integers = torch.cat([weight.integers for weight in weights])
    bits = 4 if grid.bits <= 4 else 8
    zeros = [weight.zero for weight in weights if weight.zero is not None]
    asymmetric = reads is not None and not reads.symmetric
    return Packed(
        integers=nibbles(integers) if bits == 4 else integers.contiguous(),
        bits=bits,
        width=width,
        scale=torch.cat([weight.scale for weight in weights]),
        zero=torch.cat(zeros) if zeros else None,
        group=grid.group,
        row_sums=torch.cat([_row_sums(w, reads) for w in weights]) if asymmetric else None,
    )


def nibbles(levels: Tensor) -> Tensor:
    """Levels -8..7, int8 [out, in] -> uint8 [out, ceil(in / 2)], the left one low."""
    shifted = (levels + HALF_BYTE).to(torch.uint8)
    even = functional.pad(shifted, (0, shifted.shape[1] % 2), value=HALF_BYTE)
    return even[:, 0::2] | (even[:, 1::2] << 4)


def _row_sums(weight: IntegerWeight, reads: Grid | None) -> Tensor:
    """[out], or [out, groups] of an input that is rounded in groups."""
    if reads is None or reads.group is None:
        return weight.row_sums
    values = weight.dequantized.to(torch.float64)
    return torch.stack([part.sum(1) for part in torch.split(values, reads.group, 1)], 1).to(
        torch.float32
    )
