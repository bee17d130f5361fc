"""``genai_config.json``: with it, onnxruntime-genai runs a bundle's graph as it is.

The file lies at the bundle's root, beside the tokenizer that onnxruntime-genai reads too, and names
the graph below it. ``MADE_FOR`` is the release whose tokens a test compares with the runner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq_edge.anatomy import Anatomy
from slmq_edge.exporters.attention import is_fused
from slmq_edge.exporters.lowering import context_length

FILE = "genai_config.json"
MADE_FOR = "0.18.0"
PORTS = {
    "inputs": {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    },
    "outputs": {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    },
}


def config(
    shape: Anatomy,
    graph: str,
    session_options: Mapping[str, str],
    special: tuple[Mapping[str, Any], ...],
) -> dict[str, Any] | None:
    """The configuration; ``None`` where no token is known to end a text, which it must name.

    Args:
        shape: the model's.
        graph: its path below the folder of the configuration.
        session_options: entries of ONNX Runtime's session configuration.
        special: documents that may name ``bos_token_id``, ``eos_token_id`` (one or a list) and
            ``pad_token_id``; every token that one of them lets end a text ends it.
    """
    ends = list(dict.fromkeys(token for one in special for token in _ids(one, "eos_token_id")))
    if not ends:
        return None
    pad = [token for one in special for token in _ids(one, "pad_token_id")] or ends
    begin = [token for one in special for token in _ids(one, "bos_token_id")] or ends
    longest = context_length(shape)
    return {
        "model": {
            "type": shape.family,
            "vocab_size": shape.vocab,
            "context_length": longest,
            "bos_token_id": begin[0],
            "eos_token_id": ends,
            "pad_token_id": pad[0],
            "decoder": {
                "filename": graph,
                "session_options": dict(session_options),
                "hidden_size": shape.hidden,
                "head_size": shape.head_dim,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "num_hidden_layers": shape.layers,
                **PORTS,
            },
        },
        "search": {
            "do_sample": False,
            "max_length": longest,
            # Only the fused kernel writes into the buffers it reads; others make new ones.
            "past_present_share_buffer": is_fused(shape),
        },
    }


def _ids(document: Mapping[str, Any], name: str) -> list[int]:
    found = document.get(name)
    several = found if isinstance(found, list) else [found]
    return [token for token in several if type(token) is int]
