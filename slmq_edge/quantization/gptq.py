"""GPTQ: round a weight column by column, and let the columns to come make up for each error.

    min over integers Q of ||(W - Q) X^T||^2,         H = 2/N sum X^T X + damping * mean(diag) I
    U^T U = H^-1,  U upper triangular
    for every column i:   q_i = round(w_i),   e = (w_i - q_i) / U_ii,   W_j -= e U_ij  for j > i

(Frantar et al. 2022, equations 2 and 3; METHODS 3.6.) X are the inputs of a linear on calibration
text, from a stream that has passed through the blocks and linears rounded so far; activations are
not rounded meanwhile. Linears that read one input share H and one loop over the columns, since rows
are independent given H. A block is walked once, in stages, and every stage goes on from the inputs
that the one before has left:

    norm -> H of q, k, v -> round -> attention -> H of o -> round
         -> norm -> H of gate, up -> round -> silu * up -> H of down -> round

The range of a row is found once, before the loop, by a search over its clippings; that of a group,
from the weights as they stand when the loop comes to its 128 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.anatomy import ATTENTION_FEED, GATE_UP, MLP_FEED, QKV, Anatomy, Feed
from slmq_edge.calibration import Size
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder, activated, attention, norm
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import Prepared, Task
from slmq_edge.quantization.rounding import (
    Rounded,
    Steps,
    dequantize,
    extent,
    search_clip,
    steps,
    to_levels,
)
from slmq_edge.quantization.streams import advance, allocate, batches, embedded, rotary_for
from slmq_edge.scheme import Grid, Scheme, require_weights

CALIBRATION = Size(windows=128, length=2048)
# Columns between two updates of the rest of the matrix, and for which groups take their ranges.
BLOCK = 128


@dataclass(frozen=True)
class Settings:
    """The released code's (METHODS 3.6).

    damping: share of the mean diagonal that is added to H; clip_search: whether ranges are
    clipped to lose least; act_order: columns in falling order of H's diagonal.
    """

    damping: float = 0.01
    clip_search: bool = True
    act_order: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.damping < 1:
            raise UsageError(f"--damping is a share above 0 and below 1, not {self.damping}")


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
    require_weights(task.scheme, "gptq")
    return Prepared(model, GPTQ(task.settings))


@dataclass(frozen=True)
class GPTQ:
    """How linears are rounded: the ``RoundLinears`` of gptq and spinquant."""

    settings: Settings

    def __call__(self, model: Decoder, task: Task) -> dict[str, IntegerWeight]:
        """Round all linears, block by block; their float weights are taken out of ``model``."""
        assert task.calibration is not None, "CALIBRATION"
        stream = embedded(model, task.calibration.tokens, task.spill)
        layers = model.anatomy.layers
        integers: dict[str, IntegerWeight] = {}
        for layer in range(layers):
            task.progress(layer / layers, f"gptq, block {layer + 1} of {layers}")
            integers |= self._finished(model, layer, stream, task)
            for linear in model.anatomy.blocks(layer, names.LINEARS):
                del model.weights[f"{linear}.weight"]
        task.progress(1.0, "gptq")
        return integers

    def _finished(
        self, model: Decoder, layer: int, stream: Tensor, task: Task
    ) -> dict[str, IntegerWeight]:
        """One block rounded, now or in a run that was interrupted; the stream behind it."""
        grid = self.grid(require_weights(task.scheme, "gptq"))
        name = f"gptq-{layer:04d}"
        stored = task.finished.load(name) if task.finished else None
        if stored is None:
            rounded = _Block(model, layer, stream, grid, self.settings, task).rounded()
            if task.finished:
                task.finished.save(name, packed(rounded))
            return rounded
        rounded = unpacked(stored, model.anatomy.blocks(layer, names.LINEARS), grid)
        for linear, weight in rounded.items():
            key = f"{linear}.weight"
            model.weights[key] = weight.dequantized.to(model.weights[key])
        advance(model, layer, stream)
        return rounded

    def grid(self, asked: Grid) -> Grid:
        """The scheme's grid; a clipped range may use the level that a whole one never reaches."""
        return replace(asked, lowest=asked.symmetric and self.settings.clip_search)


