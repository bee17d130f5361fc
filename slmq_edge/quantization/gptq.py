"""GPTQ: round a model's linears by the error of their outputs, block by block.

    min over integers Q of ||(W - Q) X^T||^2          (Frantar et al. 2022; solved in ``columns``)

X are the inputs of a linear on calibration text, from a stream that has passed through the blocks
and linears rounded so far; activations are not rounded meanwhile (METHODS 3.6). Linears that read
one input share its Hessian and one loop over the columns, since rows are independent given it. A
block is walked once, in stages, and every stage goes on from the inputs that the one before left:

    norm -> sums for q, k, v -> round -> attention -> sums for o -> round
         -> norm -> sums for gate, up -> round -> silu * up -> sums for down -> round

Where drift is made up for, the float model walks beside the rounded one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy, Feed
from slmq_edge.calibration import Size
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder, activated, attention, norm
from slmq_edge.quantization import Prepared, Task
from slmq_edge.quantization.columns import Settings, Sums, solve
from slmq_edge.quantization.moving import moves, way
from slmq_edge.quantization.rounding import Rounded, Steps
from slmq_edge.quantization.streams import advance, allocate, batches, embedded, rotary_for
from slmq_edge.scheme import Grid, Scheme, require_weights, weight_grid

__all__ = ["CALIBRATION", "GPTQ", "Settings", "check", "prepare"]

CALIBRATION = Size(windows=128, length=2048)

# A slice of windows -> the inputs of a linear [windows, length, in], on the model's device.
Inputs = Callable[[slice], Tensor]


def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
    """Refuse a scheme that rounds nothing.

    Raises:
        Unsupported: names the scheme.
    """
    require_weights(scheme, "gptq")


def prepare(model: Decoder, task: Task) -> Prepared:
    """The model as it is, to be rounded by GPTQ.

    Raises:
        Unsupported: the scheme rounds nothing.
    """
    check(model.anatomy, task.scheme, task.settings)
    return Prepared(model, GPTQ(task.settings))


@dataclass(frozen=True)
class GPTQ:
    """How linears are rounded: the ``RoundLinears`` of gptq and spinquant."""

    settings: Settings

    def __call__(self, model: Decoder, task: Task) -> dict[str, IntegerWeight]:
        """Round all linears, block by block; their float weights are taken out of ``model``.

        Raises:
            SlmqError: inputs were not finite.
        """
        assert task.calibration is not None, "CALIBRATION"
        stream = embedded(model, task.calibration.tokens, task.spill)
        exact = None
        if self.settings.drift:
            exact = allocate(tuple(stream.shape), stream, task.spill)
            exact.copy_(stream)
        layers = model.anatomy.layers
        integers: dict[str, IntegerWeight] = {}
        for layer in range(layers):
            task.progress(layer / layers, f"gptq, block {layer + 1} of {layers}")
            integers |= self._finished(model, layer, stream, exact, task)
            for linear in model.anatomy.blocks(layer, names.LINEARS):
                del model.weights[f"{linear}.weight"]
        task.progress(1.0, "gptq")
        return integers

    def _finished(
        self, model: Decoder, layer: int, stream: Tensor, exact: Tensor | None, task: Task
    ) -> dict[str, IntegerWeight]:
        """One block rounded, now or in a run that was interrupted; the streams behind it."""
        linears = model.anatomy.blocks(layer, names.LINEARS)
        grids = {linear: self.grid(weight_grid(task.scheme, linear)) for linear in linears}
        name = f"gptq-{layer:04d}"
        stored = task.finished.load(name) if task.finished else None
        if stored is None:
            rounded = round_block(model, layer, (stream, exact), grids, self.settings, task.spill)
            if task.finished:
                task.finished.save(name, packed(rounded))
            return rounded
        if exact is not None:
            advance(model, layer, exact)
        rounded = unpacked(stored, grids)
        for linear, weight in rounded.items():
            key = f"{linear}.weight"
            model.weights[key] = weight.dequantized.to(model.weights[key])
        advance(model, layer, stream)
        return rounded

    def grid(self, asked: Grid) -> Grid:
        """The scheme's grid; a clipped range may use the level that a whole one never reaches."""
        return replace(asked, lowest=asked.symmetric and self.settings.clip_search)


