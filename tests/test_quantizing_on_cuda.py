"""Methods on a GPU that is not there: what crosses between device and host, and how often."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from slmq_edge.analysis import protecting
from slmq_edge.anatomy import QKV, Anatomy
from slmq_edge.calibration import Calibration, Text
from slmq_edge.checkpoint import round_rest
from slmq_edge.decoder import Decoder, attention, rotary_table
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Task, fitting, learning, method, ranges, readback
from slmq_edge.quantization import streams as streaming
from slmq_edge.quantization.fitting import Pace
from slmq_edge.quantization.learning import Schedule, loss_of_activations, loss_of_target
from slmq_edge.quantization.rotations import Rotations, absorb_gains, initial_rotations
from slmq_edge.scheme import in_words
from tests.decoders import LLAMA, QWEN2, random_decoder, random_qwen2, tokens_for
from tests.device_spy import Door, Spy, closed
from tests.test_omniquant import block_for, start_for

LENGTH = 8


# A block whose columns are few: every operator of a tensor without values takes as long as many.
def tiny(shape: Anatomy) -> Decoder:
    small = {"hidden": 8, "ffn": 12, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 4}
    return random_decoder(Anatomy(**{**vars(shape), **small}), seed=5)


def tiny_qwen2() -> Decoder:
    return tiny(QWEN2)


def tiny_llama() -> Decoder:
    return tiny(LLAMA)


def ignore(share: float, what: object) -> None:
    """No progress bar."""


@dataclass(frozen=True)
class Case:
    """A method with settings, on a scheme in words."""

    method: str
    words: dict[str, Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def task(self, windows: int) -> Task:
        tokens = tokens_for(random_qwen2(), windows, LENGTH)
        calibration = Calibration(Text("random tokens", ("none",)), tokens)
        settings = method(self.method).Settings(**self.settings)
        return Task(in_words(self.words), settings, calibration)


STATIC = {"name": "w8a8", "activation_scale": "tensor"}
CASES = {
    "none": Case("none", {"name": "w8a8", "lm_head": "int8"}),
    "static, percentile": Case("none", {**STATIC, "range": "percentile"}),
    "static, mse": Case("none", {**STATIC, "range": "mse", "activations": "asymmetric"}),
    "smoothquant": Case("smoothquant", {"name": "w4a8"}),
    "smoothquant, searched": Case("smoothquant", {"name": "w8a8", "kv": 8}, {"alpha": "auto"}),
    "smoothquant, searched, static": Case(
        "smoothquant", {**STATIC, "range": "percentile"}, {"alpha": "auto"}
    ),
    "gptq": Case("gptq", {"name": "w4a8"}),
    "gptq, best": Case("gptq", {"name": "w4a16-g32"}, {"drift": 0.5, "polish": 2}),
    "gptq, ordered": Case("gptq", {"name": "w4a8"}, {"act_order": True}),
    "omniquant": Case("omniquant", {"name": "w4a8", "kv": 8}, {"epochs": 0}),
    "omniquant, augmented": Case("omniquant", {"name": "w4a8"}, {"epochs": 0, "augmented": True}),
    "spinquant": Case("spinquant", {"name": "w4a8", "kv": 8}, {"steps": 0}),
    "spinquant, nearest": Case("spinquant", {"name": "w4a8"}, {"steps": 0, "rounding": "nearest"}),
}


def meta(model: Decoder) -> Decoder:
    return model.to(torch.float32, "meta")


def whole(case: Case, model: Decoder, windows: int, patch: pytest.MonkeyPatch) -> tuple[Spy, Door]:
    """All that `quantize` does with a model between reading and writing it, away from the CPU."""
    task, chosen, there = case.task(windows), method(case.method), meta(model)
    assert task.calibration is not None
    with closed(patch) as door, Spy() as spy:
        prepared = chosen.prepare(there, task)
        if task.scheme.is_static:
            ranges.find(prepared.model, task.calibration.tokens, task.scheme, ignore)
        integers = prepared.round_linears(prepared.model, task)
        rest, tensors = round_rest(prepared.model, task.scheme)
        kept = [weight.integers for weight in (integers | rest).values()]
        assert {t.device.type for t in (*kept, *tensors.values())} == {"cpu"}
    return spy, door


UNTIED = ("static, percentile", "gptq", "omniquant", "spinquant")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, tiny_qwen2) for name in CASES),
        *(pytest.param(name, tiny_llama, marks=pytest.mark.slow) for name in UNTIED),
    ],
)
def test_more_text_crosses_no_more_often(
    name: str, make: Callable[[], Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is a batch: what crosses may depend on the model, never on how many there are."""
    monkeypatch.setattr(streaming, "BATCH_TOKENS", LENGTH)
    few, few_read = whole(CASES[name], make(), 1, monkeypatch)
    many, many_read = whole(CASES[name], make(), 4, monkeypatch)
    assert many.mixed == []
    assert many.copies == few.copies
    assert many_read.opened == few_read.opened


