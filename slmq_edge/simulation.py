"""The simulation: what a quantized model computes, in torch, to the letter of its scheme.

    x_q = round(x / s_x) + z_x              by token, or by tensor with the scale calibrated
    y = (sum_g float(x_q (W_q - z_w)^T)_g s_w,g - z_x sum(W)) s_x + b           g: groups of inputs

The integer products are exact. Every exporter is held to these numbers: with the same quantized
input its integers are equal, and its logits differ by no more than float rounding explains.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.decoder import Decoder, logits
from slmq_edge.quantization.rounding import (
    Rounded,
    Steps,
    integer_matmul,
    operands_of,
    quantize,
    to_levels,
)
from slmq_edge.scheme import Grid


class Simulation:
    """A checkpoint as a callable model of ``dtype`` (float32 as the artifact, or float64)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        tensors = dict(checkpoint.tensors)
        table = checkpoint.integers.get(names.EMBED)
        if table is not None:
            tensors[f"{names.EMBED}.weight"] = _at(table, dtype).dequantized
        self.checkpoint = checkpoint
        model = Decoder(checkpoint.anatomy, tensors, checkpoint.online)
        self.model = model.to(dtype, device)
        self._dtype, self._device = dtype, device

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of tokens int64 [batch, length]."""
        with torch.no_grad():
            operands = operands_of(self.checkpoint.scheme)
            return logits(self.model, tokens.to(self._device), self.project, operands)

    def project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Quantize the shared input once, multiply integers, scale back."""
        found = [self.checkpoint.integer_weight(name) for name in linears]
        weights = [None if weight is None else _at(weight, self._dtype) for weight in found]
        if weights[0] is None:
            return self.model.project(inputs, linears)
        grid = self.checkpoint.scheme.input_grid(linears[0])
        x = None if grid is None else self._round(inputs, grid, linears[0])
        outputs = []
        for name, weight in zip(linears, weights, strict=True):
            assert weight is not None, "linears that share an input share a precision"
            if x is None or grid is None:
                out = inputs @ self._float(weight).mT
            elif grid.group is not None:
                out = x.values(grid) @ self._float(weight).mT
            else:
                out = self._multiply(x, weight)
            bias = self.model.weights.get(f"{name}.bias")
            outputs.append(out if bias is None else out + bias)
        return tuple(outputs)

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


def _at(weight: IntegerWeight, dtype: torch.dtype) -> IntegerWeight:
    """The weight whose products with its scales are rounded to ``dtype``, not to float32."""
    return dataclasses.replace(weight, scale=weight.scale.to(dtype))


def token_log_probabilities(model_logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(tokens[:, 1:]) [batch, length - 1] under ``model_logits`` [batch, length, vocab]."""
    log_probabilities = torch.log_softmax(model_logits[:, :-1].double(), dim=-1)
    return log_probabilities.gather(-1, tokens[:, 1:, None].to(model_logits.device))[..., 0]
