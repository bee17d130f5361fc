"""The torch runtime's model against the simulation, and what it holds in memory.

In float32 the two compute the same formulas; where they differ is the order in which floats are
summed: attention by steps, products in groups. A sum that differs in its last bit can round an
activation the other way, and all that follows with it. So linears are held to the simulation to the
last bit, by the input that they had; and whole models to its logits, or else up to where the first
activation is rounded otherwise, of which the two must have had the same to float's rounding.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder
from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.golden import kl_divergence, measure_noise
from slmq_edge.quantization.rounding import Rounded, Steps
from slmq_edge.scheme import Scheme, scheme
from slmq_edge.simulation import Simulation
from slmq_edge.torch_runtime.cache import Cache
from slmq_edge.torch_runtime.captured import Steps as Captured
from slmq_edge.torch_runtime.model import Block, IntegerModel
from slmq_edge.torch_runtime.modules import IntegerLinears, Weight
from tests import fake_cuda
from tests.decoders import DECODERS, random_llama, random_qwen3, rounded, text_for, tokens_for
from tests.test_simulation import FORMS as ODD_FORMS
from tests.test_simulation import MODELS as ODD_MODELS
from tests.test_simulation import made
from tests.torch_models import (
    BY_HEAD,
    FORMS,
    ROTATED,
    SMALLEST_FIRST,
    TRAINED,
    checkpoint,
    recorded,
)

SAME = 1e-9  # nats: two ways to sum floats, and no rounding that went the other way
CLOSE = 1e-5  # of the largest of a linear's inputs: two ways to sum floats
A_LEVEL = 0.02  # of it, where a key or a value may have been rounded otherwise
# Linear, or the first of several -> what it read and its integers, [batch, length, width].
Seen = dict[str, tuple[Tensor, Tensor]]


class Watched(Simulation):
    """Keeps what is rounded."""

    def run(self, tokens: Tensor) -> tuple[Tensor, Seen]:
        self.seen: Seen = {}
        return self.logits(tokens), self.seen

    def rounded(self, inputs: Tensor, first: str) -> Rounded | None:
        found = super().rounded(inputs, first)
        if found is not None:
            self.seen[first] = inputs, found.integers
        return found


class Running:
    """A model in float32, and what it rounded since it began to read a text."""

    def __init__(self, of: Checkpoint) -> None:
        self._ops = recorded()
        self.model = IntegerModel.of(of, torch.float32, chosen=self._ops)

    def run(self, tokens: Tensor, first: int, piece: int = 0) -> tuple[Tensor, Seen]:
        """A prompt of ``first`` tokens, then a piece of as many, then one at a time."""
        self._ops.rounded.clear()
        cache = self.model.cache(*tokens.shape)
        parts = [self.model.prefill(tokens[:, :first], cache)]
        if piece:
            parts.append(self.model.extend(tokens[:, first : first + piece], cache))
        rest = range(first + piece, tokens.shape[1])
        parts += [self.model.step(tokens[:, at : at + 1], cache) for at in rest]
        linears = [one for one in self.model.modules() if isinstance(one, IntegerLinears)]
        seen: Seen = {}
        for index, one in enumerate(linears):
            pieces = self._ops.rounded[index :: len(linears)]
            rows = [(x, levels.integers.float()) for x, levels in pieces]
            batched = [[t.view(len(tokens), -1, t.shape[-1]) for t in row] for row in rows]
            x, integers = (torch.cat(parts, 1) for parts in zip(*batched, strict=True))
            seen[one.names[0]] = x, integers
        return torch.cat(parts, 1), seen


def prefilled(model: IntegerModel, tokens: Tensor, room: int = 0) -> tuple[Tensor, Cache]:
    cache = model.cache(tokens.shape[0], tokens.shape[1] + room)
    return model.prefill(tokens, cache), cache


def assert_same(found: tuple[Tensor, Seen], expected: tuple[Tensor, Seen], of: Checkpoint) -> None:
    """Logits, or all up to the first activation that was rounded otherwise."""
    assert found[0].dtype == torch.float32
    assert found[1].keys() == expected[1].keys()
    tolerance = CLOSE if of.scheme.kv is None and of.scheme.query is None else A_LEVEL
    for linear, (x, integers) in found[1].items():
        theirs, levels = expected[1][linear]
        assert (x - theirs).abs().max() <= tolerance * theirs.abs().max()
        if not torch.equal(integers, levels):
            return
    if tolerance == CLOSE:
        assert kl_divergence(expected[0], found[0]).mean() <= SAME


@pytest.mark.parametrize("form", [*FORMS, BY_HEAD])
@pytest.mark.parametrize("name", SMALLEST_FIRST)
def test_a_model_computes_what_its_simulation_does(name: str, form: str) -> None:
    """In one go, in pieces, and token by token behind a prompt."""
    of, tokens = checkpoint(name, form), text_for(name, 2, 48)
    expected, running = Watched(of).run(tokens), Running(of)
    assert_same(running.run(tokens, 48), expected, of)
    assert_same(running.run(tokens, 20, 11), expected, of)


@pytest.mark.parametrize("form", ODD_FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("make", ODD_MODELS)
def test_models_of_odd_sizes_and_forms_do_too(make: Callable[[], Decoder], form: Scheme) -> None:
    random = make()
    of, tokens = made(random, form), tokens_for(random)
    assert_same(Running(of).run(tokens, 20), Watched(of).run(tokens), of)


def test_rounding_is_seldom_otherwise() -> None:
    """Or the tests above would say little: prompts are read as the simulation reads them."""
    for name in TRAINED:
        of, tokens = checkpoint(name, "w8a8"), text_for(name, 2, 48)
        found, expected = Running(of).run(tokens, 48), Watched(of).run(tokens)
        for linear, (_, integers) in found[1].items():
            theirs = expected[1][linear][1]
            assert (integers != theirs).float().mean() <= 1e-3
            assert (integers - theirs).abs().max() <= 2


def test_what_is_not_the_same_is_seen() -> None:
    """One level of one weight, in the last block."""
    name = "demo-llama"
    of, tokens = checkpoint(name, "w8a8"), text_for(name, 1, 24)
    expected, running = Watched(of).run(tokens), Running(of)
    weights = [m for m in running.model.modules() if isinstance(m, Weight)]
    weights[-1].integers[3] += 1
    with pytest.raises(AssertionError):
        assert_same(running.run(tokens, 24), expected, of)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("w4a16-g32", "fp32")])
@pytest.mark.parametrize("name", SMALLEST_FIRST)
def test_every_linear_is_the_simulations_by_its_input(name: str, form: str) -> None:
    """Integers equal; products too, but where inputs in groups are multiplied as floats there."""
    of, tokens = checkpoint(name, form), text_for(name, 1, 24)
    simulation, ops = Simulation(of), recorded()
    model = IntegerModel.of(of, torch.float32, chosen=ops)
    prefilled(model, tokens)
    linears = [one for one in model.modules() if isinstance(one, IntegerLinears)]
    assert len(ops.rounded) == len(linears) > 0
    products = iter(ops.products)
    for one, (x, levels) in zip(linears, ops.rounded, strict=True):
        expected = simulation.rounded(x, one.names[0])
        assert expected is not None
        assert torch.equal(levels.integers.float(), expected.integers)
        assert torch.equal(levels.scale.flatten(), expected.steps.scale.flatten())
        again = Rounded(levels.integers.float(), Steps(levels.scale, levels.zero))
        found = torch.cat([next(products)[2] for _ in one.weights], -1)
        wanted = torch.cat([simulation.multiply(x, again, linear) for linear in one.names], -1)
        if one.reads.group is None:
            assert torch.equal(found, wanted)
        else:
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert next(products, None) is None


@pytest.mark.parametrize("form", ["w8a8", "w4a8, int4 head", "w8a8, kv 8", ROTATED, "fp32"])
@pytest.mark.parametrize("name", SMALLEST_FIRST)
def test_in_float16_it_is_as_close_as_the_simulation_is_in_float16(name: str, form: str) -> None:
    """The limits of a bundle whose floats are float16, as `golden.record` finds them."""
    of, tokens = checkpoint(name, form), text_for(name, 16, 48)
    model = IntegerModel.of(of, torch.float16)
    found, _ = prefilled(model, tokens)
    noise = measure_noise(of, Simulation(of, torch.float16), tokens)
    assert kl_divergence(Simulation(of).logits(tokens), found).mean() <= noise.kl_limit


@pytest.mark.parametrize("form", ["w8a8", "w8a8, kv 8", "w4a16-g32", "fp32"])
def test_texts_in_company_are_what_they_are_alone(form: str) -> None:
    name = "stories260K"
    of, tokens = checkpoint(name, form), text_for(name, 3, 32)
    running = Running(of)
    logits, seen = running.run(tokens, 24)
    for row in range(3):
        mine = {name: (x[row, None], levels[row, None]) for name, (x, levels) in seen.items()}
        alone = running.run(tokens[row, None], 24)
        assert_same((logits[row, None], mine), alone, of)


@pytest.mark.parametrize("form", ["w8a8", "w8a8, kv 8"])
def test_the_cache_is_static_and_holds_what_it_says(form: str) -> None:
    name = "demo-llama"
    of, tokens = checkpoint(name, form), text_for(name, 1, 30)
    shape = of.anatomy
    model = IntegerModel.of(of, torch.float16)
    cache = model.cache(1, 37)
    assert cache.room == 40
    tensors = [t for block in cache.blocks for kept in block for t in kept.tensors]
    places = [t.data_ptr() for t in tensors]
    held = 2 * shape.layers * shape.kv_heads * 40
    if of.scheme.kv is None:
        expected = held * shape.head_dim * 2
        assert {t.dtype for t in tensors} == {torch.float16}
    else:
        expected = held * (shape.head_dim + 4 + 1)
        kinds = [torch.int8, torch.float32, torch.int8]
        assert [t.dtype for t in tensors] == 2 * shape.layers * kinds
    assert cache.bytes == sum(t.untyped_storage().nbytes() for t in tensors) == expected
    assert model.kv_bytes_per_token * 40 == expected
    model.prefill(tokens[:, :20], cache, 1)
    for at in range(20, 30):
        model.step(tokens[:, at : at + 1], cache)
    assert [t.data_ptr() for t in tensors] == places
    assert (cache.length, int(cache.position)) == (30, 30)
    assert all(t[:, :, :30].any() and not t[:, :, 30:].any() for t in tensors)


def test_a_cache_that_is_full_or_of_other_texts_is_refused() -> None:
    model = IntegerModel.of(checkpoint("stories260K", "w8a8"), torch.float32)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    _, cache = prefilled(model, tokens)
    with pytest.raises(SlmqError, match="9 positions: the cache has room for 8"):
        model.step(tokens[:, :1], cache)
    with pytest.raises(SlmqError, match="9 positions"):
        model.prefill(torch.zeros(1, 9, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="a cache of 1 texts"):
        model.prefill(tokens.repeat(2, 1), cache)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TRAINED)
def test_memory_is_that_of_integers_and_nothing_twice(name: str, form: str) -> None:
    of = checkpoint(name, form)
    model = IntegerModel.of(of, torch.float16)
    tied = of.anatomy.tied
    integers = 0
    for linear, weight in of.integers.items():
        out, width = weight.integers.shape
        row = math.ceil(width / 2) if weight.grid.bits == 4 else width
        groups = weight.grid.groups(width)
        is_table = linear == names.EMBED
        multiplied = not is_table or (tied and names.HEAD not in of.integers)
        reads = of.scheme.input_grid(names.HEAD if is_table else linear)
        sums = 4 if multiplied and reads is not None and not reads.symmetric else 0
        zero = 0 if weight.grid.symmetric else 2
        integers += out * (row + groups * (4 + zero) + sums)
    assert model.integer_bytes == integers
    static = sum(4 * (1 if s.zero is None else 2) for s in of.inputs.values())
    floats = sum(2 * t.numel() for t in of.tensors.values()) + static
    rotations = {id(m): m for m in model.modules() if type(m).__name__ == "Rotation"}
    floats += sum(t.nbytes for m in rotations.values() for t in m.buffers())
    assert model.float_bytes == floats
    stored = {t.untyped_storage().data_ptr(): t for t in model.state_dict().values()}
    # Not one byte more lies behind the buffers than they say.
    assert sum(t.untyped_storage().nbytes() for t in stored.values()) == integers + floats


@pytest.mark.parametrize("form", ["w4a8", "w4a8, int4 head", "w4a16-g32"])
def test_no_float_copy_of_an_integer_weight_stays_alive(form: str) -> None:
    name = "demo-llama"
    of, tokens = checkpoint(name, form), text_for(name, 1, 12)
    shapes = {tuple(w.integers.shape) for w in of.integers.values()}
    before = tensors_alive()
    model = IntegerModel.of(of, torch.float16)
    _, cache = prefilled(model, tokens, 4)
    model.step(tokens[:, :1], cache)
    known = {id(t) for t in (*before, *model.buffers())}
    new = [t for t in tensors_alive() if id(t) not in known]
    assert new, "the cache, at least"
    assert not [t for t in new if t.is_floating_point() and tuple(t.shape) in shapes]


def tensors_alive() -> list[Tensor]:
    gc.collect()
    # Not isinstance: it asks whatever else is alive for its class, and some of that warns.
    return [t for t in gc.get_objects() if issubclass(type(t), Tensor)]


def test_a_tied_table_is_one_matrix() -> None:
    model = IntegerModel.of(checkpoint("demo-qwen2", "w4a8, int4 head"), torch.float32)
    assert isinstance(model.head, IntegerLinears)
    assert model.head.weights[0] is model.table_of_tokens
    assert isinstance(model.table_of_tokens, Weight)
    assert model.table_of_tokens.integers.dtype == torch.uint8


def test_the_table_says_what_multiplies_what() -> None:
    of = checkpoint("demo-llama", "w4a8, two protected")
    model = IntegerModel.of(of, torch.float16)
    held = model.table()
    assert [name for one in held for name in one.names] == [*of.anatomy.linears(), names.HEAD]
    assert held[0].bits == (4, 8, 4)  # k_proj is protected, so that q, k and v are three
    assert held[1].bits == (4,)
    assert held[-2].bits == (8,)
    assert {one.operator for one in held[:-1]} == {"reference.linear"}
    assert (held[-1].operator, held[-1].integer, held[-1].bits) == ("torch.linear", False, (16,))
    parts = sum(one.bytes for one in held[:-1])
    assert parts == model.integer_bytes


def test_a_value_that_float16_cannot_hold_is_named() -> None:
    decoder = DECODERS["stories260K"]()
    decoder.weights["model.norm.weight"][3] = 1e6
    of = rounded(decoder, scheme("w8a8"))
    with pytest.raises(Unsupported, match=r"model\.norm\.weight has values that float16"):
        IntegerModel.of(of, torch.float16)
    IntegerModel.of(of, torch.float32)


@pytest.mark.parametrize("form", ODD_FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("make", [random_qwen3, random_llama])
def test_on_a_gpu_no_devices_are_mixed_and_a_step_waits_for_nothing(
    make: Callable[[], Decoder], form: Scheme
) -> None:
    """With fake tensors: this is how we know that the step can be captured."""
    model = IntegerModel.of(made(make(), form), torch.float16)
    with fake_cuda.gpu() as mode:
        fake_cuda.moved(model, mode)
        tokens = torch.zeros(2, 20, dtype=torch.int64, device=fake_cuda.GPU)
        cache = model.cache(2, 40)
        logits = model.prefill(tokens, cache, 3)
        assert logits.shape == (2, 3, model.anatomy.vocab)
        model.extend(tokens[:, :5], cache)
        steps = Captured(model, cache)
        with fake_cuda.nothing_crosses():
            steps.run()
        assert steps.logits is not None
        for t in (logits, steps.logits, steps.token, *model.buffers()):
            assert t.device == fake_cuda.GPU


def test_the_fake_gpu_can_fail() -> None:
    with fake_cuda.gpu():
        there, here = torch.zeros(3, device=fake_cuda.GPU), torch.zeros(3)
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with pytest.raises(RuntimeError):
            there.sum().item()
        with fake_cuda.nothing_crosses(), pytest.raises(AssertionError, match="crosses"):
            there.copy_(here)


def test_rotations_are_taken_online() -> None:
    """Without them the model is another."""
    of, tokens = checkpoint("demo-llama", ROTATED), text_for("demo-llama", 1, 24)
    model = IntegerModel.of(of, torch.float32)
    expected = Simulation(of).logits(tokens)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.mlp.rotation = None
    found, _ = prefilled(model, tokens)
    assert kl_divergence(expected, found).mean() > 0.1
