"""What a student answers, against the definition of its loss, a piece at a time or whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slmq_edge.decoder import Decoder, block, embed, logits, rotary_table
from slmq_edge.quantization import answers
from slmq_edge.quantization.answers import judge
from slmq_edge.quantization.lessons import heard
from slmq_edge.quantization.student import KINDS, Student
from slmq_edge.scheme import in_words
from slmq_edge.simulation import token_log_probabilities
from tests.decoders import random_llama, random_qwen3, tokens_for
from tests.students import student_of
from tests.test_methods import ignore

LENGTH, WINDOWS = 10, 5


def student_for(model: Decoder) -> Student:
    return student_of(model, in_words({"name": "w4a8", "kv": 8, "lm_head": "int8"}))


def logits_of(student: Student, tokens: torch.Tensor) -> torch.Tensor:
    model = student.model
    return logits(
        model, tokens, lambda x, linears: student.project(model, x, linears), student.operands
    )


@pytest.mark.parametrize("make", [random_llama, random_qwen3])
def test_it_is_judged_by_divergence_and_perplexity_as_they_are_defined(
    make: Callable[[], Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is looked at together."""
    model = make()
    tokens, student = tokens_for(model, WINDOWS, LENGTH), student_for(model)
    held = heard(model, tokens, ignore)
    with torch.no_grad():
        given = torch.log_softmax(logits_of(student, tokens).double(), -1)
    wanted = torch.log_softmax(logits(model, tokens).double(), -1)
    divergence = (wanted.exp() * (wanted - given)).sum(-1).mean()
    surprise = -token_log_probabilities(given, tokens).mean()
    assert divergence > 0.01
    for together, at_a_time in ((2048, 2**22), (2 * LENGTH, 7 * model.anatomy.vocab)):
        monkeypatch.setattr(answers, "TOGETHER", together)
        monkeypatch.setattr(answers, "LOGITS", at_a_time)
        found = judge(student, held)
        assert found.divergence == pytest.approx(float(divergence), rel=1e-4)
        assert found.log_perplexity == pytest.approx(float(surprise), rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(float(surprise)), rel=1e-4)


def test_gradients_are_those_of_the_whole_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_qwen3()
    tokens, student = tokens_for(model, WINDOWS, LENGTH), student_for(model)
    moving = student.learned(dict.fromkeys(KINDS, 1.0))
    given = torch.log_softmax(logits_of(student, tokens), -1)
    wanted = torch.log_softmax(logits(model, tokens), -1)
    whole = (wanted.exp() * (wanted - given)).sum()
    expected = torch.autograd.grad(whole, list(moving.values()))
    monkeypatch.setattr(answers, "LOGITS", 7 * model.anatomy.vocab)
    found = answers.answers(student, heard(model, tokens, ignore))
    slopes = torch.autograd.grad(found.divergence, list(moving.values()))
    for one, other in zip(slopes, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("blocks", [0.0, 0.5])
def test_activations_computed_anew_are_the_same_bits(
    blocks: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_llama()
    student = student_for(model)
    moving = student.learned(dict.fromkeys(KINDS, 1.0))
    lesson = heard(model, tokens_for(model, WINDOWS, LENGTH), ignore)

    def slopes() -> tuple[torch.Tensor, ...]:
        found = answers.answers(student, lesson, blocks)
        return torch.autograd.grad(found.divergence + blocks * found.apart, [*moving.values()])

    kept = slopes()
    walked: list[int] = []

    def watched(model: Decoder, layer: int, *rest: Any) -> torch.Tensor:
        walked.append(layer)
        return block(model, layer, *rest)

    monkeypatch.setattr(answers, "ACTIVATIONS", 0)
    monkeypatch.setattr(answers, "block", watched)
    anew = slopes()
    once = list(range(model.anatomy.layers))
    assert sorted(walked) == sorted(once * (3 if blocks else 2))
    assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))


@pytest.mark.parametrize("form", ["w4a8", "w4a8-g32"])
def test_what_gradients_keep_is_no_more_than_is_said(form: str) -> None:
    """Of a model whose weights outweigh its window, and of one long window."""
    model = random_llama()
    student = student_of(model, in_words({"name": form}))
    student.learned(dict.fromkeys(KINDS, 1.0))
    for windows, length in ((1, 2), (2, 32)):
        lesson = heard(model, tokens_for(model, windows, length), ignore)
        kept: dict[int, torch.Tensor] = {}

        def keep(t: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            answers.answers(student, lesson)
        theirs = {t.untyped_storage().data_ptr() for t in model.weights.values()}
        size = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in theirs)
        said = answers._held(model, lesson.tokens)
        assert 0.3 * said < size < 1.4 * said


def test_streams_are_apart_by_their_own_size() -> None:
    model = random_llama()
    student = student_for(model)
    tokens = tokens_for(model, WINDOWS, LENGTH)
    lesson = heard(model, tokens, ignore)
    changed = student.model
    rotary = rotary_table(model.anatomy, LENGTH, torch.float32, "cpu")
    with torch.no_grad():
        expected = torch.zeros(())
        one, other = embed(changed, tokens), embed(model, tokens)
        for layer in range(model.anatomy.layers):
            one = block(
                changed,
                layer,
                one,
                rotary,
                lambda x, linears: student.project(changed, x, linears),
                student.operands,
            )
            other = block(model, layer, other, rotary)
            expected += ((one - other).norm(dim=-1) / other.norm(dim=-1)).square().mean()
        found = answers.answers(student, lesson, blocks=1.0).apart
        assert answers.answers(student, lesson).apart == 0
    assert expected > 1e-3
    torch.testing.assert_close(found, expected)
