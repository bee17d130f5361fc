"""OmniQuant: learn, block by block, where to clip weights and how to scale channels.

    argmin over l, u, s of  || F(X) - F_q(X_q; l, u, s) ||^2        (Shao et al. 2024, equation 1)

F is a block in float, on the stream X of the float model; F_q is the block as it will run, weights
and inputs rounded, on the stream X_q that the rounded blocks before it put out. Learned are

    LET   s: scales of channels that leave the block's function as it is (``let``), and
    LWC   l, u: the range [sigmoid(l) min W, sigmoid(u) max W] of every group of weights

by AdamW at constant rates, a window a step (``fitting``). Then s is folded into the weights, and
the ranges are left for rounding.

Differences from the released code (METHODS 2.3 - 2.8): LET keeps the function exactly, under rotary
embedding and with shared KV heads too; the scheme says which grids are symmetric and whether
attention's operands are rounded; everything is float32; at 8 bits LWC starts as near to plain
rounding as at 4 (``clip_logit``); a block that learning made worse is learned again, and told.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from slmq_edge.anatomy import LINEARS, NORM, Anatomy
from slmq_edge.calibration import Size
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder
from slmq_edge.errors import UsageError
from slmq_edge.quantization import Prepared, Task
from slmq_edge.quantization.compiling import Compiled
from slmq_edge.quantization.fitting import (
    Block,
    Fitted,
    Learnable,
    Pace,
    block_error,
    clipped_extent,
    fit,
    rounding,
)
from slmq_edge.quantization.let import KEY_LINEAR, Scales, fold, initial_scales
from slmq_edge.quantization.rounding import quantize
from slmq_edge.quantization.streams import advance, allocate, embedded, rotary_for
from slmq_edge.scheme import Grid, Scheme, require_weights, weight_grid

CALIBRATION = Size(windows=128, length=2048)

PUBLISHED_LOGIT = 4.0  # sigmoid(4) = 0.982


@dataclass(frozen=True)
class Settings:
    """What is learned and how; the defaults are the released scripts' (METHODS 2.5, 5.4).

    epochs: passes over the windows; 0 keeps the start, or plain rounding where that is better.
    let: scale channels; ``None``: where the scheme rounds activations. lwc: clip weights. let_rate,
    lwc_rate: of learning. lwc_init: first logit of the clips, ``None``: by the weights' bits.
    alpha: share of the difficulty that the first scales move. gqa: query heads with a KV head in
    common have ``shared`` scales, or ``skip`` s3 and s4. augmented: match also what the float block
    makes of the rounded stream.
    """

    epochs: int = 20
    let: bool | None = None
    lwc: bool = True
    let_rate: float = 5e-3
    lwc_rate: float = 1e-2
    lwc_init: float | None = None
    alpha: float = 0.5
    gqa: Literal["shared", "skip"] = "shared"
    augmented: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UsageError(f"--epochs counts passes over the text, and cannot be {self.epochs}")
        for option, rate in (("--let-rate", self.let_rate), ("--lwc-rate", self.lwc_rate)):
            if not 0.0 < rate < math.inf:
                raise UsageError(f"{option} is a learning rate above 0, not {rate}")
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"--alpha is a share between 0 and 1, not {self.alpha}")
        if self.lwc_init is not None and not math.isfinite(self.lwc_init):
            raise UsageError(f"--lwc-init is a logit such as 4, not {self.lwc_init}")
        if self.gqa not in ("shared", "skip"):
            raise UsageError(f"--gqa is shared or skip, not {self.gqa}")
        if self.let is False and not self.lwc:
            raise UsageError("with neither --let nor --lwc omniquant learns nothing: keep one")


def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
    """Refuse what ``prepare`` could not do.

    Raises:
        Unsupported: the scheme leaves weights in float.
        UsageError: LET is off because of the scheme, and LWC by the settings.
    """
    require_weights(scheme, "omniquant")
    if settings.let is None and scheme.activations is None and not settings.lwc:
        raise UsageError(
            f"{scheme.name} leaves activations in float, where LET is off unless asked for: "
            "without clipping, omniquant learns nothing"
        )


def prepare(model: Decoder, task: Task) -> Prepared:
    """Learn the scales and clips of every block, and fold the scales, in place.

    Raises:
        Unsupported, UsageError: as ``check`` says.
        SlmqError: a block puts out what is no number, even if rounded plainly.
    """
    check(model.anatomy, task.scheme, task.settings)
    settings = settled(task)
    assert task.calibration is not None, "omniquant.CALIBRATION"
    tokens = task.calibration.tokens
    is_float32 = model.weights[f"{NORM}.weight"].dtype == torch.float32
    source = model if is_float32 else model.to(torch.float32)
    true, seen = (embedded(source, tokens, task.spill) for _ in range(2))
    extra = allocate(tuple(seen.shape), seen, task.spill) if settings.augmented else None
    shape, weights, clips = model.anatomy, model.weights, dict[str, Tensor]()
    compiled = Compiled(block_error, task.note) if task.compiles else None
    for layer in range(shape.layers):
        absmax = advance_watched(source, layer, true)
        targets = (true,) if extra is None else (true, extra)
        if extra is not None:
            extra.copy_(seen)
            advance(source, layer, extra)
        this = Block(source, layer, task.scheme, rotary_for(source, seen), seen, targets)
        fitted = _fitted(this, absmax, settings, task, compiled)
        scales = {
            name: scale.to(weights[f"{NORM}.weight"]) for name, scale in fitted.scales.items()
        }
        clips |= {shape.block(layer, linear): factors for linear, factors in fitted.clips.items()}
        with torch.no_grad():
            rounded = this.rounded(fitted)
        advance(rounded, layer, seen, *rounding(rounded, task.scheme))
        weights.update(fold(shape, layer, weights, scales))
    return Prepared(model, partial(round_clipped, clips))


def settled(task: Task) -> Settings:
    """The task's settings, LET decided: on where activations are rounded, unless said."""
    settings: Settings = task.settings
    if settings.let is not None:
        return settings
    let = task.scheme.activations is not None
    if not let:
        task.note(
            f"omniquant: {task.scheme.name} leaves activations in float, so that only the clipping "
            "of weights was learned, and no scales of channels (LET)"
        )
    return dataclasses.replace(settings, let=let)


