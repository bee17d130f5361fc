"""The simulation: what a quantized model computes, in torch, to the letter of its scheme.

    x_q = round(x / s_x) + z_x              by token, or by tensor with the scale calibrated
    y = (sum_g float(x_q (W_q - z_w)^T)_g s_w,g - z_x sum(W)) s_x + b           g: groups of inputs

The integer products are exact. Every exporter is held to these numbers: with the same quantized
input its integers are equal, and its logits differ by no more than float rounding explains.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.decoder import Decoder, hidden_states
from slmq_edge.quantization.rounding import (
    Rounded,
    Steps,
    integer_matmul,
    operands_of,
    quantize,
    to_levels,
)
from slmq_edge.scheme import Grid

# Rows of a weight that are multiplied at a time: all but a vocabulary's.
MOST_ROWS = 16384


class Simulation:
    """A checkpoint as a callable model of ``dtype``: of the artifact's floats, or float64.

    In float16, scales and integer products are float32, as they are in the artifact; what comes of
    them is rounded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        checkpoint = moved(checkpoint, device)
        self.checkpoint = checkpoint
        self._floats, self._device = dtype, device
        self._dtype = torch.float32 if dtype == torch.float16 else dtype
        table = checkpoint.integers.get(names.EMBED)
        tables = {} if table is None else {f"{names.EMBED}.weight": _at(table, self._dtype)}
        read = _ReadAs(checkpoint.tensors, tables, dtype, device)
        self.model = Decoder(checkpoint.anatomy, read, checkpoint.online)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of tokens int64 [batch, length]."""
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads, [batch, length, hidden], of tokens int64 [batch, length]."""
        with torch.no_grad():
            operands = operands_of(self.checkpoint.scheme)
            return hidden_states(self.model, tokens.to(self._device), self.project, operands)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of what the head reads [..., hidden]: as many as memory allows."""
        with torch.no_grad():
            return self.project(hidden, (names.HEAD,))[0]

    def project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Quantize the shared input once, multiply integers, scale back."""
        if self.checkpoint.integer_weight(linears[0]) is None:
            return self.model.project(inputs, linears)
        x = self.rounded(inputs, linears[0])
        return tuple(self.multiply(inputs, x, name) for name in linears)

    def rounded(self, inputs: Tensor, first: str) -> Rounded | None:
        """``inputs`` as the linears round them of which ``first`` reads them first; or float."""
        grid = self.checkpoint.scheme.input_grid(first)
        return None if grid is None else self._round(inputs.to(self._dtype), grid, first)

    def multiply(self, inputs: Tensor, x: Rounded | None, linear: str) -> Tensor:
        """``x``, or ``inputs`` where it is ``None``, times a linear's integers, plus its bias."""
        found = self.checkpoint.integer_weight(linear)
        assert found is not None, "linears that share an input are all integers, or none is"
        weight, grid = _at(found, self._dtype), self.checkpoint.scheme.input_grid(linear)
        pieces = (self._product(inputs, x, grid, piece) for piece in weight.split(MOST_ROWS))
        out = torch.cat(list(pieces), dim=-1)
        bias = self.model.weights.get(f"{linear}.bias")
        return (out if bias is None else out + bias).to(self._floats)

    def _product(
        self, inputs: Tensor, x: Rounded | None, grid: Grid | None, weight: IntegerWeight
    ) -> Tensor:
        if x is None or grid is None:
            return inputs @ self._float(weight).to(self._floats).mT
        if grid.group is not None:
            return x.values(grid) @ self._float(weight).mT
        return self._multiply(x, weight)

    def _round(self, inputs: Tensor, grid: Grid, linear: str) -> Rounded:
        if grid.per == "token":
            return quantize(inputs, grid)
        stored = self.checkpoint.inputs[linear]
        scale, zero = stored.scale, stored.zero
        steps = Steps(self._here(scale), None if zero is None else self._here(zero))
        return Rounded(to_levels(inputs, steps, grid), steps)

    def _multiply(self, x: Rounded, weight: IntegerWeight) -> Tensor:
        """The integer product of a weight and an input with one scale a row."""
        centred, scale = self._here(weight.centred), self._here(weight.scale)
        width = weight.grid.group or centred.shape[1]
        total: Tensor | float = 0.0
        pieces = zip(
            torch.split(x.integers, width, -1), torch.split(centred, width, 1), strict=True
        )
        for group, (x_q, w_q) in enumerate(pieces):
            total = total + integer_matmul(x_q, w_q).to(self._dtype) * scale[:, group]
        if x.steps.zero is not None:
            total = total - x.steps.zero * self._here(weight.row_sums)
        return total * x.steps.scale

    def _float(self, weight: IntegerWeight) -> Tensor:
        return self._here(weight.dequantized)

    def _here(self, t: Tensor) -> Tensor:
        return t.to(self._device, self._dtype)


def moved(checkpoint: Checkpoint, device: torch.device | str) -> Checkpoint:
    """The checkpoint with its tensors on a device, where none of them has to be sent again."""
    if torch.device(device).type == "cpu":
        return checkpoint
    return dataclasses.replace(
        checkpoint,
        integers={name: weight.to(device) for name, weight in checkpoint.integers.items()},
        tensors={name: tensor.to(device) for name, tensor in checkpoint.tensors.items()},
    )


class _ReadAs(dict[str, Tensor]):
    """Tensors by name, each converted as it is read: no second model is held in memory.

    tables: integer weights that are read as floats.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        tables: dict[str, IntegerWeight],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(tensors)
        self._tables, self._dtype, self._device = tables, dtype, device

    def __getitem__(self, name: str) -> Tensor:
        table = self._tables.get(name)
        found = super().__getitem__(name) if table is None else table.dequantized
        return found.to(self._device, self._dtype)

    def get(self, name: str, default: Any = None) -> Any:
        return default if name not in self else self[name]  # noqa: SIM401  get is what this is


def _at(weight: IntegerWeight, dtype: torch.dtype) -> IntegerWeight:
    """The weight whose products with its scales are rounded to ``dtype``, not to float32."""
    return dataclasses.replace(weight, scale=weight.scale.to(dtype))


def token_log_probabilities(model_logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(tokens[:, 1:]) [batch, length - 1] under ``model_logits`` [batch, length, vocab]."""
    log_probabilities = torch.log_softmax(model_logits[:, :-1].double(), dim=-1)
    return log_probabilities.gather(-1, tokens[:, 1:, None].to(model_logits.device))[..., 0]