def test_protecting_crosses_no_more_often_for_more_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmq_edge.analysis.damage.HELD_LOGITS", 1)  # a window at a time
    model, scheme, counts = tiny_qwen2(), in_words({"name": "w4a8"}), []
    for windows in (1, 4):
        with closed(monkeypatch) as door, Spy() as spy:
            tokens = tokens_for(model, windows, LENGTH)
            found = protecting.weight_damage(meta(model), scheme, tokens, ignore)
        assert set(found) == set(model.anatomy.linears())
        assert spy.mixed == []
        assert door.opened == 1
        counts.append(len(spy.copies))
    assert counts[0] == counts[1]


def learned(windows: int, epochs: int, patch: pytest.MonkeyPatch) -> tuple[Spy, Door, int]:
    """OmniQuant's steps on a device that tells nothing."""
    real = block_for(tiny_qwen2())
    start = start_for(real)
    inputs = torch.empty(windows, LENGTH, real.inputs.shape[-1], device="meta")
    there = meta(real.model)
    this = dataclasses.replace(
        real,
        model=there,
        rotary=rotary_table(there.anatomy, LENGTH, torch.float32, "meta"),
        inputs=inputs,
        targets=(torch.empty_like(inputs),),
    )
    moved = fitting.Learnable(
        {name: t.to("meta") for name, t in start.scales.items()},
        {name: t.to("meta") for name, t in start.logits.items()},
    )
    heard: list[float] = []
    with closed(patch) as door, Spy() as spy:
        fitting.learn(this, moved, Pace(epochs, 5e-3, 1e-2), lambda _, loss: heard.append(loss))
    return spy, door, len(heard)


def test_a_step_of_omniquant_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "STEPS", 2)
    for windows, epochs, read in ((2, 1, 1), (2, 2, 2), (5, 1, 3)):
        spy, door, heard = learned(windows, epochs, monkeypatch)
        assert spy.copies == []
        assert spy.mixed == []
        # Whether all is finite after an epoch; two states measured in the end.
        assert door.opened == read + epochs + 2
        assert heard == read


