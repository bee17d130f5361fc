"""Ranges of static activations: by hand, on any data, and on a whole model."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from slmq_edge import models
from slmq_edge.anatomy import HEAD, LINEARS, O
from slmq_edge.calibration import Calibration, Text
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Prepared, Task, streams
from slmq_edge.quantization.ranges import SIDE, Seen, extent_of, find
from slmq_edge.quantization.rounding import Extent, quantize
from slmq_edge.scheme import TOKENS_8, WEIGHTS_8, Grid, Range, Scheme
from slmq_edge.simulation import Simulation, token_log_probabilities
from tests.decoders import (
    checkpoint_of,
    random_llama,
    random_qwen2,
    stories260k,
    text_for,
    tokens_for,
)
from tests.shared import shared

SYMMETRIC, ASYMMETRIC = Grid(8, "tensor"), Grid(8, "tensor", symmetric=False)
STATIC = Scheme("static", WEIGHTS_8, SYMMETRIC)
HOWS: tuple[Range, ...] = ("absmax", "percentile", "mse")
GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([4, 8]),
    per=st.just("tensor"),
    symmetric=st.booleans(),
    zero=st.booleans(),
)
Values = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
VALUES = arrays.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-1e4, 1e4, width=32)
) | arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(0, 1, width=32))


def ignore(share: float, what: str) -> None:
    """No progress bar."""


def seen(*pieces: Tensor) -> Seen:
    found = Seen(counting=True)
    for piece in pieces:
        found.add(piece)
    return found


def squared_error(t: Tensor, grid: Grid, found: Extent) -> float:
    return float((quantize(t, grid, found).values(grid) - t).square().sum())


@settings(deadline=None)
@given(VALUES, GRIDS, st.sampled_from(HOWS))
def test_no_range_is_wider_than_absmax_and_zero(values: Values, grid: Grid, how: Range) -> None:
    t = torch.from_numpy(values)
    found = extent_of(t, how, grid)
    assert t.min().clamp(max=0) <= found.low <= found.high <= t.max().clamp(min=0)
    if how == "absmax":
        assert (found.low, found.high) == (t.min(), t.max())


@settings(deadline=None)
@given(VALUES, GRIDS)
def test_mse_loses_no_more_squares_than_absmax(values: Values, grid: Grid) -> None:
    t = torch.from_numpy(values).double()
    least = squared_error(t, grid, extent_of(t, "mse", grid))
    assert least <= squared_error(t, grid, extent_of(t, "absmax", grid)) * (1 + 1e-9)


@given(VALUES)
def test_all_but_one_in_ten_thousand_lie_within_the_percentile(values: Values) -> None:
    t = torch.from_numpy(values).repeat(100)
    found = extent_of(t, "percentile", ASYMMETRIC)
    outside = (t < found.low) | (t > found.high)
    assert outside.sum() <= 1e-4 * t.numel()


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_values_are_counted_alike_in_whatever_order_they_come(pieces: list[Values]) -> None:
    """Later pieces make the histogram double its reach."""
    tensors = [torch.from_numpy(piece) for piece in pieces]
    together, apart = seen(torch.cat(tensors)), seen(*tensors)
    assert together.reach == apart.reach
    assert torch.equal(together.ends, apart.ends)
    assert apart.counts.sum() == sum(piece.size for piece in pieces)
    assert torch.equal(together.counts, apart.counts)


def test_a_percentile_by_hand() -> None:
    """20,000 values: two may lie outside. The third largest magnitude is 3."""
    t = torch.zeros(20_000)
    t[:4] = torch.tensor([-50.0, 40.0, 3.0, -2.0])
    found = extent_of(t, "percentile", SYMMETRIC)
    width = 64 / SIDE
    assert 3.0 <= found.high.item() <= 3.0 + width
    assert -3.0 - width <= found.low.item() <= -3.0


def test_a_percentile_of_positive_values_begins_where_they_do() -> None:
    t = torch.linspace(1, 2, 50_001)
    t[0] = 100.0
    found = extent_of(t, "percentile", ASYMMETRIC)
    assert found.low.item() == t.min()
    assert found.high.item() == pytest.approx(2.0, abs=128 / SIDE)


def test_an_mse_range_by_hand() -> None:
    """Levels of 4 bits reach +-7: shrunk to 0.70, they are the very values, but for one at 10."""
    grid = Grid(4, "tensor")
    t = torch.arange(-7.0, 8.0).repeat(1000)
    t[0] = 10.0
    found = extent_of(t, "mse", grid)
    assert found.high.item() == pytest.approx(7.0)
    assert squared_error(t, grid, found) == pytest.approx(9.0)
    assert extent_of(t, "absmax", grid).high.item() == 10.0


def test_more_equal_values_are_counted_than_float32_can_count() -> None:
    t = torch.full((2**24 + 2**20,), 0.5)
    assert seen(t).counts.max() == t.numel()


def test_nothing_but_zeros_has_a_range() -> None:
    for how in HOWS:
        found = extent_of(torch.zeros(5), how, SYMMETRIC)
        assert quantize(torch.zeros(5), SYMMETRIC, found).integers.tolist() == [0.0] * 5


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_activations_that_are_no_numbers_are_one_line(value: float) -> None:
    model = random_llama()
    model.weights["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    with pytest.raises(SlmqError, match="infinite or NaN"):
        find(model, tokens_for(model), STATIC, ignore)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [random_llama, random_qwen2])
def test_every_input_has_its_own_range(make: object, dtype: torch.dtype) -> None:
    """Against a second reading of the same inputs, one linear at a time."""
    assert callable(make)
    model: Decoder = make().to(dtype)
    tokens = tokens_for(model, 5, 16)
    inputs: dict[str, list[Tensor]] = {}

    def project(x: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        for linear in linears:
            inputs.setdefault(linear, []).append(x)
        return model.project(x, linears)

    logits(model, tokens, project)
    scheme = dataclasses.replace(STATIC, activations=ASYMMETRIC, head=WEIGHTS_8)
    found = find(model, tokens, scheme, ignore)
    firsts = ("self_attn.q_proj", O, "mlp.gate_proj", "mlp.down_proj")
    assert set(firsts) < set(LINEARS)
    expected = {model.anatomy.block(layer, name) for layer in range(2) for name in firsts}
    assert set(found) == {*expected, HEAD}
    for linear, steps in found.items():
        x = torch.cat(inputs[linear])
        assert steps.zero is not None
        assert (steps.scale.shape, steps.scale.dtype) == ((1,), torch.float32)
        low, high = min(x.min().item(), 0), max(x.max().item(), 0)
        assert steps.scale.item() == pytest.approx((high - low) / 255)
        assert steps.zero.item() == round(-low / steps.scale.item()) - 128


@pytest.mark.parametrize("how", HOWS)
def test_a_float_head_is_never_multiplied_and_has_no_range(how: Range) -> None:
    model = random_llama()
    del model.weights[f"{HEAD}.weight"]
    found = find(model, tokens_for(model), dataclasses.replace(STATIC, range=how), ignore)
    assert HEAD not in found
    assert len(found) == 4 * model.anatomy.layers


def test_an_o_proj_of_its_own_grid_is_left_to_it() -> None:
    model = random_qwen2()
    by_token = dataclasses.replace(STATIC, mixed=TOKENS_8)
    assert not any(name.endswith(O) for name in find(model, tokens_for(model), by_token, ignore))
    other = dataclasses.replace(STATIC, mixed=ASYMMETRIC)
    for name, steps in find(model, tokens_for(model), other, ignore).items():
        assert (steps.zero is not None) == name.endswith(O)


def test_ranges_do_not_depend_on_how_windows_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama()
    tokens = tokens_for(model, 7, 16)
    scheme = dataclasses.replace(STATIC, range="percentile")
    together = find(model, tokens, scheme, ignore)
    monkeypatch.setattr(streams, "BATCH_TOKENS", 16)
    for name, steps in find(model, tokens, scheme, ignore).items():
        torch.testing.assert_close(steps.scale, together[name].scale)


def test_the_simulation_rounds_by_the_ranges_that_were_found() -> None:
    model = random_qwen2()
    tokens = tokens_for(model, 4, 16)
    task = Task(STATIC, None, Calibration(Text("random", ()), tokens))
    found = checkpoint_of(Prepared(model), task, "none")
    assert set(found.inputs) == set(find(model, tokens, STATIC, ignore))
    before = Simulation(found).logits(tokens)
    name = "model.layers.0.self_attn.q_proj"
    doubled = dataclasses.replace(found.inputs[name], scale=2 * found.inputs[name].scale)
    other = dataclasses.replace(found, inputs=found.inputs | {name: doubled})
    assert not torch.equal(Simulation(other).logits(tokens), before)
    # Beyond its range an input is clamped, however large it is.
    x = torch.full((1, 48), 1e6)
    (clamped,) = Simulation(found).project(x, (name,))
    (edge,) = Simulation(found).project(127 * found.inputs[name].scale.expand(1, 48), (name,))
    assert torch.equal(clamped, edge)


def stories_perplexity(checkpoint: Checkpoint) -> float:
    """Over the held-out stories, each alone, BOS first, cut at 512 tokens (as test_quality)."""
    tokenizer = models.read_tokenizer(shared("models/stories260K"))
    rows = shared("data/tinystories/valid_head14.jsonl").read_text().splitlines()
    simulation = Simulation(checkpoint)
    scored = []
    for row in rows:
        encoded = tokenizer(json.loads(row)["text"], truncation=True, max_length=512)
        tokens = torch.tensor([encoded["input_ids"]])
        scored.append(token_log_probabilities(simulation.logits(tokens), tokens)[0])
    return math.exp(-float(torch.cat(scored).mean()))


def test_static_ranges_on_a_trained_model() -> None:
    """Full precision is 3.2057, ranges by token at run time give 3.2085."""
    model, tokens = stories260k(), text_for("stories260K", 32, 256)

    def found(how: Range, bits: int) -> float:
        grid = Grid(bits, "tensor", symmetric=False)
        scheme = Scheme("static", WEIGHTS_8, grid, range=how)
        task = Task(scheme, None, Calibration(Text("stories", ()), tokens))
        return stories_perplexity(checkpoint_of(Prepared(model), task, "none"))

    eight = {how: found(how, 8) for how in HOWS}
    assert all(3.20 < perplexity < 3.26 for perplexity in eight.values())
    assert max(eight["percentile"], eight["mse"]) < eight["absmax"]
    five = {how: found(how, 5) for how in HOWS}
    assert five["mse"] < 4 < five["percentile"] < 6 < five["absmax"]
