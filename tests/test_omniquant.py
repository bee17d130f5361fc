"""OmniQuant: scales that change nothing, clips that learn, and learning that is not believed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge.anatomy import O, Q
from slmq_edge.calibration import Calibration, Text
from slmq_edge.decoder import Decoder, block
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import Prepared, Task, fitting, let, omniquant
from slmq_edge.quantization.finished import Finished
from slmq_edge.quantization.fitting import PLAIN, Block, Fitted, Pace
from slmq_edge.quantization.omniquant import Settings, clip_logit
from slmq_edge.quantization.rounding import quantize
from slmq_edge.quantization.streams import embedded, rotary_for
from slmq_edge.scheme import TOKENS_8, WEIGHTS_4, Grid, Scheme, scheme
from slmq_edge.simulation import Simulation, token_log_probabilities
from tests.decoders import (
    checkpoint_of,
    copied,
    random_decoder,
    random_qwen2,
    random_qwen3,
    rounded,
    stories260k,
    text_for,
    tokens_for,
)
from tests.test_let import ALONE, disturbance


def task_for(model: Decoder, name: str | Scheme = "w4a8", **settings: Any) -> Task:
    chosen = scheme(name) if isinstance(name, str) else name
    calibration = Calibration(Text("random tokens", ("none",)), tokens_for(model, 3, 32, seed=7))
    return Task(chosen, Settings(**settings), calibration)


def block_for(model: Decoder, name: str | Scheme = "w4a8", kind: type[Block] = Block) -> Block:
    """The first block, before any other was rounded."""
    inputs = embedded(model, tokens_for(model, 3, 32, seed=7))
    targets = inputs.clone()
    omniquant.advance_watched(model, 0, targets)
    chosen = scheme(name) if isinstance(name, str) else name
    return kind(model, 0, chosen, rotary_for(model, inputs), inputs, (targets,))


def start_for(this: Block, **settings: Any) -> fitting.Learnable:
    absmax = omniquant.advance_watched(this.model, 0, this.inputs.clone())
    return omniquant.start(this, absmax, Settings(**{"let": True, **settings}))


def ignore(share: float, loss: float) -> None:
    """Nobody watches."""


def test_every_head_has_the_scale_of_the_norms_that_they_share() -> None:
    this = block_for(random_qwen3())
    assert start_for(this).scales["s4"].shape == (1, 8)
    assert start_for(this).scales["s3"].shape == (2 * 16,)


def test_skipping_shared_heads_leaves_attention_alone() -> None:
    this = block_for(random_qwen2())
    assert list(start_for(this).scales) == ["s1", "s2", "s3", "s4"]
    assert list(start_for(this, gqa="skip").scales) == ["s1", "s2"]
    alone = block_for(random_decoder(ALONE, seed=3))
    assert list(start_for(alone, gqa="skip").scales) == ["s1", "s2", "s3", "s4"]
    assert start_for(this, let=False).scales == {}
    assert start_for(this, lwc=False).logits == {}


def test_learned_gains_of_heads_change_nothing() -> None:
    """Where keys are rounded there is something to learn from them."""
    model = random_qwen3().to(torch.float64)
    keys = dataclasses.replace(scheme("w4a8"), kv=Grid(4, "token", symmetric=False))
    prepared = omniquant.prepare(copied(model), task_for(model, keys, epochs=1))
    gain = "model.layers.0.self_attn.k_norm.weight"
    moved = prepared.model.weights[gain] / model.weights[gain]
    assert (moved - 1).abs().max() > 1e-3
    assert disturbance(model, prepared.model.weights) < 1e-9


def test_everything_learnable_has_a_gradient_and_nothing_else() -> None:
    asymmetric = Grid(4, "channel", symmetric=False, zero=False)
    grids = Scheme("asymmetric", asymmetric, Grid(8, "token", symmetric=False))
    this = block_for(random_qwen2(), grids)
    learnable = start_for(this).fresh()
    this.loss(this.rounded(learnable.fitted()), 0).backward()  # type: ignore[no-untyped-call]
    for tensor in (*learnable.scales.values(), *learnable.logits.values()):
        assert tensor.grad is not None
        assert (tensor.grad != 0).float().mean() > 0.9
    assert not any(t.requires_grad or t.grad is not None for t in this.model.weights.values())


def test_a_symmetric_range_is_moved_by_its_further_end_only() -> None:
    """METHODS 2.1: s = max(|high|, |low|) / Q."""
    this = block_for(random_qwen2())
    learnable = start_for(this).fresh()
    this.loss(this.rounded(learnable.fitted()), 0).backward()  # type: ignore[no-untyped-call]
    weights = let.fold(this.model.anatomy, 0, this.model.weights, learnable.scales)
    up = weights["model.layers.0.mlp.up_proj.weight"]
    lower_is_further = up.amin(1).abs() > up.amax(1).abs()
    gradient = learnable.logits["mlp.up_proj"].grad
    assert gradient is not None
    low, high = gradient[0, :, 0] != 0, gradient[1, :, 0] != 0
    assert torch.equal(low, lower_is_further)
    assert torch.equal(high, ~lower_is_further)


def test_learning_lowers_the_loss() -> None:
    model = stories260k()
    this = block_for(model)
    start = start_for(this)
    best, last = fitting.learn(this, start, Pace(6, 5e-3, 1e-2), ignore)
    assert best.loss <= last.loss
    assert this.mean_loss(last.fitted) < 0.8 * this.mean_loss(start.fitted())


class Sick(Block):
    """A block whose gradients are spoilt while it first learns: the loss itself looks well."""

    def loss(self, rounded: Decoder, window: int) -> torch.Tensor:
        found = super().loss(rounded, window)
        if found.requires_grad and window == len(self.inputs) - 1 and not SICK_SEEN:
            SICK_SEEN.append(window)
            return found + (found - found.detach()) * math.inf
        return found


SICK_SEEN: list[int] = []


def test_learning_that_diverges_is_done_again_at_half_the_rate() -> None:
    SICK_SEEN.clear()
    model = random_qwen2()
    this = block_for(model, kind=Sick)
    fitted, trouble = fitting.fit(this, start_for(this), Pace(2, 5e-3, 1e-2), ignore)
    assert SICK_SEEN == [2]
    assert trouble is not None
    assert "block 1" in trouble
    assert "ended at nan (rates x 1); kept epoch 2 (rates x 0.5)" in trouble
    well = block_for(model)
    slower = fitting.learn(well, start_for(well), Pace(2, 2.5e-3, 5e-3), ignore)[1].fitted
    for name, scale in fitted.scales.items():
        assert torch.equal(scale, slower.scales[name])


def test_learning_that_never_works_keeps_the_best_that_was_seen() -> None:
    this = block_for(random_qwen2(), "w8a8")
    plain = this.mean_loss(PLAIN)
    fitted, trouble = fitting.fit(this, start_for(this), Pace(2, 1e3, 1e3), ignore)
    assert trouble is not None
    assert "(rates x 0.125); kept" in trouble
    assert this.mean_loss(fitted) <= plain


def test_a_failed_block_is_told_and_the_promise_holds() -> None:
    model = random_qwen2().to(torch.float64)
    notes: list[str] = []
    task = dataclasses.replace(
        task_for(model, epochs=1, let_rate=1e3, lwc_rate=1e3), note=notes.append
    )
    prepared = omniquant.prepare(copied(model), task)
    assert [line.split(":")[0] for line in notes] == [f"omniquant, block {i}" for i in (1, 2)]
    assert disturbance(model, prepared.model.weights) < 1e-9


def test_a_damaged_model_is_one_line() -> None:
    model = random_qwen2()
    model.weights["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    with pytest.raises(SlmqError, match="block 2 is impossible: the loss is nan"):
        omniquant.prepare(copied(model), task_for(model, epochs=1))


def test_blocks_learn_on_the_streams_that_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """X_q behind rounded blocks, X behind float ones; augmented, the float block's of X_q too."""
    model, source = random_qwen2(), random_qwen2()
    task = task_for(model, epochs=1, augmented=True)
    assert task.calibration is not None
    seen: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    learn = omniquant._fitted

    def record(this: fitting.Block, *rest: Any) -> fitting.Fitted:
        seen.append((this.inputs.clone(), [target.clone() for target in this.targets]))
        return learn(this, *rest)

    monkeypatch.setattr(omniquant, "_fitted", record)
    found = Simulation(checkpoint_of(omniquant.prepare(model, task), task, "omniquant"))
    stream = embedded(source, task.calibration.tokens)
    rotary = rotary_for(source, stream)
    inputs, (target, augmented) = seen[1]
    exact = block(source, 0, stream, rotary)
    torch.testing.assert_close(seen[0][0], stream)
    rounded_behind = block(found.model, 0, stream, rotary, found.project)
    assert (inputs - rounded_behind).norm() < 0.1 * (inputs - exact).norm()
    torch.testing.assert_close(target, block(source, 1, exact, rotary), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(augmented, block(source, 1, inputs, rotary), rtol=1e-4, atol=1e-4)


def test_a_state_is_judged_by_its_own_loss() -> None:
    """Not by what it lost while it moved: one long step may end anywhere."""
    this = block_for(random_qwen2(), "w8a8")
    for candidate in fitting.learn(this, start_for(this), Pace(1, 0.05, 0.05), ignore):
        assert candidate.loss == this.mean_loss(candidate.fitted)


@pytest.mark.parametrize(("rates", "moved"), [((0.0, 1e-2), "clips"), ((5e-3, 0.0), "scales")])
def test_scales_and_clips_have_a_rate_each(rates: tuple[float, float], moved: str) -> None:
    this = block_for(random_qwen2(), "w4a8")
    start = start_for(this)
    found = fitting.learn(this, start, Pace(1, *rates), ignore)[1].fitted
    for kind in ("scales", "clips"):
        pairs = zip(
            getattr(start.fitted(), kind).values(), getattr(found, kind).values(), strict=True
        )
        same = all(torch.equal(before, after) for before, after in pairs)
        assert same == (kind != moved)


def tensors_of(prepared: Prepared, task: Task) -> dict[str, torch.Tensor]:
    found = checkpoint_of(prepared, task, "omniquant")
    tensors = dict(prepared.model.weights)
    for name, weight in found.integers.items():
        tensors |= {f"{name}.integers": weight.integers, f"{name}.scale": weight.scale}
    return tensors


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model = stories260k()
    whole = task_for(model, epochs=1, augmented=True)
    expected = tensors_of(omniquant.prepare(copied(model), whole), whole)
    told: list[str] = []

    def kill(share: float, text: str) -> None:
        told.append(text)
        if text.startswith("omniquant, block 3 of 5, loss "):
            raise Killed

    finished = Finished(tmp_path / "finished", {"task": "this"})
    task = dataclasses.replace(whole, finished=finished, spill=tmp_path)
    with pytest.raises(Killed):
        omniquant.prepare(copied(model), dataclasses.replace(task, progress=kill))
    assert finished.count == 2
    told.clear()
    again = dataclasses.replace(task, progress=lambda share, text: told.append(text))
    found = tensors_of(omniquant.prepare(copied(model), again), again)
    assert told[0].startswith("omniquant, block 3 of 5")
    assert finished.count == 5
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_a_block_could_not_learn_is_told_again_after_a_kill(tmp_path: Path) -> None:
    model = random_qwen2()
    finished = Finished(tmp_path / "finished", {"task": "this"})
    notes: list[str] = []
    task = task_for(model, epochs=1, let_rate=1e3, lwc_rate=1e3)
    task = dataclasses.replace(task, finished=finished, note=notes.append)
    omniquant.prepare(copied(model), task)
    first = list(notes)
    notes.clear()
    omniquant.prepare(copied(model), task)
    assert first
    assert notes == first


def test_rounding_takes_the_weights_out_of_the_model() -> None:
    """So that the float weights of a block are gone when its integers are there."""
    model = random_qwen2()
    task = task_for(model, epochs=1)
    prepared = omniquant.prepare(model, task)
    prepared.round_linears(prepared.model, task)
    linears = {f"{linear}.weight" for linear in model.anatomy.linears()}
    assert linears.isdisjoint(prepared.model.weights)


def test_weights_alone_are_clipped_and_no_channel_is_scaled() -> None:
    model = stories260k()
    notes: list[str] = []
    task = dataclasses.replace(task_for(model, "w4a16", epochs=1), note=notes.append)
    prepared = omniquant.prepare(copied(model), task)
    assert all(torch.equal(prepared.model.weights[n], t) for n, t in model.weights.items())
    assert "w4a16 leaves activations in float" in notes[0]
    clipped = prepared.round_linears(prepared.model, task)
    plain = rounded(model, scheme("w4a16")).integers
    assert not all(torch.equal(clipped[name].scale, plain[name].scale) for name in plain)
    asked = [("w4a16", True), ("w4a8", None), ("w4a8", False)]
    found = [omniquant.settled(task_for(model, name, let=let)).let for name, let in asked]
    assert found == [True, True, False]


@pytest.mark.parametrize("grid", [WEIGHTS_4, Grid(4, "channel", symmetric=False, group=32)])
def test_the_learned_clips_are_what_is_rounded_with(grid: Grid) -> None:
    model = random_qwen2()
    name = "model.layers.1.mlp.down_proj"
    weight = model.weights[f"{name}.weight"]
    groups = grid.groups(weight.shape[1])
    factors = torch.stack([torch.full((len(weight), groups), f) for f in (0.5, 0.75)])
    task = task_for(model, Scheme("clipped", grid, None))
    copy = dataclasses.replace(model, weights=dict(model.weights))
    found = omniquant.round_clipped({name: factors}, copy, task)
    first = weight[:, : grid.group]
    low, high = 0.5 * first.amin(1), 0.75 * first.amax(1)
    if grid.symmetric:
        expected = torch.maximum(-low, high) / 7
    else:
        expected = (high.clamp(min=0) - low.clamp(max=0)) / 15
    torch.testing.assert_close(found[name].scale[:, 0], expected)
    other = "model.layers.0.mlp.down_proj"
    assert torch.equal(
        found[other].integers, quantize(model.weights[f"{other}.weight"], grid).integers.char()
    )


def test_clips_start_an_eighth_of_a_step_from_plain_rounding() -> None:
    def lost_steps(grid: Grid) -> float:
        return float(grid.top * (1 - torch.sigmoid(torch.tensor(clip_logit(grid)).double())))

    assert clip_logit(WEIGHTS_4) == 4.0
    assert clip_logit(Grid(2, "channel")) == 4.0
    assert lost_steps(WEIGHTS_4) == pytest.approx(0.126, abs=1e-3)
    assert lost_steps(Grid(8, "channel")) == pytest.approx(0.126, abs=5e-3)


def test_inputs_and_operands_are_rounded_as_the_scheme_says() -> None:
    model = random_qwen2()
    mixed, kv, query = Grid(4, "token"), Grid(8, "token", symmetric=False), Grid(2, "token")
    grids = dataclasses.replace(scheme("w8a8"), mixed=mixed, kv=kv, query=query)
    project, operands = fitting.rounding(model, grids)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 48, generator=generator)
    for linear, grid in ((Q, TOKENS_8), (O, mixed)):
        name = model.anatomy.block(0, linear)
        (out,) = project(x, (name,))
        torch.testing.assert_close(out, model.linear(quantize(x, grid).values(grid), name))
    heads = torch.randn(3, 1, 2, 4, 8, generator=generator)
    for found, given, grid in zip(operands(*heads), heads, (query, kv, kv), strict=True):
        torch.testing.assert_close(found, quantize(given, grid).values(grid))
    plain, untouched = fitting.rounding(model, scheme("w4a16"))
    (out,) = plain(x, (name,))
    assert torch.equal(out, model.linear(x, name))
    assert torch.equal(untouched(*heads)[0], heads[0])


