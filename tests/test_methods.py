"""Promise 1: preparing a model never changes what it computes; naming a method tests it."""

from __future__ import annotations

import itertools

import pytest
import torch

from slmq_edge import quantization
from slmq_edge.calibration import Calibration, Text, feed_absmax
from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import METHODS, Task, smoothquant, spinquant
from slmq_edge.scheme import SCHEMES, scheme
from tests.decoders import DECODERS, copied, random_llama, random_qwen2, tokens_for

FEW_STEPS = {"spinquant": {"steps": 3}, "omniquant": {"epochs": 1}, "distill": {"epochs": 1}}
# Groups of another size change nothing here.
FORMS = ("w8a8", "w4a8", "w4a8-g32", "w8a16", "w4a16-g32")


def calibration_for(model: Decoder, windows: int = 4) -> Calibration:
    text = Text("random tokens", ("none",))
    return Calibration(text, tokens_for(model, windows, 32, seed=7))


def ignore(share: float, what: str) -> None:
    """No progress bar."""


@pytest.mark.parametrize(
    ("name", "method", "precision"),
    [
        (name, method, precision)
        for name, method, precision in itertools.product(DECODERS, METHODS, FORMS)
        if method != "smoothquant" or SCHEMES[precision].activations is not None
    ],
)
def test_float_output_is_unchanged(name: str, method: str, precision: str) -> None:
    model = DECODERS[name]().to(torch.float64)
    tokens = tokens_for(model)
    before = logits(model, tokens)
    chosen = quantization.method(method)
    settings = chosen.Settings(**FEW_STEPS.get(method, {}))
    task = Task(scheme(precision), settings, calibration_for(model))
    after = logits(chosen.prepare(model, task).model, tokens)
    assert (before - after).abs().max() <= 1e-9 * before.abs().max()


def test_the_promise_can_fail() -> None:
    """Rotating all but v's bias, as the released SpinQuant does, is seen at once."""
    model = random_qwen2().to(torch.float64)
    tokens, bias = tokens_for(model), "model.layers.0.self_attn.v_proj.bias"
    before, unrotated = logits(model, tokens), model.weights[bias]
    task = Task(scheme("w8a8"), spinquant.Settings(steps=0), calibration_for(model))
    prepared = spinquant.prepare(model, task).model
    prepared.weights[bias] = unrotated
    after = logits(prepared, tokens)
    assert (before - after).abs().max() > 1e-3 * before.abs().max()


def test_smoothing_factors_are_equation_4() -> None:
    x_absmax = torch.tensor([8.0, 1.0, 0.0])
    weights = [torch.tensor([[1.0, -4.0, 2.0]]), torch.tensor([[-2.0, 1.0, 5.0]])]
    factors = smoothquant.smoothing_factors(x_absmax, weights, alpha=0.5)
    # The third channel was never active: it is left alone.
    expected = torch.tensor([(8 / 2) ** 0.5, (1 / 4) ** 0.5, 1.0])
    torch.testing.assert_close(factors, expected)


def test_smoothing_flattens_the_inputs_of_norms() -> None:
    model = random_llama()
    windows = calibration_for(model)
    before = feed_absmax(model, windows.tokens)
    after = feed_absmax(smoothquant.smooth(copied(model), before, 0.85), windows.tokens)

    def peak(absmax: dict[str, torch.Tensor]) -> float:
        return max(float(x.max() / x.median()) for x in absmax.values())

    assert peak(after) < 0.5 * peak(before)


def test_a_loss_that_is_no_number_is_one_line() -> None:
    model = random_llama()
    model.weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    task = Task(scheme("w8a8"), spinquant.Settings(steps=2), calibration_for(model))
    with pytest.raises(SlmqError, match="the loss is nan at step 1"):
        spinquant.prepare(model, task)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_a_float_scheme_is_refused(method: str) -> None:
    model = random_llama()
    chosen = quantization.method(method)
    with pytest.raises(SlmqError, match="use --method none"):
        chosen.prepare(model, Task(scheme("fp32"), chosen.Settings(), calibration_for(model)))


def test_an_unknown_method_is_guessed() -> None:
    with pytest.raises(UsageError, match="did you mean spinquant"):
        quantization.method("spinqant")
