"""The built-in models are what their documentation says, and quantization hurts them."""

import copy
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.builtin import MODELS, folder
from slmq_edge.builtin.score import accuracy, pairs, score_questions, stream
from slmq_edge.builtin.words import PERSON_WORDINGS, TOWN_WORDINGS
from slmq_edge.builtin.world import (
    HELDOUT_ONE_IN,
    Question,
    calibration_text,
    facts,
    heldout_documents,
    is_heldout,
    questions,
    training_documents,
)

FILES = (
    "LICENSE",
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
PERPLEXITY = {"demo-llama": 3.242, "demo-qwen2": 3.225}


def sentences(document: str) -> list[str]:
    return [part.rstrip(".") + "." for part in document.split(". ")]


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def header(name: str) -> dict[str, Any]:
    """Read the tensor table of a safetensors file: {name: {dtype, shape, ...}}."""
    data = (folder(name) / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table: dict[str, Any] = json.loads(data[8 : 8 + length])
    table.pop("__metadata__", None)
    return table


@pytest.fixture(scope="module")
def told() -> set[str]:
    """Return the sentences of the first fifth of the training documents."""
    return {s for text in training_documents(20_000) for s in sentences(text)}


def test_unknown_name_lists_the_models() -> None:
    with pytest.raises(KeyError, match="demo-llama, demo-qwen2"):
        folder("demo-bert")


@pytest.mark.parametrize("name", MODELS)
def test_folder_is_complete(name: str) -> None:
    assert sorted(path.name for path in folder(name).iterdir()) == sorted(FILES)


def test_all_files_fit_8_megabytes() -> None:
    paths = [path for name in MODELS for path in folder(name).iterdir()]
    assert sum(path.stat().st_size for path in paths) <= 8_000_000


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_fp16_and_tied(name: str) -> None:
    table = header(name)
    sizes = []
    for entry in table.values():
        assert entry["dtype"] == "F16"
        size = 1
        for length in entry["shape"]:
            size *= length
        sizes.append(size)
    assert 1_000_000 <= sum(sizes) <= 4_000_000
    assert "lm_head.weight" not in table
    assert any(key.endswith("q_proj.bias") for key in table) == (name == "demo-qwen2")


def test_text_is_the_same_everywhere() -> None:
    assert digest(list(training_documents(500))) == "33cbb0f4bc1e8319"
    assert digest(calibration_text()) == "2aa724b037c57fe2"
    assert digest(heldout_documents()) == "64e4d0b07a4b5749"
    assert digest([repr(question) for question in questions()]) == "7c69854ee6767aec"


def test_text_is_plain_ascii_sentences() -> None:
    for document in [*training_documents(500), *heldout_documents()]:
        assert document.isascii()
        assert document.isprintable()
        assert document.endswith(".")


def test_heldout_sentences_never_occur_in_training(told: set[str]) -> None:
    told = told | {s for text in calibration_text() for s in sentences(text)}
    assert not any(is_heldout(sentence) for sentence in told)
    held = {s for text in heldout_documents() for s in sentences(text)}
    for question in questions():
        text = f"{question.question} {question.choices[question.answer]}."
        held |= set(sentences(text))
    assert all(is_heldout(sentence) for sentence in held)
    assert told.isdisjoint(held)
    share = sum(is_heldout(f"{number}.") for number in range(10_000)) / 10_000
    assert share == pytest.approx(1 / HELDOUT_ONE_IN, abs=0.02)


def test_training_tells_every_fact(told: set[str]) -> None:
    for _, relation, subject, value in facts():
        wordings = (PERSON_WORDINGS | TOWN_WORDINGS)[relation]
        assert any(wording.format(subject, value) in told for wording in wordings)


def test_questions_are_well_formed() -> None:
    asked = questions()
    assert 200 <= len(asked) <= 400
    assert len({question.id for question in asked}) == len(asked)
    for question in asked:
        assert len(set(question.choices)) == 4
        assert 0 <= question.answer < 4
    for answer in range(4):
        share = sum(question.answer == answer for question in asked) / len(asked)
        assert share == pytest.approx(0.25, abs=0.06)


def test_score_takes_the_highest_log_likelihood() -> None:
    two = [
        Question("a", "One and", ("two", "three", "four", "five"), 0),
        Question("b", "Two and", ("two", "three", "four", "five"), 3),
    ]
    assert accuracy([[-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -4.0]], two) == 0.5

    class Letters:
        bos_token_id = 0

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return [ord(letter) for letter in text]

    assert pairs(Letters(), two[0])[0] == ([0, *b"One and"], [*b" two"])
    # The shortest continuation wins: sums, not means.
    assert score_questions(lambda context, end: -float(len(end)), Letters(), two) == 0.5


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_round_trips(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    for text in [*heldout_documents()[:20], "Any ASCII: {x} ~ 42%,\n\n a  b?"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert len(stream(tokenizer, heldout_documents())) >= 10_000
    assert len(stream(tokenizer, calibration_text())) >= 65_536


@pytest.mark.parametrize("name", MODELS)
def test_tokens_do_not_depend_on_where_a_question_is_cut(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    for question in questions():
        for choice, (context, end) in zip(
            question.choices, pairs(tokenizer, question), strict=True
        ):
            whole = tokenizer.encode(f"{question.question} {choice}")
            assert [tokenizer.bos_token_id, *whole] == context + end


def round_to_4_bits(model: Any) -> Any:
    """Round all block linears: symmetric, one scale per output channel, absmax / 7."""
    import torch

    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for module in rounded.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                step = module.weight.abs().amax(dim=1, keepdim=True) / 7
                module.weight.copy_((module.weight / step).round() * step)
    return rounded


@pytest.mark.parametrize("name", MODELS)
def test_full_precision_is_good_and_4_bits_are_worse(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slmq_edge.builtin.measure import perplexity, question_accuracy

    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    model: Any = AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32).eval()
    rounded = round_to_4_bits(model)
    asked, text = questions(), heldout_documents()

    right = question_accuracy(model, tokenizer, asked)
    assert right >= 0.85
    assert question_accuracy(rounded, tokenizer, asked) <= right - 0.03

    loss = perplexity(model, tokenizer, text)
    assert loss == pytest.approx(PERPLEXITY[name], rel=0.005)
    assert perplexity(rounded, tokenizer, text) >= 1.03 * loss


@pytest.mark.parametrize("name", MODELS)
def test_norm_gains_have_outliers(name: str) -> None:
    """Some channels behind a norm are several times the median, as in real models."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32)
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            gain = norm.weight.detach().abs()
            assert gain.max() > 4 * gain.median()


def test_packaged_paths_are_relative() -> None:
    for name in MODELS:
        for file in FILES:
            if file.endswith(".json"):
                assert str(Path.home()) not in (folder(name) / file).read_text()
