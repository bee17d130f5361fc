"""The simulation against plain mathematics: dequantize everything, multiply float64.

The reference is written in numpy, from the formulas of the scheme's and the checkpoint's
docstrings, and shares no code with what it judges.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slmq_edge import checkpoint as checkpoints
from slmq_edge.calibration import Calibration, Text
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Prepared, Task
from slmq_edge.scheme import TOKENS_8, WEIGHTS_4, WEIGHTS_8, Grid, Scheme
from slmq_edge.simulation import Simulation
from tests.decoders import checkpoint_of, random_llama, random_qwen2, random_qwen3, tokens_for

Floats = NDArray[np.float64]

UNEVEN = Grid(4, "channel", symmetric=False)
GROUPS = Grid(4, "channel", group=32)
TOKENS_UNEVEN = Grid(8, "token", symmetric=False)
TOKEN_GROUPS = Grid(8, "token", group=32)
TENSOR, TENSOR_UNEVEN = Grid(8, "tensor"), Grid(8, "tensor", symmetric=False)
FORMS = [
    Scheme("symmetric", WEIGHTS_8, TOKENS_8),
    Scheme("asymmetric weights", UNEVEN, TOKENS_8),
    Scheme("asymmetric 8-bit weights", Grid(8, "channel", symmetric=False), TOKENS_8),
    Scheme("zero out of range", Grid(4, "channel", symmetric=False, zero=False), TOKENS_8),
    Scheme("lowest level", Grid(4, "channel", lowest=True), TOKENS_8),
    Scheme("asymmetric activations", WEIGHTS_8, TOKENS_UNEVEN),
    Scheme("asymmetric both", UNEVEN, TOKENS_UNEVEN),
    Scheme("groups", GROUPS, TOKENS_8),
    Scheme("asymmetric groups", Grid(4, "channel", symmetric=False, group=32), TOKENS_UNEVEN),
    Scheme("static", WEIGHTS_8, TENSOR),
    Scheme("static, asymmetric", GROUPS, TENSOR_UNEVEN, range="percentile"),
    Scheme("static, least squares", WEIGHTS_4, TENSOR, head=WEIGHTS_8, range="mse"),
    Scheme("weights only", WEIGHTS_4, None),
    Scheme("weights only, groups", Grid(4, "channel", symmetric=False, group=32), None),
    Scheme("keys and values", WEIGHTS_8, TOKENS_8, kv=Grid(8, "token", symmetric=False)),
    Scheme("4-bit keys and values", WEIGHTS_8, TOKENS_8, kv=Grid(4, "token", group=4)),
    Scheme("queries", WEIGHTS_8, TOKENS_8, kv=TOKENS_8, query=TOKENS_8),
    Scheme("o_proj's groups", WEIGHTS_8, TOKENS_8, mixed=Grid(8, "token", group=12)),
    Scheme(
        "o_proj's asymmetric groups",
        GROUPS,
        TOKENS_UNEVEN,
        mixed=Grid(8, "token", symmetric=False, group=8),
    ),
    Scheme("integer head", WEIGHTS_8, TOKENS_8, head=WEIGHTS_8),
    Scheme("integer table", WEIGHTS_4, TOKENS_8, embedding=WEIGHTS_8),
    Scheme("integer head and table", WEIGHTS_8, TOKENS_UNEVEN, head=WEIGHTS_8, embedding=WEIGHTS_8),
    Scheme("table and head by groups", WEIGHTS_8, TOKENS_8, head=UNEVEN, embedding=GROUPS),
    Scheme("blocks, head of rows", GROUPS, TOKEN_GROUPS, head=WEIGHTS_8),
    Scheme("blocks, head in blocks", GROUPS, TOKEN_GROUPS, head=GROUPS),
    Scheme("head in blocks, table of rows", GROUPS, TOKEN_GROUPS, head=GROUPS, embedding=WEIGHTS_8),
]
MODELS: list[Callable[[], Decoder]] = [random_llama, random_qwen2, random_qwen3]


def made(model: Decoder, form: Scheme) -> Checkpoint:
    tokens = Calibration(Text("random", ()), tokens_for(model, 4, 32, seed=3))
    return checkpoint_of(Prepared(model), Task(form, None, tokens), "none")


class Reference:
    """A checkpoint in float64: no integer is ever multiplied."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.shape, self.scheme = checkpoint.anatomy, checkpoint.scheme
        self.inputs = checkpoint.inputs
        self.weights = {name: t.double().numpy() for name, t in checkpoint.tensors.items()}
        for name, weight in checkpoint.integers.items():
            self.weights[f"{name}.weight"] = self.dequantized(weight)
        if self.shape.tied and "lm_head" not in checkpoint.integers:
            self.weights["lm_head.weight"] = self.weights["model.embed_tokens.weight"]
        head = checkpoint.integer_weight("lm_head")
        self.float_head = head is None
        self.head_in_rows = head is not None and head.grid.group is None

    @staticmethod
    def dequantized(weight: Any) -> Floats:
        integers = weight.integers.double().numpy()
        width = weight.grid.group or integers.shape[1]
        for group, start in enumerate(range(0, integers.shape[1], width)):
            part = integers[:, start : start + width]  # a view
            if weight.zero is not None:
                part -= weight.zero[:, [group]].double().numpy()
            part *= weight.scale[:, [group]].double().numpy()
        return np.asarray(integers, np.float64)

    def rounded(self, x: Floats, grid: Grid | None) -> Floats:
        """By the range of every row, group by group."""
        if grid is None:
            return x
        out = np.empty_like(x)
        width = grid.group or x.shape[-1]
        for start in range(0, x.shape[-1], width):
            part = x[..., start : start + width]
            low, high = part.min(-1, keepdims=True), part.max(-1, keepdims=True)
            if grid.symmetric:
                scale = np.maximum(np.maximum(-low, high), 1e-5) / grid.top
                levels = np.clip(np.round(part / scale), -grid.top, grid.top)
                out[..., start : start + width] = levels * scale
            else:
                low, high = np.minimum(low, 0), np.maximum(high, 0)
                scale = np.maximum(high - low, 1e-5) / (2**grid.bits - 1)
                zero = np.round(-low / scale)
                levels = np.clip(np.round(part / scale) + zero, 0, 2**grid.bits - 1)
                out[..., start : start + width] = (levels - zero) * scale
        return out

    def input(self, x: Floats, linear: str) -> Floats:
        grid = self.scheme.activations
        if linear == "lm_head" and self.float_head:
            return x
        if linear == "lm_head" and self.head_in_rows and grid is not None:
            grid = Grid(grid.bits, grid.per, grid.symmetric)
        if linear.endswith("o_proj") and self.scheme.mixed is not None:
            grid = self.scheme.mixed
        if grid is None or grid.per == "token":
            return self.rounded(x, grid)
        steps = self.inputs[linear]
        scale = float(steps.scale)
        zero = 0.0 if steps.zero is None else float(steps.zero)
        bottom = -grid.top if grid.symmetric else -grid.top - 1
        return (np.clip(np.round(x / scale) + zero, bottom, grid.top) - zero) * scale

    def linear(self, x: Floats, name: str) -> Floats:
        bias = self.weights.get(f"{name}.bias", np.zeros(()))
        return np.asarray(x @ self.weights[f"{name}.weight"].T + bias)

    def norm(self, x: Floats, name: str) -> Floats:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + self.shape.norm_eps) * self.weights[f"{name}.weight"])

    def turned(self, x: Floats) -> Floats:
        """Rotary embedding of [batch, heads, length, head_dim], as complex numbers."""
        half = self.shape.head_dim // 2
        angles = np.outer(np.arange(x.shape[2]), self.shape.rope.frequencies(2 * half))
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=-1)

    def attention(self, x: Floats, at: str) -> Floats:
        shape, (batch, length, _) = self.shape, x.shape
        x = self.input(x, f"{at}.q_proj")

        def heads(name: str, count: int) -> Floats:
            out = self.linear(x, f"{at}.{name}_proj")
            out = out.reshape(batch, length, count, shape.head_dim)
            if f"{at}.{name}_norm.weight" in self.weights:
                out = self.norm(out, f"{at}.{name}_norm")
            return out.transpose(0, 2, 1, 3)

        query = self.rounded(self.turned(heads("q", shape.heads)), self.scheme.query)
        key = self.rounded(self.turned(heads("k", shape.kv_heads)), self.scheme.kv)
        value = self.rounded(heads("v", shape.kv_heads), self.scheme.kv)
        shared = shape.heads // shape.kv_heads
        key, value = np.repeat(key, shared, axis=1), np.repeat(value, shared, axis=1)
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(shape.head_dim)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ value
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, length, shape.query_width)
        return self.linear(self.input(mixed, f"{at}.o_proj"), f"{at}.o_proj")

    def mlp(self, x: Floats, at: str) -> Floats:
        x = self.input(x, f"{at}.gate_proj")
        gate, up = self.linear(x, f"{at}.gate_proj"), self.linear(x, f"{at}.up_proj")
        product = gate / (1 + np.exp(-gate)) * up
        return self.linear(self.input(product, f"{at}.down_proj"), f"{at}.down_proj")

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in range(self.shape.layers):
            at = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
            x = x + self.mlp(self.norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp")
        return self.linear(self.input(self.norm(x, "model.norm"), "lm_head"), "lm_head")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("make", MODELS)
def test_the_simulation_is_the_mathematics(make: Callable[[], Decoder], form: Scheme) -> None:
    model = make()
    checkpoint = made(model, form)
    tokens = tokens_for(model)
    expected = Reference(checkpoint).logits(tokens.numpy())
    found = Simulation(checkpoint, torch.float64).logits(tokens).numpy()
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("make", MODELS)
def test_every_form_round_trips_bit_by_bit(
    make: Callable[[], Decoder], form: Scheme, tmp_path: Path
) -> None:
    before = made(make(), form)
    checkpoints.save(before, tmp_path / "c")
    after = checkpoints.load(tmp_path / "c")
    assert (after.scheme, after.anatomy) == (before.scheme, before.anatomy)
    assert set(after.integers) == set(before.integers)
    for name, weight in before.integers.items():
        assert after.integers[name].grid == weight.grid
        same(after.integers[name].integers, weight.integers)
        same(after.integers[name].scale, weight.scale)
        same(after.integers[name].zero, weight.zero)
    assert set(after.inputs) == set(before.inputs)
    for name, steps in before.inputs.items():
        same(after.inputs[name].scale, steps.scale)
        same(after.inputs[name].zero, steps.zero)
    assert set(after.tensors) == set(before.tensors)
    for name, tensor in before.tensors.items():
        same(after.tensors[name], tensor)


def same(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_the_reference_can_fail() -> None:
    """One level of one weight is seen."""
    model = random_qwen2()
    checkpoint, tokens = made(model, FORMS[0]), tokens_for(model)
    weight = checkpoint.integers["model.layers.1.self_attn.v_proj"]
    found = Simulation(checkpoint, torch.float64).logits(tokens).numpy()
    weight.integers[3, 5] -= weight.integers[3, 5].sign() or -1
    expected = Reference(checkpoint).logits(tokens.numpy())
    assert np.abs(found - expected).max() > 1e-6 * np.abs(expected).max()
