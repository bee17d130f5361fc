"""Fitting one rounded block to the float one, and never trusting that it worked.

    loss = mean (F_q(X_q) - F(X))^2          one window a step, in order, by AdamW (METHODS 2.5)

Learning can diverge, and at 8 bits it can end above where it began. So a block is measured before
the first step: if the last epoch's mean loss is above that, or no number, the block is learned
again at half the rates, and if nothing helps, the best state that was seen is kept. Nor is a state
kept that loses more than plain rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge.anatomy import LINEARS
from slmq_edge.decoder import Decoder, Operands, Project, block
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import readback
from slmq_edge.quantization.compiling import Compiled
from slmq_edge.quantization.let import Scales, fold
from slmq_edge.quantization.moving import Way, way
from slmq_edge.quantization.readback import Losses
from slmq_edge.quantization.rounding import Extent, extent, fake_quantize, operands_of
from slmq_edge.scheme import Grid, Scheme

# How often a block is learned again, each time at half the rate.
RETRIES = 3

# Called with the share of an attempt that is done, and the loss of the last window.
Tell = Callable[[float, float], None]


@dataclass(frozen=True)
class Pace:
    """Passes over the windows, and AdamW's rates for scales and for clips."""

    epochs: int
    let_rate: float
    lwc_rate: float


@dataclass(frozen=True)
class Fitted:
    """What a block has learned; with nothing in it the block is rounded plainly.

    scales: to fold (``let``). clips: linear within the block -> factors [2, out, groups] of the low
    and of the high ends of its ranges.
    """

    scales: Scales
    clips: dict[str, Tensor]


PLAIN = Fitted({}, {})


@dataclass(frozen=True)
class Learnable:
    """What AdamW moves: the scales themselves, and the logits of the clip factors."""

    scales: Scales
    logits: dict[str, Tensor]

    def fitted(self) -> Fitted:
        clips = {linear: torch.sigmoid(logit) for linear, logit in self.logits.items()}
        return Fitted(self.scales, clips)

    def fresh(self) -> Learnable:
        """A copy that learns."""
        scales, logits = (
            {name: t.detach().clone().requires_grad_() for name, t in kind.items()}
            for kind in (self.scales, self.logits)
        )
        return Learnable(scales, logits)


@dataclass(frozen=True)
class Candidate:
    """A state of the block, its mean loss over all windows, and where it was seen."""

    loss: float
    fitted: Fitted
    seen: str

    @property
    def rank(self) -> float:
        """The loss; infinite where it is no number."""
        return self.loss if math.isfinite(self.loss) else math.inf


@dataclass(frozen=True)
class Block:
    """A block to be fitted.

    model: float32. rotary: of the windows' length. inputs: the rounded stream before it; targets:
    one or two streams behind it, which it should put out; each [windows, length, hidden].
    """

    model: Decoder
    layer: int
    scheme: Scheme
    rotary: tuple[Tensor, Tensor]
    inputs: Tensor
    targets: tuple[Tensor, ...]

    def rounded(self, fitted: Fitted) -> Decoder:
        """The model with this block folded, clipped and rounded; differentiable in ``fitted``."""
        shape, grid = self.model.anatomy, self.scheme.weights
        assert grid is not None, "prepare() requires it"
        weights = self.model.weights | fold(shape, self.layer, self.model.weights, fitted.scales)
        for linear in LINEARS:
            name = f"{shape.block(self.layer, linear)}.weight"
            found = clipped_extent(weights[name], grid, fitted.clips.get(linear))
            weights[name] = fake_quantize(weights[name], grid, found)
        return dataclasses.replace(self.model, weights=weights)

    def loss(self, rounded: Decoder, window: int) -> Tensor:
        """Mean squared error of the block's output for a window, summed over the targets."""
        return self.error(rounded, *self.window(window))

    def error(self, rounded: Decoder, x: Tensor, *targets: Tensor) -> Tensor:
        """The loss of a window's inputs and targets."""
        project, operands = rounding(rounded, self.scheme)
        out = block(rounded, self.layer, x, self.rotary, project, operands)
        return torch.stack([functional.mse_loss(out, target) for target in targets]).sum()

    @cached_property
    def _ways(self) -> tuple[Way, ...]:
        """Of inputs and targets to where the model is."""
        return tuple(way(one, self.rotary[0].device) for one in (self.inputs, *self.targets))

    def window(self, number: int) -> tuple[Tensor, ...]:
        """The inputs of a window, and what should come of them, each [1, length, hidden]."""
        return tuple(way.get(slice(number, number + 1)) for way in self._ways)

    def alone(self) -> Block:
        """The same as the first block of a model that has no other tensors.

        All blocks are then one to a compiler, which looks at names.
        """
        shape = self.model.anatomy
        here, first = shape.block(self.layer, ""), shape.block(0, "")
        weights = {
            f"{first}{name.removeprefix(here)}": tensor
            for name, tensor in self.model.weights.items()
            if name.startswith(here)
        }
        model = dataclasses.replace(self.model, weights=weights)
        return dataclasses.replace(self, model=model, layer=0)

    def mean_loss(self, fitted: Fitted) -> float:
        """Over all windows, with nothing moving."""
        with torch.no_grad():
            rounded = self.rounded(fitted)
            losses = self.rotary[0].new_empty(len(self.inputs))
            for window in range(len(losses)):
                losses[window] = self.loss(rounded, window)
        return sum(readback.numbers(losses)) / len(losses)