def test_a_static_input_is_rounded_by_one_range() -> None:
    model = random_qwen2()
    static = Scheme("static", WEIGHTS_4, Grid(8, "tensor"))
    project, _ = fitting.rounding(model, static)
    x = torch.linspace(-1, 1, 2 * 48).view(1, 2, 48)
    x[0, 0, 0] = 127.0
    (out,) = project(x, ("model.layers.0.self_attn.q_proj",))
    expected = model.linear(x.round(), "model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(out, expected)
    prepared = omniquant.prepare(copied(model), task_for(model, static, epochs=1))
    assert disturbance(model, prepared.model.weights) < 1e-4


def test_omniquant_beats_plain_rounding_on_text_it_never_saw() -> None:
    """Of the log-perplexity that four bits lose, at least a tenth in a few seconds."""
    model, four = stories260k(), scheme("w4a8")
    windows = text_for("stories260K", 24, 128)
    text, unseen = windows[:8], windows[8:]

    def loss(simulation: Simulation) -> float:
        return -token_log_probabilities(simulation.logits(unseen), unseen).mean().item()

    task = Task(four, Settings(epochs=5), Calibration(Text("stories", ("none",)), text))
    learned = loss(
        Simulation(checkpoint_of(omniquant.prepare(copied(model), task), task, "omniquant"))
    )
    plain, full = (
        loss(Simulation(rounded(model, four))),
        loss(Simulation(rounded(model, scheme("fp32")))),
    )
    assert plain > full + 0.05
    assert (plain - learned) / (plain - full) > 0.1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"epochs": -1}, "--epochs counts passes"),
        ({"let_rate": 0.0}, "--let-rate is a learning rate above 0"),
        ({"lwc_rate": math.inf}, "--lwc-rate is a learning rate"),
        ({"lwc_init": math.nan}, "--lwc-init is a logit"),
        ({"alpha": 1.5}, "--alpha is a share"),
        ({"gqa": "free"}, "--gqa is shared or skip"),
        ({"let": False, "lwc": False}, "learns nothing"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        Settings(**settings)


def test_nothing_to_learn_is_one_line() -> None:
    model = random_qwen2()
    with pytest.raises(UsageError, match="w4a16 leaves activations in float"):
        omniquant.prepare(copied(model), task_for(model, "w4a16", lwc=False))


def test_no_epochs_keep_the_start_or_plain_rounding() -> None:
    this = block_for(random_qwen2(), "w8a8")
    start = start_for(this)
    fitted, trouble = fitting.fit(this, start, Pace(0, 5e-3, 1e-2), ignore)
    assert trouble is None
    found, plain = this.mean_loss(fitted), this.mean_loss(PLAIN)
    assert found == min(this.mean_loss(start.fitted()), plain)
    assert isinstance(fitted, Fitted)
