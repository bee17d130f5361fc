"""The models under test: two trained ones, two built-in, and three random of odd sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch

from slmq_edge import builtin, models
from slmq_edge.anatomy import QKV, Anatomy, O, Rope
from slmq_edge.builtin import world
from slmq_edge.calibration import Size, Text, cut
from slmq_edge.checkpoint import Checkpoint, round_rest
from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Prepared, Task, ranges
from slmq_edge.scheme import Scheme
from tests.shared import shared

VOCAB = 96


def stories260k() -> Decoder:
    return models.read(shared("models/stories260K"))


def demo(name: str) -> Callable[[], Decoder]:
    return lambda: models.read(builtin.folder(name))


def random_qwen2() -> Decoder:
    """Biases on q, k, v; three query heads to a KV head; tied."""
    return random_decoder(QWEN2, seed=1)


def random_llama() -> Decoder:
    """Untied, biases everywhere, a head of 12 that no fused kernel takes, an odd ffn."""
    return random_decoder(LLAMA, seed=2)


def random_qwen3() -> Decoder:
    """Heads that are normalized, and together wider than the stream; tied, no bias."""
    return random_decoder(QWEN3, seed=4)


QWEN2 = Anatomy(
    family="qwen2",
    hidden=48,
    ffn=80,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=8,
    vocab=VOCAB,
    norm_eps=1e-6,
    rope=Rope(10000.0),
    max_positions=128,
    tied=True,
    biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)
LLAMA = Anatomy(
    family="llama",
    hidden=36,
    ffn=63,
    layers=2,
    heads=3,
    kv_heads=1,
    head_dim=12,
    vocab=VOCAB + 1,
    norm_eps=1e-5,
    rope=Rope(500000.0, ("llama3", 8.0, 1.0, 4.0, 64.0)),
    max_positions=128,
    tied=False,
    biased=(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ),
)


QWEN3 = Anatomy(
    family="qwen3",
    hidden=40,
    ffn=96,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=VOCAB,
    norm_eps=1e-6,
    rope=Rope(1000000.0),
    max_positions=128,
    tied=True,
    biased=(),
    qk_norm=True,
)
# As the flag attention_bias makes it; heads of 12 that no fused kernel takes.
QWEN3_BIASED = dataclasses.replace(QWEN3, head_dim=12, tied=False, biased=(*QKV, O))


def random_decoder(shape: Anatomy, seed: int) -> Decoder:
    """Weights that keep the stream's size, gains with outliers, biases that are not small."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, size in shape.tensors().items():
        noise = torch.randn(size, generator=generator)
        if "norm" in name:
            weights[name] = (0.5 * noise).exp()
        elif name.endswith("bias"):
            weights[name] = 0.5 * noise
        else:
            weights[name] = noise / size[-1] ** 0.5
    return Decoder(shape, weights)


DECODERS: dict[str, Callable[[], Decoder]] = {
    "stories260K": stories260k,
    "demo-llama": demo("demo-llama"),
    "demo-qwen2": demo("demo-qwen2"),
    "random Qwen2": random_qwen2,
    "random untied Llama": random_llama,
    "random Qwen3": random_qwen3,
}


def tokens_for(model: Decoder, batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.anatomy.vocab, (batch, length), generator=generator)


def text_for(name: str, batch: int, length: int) -> torch.Tensor:
    """Tokens that the model knows how to read: its own kind of text; random for a random model.

    On token soup a trained model's logits are so steep that one flipped rounding shows.
    """
    model = DECODERS[name]()
    if name.startswith("random"):
        return tokens_for(model, batch, length, seed=11)
    if name == "stories260K":
        folder = shared("models/stories260K")
        rows = shared("data/tinystories/train_head290.jsonl").read_text().splitlines()
        documents = [json.loads(row)["text"] for row in rows]
    else:
        folder = builtin.folder(name)
        documents = world.heldout_documents()
    tokenizer = models.read_tokenizer(folder)
    text = Text("text under test", tuple(documents))
    return cut(text, tokenizer, Size(batch, length)).tokens


def copied(model: Decoder) -> Decoder:
    """The same again: a method takes over, and changes, the model it is given."""
    return dataclasses.replace(model, weights={n: t.clone() for n, t in model.weights.items()})


def rounded(model: Decoder, scheme: Scheme, method: str = "none") -> Checkpoint:
    """A checkpoint of a model as it stands, rounded to nearest, without files."""
    return checkpoint_of(Prepared(model), Task(scheme, None), method)


def checkpoint_of(prepared: Prepared, task: Task, method: str) -> Checkpoint:
    """A checkpoint of a prepared model, rounded as its method says, without files."""
    # Rounding takes the weights out of the model, which a test may want to look at again.
    model = copied(prepared.model)
    inputs = {}
    if task.scheme.is_static:
        assert task.calibration is not None
        inputs = ranges.find(model, task.calibration.tokens, task.scheme, task.progress)
    integers = prepared.round_linears(model, dataclasses.replace(task, inputs=inputs))
    rest, tensors = round_rest(model, task.scheme)
    return Checkpoint(
        anatomy=model.anatomy,
        scheme=task.scheme,
        integers=integers | rest,
        tensors=tensors,
        method=method,
        settings={},
        source={"name": "test", "origin": "local", "revision": None},
        calibration=None,
        cost={"seconds": 0.0, "memory": {"cpu_peak_rss": None}, "device": "cpu"},
        extras={},
        online=model.online,
        inputs=inputs,
    )


def write_folder(model: Decoder, folder: Path) -> Path:
    """Save a decoder as a Hugging Face folder: config.json and model.safetensors."""
    from safetensors.torch import save_file

    shape = model.anatomy
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [f"{shape.family.capitalize()}ForCausalLM"],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope.theta,
        "rope_scaling": _scaling(shape.rope),
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
        "attention_bias": "self_attn.o_proj" in shape.biased,
        "mlp_bias": "mlp.down_proj" in shape.biased,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.weights, folder / "model.safetensors")
    return folder


def _scaling(rope: Rope) -> dict[str, object] | None:
    if rope.scaling is None:
        return None
    keys = (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    )
    kind, *numbers = rope.scaling
    values: list[object] = [*numbers[:3], *(int(n) for n in numbers[3:])]
    return {"rope_type": kind, **dict(zip(keys, values, strict=False))}