class _Block:
    """One block, walked in stages; the stream ends up behind it."""

    def __init__(
        self,
        model: Decoder,
        layer: int,
        stream: Tensor,
        grid: Grid,
        settings: Settings,
        task: Task,
    ) -> None:
        self.model, self.layer, self.stream = model, layer, stream
        self.grid, self.settings, self.spill = grid, settings, task.spill
        self.device = model.weights[f"{names.NORM}.weight"].device
        self.found: dict[str, IntegerWeight] = {}

    @torch.no_grad()
    def rounded(self) -> dict[str, IntegerWeight]:
        model, shape, stream = self.model, self.model.anatomy, self.stream
        rotary = rotary_for(model, stream)

        self._round(QKV, self._normed(ATTENTION_FEED))
        mixed = allocate((*stream.shape[:2], shape.query_width), stream, self.spill)
        for part in batches(stream):
            query, key, value = self._project(self._normed(ATTENTION_FEED)(part), QKV)
            mixed[part] = attention(model, query, key, value, rotary).to(mixed.device)
        self._add((names.O,), mixed)
        del mixed

        self._round(GATE_UP, self._normed(MLP_FEED))
        active = allocate((*stream.shape[:2], shape.ffn), stream, self.spill)
        for part in batches(stream):
            gate, up = self._project(self._normed(MLP_FEED)(part), GATE_UP)
            active[part] = activated(model, gate, up).to(active.device)
        self._add((names.DOWN,), active)
        return self.found

    def _normed(self, feed: Feed) -> Inputs:
        name = self.model.anatomy.block(self.layer, feed.norm)
        return lambda part: norm(self.model, self.stream[part].to(self.device), name)

    def _project(self, inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        return self.model.project(inputs, self.model.anatomy.blocks(self.layer, linears))

    def _add(self, linear: tuple[str], stored: Tensor) -> None:
        """Round a linear whose inputs are stored, and add what it puts out to the stream."""
        self._round(linear, lambda part: stored[part].to(self.device))
        for part in batches(self.stream):
            (out,) = self._project(stored[part].to(self.device), linear)
            there = self.stream[part].to(self.device)
            self.stream[part] = (there + out).to(self.stream.device)

    def _round(self, linears: tuple[str, ...], inputs: Inputs) -> None:
        """Round linears that share their inputs, and put the rounded weights in their place."""
        full = self.model.anatomy.blocks(self.layer, linears)
        weights = [self.model.weights[f"{name}.weight"] for name in full]
        hessian = hessian_of(inputs(part) for part in batches(self.stream))
        rounded = solve(torch.cat(weights), hessian, self.grid, self.settings)
        for name, weight, one in zip(full, weights, split(rounded, weights), strict=True):
            self.found[name] = IntegerWeight.of(one, self.grid)
            self.model.weights[f"{name}.weight"] = one.values(self.grid).to(weight)


# A slice of windows -> the inputs of a linear [windows, length, in], on the model's device.
Inputs = Callable[[slice], Tensor]


def hessian_of(batches_of_inputs: Iterator[Tensor]) -> Tensor:
    """2/N sum X^T X, float32 [in, in], of batches [windows, length, in]; N counts windows."""
    total, windows = None, 0
    for batch in batches_of_inputs:
        rows = batch.reshape(-1, batch.shape[-1]).to(torch.float32)
        product = rows.mT @ rows
        total = product if total is None else total + product
        windows += len(batch)
    assert total is not None, "a calibration has windows"
    return total * (2 / windows)


@torch.no_grad()
def solve(weight: Tensor, hessian: Tensor, grid: Grid, settings: Settings) -> Rounded:
    """Round ``weight`` [out, in] with the Hessian [in, in] of its inputs.

    Raises:
        SlmqError: the Hessian has no Cholesky factor (not even damped): inputs were not finite.
    """
    weight, hessian = weight.to(torch.float32, copy=True), hessian.to(torch.float64)
    dead = hessian.diagonal() == 0
    weight[:, dead] = 0
    order = torch.arange(len(hessian), device=weight.device)
    if settings.act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order], settings.damping).to(torch.float32)
    return _Columns(weight, order, upper, grid, settings).rounded()


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper U with U^T U = (H + damping * mean(diag) I)^-1, dead inputs counting as 1.

    H read backwards has a Cholesky factor L; L read backwards is upper, and its inverse is U.
    """
    diagonal = hessian.diagonal()
    diagonal = torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal)
    damped = hessian.clone()
    damped.diagonal().copy_(diagonal + damping * diagonal.mean())
    factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed.item():
        raise SlmqError(
            "GPTQ failed: the inputs' Hessian is not positive definite; try a larger --damping"
        )
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.flip(0, 1)


class _Columns:
    """The loop over the columns, in blocks: errors reach the rest of the matrix once a block."""

    def __init__(
        self, weight: Tensor, order: Tensor, upper: Tensor, grid: Grid, settings: Settings
    ) -> None:
        self.order, self.upper, self.grid, self.settings = order, upper, grid, settings
        self.weight = weight[:, order]
        self.levels = torch.empty_like(self.weight)
        self.group_of = order // (grid.group or len(order))
        # In another order a block of columns is no block of groups: their ranges come first.
        self.ranges_first = settings.act_order or grid.group is None
        whole = self._ranges(weight)
        self.scale, self.zero = whole.scale, whole.zero

    def rounded(self) -> Rounded:
        width = len(self.order)
        size = BLOCK
        if self.grid.group is not None:
            size = self.grid.group * max(1, BLOCK // self.grid.group)
        for start in range(0, width, size):
            end = min(start + size, width)
            if not self.ranges_first:
                self._renew_ranges(start, end)
            errors = self._block(start, end)
            self.weight[:, end:] -= errors @ self.upper[start:end, end:]
        levels = torch.empty_like(self.levels)
        levels[:, self.order] = self.levels
        return Rounded(levels, Steps(self.scale, self.zero))

    def _block(self, start: int, end: int) -> Tensor:
        """Round columns start..end; their errors over U_ii, [out, end - start]."""
        weight, upper = self.weight[:, start:end], self.upper[start:end, start:end]
        errors = torch.empty_like(weight)
        for i in range(end - start):
            column, group = weight[:, i : i + 1], self.group_of[start + i]
            zero = None if self.zero is None else self.zero[:, group, None]
            there = Steps(self.scale[:, group, None], zero)
            levels = to_levels(column, there, self.column_grid)
            error = (column - dequantize(levels, there, self.column_grid)) / upper[i, i]
            weight[:, i + 1 :] -= error * upper[i, i + 1 :]
            self.levels[:, start + i] = levels[:, 0]
            errors[:, i] = error[:, 0]
        return errors

    @property
    def column_grid(self) -> Grid:
        return replace(self.grid, group=None)

    def _ranges(self, weight: Tensor) -> Steps:
        found = search_clip if self.settings.clip_search else extent
        return steps(found(weight, self.grid), self.grid)

    def _renew_ranges(self, start: int, end: int) -> None:
        assert self.grid.group is not None, "only groups take their ranges late"
        here = self._ranges(self.weight[:, start:end])
        groups = slice(start // self.grid.group, -(-end // self.grid.group))
        self.scale[:, groups] = here.scale
        if self.zero is not None and here.zero is not None:
            self.zero[:, groups] = here.zero


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


def unpacked(
    stored: dict[str, Tensor], linears: tuple[str, ...], grid: Grid
) -> dict[str, IntegerWeight]:
    """Undo ``packed``, for linears in this order."""
    return {
        name: IntegerWeight(
            stored[f"{name}.integers"], stored[f"{name}.scale"], stored.get(f"{name}.zero"), grid
        )
        for name in linears
    }
