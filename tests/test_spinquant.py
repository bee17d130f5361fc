"""SpinQuant: what is learned, on which stream, and which rotations are left for run time."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import UsageError
from slmq_edge.quantization import (
    Task,
    gptq,
    learning,
    rotations,
    round_searched,
    round_to_nearest,
    spinquant,
)
from slmq_edge.quantization.finished import Finished
from slmq_edge.quantization.learning import Schedule
from slmq_edge.quantization.rotations import Rotations
from slmq_edge.quantization.spinquant import Settings
from slmq_edge.scheme import Grid, Scheme, scheme
from tests.decoders import DECODERS, random_llama, random_qwen2, random_qwen3, tokens_for
from tests.test_methods import calibration_for, ignore

W4A8 = scheme("w4a8")
EVERYTHING = dataclasses.replace(
    scheme("w4a8-g32"),
    activations=Grid(8, "token", symmetric=False),
    kv=Grid(8, "token", symmetric=False),
)


def absorbed(make: Callable[[], Decoder], dtype: torch.dtype = torch.float32) -> Decoder:
    model = make().to(dtype)
    rotations.absorb_gains(model)
    return model


def in_double(found: Rotations) -> Rotations:
    return Rotations(found.r1.double().requires_grad_(), found.r2.double().requires_grad_())


@pytest.mark.parametrize("make", [random_qwen2, random_llama, random_qwen3])
@pytest.mark.parametrize("settings", [{}, {"learn_weights": "target"}, {"rounding": "nearest"}])
def test_float_output_is_unchanged_with_everything_on(
    make: Callable[[], Decoder], settings: dict[str, str]
) -> None:
    model = make().to(torch.float64)
    tokens = tokens_for(model)
    before = logits(model, tokens)
    chosen = Settings(steps=2, **settings)  # type: ignore[arg-type]  # words
    prepared = spinquant.prepare(model, Task(EVERYTHING, chosen, calibration_for(model))).model
    assert prepared.online.keys
    assert prepared.online.down == (make is not random_llama)  # no Hadamard matrix of order 63
    assert (logits(prepared, tokens) - before).abs().max() <= 1e-9 * before.abs().max()


@pytest.mark.parametrize("make", [random_qwen2, random_llama, random_qwen3])
def test_the_unrotated_stream_learns_the_same(make: Callable[[], Decoder]) -> None:
    """METHODS 4.3: the same loss, and the same gradient along the rotations, as rotated weights."""
    model = absorbed(make, torch.float64)
    weights_in_float = dataclasses.replace(EVERYTHING, weights=None)
    tokens = tokens_for(model, 1, 20)
    start = in_double(rotations.initial_rotations(model.anatomy, seed=0).orthogonal())
    losses: list[float] = []
    along: list[list[torch.Tensor]] = []
    for loss_of in (learning.loss_of_activations, learning.loss_of_target):
        loss = loss_of(model, weights_in_float)(start, tokens)
        gradients = torch.autograd.grad(loss, (start.r1, start.r2))
        pulled = [r.detach().mT @ g for r, g in zip((start.r1, start.r2), gradients, strict=True)]
        losses.append(loss.item())
        along.append([p - p.mT for p in pulled])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for ours, theirs in zip(*along, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_the_chunked_loss_is_the_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_qwen2().to(torch.float64)
    tokens = tokens_for(model, 2, 24)
    plain = functional.cross_entropy(logits(model, tokens)[:, :-1].mT, tokens[:, 1:])
    monkeypatch.setattr(learning, "CHUNK", 7)
    chunked = learning.next_token_loss(model, tokens, model.project)
    assert chunked.item() == pytest.approx(plain.item(), rel=1e-12)


def learned(model: Decoder, steps: int, precision: Scheme, tokens: torch.Tensor) -> Rotations:
    start = rotations.initial_rotations(model.anatomy, seed=0)
    loss_of = learning.loss_of_target(model, precision)
    return learning.learn(loss_of, start, tokens, Schedule(steps, 1.5, 1.0), ignore)


def test_learned_rotations_lower_the_quantized_loss() -> None:
    model = absorbed(DECODERS["stories260K"])
    tokens = tokens_for(model, 8, 64, seed=3)
    loss = learning.loss_of_target(model, W4A8)
    start = rotations.initial_rotations(model.anatomy, seed=0)
    assert loss(learned(model, 30, W4A8, tokens), tokens) < loss(start, tokens) - 0.01


def test_rotations_stay_orthogonal_while_learning() -> None:
    model = absorbed(random_qwen2)
    start = rotations.initial_rotations(model.anatomy, seed=0)
    found = learned(model, 10, W4A8, tokens_for(model, 2, 16))
    for rotation in (found.r1, *found.r2):
        assert (rotation @ rotation.mT - torch.eye(len(rotation))).abs().max() < 1e-4
    assert not torch.equal(found.r1, start.r1)


def prepared_with(make: Callable[[], Decoder], wanted: Scheme, **settings: object) -> Decoder:
    model = make()
    chosen = Settings(steps=0, **settings)  # type: ignore[arg-type]  # by name
    return spinquant.prepare(model, Task(wanted, chosen, calibration_for(model))).model


def test_online_rotations_are_auto() -> None:
    assert prepared_with(random_qwen2, W4A8).online.down
    assert not prepared_with(random_qwen2, W4A8).online.keys  # keys are not rounded
    assert not prepared_with(random_qwen2, W4A8, online=False).online.down


def test_an_order_that_is_not_constructed_is_noted() -> None:
    model = random_llama()
    notes: list[str] = []
    task = Task(W4A8, Settings(steps=0), calibration_for(model), note=notes.append)
    assert not spinquant.prepare(model, task).model.online.down
    assert notes == [
        "no online rotation of 63 (R4, ffn): no Hadamard matrix of that order is constructed"
    ]


def test_an_order_that_is_asked_for_and_not_constructed_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"order 63 \(R4, ffn\) is constructed"):
        prepared_with(random_llama, W4A8, online=True)


def test_rotated_inputs_of_down_have_smaller_peaks() -> None:
    """What R4 is for: the peak of a token's silu * up over its root mean square."""
    model = DECODERS["demo-llama"]()
    tokens = tokens_for(model, 2, 64)

    def peak(found: Decoder) -> float:
        seen: list[torch.Tensor] = []

        def project(x: torch.Tensor, linears: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
            if linears[0].endswith("down_proj"):
                seen.append((x.abs().amax(-1) / x.square().mean(-1).sqrt()).mean())
            return found.project(x, linears)

        with torch.no_grad():
            logits(found, tokens, project)
        return float(torch.stack(seen).mean())

    before = peak(model)
    assert peak(prepared_with(DECODERS["demo-llama"], W4A8)) < 0.6 * before


def test_the_settings_say_which_weights_are_learned_with() -> None:
    assert not Settings().learns_target(W4A8)
    assert Settings().learns_target(scheme("w4a16"))  # else nothing would be rounded
    assert Settings(rounding="nearest").learns_target(W4A8)
    assert Settings(learn_weights="target").learns_target(W4A8)


def test_weights_at_16_bits_and_float_inputs_leave_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match="w4a16 rounds no activations"):
        spinquant.check(random_llama().anatomy, scheme("w4a16"), Settings(learn_weights="16"))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"steps": -1}, "--steps counts"),
        ({"rate": math.nan}, "--rate is a number above 0"),
        ({"rate": -1.0}, "--rate is a number above 0"),
        ({"clip": math.inf}, "--set clip is a number above 0"),
        ({"seed": -1}, "--seed is a whole number"),
        ({"rounding": "nearst"}, "did you mean nearest"),
        ({"learn_weights": "targt"}, "did you mean target"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        Settings(**wrong)


def test_rounding_to_nearest_has_no_settings_of_gptq() -> None:
    with pytest.raises(UsageError, match="--rounding nearest has no polish"):
        prepared_with(random_llama, W4A8, rounding="nearest", polish=2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(steps=0), gptq.GPTQ(Settings(steps=0))),
        (Settings(steps=0, rounding="nearest"), round_searched),
        (Settings(steps=0, rounding="nearest", clip_search=False), round_to_nearest),
    ],
)
def test_the_settings_say_how_weights_are_rounded(settings: Settings, expected: object) -> None:
    model = random_llama()
    task = Task(W4A8, settings, calibration_for(model))
    assert spinquant.prepare(model, task).round_linears == expected


