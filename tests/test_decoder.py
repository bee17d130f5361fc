"""Our decoder against Hugging Face's, and reading models from folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from slmq_edge import models
from slmq_edge.anatomy import Anatomy, Rope
from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from tests.decoders import (
    DECODERS,
    LLAMA,
    QWEN2,
    QWEN3,
    QWEN3_BIASED,
    random_decoder,
    tokens_for,
    write_folder,
)
from tests.shared import shared

CONFIGS = (
    "SmolLM-135M",
    "SmolLM-360M",
    "SmolLM2-135M",
    "SmolLM2-360M",
    "Qwen2.5-0.5B",
    "Qwen3-0.6B",
)
MODELS: dict[str, Callable[[], Decoder]] = {
    **DECODERS,
    "random biased Qwen3": lambda: random_decoder(QWEN3_BIASED, seed=5),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    folder = write_folder(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens = tokens_for(model, 2, 48)
    with torch.no_grad():
        expected = theirs(tokens).logits
    # transformers takes its rotary angles in float32.
    ours = logits(model.to(torch.float64), tokens)
    assert (ours - expected).abs().max() < 2e-5 * expected.abs().max()
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    model = DECODERS["random untied Llama"]()
    again = models.read(write_folder(model, tmp_path / "model"))
    assert again.anatomy == model.anatomy
    assert all(torch.equal(again.weights[name], t) for name, t in model.weights.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configs_are_understood(name: str) -> None:
    shape = models.read_anatomy(shared(f"configs/{name}"))
    published = {
        "SmolLM-135M": 134_515_008,
        "Qwen2.5-0.5B": 494_032_768,
        "Qwen3-0.6B": 596_049_920,
    }
    assert shape.parameters == published.get(name, shape.parameters)
    assert shape.tied


def test_llama3_rotary_scaling_is_read() -> None:
    shape = models.read_anatomy(shared("configs/Llama-3.2-1B"))
    assert shape.rope == Rope(500000.0, ("llama3", 32.0, 1.0, 4.0, 8192.0))
    assert shape.head_dim == 64


def test_norms_of_heads_are_read() -> None:
    shape = models.read_anatomy(shared("configs/Qwen3-0.6B"))
    assert shape.qk_norm
    assert (shape.hidden, shape.query_width, shape.kv_width) == (1024, 2048, 1024)
    assert shape.tensors()["model.layers.27.self_attn.k_norm.weight"] == (128,)
    assert not models.read_anatomy(shared("configs/Qwen2.5-0.5B")).qk_norm


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(Unsupported, match=r"unknown architecture .*known: llama, qwen2, qwen3"):
        models.read_anatomy(shared("configs/gemma-3-270m"))


@pytest.mark.parametrize(
    "change",
    [{"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]}],
)
def test_sliding_windows_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    folder = write_folder(random_decoder(QWEN3, seed=4), tmp_path / "tiny-qwen3")
    config = json.loads((folder / "config.json").read_text())
    full = {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(config | full))
    assert models.read_anatomy(folder) == QWEN3
    (folder / "config.json").write_text(json.dumps(config | full | change))
    with pytest.raises(Unsupported, match="sliding-window attention"):
        models.read_anatomy(folder)


def test_anatomy_survives_json() -> None:
    for shape in (LLAMA, QWEN2, QWEN3):
        assert Anatomy.from_json(json.loads(json.dumps(shape.as_json()))) == shape


def test_an_anatomy_that_was_stored_before_heads_had_norms_has_none() -> None:
    stored = QWEN2.as_json()
    del stored["qk_norm"]
    assert Anatomy.from_json(stored) == QWEN2


def test_both_spellings_of_rotary_settings_agree() -> None:
    old = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 32}
    old |= {"intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 10}
    new = {**old, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    old |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert Anatomy.from_config(old) == Anatomy.from_config(new)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(random_decoder(QWEN2, seed=1), tmp_path / "tiny-qwen2")


def test_a_truncated_file_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Damaged, match=r"model\.safetensors is damaged or truncated"):
        models.read(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = random_decoder(QWEN2, seed=1).weights
    del tensors["model.layers.1.self_attn.v_proj.bias"]
    write_folder(Decoder(QWEN2, tensors), folder)
    with pytest.raises(Damaged, match=r"lacks the tensor model\.layers\.1\.self_attn\.v_proj"):
        models.read(folder)


def test_a_tensor_that_does_not_belong_is_named(folder: Path) -> None:
    tensors = random_decoder(QWEN2, seed=1).weights
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    write_folder(Decoder(QWEN2, tensors), folder)
    with pytest.raises(Unsupported, match="q_norm"):
        models.read(folder)


def test_pickles_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"pytorch_model\.bin is a pickle"):
        models.read(folder)


def test_a_sharded_model_is_read(folder: Path) -> None:
    from safetensors.torch import save_file

    whole = models.read(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(whole.weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: whole.weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    again = models.read(folder)
    assert all(torch.equal(again.weights[name], t) for name, t in whole.weights.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(Damaged, match=r"lacks b\.safetensors"):
        models.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"model_type": "llama"}', "lacks"),
        ('{"model_type": "llama", "num_attention_heads": 2, "hidden_size": null}', "is damaged"),
    ],
)
def test_a_broken_config_is_one_line(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(Damaged, match=message):
        models.read_anatomy(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_one_line(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(Damaged, match="index"):
        models.read(folder)


def test_a_broken_tokenizer_is_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(Damaged, match=r"tokenizer\.json is damaged"):
        models.read_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "words"), [("checkpoint.json", "export it"), ("bundle.json", "profile it")]
)
def test_a_folder_of_ours_is_no_model_and_says_so(folder: Path, file: str, words: str) -> None:
    (folder / file).write_text("{}")
    with pytest.raises(SlmqError, match=words):
        models.find(str(folder))


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("demo-lama", "did you mean demo-llama"),
        ("HuggingFaceTB-SmolLM-135M", "did you mean HuggingFaceTB/SmolLM-135M"),
    ],
)
def test_a_typo_in_a_name_is_guessed(name: str, guess: str) -> None:
    with pytest.raises(NotFound, match=guess):
        models.find(name)


def test_a_typo_in_a_path_is_guessed(folder: Path) -> None:
    with pytest.raises(SlmqError, match="did you mean tiny-qwen2"):
        models.find(str(folder.parent / "tiny-qwen"))
