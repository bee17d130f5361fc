"""Streams: what flows between blocks, for all calibration windows at once.

Methods that work block by block hold a stream [windows, length, width] and move it through one
block at a time, so that no more than one block's activations exist besides it. A stream may be
spilled to a file, which the system then reads and writes as it needs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from slmq_edge.decoder import Decoder, Operands, Project, block, embed, rotary_table, untouched
from slmq_edge.files import check_space, disk_errors
from slmq_edge.quantization.moving import moves

# Tokens that go through a block together: enough for a full GEMM, few enough to stay in a cache.
BATCH_TOKENS = 4096


def allocate(shape: tuple[int, ...], like: Tensor, spill: Path | None = None) -> Tensor:
    """An uninitialised tensor of ``like``'s dtype: on its device, or in a file below ``spill``.

    The file has no name, so that nothing is left of it when the process ends, however it ends.

    Raises:
        SlmqError: the disk has no room for it.
    """
    if spill is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    count = math.prod(shape)
    check_space(spill / "stream", count * like.element_size())
    with disk_errors(spill), tempfile.NamedTemporaryFile(dir=spill) as file:
        mapped = torch.from_file(file.name, shared=True, size=count, dtype=like.dtype)
    return mapped.view(shape)


def embedded(model: Decoder, tokens: Tensor, spill: Path | None = None) -> Tensor:
    """The stream before the first block, of tokens int64 [windows, length]."""
    table = next(iter(model.weights.values()))
    stream = allocate((*tokens.shape, model.anatomy.hidden), table, spill)
    tokens = tokens.to(table.device)
    with moves(stream, table.device) as way:
        for part in batches(stream):
            way.put(part, embed(model, tokens[part]))
    return stream


def batches(stream: Tensor) -> Iterator[slice]:
    """Slices of windows that go through a block together."""
    size = max(1, BATCH_TOKENS // stream.shape[1])
    for start in range(0, len(stream), size):
        yield slice(start, min(start + size, len(stream)))


def rotary_for(model: Decoder, stream: Tensor) -> tuple[Tensor, Tensor]:
    """The rotary table of the stream's length, where the model is."""
    place = next(iter(model.weights.values()))
    return rotary_table(model.anatomy, stream.shape[1], place.dtype, place.device)


def advance(
    model: Decoder,
    layer: int,
    stream: Tensor,
    project: Project | None = None,
    operands: Operands = untouched,
) -> None:
    """Move the stream through a block, in place."""
    rotary = rotary_for(model, stream)
    with torch.no_grad(), moves(stream, rotary[0].device) as way:
        for part in batches(stream):
            way.put(part, block(model, layer, way.get(part), rotary, project, operands))