@torch.no_grad()
def round_block(
    model: Decoder,
    layer: int,
    streams: tuple[Tensor, Tensor | None],
    grids: Mapping[str, Grid],
    settings: Settings,
    spill: Path | None = None,
) -> dict[str, IntegerWeight]:
    """Round one block's linears, and put the rounded weights in the model, in their place.

    streams [windows, length, hidden]: of the rounded model and, for drift, of the float one; both
    end up behind the block. grids: by full name of linear; those of one grid are solved together.
    """
    stream, exact = streams
    walks = [_Walk(model, layer, stream, spill)]
    if exact is not None:
        # The float model keeps this block's weights until the block is done.
        walks.append(_Walk(replace(model, weights=dict(model.weights)), layer, exact, spill))
    found: dict[str, IntegerWeight] = {}

    def rounded(linears: tuple[str, ...], inputs: list[Inputs], adds: bool) -> None:
        full = model.anatomy.blocks(layer, linears)
        sums = _sums(walks, inputs, adds)
        for grid in dict.fromkeys(grids[name] for name in full):
            alike = [name for name in full if grids[name] == grid]
            weights = [model.weights[f"{name}.weight"] for name in alike]
            parts = split(solve(torch.cat(weights), sums, grid, settings), weights)
            for name, weight, one in zip(alike, weights, parts, strict=True):
                found[name] = IntegerWeight.of(one, grid)
                model.weights[f"{name}.weight"] = one.values(grid).to(weight)

    rounded(QKV, [walk.normed(ATTENTION_FEED) for walk in walks], adds=False)
    for walk in walks:
        walk.attend()
    rounded((names.O,), [walk.stored() for walk in walks], adds=True)
    for walk in walks:
        walk.add(names.O)
    rounded(GATE_UP, [walk.normed(MLP_FEED) for walk in walks], adds=False)
    for walk in walks:
        walk.activate()
    rounded((names.DOWN,), [walk.stored() for walk in walks], adds=True)
    for walk in walks:
        walk.add(names.DOWN)
    return found


class _Walk:
    """A model's way through one block, in stages; what lies between two of them is stored."""

    def __init__(self, model: Decoder, layer: int, stream: Tensor, spill: Path | None) -> None:
        self.model, self.layer, self.stream, self.spill = model, layer, stream, spill
        self.device = model.weights[f"{names.NORM}.weight"].device
        self._between: Tensor | None = None

    def normed(self, feed: Feed) -> Inputs:
        name = self.model.anatomy.block(self.layer, feed.norm)
        stream = way(self.stream, self.device)
        return lambda part: norm(self.model, stream.get(part), name)

    def attend(self) -> None:
        """Store what o_proj reads."""
        rotary, normed = rotary_for(self.model, self.stream), self.normed(ATTENTION_FEED)
        mixed = self._allocate(self.model.anatomy.query_width)
        with moves(mixed, self.device) as there:
            for part in batches(self.stream):
                query, key, value = self._project(normed(part), QKV)
                there.put(part, attention(self.model, self.layer, query, key, value, rotary))

    def activate(self) -> None:
        """Store what down_proj reads."""
        normed = self.normed(MLP_FEED)
        active = self._allocate(self.model.anatomy.ffn)
        with moves(active, self.device) as there:
            for part in batches(self.stream):
                gate, up = self._project(normed(part), GATE_UP)
                there.put(part, activated(self.model, gate, up))

    def stored(self) -> Inputs:
        assert self._between is not None, "attend() or activate() comes first"
        return way(self._between, self.device).get

    def add(self, linear: str) -> None:
        """Add to the stream what a linear makes of the stored inputs, and forget these."""
        stored = self.stored()
        with moves(self.stream, self.device) as stream:
            for part in batches(self.stream):
                (out,) = self._project(stored(part), (linear,))
                stream.put(part, stream.get(part) + out)
        self._between = None

    def _project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        return self.model.project(inputs, self.model.anatomy.blocks(self.layer, linears))

    def _allocate(self, width: int) -> Tensor:
        self._between = allocate((*self.stream.shape[:2], width), self.stream, self.spill)
        return self._between


def _sums(walks: list[_Walk], inputs: list[Inputs], adds: bool) -> Sums:
    """The sums of ``Sums`` over all windows; of drift only where the float model walks too."""
    walk = walks[0]

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).to(torch.float32)

    totals: dict[str, Tensor] = {}

    def add(name: str, product: Tensor) -> None:
        if name in totals:
            totals[name] += product
        else:
            totals[name] = product

    streams = [way(one.stream, one.device) for one in walks]
    for part in batches(walk.stream):
        x = rows(inputs[0](part))
        add("hessian", x.mT @ x)
        if len(walks) == 1:
            continue
        add("inputs", (rows(inputs[1](part)) - x).mT @ x)
        if adds:
            add("stream", rows(streams[1].get(part) - streams[0].get(part)).mT @ x)
    return Sums(**{name: total.mul_(2 / len(walk.stream)) for name, total in totals.items()})


def split(rounded: Rounded, weights: list[Tensor]) -> list[Rounded]:
    """Stacked rows, apart again."""
    rows = [len(weight) for weight in weights]
    scale, zero = rounded.steps.scale, rounded.steps.zero
    zeros = [None] * len(rows) if zero is None else torch.split(zero, rows)
    parts = zip(torch.split(rounded.integers, rows), torch.split(scale, rows), zeros, strict=True)
    return [Rounded(integers, Steps(scales, points)) for integers, scales, points in parts]


def packed(rounded: dict[str, IntegerWeight]) -> dict[str, Tensor]:
    """A finished block as named tensors."""
    found = {}
    for name, weight in rounded.items():
        found[f"{name}.integers"], found[f"{name}.scale"] = weight.integers, weight.scale
        if weight.zero is not None:
            found[f"{name}.zero"] = weight.zero
    return found


def unpacked(stored: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> dict[str, IntegerWeight]:
    """Undo ``packed``, for linears with these grids, in this order."""
    return {
        name: IntegerWeight(
            stored[f"{name}.integers"], stored[f"{name}.scale"], stored.get(f"{name}.zero"), grid
        )
        for name, grid in grids.items()
    }
