"""What the bytes of weights are spent on, by the names of tensors in a checkpoint or a graph."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from slmq_edge import anatomy as names
from slmq_edge.errors import Damaged

# Of a tied table, whose one copy serves both, all bytes are the embedding's. steps: scales, zero
# points and what follows from them; rest: norms, biases, rotations, the rotary table.
PARTS = ("linears", "embedding", "lm_head", "steps", "rest")


def part_of(name: str) -> str:
    """One of ``PARTS``: of ``model.layers.0.mlp.down_proj.weight_packed``, ``linears``."""
    place, _, kind = name.rpartition(".")
    if place in ("embed", names.EMBED):
        part = "embedding"
    elif place == names.HEAD:
        part = "lm_head"
    elif place.endswith("_proj"):
        part = "linears"
    else:
        return "rest"
    if kind == "bias":
        return "rest"
    return part if kind.startswith("weight") and kind != "weight_zeros" else "steps"


def sizes(tensors: Mapping[str, int]) -> dict[str, int]:
    """Bytes by part, of bytes by tensor."""
    found = dict.fromkeys(PARTS, 0)
    for name, count in tensors.items():
        found[part_of(name)] += count
    return found


def of_safetensors(file: Path) -> dict[str, int]:
    """Bytes of every tensor in a safetensors file, from its header alone.

    Raises:
        Damaged: it has no header that can be read.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        spans = {name: one["data_offsets"] for name, one in header.items() if name[:2] != "__"}
        return {name: int(end) - int(begin) for name, (begin, end) in spans.items()}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{file} is damaged: it has no header of safetensors ({error})") from error
