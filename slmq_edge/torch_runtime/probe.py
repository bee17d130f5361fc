"""Whether products of integers are exact on a device, by the operators that will run there.

Levels at the ends of their grids, rows whose products all have one sign: what saturates or rounds
on the way shows in these first. All steps are 1, and sums stay below 2^24, so that the float32 that
comes back holds them exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from slmq_edge.anatomy import Anatomy
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.runner.manifest import TORCH_MODEL, read_manifest
from slmq_edge.scheme import Grid, Scheme
from slmq_edge.torch_runtime import files, ops, packing
from slmq_edge.torch_runtime.ops import Levels, Ops

# Rows, outputs: decoding and prefill take different kernels.
SIZES = ((1, 72), (7, 72), (40, 72))
# Prompts by large layers take tiles of 64 rows and more, which an H100 multiplies by `wgmma`.
SIZES_ON_GPU = ((128, 12800), (64, 12800))
ONE_SIGN = 1024  # inputs whose products may all have one sign: 128 * 127 * 1024 < 2^24
SEED = 20


def run(folder: Path, device: str) -> tuple[str, int]:
    """Multiply extreme integers as a bundle's linears do.

    Returns:
        What multiplied, and how far its sums are from the exact ones at most.
    """
    path = folder / TORCH_MODEL
    document = read_manifest(path.parent, path.name, files.FORMAT, files.VERSION)
    shape, scheme = Anatomy.from_json(document["anatomy"]), Scheme.from_json(document["scheme"])
    grids = {
        (Grid(**entry["grid"]), scheme.input_grid(name))
        for name, entry in document["integers"].items()
        if name != "model.embed_tokens" or shape.tied
    }
    chosen = ops.choose(device)
    widest = max(shape.hidden, shape.query_width, shape.ffn)
    errors = [
        largest_error(chosen, weights, reads, widest, device)
        for weights, reads in grids
        if reads is not None
    ]
    return f"int8 product, {chosen.NAME}", max(errors, default=0)


def largest_error(chosen: Ops, weights: Grid, reads: Grid, widest: int, device: str) -> int:
    """How far the sums of a kind of product are from the exact ones, at most.

    weights, reads: the grids of both sides, whose zero points are left out. widest: inputs.
    """
    grid = dataclasses.replace(weights, symmetric=True)
    found = 0.0
    for x, w in _operands(grid, widest, torch.device(device).type != "cpu"):
        integers = IntegerWeight(w, torch.ones(len(w), grid.groups(w.shape[1])), None, grid)
        packed = packing.packed([integers])
        moved = dataclasses.replace(
            packed, integers=packed.integers.to(device), scale=packed.scale.to(device)
        )
        groups = reads.groups(x.shape[1])
        levels = Levels(x.to(device), torch.ones(len(x), groups, device=device), None, reads.group)
        sums = chosen.linear(levels, moved, None, torch.float32).cpu().to(torch.float64)
        expected = x.to(torch.float64) @ w.to(torch.float64).mT  # sums are far below 2^53
        found = max(found, (sums - expected).abs().max().item())
    return int(-(-found // 1))


def _operands(grid: Grid, widest: int, on_gpu: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Levels int8 [rows, in] and [out, in]: of one sign in narrow rows, of any in wide ones."""
    generator = torch.Generator().manual_seed(SEED)
    ends, own = torch.tensor([-128, 127]), torch.tensor([-grid.top, grid.top])

    def drawn(values: Tensor, *size: int) -> Tensor:
        return values[torch.randint(0, 2, size, generator=generator)].to(torch.int8)

    narrow = min(widest, ONE_SIGN)
    for rows, outputs in SIZES:
        x, w = (drawn(values, count, 1) for values, count in ((ends, rows), (own, outputs)))
        yield x.expand(-1, narrow).contiguous(), w.expand(-1, narrow).contiguous()
        yield drawn(ends, rows, widest), drawn(own, outputs, widest)
    for rows, outputs in SIZES_ON_GPU if on_gpu else ():
        yield drawn(ends, rows, narrow), drawn(own, outputs, narrow)