def advance_watched(model: Decoder, layer: int, stream: Tensor) -> dict[str, Tensor]:
    """Move the stream through a float block.

    Returns the absmax of every channel [in] of what each ``KEY_LINEAR`` read, by its name.
    """
    absmax: dict[str, Tensor] = {}

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        for linear in KEY_LINEAR.values():
            if model.anatomy.block(layer, linear) in linears:
                found = inputs.abs().amax(dim=(0, 1))
                absmax[linear] = torch.maximum(absmax.get(linear, found), found)
        return model.project(inputs, linears)

    advance(model, layer, stream, project)
    return absmax


def _fitted(
    this: Block,
    absmax: Mapping[str, Tensor],
    settings: Settings,
    task: Task,
    compiled: Compiled | None = None,
) -> Fitted:
    """What the block learns, or what it learned before the run was killed."""
    name = f"omniquant-{this.layer:04d}"
    stored = task.finished.load(name) if task.finished is not None else None
    if stored is None:
        blocks = this.model.anatomy.layers

        def tell(share: float, loss: float) -> None:
            text = f"omniquant, block {this.layer + 1} of {blocks}, loss {loss:.3g}"
            task.progress((this.layer + share) / blocks, text)

        task.progress(this.layer / blocks, f"omniquant, block {this.layer + 1} of {blocks}")
        pace = Pace(settings.epochs, settings.let_rate, settings.lwc_rate)
        fitted, trouble = fit(this, start(this, absmax, settings), pace, tell, compiled)
        stored = _stored(fitted, trouble)
        if task.finished is not None:
            task.finished.save(name, stored)
    fitted, trouble = _from_stored(stored, this.rotary[0].device)
    if trouble is not None:
        task.note(trouble)
    return fitted


def start(this: Block, absmax: Mapping[str, Tensor], settings: Settings) -> Learnable:
    """Where a block's learning starts."""
    shape, weights, grid = this.model.anatomy, this.model.weights, this.scheme.weights
    assert grid is not None, "prepare() requires it"
    scales: Scales = {}
    if settings.let:
        attention = settings.gqa == "shared" or shape.heads == shape.kv_heads
        scales = initial_scales(shape, this.layer, weights, absmax, settings.alpha, attention)
    logits = {}
    for linear in LINEARS if settings.lwc else ():
        rows, width = shape.shape(linear)
        logit = clip_logit(grid) if settings.lwc_init is None else settings.lwc_init
        logits[linear] = torch.full(
            (2, rows, grid.groups(width)), logit, device=this.rotary[0].device
        )
    return Learnable(scales, logits)


def clip_logit(grid: Grid) -> float:
    """4 up to 4 bits, as published: the ends of the range move by an eighth of a step.

    At 8 bits that factor would take 2.3 steps off either end, which learning has to win back before
    it wins anything (METHODS 2.2); there it is the logit that takes off the same eighth of a step.
    """
    four_bits = Grid(4, "channel")
    return PUBLISHED_LOGIT + max(0.0, math.log(grid.top / four_bits.top))


def round_clipped(
    clips: Mapping[str, Tensor], model: Decoder, task: Task
) -> dict[str, IntegerWeight]:
    """Every linear to the scheme's grid, by its range times the learned factors.

    What keeps 8 bits keeps its range: factors that are right for 4 bits cut off whole steps of it.
    """
    rounded = {}
    for linear in model.anatomy.linears():
        grid = weight_grid(task.scheme, linear)
        weight = model.weights.pop(f"{linear}.weight")
        learned = grid == task.scheme.weights and linear in clips
        factors = clips[linear].to(weight) if learned else None
        found = clipped_extent(weight, grid, factors)
        rounded[linear] = IntegerWeight.of(quantize(weight, grid, found), grid)
    return rounded


def _stored(fitted: Fitted, trouble: str | None) -> dict[str, Tensor]:
    """As ``Finished`` keeps it: the text as its bytes."""
    tensors = {f"scales.{name}": scale for name, scale in fitted.scales.items()}
    tensors |= {f"clips.{linear}": factors for linear, factors in fitted.clips.items()}
    if trouble is not None:
        tensors["trouble"] = torch.tensor(list(trouble.encode()), dtype=torch.uint8)
    return tensors


def _from_stored(stored: Mapping[str, Tensor], device: torch.device) -> tuple[Fitted, str | None]:
    parts: dict[str, dict[str, Tensor]] = {"scales": {}, "clips": {}}
    trouble = None
    for key, tensor in stored.items():
        kind, _, name = key.partition(".")
        if kind in parts:
            parts[kind][name] = tensor.to(device)
        else:
            trouble = bytes(tensor.tolist()).decode()
    return Fitted(parts["scales"], parts["clips"]), trouble
