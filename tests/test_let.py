"""LET's scales of channels: where they start, and that folding them changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from slmq_edge.anatomy import K_NORM, Q_NORM, Anatomy, K, O, Q
from slmq_edge.decoder import Decoder, logits
from slmq_edge.quantization import let
from tests.decoders import (
    LLAMA,
    QWEN2,
    QWEN3,
    QWEN3_BIASED,
    random_decoder,
    random_qwen2,
    tokens_for,
)

ALONE = dataclasses.replace(LLAMA, heads=3, kv_heads=3)  # every query head has its KV head
PLAIN_HEADS = {"one KV head": LLAMA, "two KV heads": QWEN2, "a KV head each": ALONE}
NORMED_HEADS = {"normed heads": QWEN3, "normed heads and biases": QWEN3_BIASED}
SHAPES = PLAIN_HEADS | NORMED_HEADS


def some_scales(shape: Anatomy) -> let.Scales:
    """Of either sign, between 1/2 and 2."""
    generator = torch.Generator().manual_seed(4)

    def one(*size: int) -> torch.Tensor:
        noise = torch.rand(size, generator=generator, dtype=torch.float64)
        sign = torch.where(torch.rand(size, generator=generator) < 0.2, -1.0, 1.0)
        return sign * 4 ** (noise - 0.5)

    return {
        "s1": one(shape.hidden),
        "s2": one(shape.hidden),
        "s3": one(shape.kv_width),
        "s4": one(1 if shape.qk_norm else shape.kv_heads, shape.head_dim // 2),
    }


def disturbance(model: Decoder, changed: dict[str, torch.Tensor]) -> float:
    """How much the logits move, relative to the largest."""
    other = dataclasses.replace(model, weights=model.weights | changed)
    tokens = tokens_for(model)
    before, after = logits(model, tokens), logits(other, tokens)
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize("name", SHAPES)
def test_folded_scales_change_nothing(name: str) -> None:
    model = random_decoder(SHAPES[name], seed=3).to(torch.float64)
    shape, scales = model.anatomy, some_scales(model.anatomy)
    changed: dict[str, torch.Tensor] = {}
    for layer in range(shape.layers):
        changed |= let.fold(shape, layer, model.weights, scales)
    assert disturbance(model, changed) < 1e-12
    for name, tensor in changed.items():
        assert not torch.equal(tensor, model.weights[name])


def scaled_rows(model: Decoder, per_kv_channel: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of W_k times a factor each, and those of W_q that meet them divided by it."""
    shape, weights = model.anatomy, model.weights
    by_head = per_kv_channel.view(shape.kv_heads, 1, -1)
    per_query = by_head.repeat(1, shape.heads // shape.kv_heads, 1).flatten()
    changed = {}
    for layer in range(shape.layers):
        for linear, factor in ((K, per_kv_channel), (Q, 1 / per_query)):
            key = shape.block(layer, linear)
            changed[f"{key}.weight"] = weights[f"{key}.weight"] * factor[:, None]
            if f"{key}.bias" in weights:
                changed[f"{key}.bias"] = weights[f"{key}.bias"] * factor
    return changed


@pytest.mark.parametrize("name", PLAIN_HEADS)
def test_untied_pairs_of_keys_change_the_model(name: str) -> None:
    """As the released code leaves them (METHODS 2.3): without rotary pairs tied, it is not LET."""
    model = random_decoder(PLAIN_HEADS[name], seed=3).to(torch.float64)
    free = torch.linspace(0.5, 1.5, model.anatomy.kv_width, dtype=torch.float64)
    assert disturbance(model, scaled_rows(model, free)) > 1e-4


@pytest.mark.parametrize("name", NORMED_HEADS)
def test_norms_of_heads_take_scales_in_their_gains_alone(name: str) -> None:
    """By rows of W_q and W_k the model changes, pairs tied or not; by gains where they are not."""
    model = random_decoder(NORMED_HEADS[name], seed=3).to(torch.float64)
    shape, weights = model.anatomy, model.weights
    half = torch.linspace(0.5, 1.5, shape.head_dim // 2, dtype=torch.float64)
    tied, free = torch.cat([half, half]), torch.cat([half, half.flip(0)])
    assert disturbance(model, scaled_rows(model, tied.repeat(shape.kv_heads))) > 1e-4

    def gains(scale: torch.Tensor) -> dict[str, torch.Tensor]:
        changed = {}
        for layer in range(shape.layers):
            for part, factor in ((Q_NORM, 1 / scale), (K_NORM, scale)):
                key = f"{shape.block(layer, part)}.weight"
                changed[key] = weights[key] * factor
        return changed

    assert disturbance(model, gains(tied)) < 1e-12
    assert disturbance(model, gains(free)) > 1e-4


def test_scales_start_where_smoothing_would_put_them() -> None:
    """By hand: sqrt(8 / 2), sqrt(1 / 4), and 1e-5 where nothing was ever seen and W is large."""
    found = let.start(torch.tensor([8.0, 1.0, 0.0]), torch.tensor([2.0, 4.0, 1e6]), alpha=0.5)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.5, 1e-5]))
    moved = let.start(torch.tensor([16.0]), torch.tensor([16.0]), alpha=0.75)
    assert moved.item() == pytest.approx(8 / 2)


def test_every_scale_starts_from_its_own_linear() -> None:
    model = random_qwen2()
    shape, weights = model.anatomy, model.weights
    generator = torch.Generator().manual_seed(0)
    absmax = {
        linear: torch.rand(shape.shape(linear)[1], generator=generator) + 0.1
        for linear in let.KEY_LINEAR.values()
    }
    scales = let.initial_scales(shape, 0, weights, absmax, alpha=0.5)
    for name, linear in (("s1", Q), ("s2", "mlp.up_proj")):
        weight = weights[f"model.layers.0.{linear}.weight"]
        expected = (absmax[linear] / weight.abs().amax(0)).sqrt()
        torch.testing.assert_close(scales[name], expected)
    # Channel 5 of KV head 1 serves query heads 3, 4 and 5.
    served = [head * shape.head_dim + 5 for head in (3, 4, 5)]
    columns = weights[f"model.layers.0.{O}.weight"][:, served]
    ratio = absmax[O][served].max() / columns.abs().max()
    assert scales["s3"][shape.head_dim + 5].item() == pytest.approx(ratio.sqrt().item())
    assert torch.equal(scales["s4"], torch.ones(shape.kv_heads, shape.head_dim // 2))


def test_a_scale_near_zero_is_moved_and_its_gradient_is_not() -> None:
    scale = torch.tensor([0.0, 1e-3, -1e-3, -0.5, 2.0], requires_grad=True)
    far = let.away_from_zero(scale)
    torch.testing.assert_close(far, torch.tensor([0.01, 0.01, -0.01, -0.5, 2.0]))
    (gradient,) = torch.autograd.grad((3 * far).sum(), scale)
    assert gradient.tolist() == [3.0] * 5
