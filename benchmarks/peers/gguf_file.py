"""A GGUF file of a folder of Hugging Face's, without a tokenizer: tokens come and go as numbers.

Runs in the interpreter that has ``gguf``. What llama.cpp asks of a file of these architectures is
in its ``src/llama-model.cpp``; names of fields and tensors are gguf's own constants.

    python -m benchmarks.peers.gguf_file MODEL TARGET F32|Q8_0|Q4_0
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from slmq_edge.anatomy import DOWN, EMBED, GATE_UP, HEAD, NORM, QKV, Anatomy, K, O, Q, V
from slmq_edge.errors import Unsupported, unknown

KINDS = ("F32", "Q8_0", "Q4_0")
TENSORS = {EMBED: "token_embd", NORM: "output_norm", HEAD: "output"}
BLOCK_TENSORS = {
    "input_layernorm": "attn_norm",
    Q: "attn_q",
    K: "attn_k",
    V: "attn_v",
    O: "attn_output",
    "post_attention_layernorm": "ffn_norm",
    GATE_UP[0]: "ffn_gate",
    GATE_UP[1]: "ffn_up",
    DOWN: "ffn_down",
}


def write(model: Path, target: Path, kind: str) -> None:
    """Write all matrices in one format, norms and biases in F32.

    Args:
        model: folder with ``config.json`` and ``model.safetensors`` (float32).
        target: file to write.
        kind: one of `KINDS`.

    Raises:
        Unsupported: an unknown kind, or an architecture that is not written here.
    """
    import gguf
    from safetensors import safe_open

    if kind not in KINDS:
        raise Unsupported(unknown("format", kind, KINDS))
    anatomy = Anatomy.from_config(json.loads((model / "config.json").read_text("utf-8")))
    writer = gguf.GGUFWriter(target, anatomy.family)
    _describe(writer, anatomy, getattr(gguf.LlamaFileType, _file_type(kind)))
    chosen = gguf.GGMLQuantizationType[kind]
    with safe_open(model / "model.safetensors", framework="numpy") as tensors:
        for name in anatomy.tensors():
            values = arranged(name, tensors.get_tensor(name), anatomy)
            stored = chosen if values.ndim == 2 else gguf.GGMLQuantizationType.F32
            quantized = gguf.quants.quantize(values, stored)
            writer.add_tensor(translated(name), quantized, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def translated(name: str) -> str:
    """Hugging Face's name of a tensor -> llama.cpp's."""
    module, _, leaf = name.rpartition(".")
    if module in TENSORS:
        return f"{TENSORS[module]}.{leaf}"
    layer, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{BLOCK_TENSORS[part]}.{leaf}"


def arranged(name: str, values: Any, anatomy: Anatomy) -> Any:
    """Rows of q and k as llama.cpp's rotary embedding pairs them.

    Hugging Face turns row i of a head with row i + d/2; llama.cpp does the same for qwen2, but
    turns neighbours for llama, so that there rows 0, d/2, 1, d/2 + 1, ... are stored.
    """
    heads = {Q: anatomy.heads, K: anatomy.kv_heads}
    part = name.removeprefix("model.layers.").partition(".")[2].rpartition(".")[0]
    if anatomy.family != "llama" or part not in heads:
        return values
    halves = values.reshape(heads[part], 2, anatomy.head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _file_type(kind: str) -> str:
    return "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"


def _describe(writer: Any, anatomy: Anatomy, file_type: int) -> None:
    if anatomy.rope.scaling is not None or anatomy.family not in ("llama", "qwen2"):
        raise Unsupported(f"{anatomy.family} with rotary scaling is not written to GGUF here")
    if anatomy.family == "qwen2" and set(anatomy.biased) != set(QKV):
        raise Unsupported("qwen2 with biases other than q, k and v is not written to GGUF here")
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_context_length(anatomy.max_positions)
    writer.add_embedding_length(anatomy.hidden)
    writer.add_block_count(anatomy.layers)
    writer.add_feed_forward_length(anatomy.ffn)
    writer.add_head_count(anatomy.heads)
    writer.add_head_count_kv(anatomy.kv_heads)
    writer.add_key_length(anatomy.head_dim)
    writer.add_value_length(anatomy.head_dim)
    writer.add_rope_dimension_count(anatomy.head_dim)
    writer.add_rope_freq_base(anatomy.rope.theta)
    writer.add_layer_norm_rms_eps(anatomy.norm_eps)
    writer.add_vocab_size(anatomy.vocab)
    writer.add_tokenizer_model("no_vocab")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