def clipped_extent(weight: Tensor, grid: Grid, factors: Tensor | None) -> Extent:
    """The range of every group of ``weight`` [out, in], its ends times ``factors``.

    factors: [2, out, groups], ``None`` for the whole range.
    """
    found = extent(weight, grid)
    return found if factors is None else found.clipped(factors[0], factors[1])


def rounding(model: Decoder, scheme: Scheme) -> tuple[Project, Operands]:
    """How ``model`` runs under ``scheme``: inputs of linears and operands of attention rounded.

    An input is rounded once for all linears that share it. All is differentiable (METHODS 2.1).
    """

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        grid = scheme.input_grid(linears[0])
        return model.project(inputs if grid is None else fake_quantize(inputs, grid), linears)

    return project, operands_of(scheme, fake_quantize)


def fit(
    this: Block, start: Learnable, pace: Pace, tell: Tell, compiled: Compiled | None = None
) -> tuple[Fitted, str | None]:
    """Learn a block; with it, what a user should know where that did not go well.

    compiled: ``block_error``, to learn faster by; ``None`` runs it as it is.

    Raises:
        SlmqError: even the plainly rounded block puts out what is no number.
    """
    plain = Candidate(this.mean_loss(PLAIN), PLAIN, "plain rounding")
    if not math.isfinite(plain.loss):
        raise SlmqError(
            f"learning block {this.layer + 1} is impossible: the loss is {plain.loss} even when it "
            "is rounded plainly; are the model's weights damaged?"
        )
    fitted = start.fitted()
    initial = Candidate(this.mean_loss(fitted), fitted, "the start")
    learned, failed = initial, list[float]()
    for retry in range(1 + RETRIES) if pace.epochs else ():
        best, last = learn(this, start, pace, tell, 0.5**retry, compiled)
        if math.isfinite(last.loss) and last.loss <= initial.rank:
            learned = last
            break
        failed.append(last.loss)
        learned = min(learned, best, key=_rank)
    kept = min(learned, plain, key=_rank)
    if not failed and (kept is learned or not pace.epochs):
        return kept.fitted, None
    if failed:
        ends = ", ".join(f"{loss:.4g} (rates x {0.5**n:g})" for n, loss in enumerate(failed))
        why = f"learning began at a loss of {initial.loss:.4g} and ended at {ends}"
    else:
        why = f"learning ended at a loss of {learned.loss:.4g}, no better than plain rounding"
    said = f"omniquant, block {this.layer + 1}: {why}; kept {kept.seen}, {kept.loss:.4g}"
    return kept.fitted, said


def _rank(candidate: Candidate) -> float:
    return candidate.rank


def learn(
    this: Block,
    start: Learnable,
    pace: Pace,
    tell: Tell,
    slower: float = 1.0,
    compiled: Compiled | None = None,
) -> tuple[Candidate, Candidate]:
    """The best epoch's state and the last one's, at ``slower`` times the rates.

    Where learning diverges it ends, and the last one's loss is nan. The losses of both are those of
    the states as they are: while an epoch runs, its own state moves.
    """
    learnable, windows = start.fresh(), len(this.inputs)
    groups = (
        {"params": list(learnable.scales.values()), "lr": slower * pace.let_rate},
        {"params": list(learnable.logits.values()), "lr": slower * pace.lwc_rate},
    )
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
    loss_of = _step(this, learnable, optimizer, compiled)
    best: Candidate | None = None
    for epoch in range(pace.epochs):
        losses = Losses(this.rotary[0].device)
        for window in range(windows):
            is_read = losses.add(loss_of(window), last=window + 1 == windows)
            if losses.failed is not None:
                break
            optimizer.step()
            if is_read:
                tell((epoch + (window + 1) / windows) / pace.epochs, losses.read[-1])
        fitted = _snapshot(learnable)
        mean = sum(losses.read) / len(losses.read) if _is_finite(fitted) else math.nan
        last = Candidate(mean, fitted, f"epoch {epoch + 1} (rates x {slower:g})")
        best = last if best is None else min(best, last, key=_rank)
        if not math.isfinite(mean):
            break
    assert best is not None, "fit() asks for an epoch at least"
    return _measured(this, best), _measured(this, last)


def block_error(this: Block, learnable: Learnable, x: Tensor, *targets: Tensor) -> Tensor:
    """The loss of one window, as a function that can be compiled."""
    return this.error(this.rounded(learnable.fitted()), x, *targets)


def _step(
    this: Block,
    learnable: Learnable,
    optimizer: torch.optim.Optimizer,
    compiled: Compiled | None,
) -> Callable[[int], Tensor]:
    """A window -> its loss, whose gradients are then where the optimizer looks for them."""

    def backward(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        return loss

    if compiled is None:
        return lambda window: backward(this.loss(this.rounded(learnable.fitted()), window))
    alone = this.alone()

    def loss_of(window: int) -> Tensor:
        parts = this.window(window)
        return compiled.used(lambda error: backward(error(alone, learnable, *parts)))

    return loss_of


def _measured(this: Block, candidate: Candidate) -> Candidate:
    """With the loss of the very state, unless it is known to be no number."""
    if not math.isfinite(candidate.loss):
        return candidate
    return dataclasses.replace(candidate, loss=this.mean_loss(candidate.fitted))


def _snapshot(learnable: Learnable) -> Fitted:
    with torch.no_grad():
        fitted = learnable.fitted()
        scales = {name: scale.detach().clone() for name, scale in fitted.scales.items()}
    return Fitted(scales, fitted.clips)


def _is_finite(fitted: Fitted) -> bool:
    parts = [t.isfinite().all() for t in (*fitted.scales.values(), *fitted.clips.values())]
    return all(readback.numbers(*parts))