def test_the_rate_falls_along_a_cosine() -> None:
    schedule = Schedule(steps=10, rate=1.5, clip=1.0)
    assert [schedule.rate_at(step) for step in (0, 5)] == pytest.approx([1.5, 0.75])
    assert schedule.rate_at(10) == pytest.approx(0.0)


def test_every_step_looks_at_the_next_window() -> None:
    tokens, seen = torch.arange(12).view(3, 4), []

    def loss_of(found: Rotations, window: torch.Tensor) -> torch.Tensor:
        seen.append(window[0, 0].item())
        return found.r1.sum() + found.r2.sum()

    start = rotations.initial_rotations(random_qwen2().anatomy, seed=0)
    learning.learn(loss_of, start, tokens, Schedule(5, 0.1, 1.0), ignore)
    assert seen == [0, 4, 8, 0, 4]


def test_a_resumed_run_keeps_its_rotations(tmp_path: Path) -> None:
    def run() -> tuple[Decoder, list[str]]:
        stages: list[str] = []
        model = random_qwen2()
        task = Task(
            W4A8,
            Settings(steps=3),
            calibration_for(model),
            progress=lambda share, what: stages.append(what),
            finished=Finished(tmp_path / "blocks", {"model": "random"}),
        )
        return spinquant.prepare(model, task).model, stages

    (first, learned), (second, resumed) = run(), run()
    assert any(stage.startswith("learning") for stage in learned)
    assert not any(stage.startswith("learning") for stage in resumed)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_no_float_copy_of_a_linear_outlives_preparing() -> None:
    model = random_llama()
    linears = [f"{linear}.weight" for linear in model.anatomy.linears()]
    before = [weakref.ref(model.weights[name]) for name in linears]
    task = Task(W4A8, Settings(steps=0), calibration_for(model))
    prepared = spinquant.prepare(model, task)
    assert all(reference() is None for reference in before)
    prepared.round_linears(prepared.model, task)
    assert not set(linears) & set(prepared.model.weights)
