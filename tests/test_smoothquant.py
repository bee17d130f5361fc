"""The search of alpha: what it minimizes, what it rounds by, and what it is worth."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from slmq_edge import models
from slmq_edge.anatomy import ATTENTION_FEED, DOWN, GATE_UP, MLP_FEED
from slmq_edge.calibration import Calibration, Text, feed_absmax
from slmq_edge.decoder import Decoder, block, hidden_states, logits
from slmq_edge.errors import UsageError
from slmq_edge.quantization import Prepared, Task, alphas, smoothquant
from slmq_edge.quantization.rounding import operands_of
from slmq_edge.quantization.streams import embedded, rotary_for
from slmq_edge.scheme import TOKENS_8, WEIGHTS_4, WEIGHTS_8, Grid, Scheme, scheme
from slmq_edge.simulation import Simulation, token_log_probabilities
from tests.decoders import (
    checkpoint_of,
    copied,
    random_llama,
    random_qwen2,
    random_qwen3,
    rounded,
    stories260k,
    text_for,
    tokens_for,
)
from tests.shared import shared

ASYMMETRIC = Grid(8, "token", symmetric=False)
STATIC = Scheme("static", WEIGHTS_8, Grid(8, "tensor", symmetric=False), range="mse")
FORMS = {
    "w8a8": scheme("w8a8"),
    "groups": scheme("w4a8-g32"),
    "asymmetric": Scheme("asymmetric", Grid(4, "channel", symmetric=False), ASYMMETRIC),
    "operands": Scheme("operands", WEIGHTS_8, TOKENS_8, kv=Grid(4, "token"), query=TOKENS_8),
    "mixed": Scheme("mixed", WEIGHTS_4, TOKENS_8, mixed=Grid(8, "token", group=12)),
    "static": STATIC,
}


def ignore(share: float, what: str) -> None:
    """No progress bar."""


def calibration(tokens: torch.Tensor) -> Calibration:
    return Calibration(Text("tokens", ("none",)), tokens)


def searched(model: Decoder, tokens: torch.Tensor, form: Scheme) -> dict[str, float]:
    return alphas.search(model, feed_absmax(model, tokens), tokens, form, ignore)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("make", [random_llama, random_qwen2, random_qwen3])
def test_the_output_is_unchanged(make: Callable[[], Decoder], form: Scheme) -> None:
    model = make().to(torch.float64)
    notes: list[str] = []
    settings = smoothquant.Settings(alpha="auto")
    task = Task(form, settings, calibration(tokens_for(model, 4, 32)), note=notes.append)
    tokens = tokens_for(model, seed=5)
    before = logits(model, tokens)
    after = logits(smoothquant.prepare(model, task).model, tokens)
    assert (before - after).abs().max() <= 1e-9 * before.abs().max()
    (note,) = notes
    assert note.startswith("alpha of attention/mlp by block: ")
    assert note.count("/") == 1 + model.anatomy.layers


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("make", [random_llama, random_qwen2, random_qwen3])
def test_the_search_rounds_as_the_simulation_does(
    make: Callable[[], Decoder], form: Scheme
) -> None:
    model = make().to(torch.float64)
    tokens = tokens_for(model, 4, 32)
    task = Task(form, None, calibration(tokens))
    simulation = Simulation(checkpoint_of(Prepared(model), task, "none"), torch.float64)
    stream = embedded(model, tokens)
    rotary = rotary_for(model, stream)
    operands = operands_of(form)
    ours = block(model, 0, stream, rotary, alphas._rounded_project(model, form), operands)
    theirs = block(simulation.model, 0, stream, rotary, simulation.project, operands)
    # The checkpoint's scales are float32; a static range is that of the float block's inputs.
    assert (ours - theirs).abs().max() < (0.03 if form is STATIC else 1e-5) * theirs.abs().max()
    assert (ours - block(model, 0, stream, rotary)).abs().max() > 1e-4


def test_every_feed_has_the_alpha_of_least_error() -> None:
    """Against every candidate's error behind the MLP, rounded by the simulation."""
    model, form = random_qwen2(), FORMS["w8a8"]
    tokens = tokens_for(model, 8, 32)
    absmax = feed_absmax(model, tokens)
    found = searched(model, tokens, form)
    inside: dict[str, torch.Tensor] = {}

    def watch(x: torch.Tensor, linears: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        inside[linears[0]] = x
        return model.project(x, linears)

    hidden_states(model, tokens, watch)

    def error(layer: int, alpha: float) -> float:
        smoothed = smoothquant.smooth(copied(model), absmax, alpha)
        simulation = Simulation(rounded(smoothed, form))
        gate, up, down = model.anatomy.blocks(layer, (*GATE_UP, DOWN))
        norm = f"{model.anatomy.block(layer, MLP_FEED.norm)}.weight"
        x = inside[gate] / model.weights[norm] * smoothed.weights[norm]
        left, right = simulation.project(x, (gate, up))
        (out,) = simulation.project(functional.silu(left) * right, (down,))
        return functional.mse_loss(out, model.linear(inside[down], down)).item()

    for layer in range(model.anatomy.layers):
        chosen = found[model.anatomy.block(layer, MLP_FEED.norm)]
        errors = {alpha: error(layer, alpha) for alpha in alphas.ALPHAS}
        assert errors[chosen] == pytest.approx(min(errors.values()), rel=1e-4)
        assert errors[chosen] < errors[0.0]


def test_the_default_goes_first_where_alphas_are_equal() -> None:
    """Inputs and weights whose largest magnitudes are all one have s = 1 whatever alpha is."""
    model = random_llama()
    shape = model.anatomy
    for layer in range(shape.layers):
        for feed in (ATTENTION_FEED, MLP_FEED):
            for linear in shape.blocks(layer, feed.linears):
                weight = model.weights[f"{linear}.weight"]
                model.weights[f"{linear}.weight"] = weight / weight.abs().amax(0)
    ones = {norm: torch.ones(shape.hidden) for norm in feed_absmax(model, tokens_for(model))}
    for name, default in (("w8a8", 0.85), ("w4a8", 0.5)):
        found = alphas.search(model, ones, tokens_for(model), scheme(name), ignore)
        assert set(found) == set(ones)
        assert set(found.values()) == {default}


def test_two_statistics_of_a_block_are_all_that_is_watched() -> None:
    model = random_llama()
    assert len(feed_absmax(model, tokens_for(model))) == 2 * model.anatomy.layers


def test_windows_for_the_search_are_few_and_spread() -> None:
    tokens = torch.arange(100)[:, None].expand(100, 2048)
    few = alphas._few(tokens)
    assert few.shape == (8, 512)
    assert few[:, 0].tolist() == [0, 14, 28, 42, 57, 71, 85, 99]
    assert alphas._few(tokens[:3, :7]).shape == (3, 7)


@pytest.mark.parametrize("alpha", ["best", "0.5", 1.5, -0.1, math.nan])
def test_an_alpha_that_is_no_share_is_refused(alpha: object) -> None:
    with pytest.raises(UsageError, match="a share between 0 and 1, or auto"):
        smoothquant.Settings(alpha=alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "alpha"), [(8, 0.85), (4, 0.5), (3, 0.5)])