@pytest.mark.parametrize("loss_of", [loss_of_activations, loss_of_target])
@pytest.mark.parametrize("make", [tiny_qwen2, tiny_llama])
def test_a_step_of_spinquant_stays_on_its_device(
    loss_of: Any, make: Callable[[], Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = in_words({"name": "w4a8", "kv": 8})
    monkeypatch.setattr(readback, "STEPS", 2)
    for steps, read in ((2, 1), (5, 3)):
        model = make()
        absorb_gains(model)
        start = initial_rotations(model.anatomy, 0)
        there = meta(model)
        tokens = torch.zeros(4, LENGTH, dtype=torch.int64, device="meta")
        moved = Rotations(start.r1.to("meta"), start.r2.to("meta"))
        heard: list[str] = []

        def hear(share: float, what: str, heard: list[str] = heard) -> None:
            heard.append(what)

        with closed(monkeypatch) as door:
            rotary_table(there.anatomy, LENGTH, torch.float32, "meta")  # made once, by the CPU
            with Spy() as spy:
                learning.learn(
                    loss_of(there, scheme),
                    moved,
                    tokens,
                    Schedule(steps, 1.5, 1.0),
                    hear,
                )
        assert spy.copies == []
        assert spy.mixed == []
        assert door.opened == read + 1
        assert len(heard) == read + 1


def test_losses_read_later_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU every loss is read at once; read by threes, learning ends in the same bits."""

    def both() -> tuple[fitting.Candidate, Rotations]:
        this = block_for(random_qwen2())
        omni = fitting.learn(this, start_for(this), Pace(2, 5e-3, 1e-2), ignore)[1]
        model = random_qwen2()
        absorb_gains(model)
        start, tokens = initial_rotations(model.anatomy, 0), tokens_for(model, 3, LENGTH)
        loss = loss_of_activations(model, in_words({"name": "w4a8"}))
        return omni, learning.learn(loss, start, tokens, Schedule(5, 1.5, 1.0), ignore)

    omni, spin = both()
    monkeypatch.setattr(readback, "steps_between", lambda device: 3)
    later_omni, later_spin = both()
    assert later_omni.loss == omni.loss
    for name, scale in omni.fitted.scales.items():
        assert torch.equal(scale, later_omni.fitted.scales[name])
    assert torch.equal(spin.r1, later_spin.r1)
    assert torch.equal(spin.r2, later_spin.r2)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_loss_that_is_no_number_is_found_by_its_step(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readback, "steps_between", lambda device: every)
    start = initial_rotations(random_qwen2().anatomy, 0)
    taken: list[int] = []

    def loss(rotations: Rotations, tokens: torch.Tensor) -> torch.Tensor:
        taken.append(len(taken))
        found = rotations.r1.square().sum() + rotations.r2.square().sum()
        return found * math.nan if len(taken) == 5 else found

    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    with pytest.raises(SlmqError, match="the loss is nan at step 5; try a smaller --rate"):
        learning.learn(loss, start, tokens, Schedule(8, 1.5, 1.0), ignore)
    assert len(taken) == {1: 5, 3: 6, 100: 8}[every]


def test_a_diverging_block_is_found_whenever_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    for every in (1, 2, 100):
        monkeypatch.setattr(readback, "steps_between", lambda device, every=every: every)
        this = block_for(random_qwen2(), "w8a8")
        fitted, trouble = fitting.fit(this, start_for(this), Pace(1, 1e30, 1e30), ignore)
        assert trouble is not None
        told.add(trouble.split(";")[1])
        assert this.mean_loss(fitted) <= this.mean_loss(fitting.PLAIN)
    assert len(told) == 1


def test_heads_that_share_keys_are_as_many_on_a_gpu() -> None:
    """There every query head has its own copy: the sums are the same up to rounding."""
    model = random_qwen2()
    shape = model.anatomy
    stream = torch.randn(2, LENGTH, shape.hidden, generator=torch.Generator().manual_seed(3))
    q, k, v = (model.linear(stream, name) for name in shape.blocks(0, QKV))
    rotary = rotary_table(shape, LENGTH, torch.float32, "cpu")
    shared = attention(model, 0, q, k, v, rotary)

    def heads(x: torch.Tensor) -> torch.Tensor:
        split = x.view(2, LENGTH, shape.kv_heads, 1, shape.head_dim)
        return split.expand(-1, -1, -1, shape.heads // shape.kv_heads, -1).reshape(2, LENGTH, -1)

    weights = dict(model.weights)
    alone = Decoder(dataclasses.replace(shape, kv_heads=shape.heads), weights)
    torch.testing.assert_close(shared, attention(alone, 0, q, heads(k), heads(v), rotary))
    with Spy() as spy:
        there = [x.to("meta") for x in (q, k, v, *rotary)]
        spy.copies.clear()
        found = attention(meta(model), 0, there[0], there[1], there[2], (there[3], there[4]))
    assert (found.shape, found.device.type) == (shared.shape, "meta")
    assert spy.mixed == []


def test_what_no_range_holds_is_said_once_for_all_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the CPU nothing is asked of a batch, whatever its values are."""
    with closed(monkeypatch) as door:
        seen = ranges.Seen(counting=True, device="meta")
        seen.add(torch.empty(3, device="meta"))
        assert door.opened == 0
        with Spy():
            ranges.find(meta(tiny_llama()), tokens_for(tiny_llama()), in_words(STATIC), ignore)
        assert door.opened == 1
