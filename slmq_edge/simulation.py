"""The simulation: what a quantized model computes, in torch, to the letter of its scheme.

    x_q = round(x / s_x) per token;   y = float(x_q W_q^T) * s_w * s_x + b

The integer products are exact. Every exporter is held to these numbers: with the same quantized
input its integers are equal, and its logits differ by no more than float rounding explains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder, logits
from slmq_edge.quantization.rounding import integer_matmul, quantize
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
            tensors[f"{names.EMBED}.weight"] = table.dequantized
        self.checkpoint = checkpoint
        self.model = Decoder(checkpoint.anatomy, tensors).to(dtype, device)
        self._dtype, self._device = dtype, device

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of tokens int64 [batch, length]."""
        with torch.no_grad():
            return logits(self.model, tokens.to(self._device), self.project)

    def project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Quantize the shared input once, multiply integers, scale back."""
        if self.checkpoint.integer_weight(linears[0]) is None:
            return self.model.project(inputs, linears)
        integers, scale = quantize(inputs, self._activations)
        return tuple(self._multiply(integers, scale, name) for name in linears)

    @property
    def _activations(self) -> Grid:
        grid = self.checkpoint.scheme.activations
        assert grid is not None, "integer weights only meet integer activations"
        return grid

    def _multiply(self, integers: Tensor, scale: Tensor, linear: str) -> Tensor:
        weight = self.checkpoint.integer_weight(linear)
        assert weight is not None, "linears that share an input share a precision"
        values = weight.integers.to(self._device, self._dtype)
        products = integer_matmul(integers, values).to(self._dtype)
        scaled = products * weight.scale.to(self._device, self._dtype) * scale
        bias = self.model.weights.get(f"{linear}.bias")
        return scaled if bias is None else scaled + bias


def token_log_probabilities(model_logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(tokens[:, 1:]) [batch, length - 1] under ``model_logits`` [batch, length, vocab]."""
    log_probabilities = torch.log_softmax(model_logits[:, :-1].double(), dim=-1)
    return log_probabilities.gather(-1, tokens[:, 1:, None].to(model_logits.device))[..., 0]