def test_the_default_follows_the_bits(bits: int, alpha: float) -> None:
    model = random_qwen2()
    tokens = tokens_for(model, 4, 16)
    form = Scheme("some", Grid(bits, "channel"), TOKENS_8)
    task = Task(form, smoothquant.Settings(), calibration(tokens))
    given = dataclasses.replace(task, settings=smoothquant.Settings(alpha=alpha))
    default = smoothquant.prepare(copied(model), task).model.weights
    for name, weight in smoothquant.prepare(copied(model), given).model.weights.items():
        assert torch.equal(default[name], weight)


def test_the_search_beats_the_default_on_a_trained_model() -> None:
    """At 4 bits: rounded without smoothing 3.838, the default alpha makes it worse."""
    tokenizer = models.read_tokenizer(shared("models/stories260K"))
    rows = shared("data/tinystories/valid_head14.jsonl").read_text().splitlines()
    windows = calibration(text_for("stories260K", 32, 256))

    def perplexity(alpha: smoothquant.Alpha) -> float:
        task = Task(scheme("w4a8"), smoothquant.Settings(alpha=alpha), windows)
        prepared = smoothquant.prepare(stories260k(), task)
        simulation = Simulation(checkpoint_of(prepared, task, "smoothquant"))
        scored = []
        for row in rows:
            encoded = tokenizer(json.loads(row)["text"], truncation=True, max_length=512)
            tokens = torch.tensor([encoded["input_ids"]])
            scored.append(token_log_probabilities(simulation.logits(tokens), tokens)[0])
        return math.exp(-float(torch.cat(scored).mean()))

    assert perplexity("auto") < perplexity(None) - 0.02
