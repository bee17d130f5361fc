"""Types of the torch runtime, and its operators: which implementation a device gets.

    acc[r, o, p] = sum_{k in p} x_q[r, k] (w_q[o, k] - z_w[o, p])             exact
    part[r, o, g] = sum_{p in g} float(acc[r, o, p]) s_w[o, p] - z_x[r, g] row_sums[o, g]
    y[r, o] = sum_g part[r, o, g] s_x[r, g] + b[o]                            float32, then F

p: stretches of inputs in which neither side's scale changes; g: the groups of the input, one but
where it is rounded in groups. With one it is the simulation's formula to the letter.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from slmq_edge.quantization.rounding import Steps
from slmq_edge.scheme import Grid
from slmq_edge.torch_runtime.cache import Kept

REFERENCE, TRITON = "reference", "triton"
# |x_q| <= 128 and |w_q - z_w| <= 255 on grids of 8 bits: so many products fit 32 bits.
WIDEST = 33_000


@dataclass(frozen=True)
class Levels:
    """A rounded activation.

    integers: int8 [rows, width], levels of the grid (asymmetric: -128..127). scale: float32
    [rows, groups], or [1, 1] where it is static. zero: float32 whole numbers, shaped like scale;
    ``None`` on a symmetric grid. group: how many neighbours share a scale; ``None``: all.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor | None
    group: int | None = None


@dataclass(frozen=True)
class Packed:
    """An integer weight as it lies in memory.

    integers: int8 [out, in]; or 4 bits: uint8 [out, ceil(in / 2)], byte j of a row holds column 2j
    in its low nibble and 2j + 1 in its high one, each level + 8 (the last high nibble of an odd
    width is 8). bits: 4 or 8, how they lie. width: in. scale: float32 [out, groups]. zero: int16
    [out, groups], ``None`` where symmetric. group: inputs that share a scale; ``None``: all.
    row_sums: float32 [out], of the weight's values, which is what one unit of the input's zero
    point adds; [out, input groups] where the input is rounded in groups; ``None`` where it has no
    zero point.
    """

    integers: Tensor
    bits: int
    width: int
    scale: Tensor
    zero: Tensor | None
    group: int | None
    row_sums: Tensor | None

    @property
    def rows(self) -> int:
        """Out."""
        return int(self.integers.shape[0])


class Ops(Protocol):
    """The operators: modules with these functions. F: float16, bfloat16 or float32.

    Matrices are [rows, width]. Inputs are rounded in float32, whatever F is.
    """

    NAME: str

    def round_rows(self, x: Tensor, grid: Grid, static: Steps | None) -> Levels:
        """Levels equal, to the bit, to those of `quantization.rounding`.

        static: scale and zero point [1] of a grid for the whole tensor.
        """

    def normed(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """RMSNorm: F [rows, width], gain F [width] -> F."""

    def normed_rounded(self, x: Tensor, gain: Tensor, eps: float, grid: Grid) -> Levels:
        """round_rows(normed(x)), on a grid whose ranges are the rows' own."""

    def gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up: F [rows, 2 n], gates first -> F [rows, n]."""

    def gated_rounded(self, gate_up: Tensor, grid: Grid) -> Levels:
        """round_rows(gated(gate_up)), on a grid whose ranges are the rows' own."""

    def linear(self, x: Levels, weight: Packed, bias: Tensor | None, floats: torch.dtype) -> Tensor:
        """The integer product, scaled back in float32: ``floats`` [rows, out].

        bias: [out] of any float type, added in float32.
        """

    def weight_only(self, x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
        """F [rows, in] times the weight's values, rounded to F: F [rows, out]."""

    def turned_stored(
        self,
        heads: Tensor,
        cosine: Tensor,
        sine: Tensor,
        start: Tensor,
        keys: Kept,
        values: Kept,
        query: Grid | None,
        gains: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """See `reference_attention`, as for all that follow."""

    def turned(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor: ...

    def stored(
        self, key: Tensor, value: Tensor, start: Tensor, keys: Kept, values: Kept
    ) -> None: ...

    def attend(self, query: Tensor, keys: Kept, values: Kept, start: Tensor) -> Tensor: ...


def choose(device: torch.device | str) -> Ops:
    """Triton's operators on a GPU where Triton is installed; else those of plain torch."""
    package = __name__.rpartition(".")[0]
    own = f"{package}.{TRITON}_ops"
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and importlib.util.find_spec(TRITON) and importlib.util.find_spec(own):
        return cast("Ops", importlib.import_module(own))
    return cast("Ops", importlib.import_module(f"{package}.{REFERENCE}"))
