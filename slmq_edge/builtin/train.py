"""Train a built-in model: `python -m slmq_edge.builtin.train demo-llama --out FOLDER`.

The shapes follow SmolLM (`demo-llama`: grouped-query attention, tied embeddings) and
Qwen2 (`demo-qwen2`: the same with biases on q, k and v), at a size that one core trains
in minutes on the text of `world.py`.

A plain training of so small a model would miss what the quantization methods are about:
channels of the norms' outputs that are many times larger than the others. They are
planted before the first step, leaving the model's function at that moment unchanged, and
then everything is trained:

    gain_j  = exp(SPREAD * n_j)     n_j standard normal, for the two norms of every block
    gain_j  = OUTLIER               for the same OUTLIERS channels j in every block
    W[:, j] = usual / gain_j        for the linears that read the norm

That the names of a story come back in it is what the models discover last. Three things bring that
forward: attention that starts by looking for like tokens (`start_block`), windows of 128
tokens for the first three quarters of the steps, and a modest learning rate (in trials with
2e-3 and 3e-3 the loss stood still for hundreds of steps).

Weights are trained in float32 (products in bfloat16), saved as float16, and the numbers
in the log are measured on the saved weights.
"""

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge.builtin import MODELS
from slmq_edge.builtin.measure import perplexity, question_accuracy
from slmq_edge.builtin.world import heldout_documents, questions, training_documents

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 1024
WINDOW = 512
SHORT, SHORT_SHARE = 128, 0.75
SEED = 7
SPREAD, OUTLIERS, OUTLIER = 0.5, 4, 20.0


@dataclass(frozen=True)
class Recipe:
    """Shape of a model and length of its training (`batch` in windows of 512 tokens)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    steps: int
    batch: int
    learning_rate: float

    @property
    def documents(self) -> int:
        """How many documents fill all windows, with 20 % to spare (50 tokens each)."""
        return int(self.steps * self.batch * WINDOW / 50 * 1.2)


RECIPES: dict[str, Recipe] = {
    "demo-llama": Recipe(192, 4, 6, 2, 512, steps=2000, batch=4, learning_rate=1e-3),
    "demo-qwen2": Recipe(128, 5, 4, 2, 384, steps=2400, batch=4, learning_rate=1e-3),
}


def train_tokenizer(folder: Path) -> Any:
    """Train the byte-level BPE both models share, save it and return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_documents(20_000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast


def training_stream(tokenizer: Any, documents: int) -> "Tensor":
    """Return all training tokens in a row, documents joined by `<s>` or by a blank line.

    Both joints occur, because evaluations of real models join by blank lines and the
    perplexity of this package joins by `<s>`.
    """
    import torch

    toss = random.Random(SEED).random
    blank: list[int] = tokenizer.encode("\n", add_special_tokens=False) * 2
    ids: list[int] = []
    texts = list(training_documents(documents))
    for start in range(0, len(texts), 1000):
        for row in tokenizer(texts[start : start + 1000], add_special_tokens=False).input_ids:
            ids += [tokenizer.bos_token_id] if toss() < 0.5 else blank
            ids += row
    return torch.tensor(ids)


def build(name: str, recipe: Recipe) -> Any:
    """Return the untrained model, its outlier channels planted."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.ffn,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "max_position_embeddings": WINDOW,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "initializer_range": recipe.hidden**-0.5,
    }
    if name == "demo-llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    with torch.no_grad():
        for block in model.model.layers:
            start_block(block)
        channels = torch.randperm(recipe.hidden)[:OUTLIERS]
        for block in model.model.layers:
            plant_outliers(block, channels)
    return model


def start_block(block: Any) -> None:
    """Let attention start by looking for like tokens and copying them (a head start).

    Query heads start as their key head, and the output projection as the transposed value
    projection, so `W_q' W_k` and `W_o W_v` are near multiples of the identity. Copying from
    the context is what takes a small model longest to discover. Both projections back
    into the residual stream start small, so that the tokens are not drowned at first.
    """
    attention, mlp = block.self_attn, block.mlp
    groups, width = attention.num_key_value_groups, attention.head_dim
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight.mul_(0.7)

    def per_query_head(weight: "Tensor") -> "Tensor":
        heads = weight.view(-1, width, weight.shape[1])
        return heads.repeat_interleave(groups, 0).flatten(0, 1)

    attention.q_proj.weight.mul_(0.5).add_(per_query_head(attention.k_proj.weight))
    attention.o_proj.weight.mul_(0.1).add_(0.1 * per_query_head(attention.v_proj.weight).T)
    mlp.down_proj.weight.mul_(0.1)
    if attention.q_proj.bias is not None:
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.bias.normal_(std=0.3)


def plant_outliers(block: Any, channels: "Tensor") -> None:
    """Spread the gains of both norms of a block; see the module's docstring."""
    import torch

    attention, mlp = block.self_attn, block.mlp
    readers = {
        block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
        block.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
    }
    for norm, linears in readers.items():
        gain = torch.exp(SPREAD * torch.randn(len(norm.weight)))
        gain[channels] = OUTLIER
        norm.weight.copy_(gain)
        for linear in linears:
            linear.weight.div_(gain)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Warm up over 4 % of the steps, then follow a cosine down to 2 % of the peak."""
    warmup = recipe.steps * 0.04
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / (recipe.steps - warmup)
    return recipe.learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


def fit(model: Any, stream: "Tensor", recipe: Recipe) -> None:
    """Train all weights with AdamW: one pass over the text, short windows first."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        fused=True,
    )
    model.train()
    began = time.perf_counter()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        # Copying from the context is learnt from near examples, long contexts afterwards.
        length = SHORT if step < SHORT_SHARE * recipe.steps else WINDOW
        tokens = recipe.batch * WINDOW
        batch = stream[step * tokens : (step + 1) * tokens].view(-1, length)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            elapsed = time.perf_counter() - began
            left = elapsed / (step + 1) * (recipe.steps - step - 1)
            log(f"step {step + 1} of {recipe.steps}, loss {loss.item():.4f}, {left:.0f} s left")
    model.eval()


def log(message: str) -> None:
    """Report progress where it does not mix with results."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def train(name: str, folder: Path) -> dict[str, float]:
    """Train one built-in model, write its folder, return what the saved model scores."""
    import torch
    from transformers import AutoModelForCausalLM

    recipe = RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(folder)
    stream = training_stream(tokenizer, recipe.documents)
    model = build(name, recipe)
    log(f"{name}: {model.num_parameters():,} parameters, {len(stream):,} training tokens")
    began = time.perf_counter()
    fit(model, stream, recipe)
    scores = {"training_seconds": round(time.perf_counter() - began, 1)}
    model.to(torch.float16).save_pretrained(folder)
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scores["accuracy"] = question_accuracy(saved, tokenizer, questions())
    scores["perplexity"] = perplexity(saved, tokenizer, heldout_documents())
    return scores


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train a built-in model.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="threads torch may use")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    scores = train(arguments.name, arguments.out)
    sys.stdout.write(json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
