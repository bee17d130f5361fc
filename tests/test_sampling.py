"""Text that a model writes is its own: drawn as it says, and read as a forward pass reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slmq_edge.anatomy import NORM
from slmq_edge.decoder import Decoder, hidden_states, logits
from slmq_edge.quantization import Task, spinquant
from slmq_edge.quantization.sampling import _drawn, write
from slmq_edge.scheme import in_words
from tests.decoders import (
    QWEN3_BIASED,
    random_decoder,
    random_llama,
    random_qwen2,
    random_qwen3,
    tokens_for,
)
from tests.students import calibration_for, tiny


def rotated_qwen2() -> Decoder:
    """With rotations left for run time, of queries and keys, and of what down_proj reads."""
    model = random_qwen2()
    task = Task(
        in_words({"name": "w4a8", "kv": 8}), spinquant.Settings(steps=0), calibration_for(model)
    )
    found = spinquant.prepare(model, task).model
    assert found.online.keys
    assert found.online.down
    return found


MAKES: dict[str, Callable[[], Decoder]] = {
    "Qwen2": random_qwen2,
    "untied Llama": random_llama,
    "Qwen3": random_qwen3,
    "biased Qwen3": lambda: random_decoder(QWEN3_BIASED, seed=5),
    "rotated Qwen2": rotated_qwen2,
}
LENGTH = 20


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sharp(model: Decoder) -> Decoder:
    """All chances on the likeliest token: a gain before the head, tied or not, alters no stream."""
    gain = f"{NORM}.weight"
    return dataclasses.replace(model, weights={**model.weights, gain: 1e5 * model.weights[gain]})


@pytest.mark.parametrize("name", MAKES)
def test_it_knows_what_a_forward_pass_over_its_text_knows(name: str) -> None:
    model = MAKES[name]()
    first = tokens_for(model, 1, 3)[0]
    found = write(model, first, LENGTH, drawn(0))
    assert found.tokens.shape == (3, LENGTH)
    assert torch.equal(found.tokens[:, 0], first)
    whole = hidden_states(model, found.tokens)
    torch.testing.assert_close(found.hidden, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("name", MAKES)
def test_where_one_token_is_certain_it_is_the_greedy_text(name: str) -> None:
    model = sharp(MAKES[name]())
    first = tokens_for(model, 1, 2)[0]
    expected = first[:, None]
    while expected.shape[1] < LENGTH:
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(write(model, first, LENGTH, drawn(1)).tokens, expected)


def test_a_seed_is_a_text() -> None:
    model = random_qwen2()
    first = tokens_for(model, 1, 4)[0]

    def text(seed: int) -> Tensor:
        return write(model, first, LENGTH, drawn(seed)).tokens

    assert torch.equal(text(3), text(3))
    assert not torch.equal(text(3)[:, 1:], text(4)[:, 1:])


def test_tokens_are_drawn_as_torch_draws_them() -> None:
    chances = torch.softmax(3 * torch.randn(9, 300, generator=drawn(1)), -1)
    one, other = drawn(2), drawn(2)
    for _ in range(3):
        expected = torch.multinomial(chances, 1, generator=one)[:, 0]
        assert torch.equal(_drawn(chances.clone(), other), expected)


def test_tokens_come_as_often_as_the_model_says() -> None:
    """Chi-square of the first two that are drawn, each from what was written before."""
    model, count = tiny(), 8000
    first = torch.full((count,), 7)
    tokens = write(model, first, 3, drawn(5)).tokens
    likeliest = int(tokens[:, 1].mode().values)
    for prefix, at in (([7], 1), ([7, likeliest], 2)):
        chances = torch.softmax(logits(model, torch.tensor([prefix]))[0, -1], -1)
        following = tokens[(tokens[:, :at] == torch.tensor(prefix)).all(1), at]
        expected = len(following) * chances
        often = expected >= 5
        seen = torch.bincount(following, minlength=len(chances)).float()
        # All that is rare is one kind.
        expected, seen = (torch.cat([t[often], t[~often].sum()[None]]) for t in (expected, seen))
        freedom = len(expected) - 1
        assert freedom > 10
        chi_square = float(((seen - expected).square() / expected).sum())
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
