"""A model on its grids, whose integers can be learned: the student of ``distill``.

    w = (clamp(round(u) + z, bottom, top) - z) s e^t       per group of every linear
    g = g_0 (1 + a)                                        gains of norms
    b = b_0 + c rms(b_0)                                   biases, where there are any

u are the weights in units of their steps, so that one learning rate, in levels a step, serves every
model, layer and scheme; t moves a step's width by a share; z stays where rounding has put it. What
is rounded passes its gradient on as if it were not, inside the grid's ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.decoder import Decoder, Operands
from slmq_edge.quantization.rounding import (
    Rounded,
    Steps,
    dequantize,
    operands_of,
    rounded,
    spread,
    straight_through,
    to_levels,
)
from slmq_edge.scheme import Grid, Scheme

# A level's latent value lies within its cell, clear of the edges.
INSIDE = 0.45
# Kinds of what is learned.
LEVELS, SHARES, GAINS, BIASES = KINDS = ("levels", "shares", "gains", "biases")


@dataclass(frozen=True)
class Linear:
    """One linear as it is learned: levels float32 [out, in], zero points off; shares [out, groups].

    scale: float32 [out, groups], of the start; zero: likewise, or ``None``.
    """

    levels: Tensor
    shares: Tensor
    scale: Tensor
    zero: Tensor | None
    grid: Grid

    @staticmethod
    def of(weight: Tensor, start: IntegerWeight, keeps: bool) -> Linear:
        """Begin at a rounding of ``weight``.

        keeps: begin with its integers, each as near to the weight as its cell allows; otherwise
        with the weight itself, and of the rounding take the steps alone.
        """
        scale = start.scale.to(weight)
        zero = None if start.zero is None else start.zero.to(weight)
        levels = weight / spread(scale, weight, start.grid)
        if keeps:
            found = start.centred.to(weight)
            levels = levels.clamp(found - INSIDE, found + INSIDE)
        shares = torch.zeros_like(scale)
        return Linear(levels.requires_grad_(), shares.requires_grad_(), scale, zero, start.grid)

    @property
    def steps(self) -> Steps:
        return Steps(self.scale * self.shares.exp(), self.zero)

    @property
    def weight(self) -> Tensor:
        """What it multiplies by, [out, in]; differentiable in levels and shares."""
        ends = (self.grid.bottom, self.grid.top)
        zero = 0.0 if self.zero is None else spread(self.zero, self.levels, self.grid)
        inside = (self.levels + zero).clamp(*ends) - zero
        rounded = (torch.round(self.levels) + zero).clamp(*ends) - zero
        found = inside + (rounded - inside).detach()
        return found * spread(self.steps.scale, self.levels, self.grid)

    @property
    def rounded(self) -> Rounded:
        """The integers as they are now."""
        with torch.no_grad():
            zero = 0.0 if self.zero is None else spread(self.zero, self.levels, self.grid)
            integers = torch.round(self.levels) + zero
            return Rounded(integers.clamp(self.grid.bottom, self.grid.top), self.steps)

    def settle(self, distance: float) -> None:
        """Bring every latent value nearer to the middle of its cell, by no more than that."""
        with torch.no_grad():
            apart = self.levels - torch.round(self.levels)
            self.levels.sub_(apart.clamp(-distance, distance))


class Student:
    """The learnable form of ``teacher`` under a scheme.

    linears: by full name. gains, biases: what is added to those of the teacher, by tensor name.
    inputs: steps of static activations, by the first linear that reads them.
    """

    def __init__(
        self,
        teacher: Decoder,
        scheme: Scheme,
        linears: dict[str, Linear],
        inputs: Mapping[str, Steps],
    ) -> None:
        self.teacher, self.scheme, self.linears = teacher, scheme, linears
        shape, weights = teacher.anatomy, teacher.weights
        norms = [shape.block(layer, n) for layer in range(shape.layers) for n in _norms(teacher)]
        self.gains = _zeros(weights, [f"{n}.weight" for n in (*norms, names.NORM)])
        self.biases = _zeros(weights, [f"{n}.bias" for n in linears if f"{n}.bias" in weights])
        self._tables = _table(teacher, scheme)
        self._head = _head(teacher, scheme, self._tables)
        here = weights[f"{names.NORM}.weight"]
        # Sent once: a step on a GPU would wait for each.
        self._inputs = {
            name: Steps(found.scale.to(here), None if found.zero is None else found.zero.to(here))
            for name, found in inputs.items()
        }

    @property
    def model(self) -> Decoder:
        """The decoder of the gains and biases as they are; its linears are asked of ``project``."""
        weights = {**self.teacher.weights, **self._tables, **self._moved()}
        return dataclasses.replace(self.teacher, weights=weights)

    def _moved(self) -> dict[str, Tensor]:
        """Gains and biases as they are."""
        weights = self.teacher.weights
        moved = {name: weights[name] * (1 + a) for name, a in self.gains.items()}
        moved |= {name: weights[name] + c * _rms(weights[name]) for name, c in self.biases.items()}
        return moved

    @property
    def device(self) -> torch.device:
        return self.teacher.weights[f"{names.NORM}.weight"].device

    @property
    def operands(self) -> Operands:
        return operands_of(self.scheme, lambda t, grid: straight_through(_exact(t), grid))

    def project(
        self, model: Decoder, inputs: Tensor, linears: tuple[str, ...]
    ) -> tuple[Tensor, ...]:
        """Linears of blocks, or the head, of rounded inputs by rounded weights."""
        first = linears[0]
        if first == names.HEAD and self._head is None:
            return model.project(inputs, linears)
        x = self._round(inputs, first)
        if first == names.HEAD:
            assert self._head is not None, "asked above"
            return (functional.linear(x, self._head),)
        biases = [model.weights.get(f"{name}.bias") for name in linears]
        return tuple(
            functional.linear(x, self.linears[name].weight.to(x.dtype), bias)
            for name, bias in zip(linears, biases, strict=True)
        )

    def _round(self, inputs: Tensor, linear: str) -> Tensor:
        grid = self.scheme.input_grid(linear)
        if grid is None:
            return inputs
        inputs = _exact(inputs)
        stored = self._inputs.get(linear)
        if stored is None:
            return straight_through(inputs, grid)
        value = inputs.detach()
        return inputs + (dequantize(to_levels(value, stored, grid), stored, grid) - value)

    def learned(self, rates: Mapping[str, float]) -> dict[str, Tensor]:
        """What learning moves, by name, whose last part is its kind; what has a rate of 0 rests."""
        found = {f"{name}.{LEVELS}": one.levels for name, one in self.linears.items()}
        found |= {f"{name}.{SHARES}": one.shares for name, one in self.linears.items()}
        found |= {f"{name}.{GAINS}": a for name, a in self.gains.items()}
        found |= {f"{name}.{BIASES}": c for name, c in self.biases.items()}
        moving = {name: t for name, t in found.items() if rates[name.rpartition(".")[2]]}
        for name, tensor in found.items():
            tensor.requires_grad_(name in moving)
        return moving

    def settle(self, distance: float) -> None:
        """See ``Linear.settle``; a distance is in levels."""
        if distance:
            for one in self.linears.values():
                one.settle(distance)

    def snapshot(self) -> dict[str, Tensor]:
        """All that a checkpoint needs of the student as it is, on the CPU."""
        found: dict[str, Tensor] = {}
        for name, one in self.linears.items():
            weight = IntegerWeight.of(one.rounded, one.grid)
            found |= {f"{name}.integers": weight.integers, f"{name}.scale": weight.scale}
        for name, tensor in self._moved().items():
            found[name] = tensor.detach().to("cpu", copy=True)
        return found

    def taken(
        self, kept: Mapping[str, Tensor]
    ) -> tuple[dict[str, IntegerWeight], dict[str, Tensor]]:
        """Of a snapshot: the linears, and the gains and biases."""
        linears = {
            name: IntegerWeight(
                kept[f"{name}.integers"],
                kept[f"{name}.scale"],
                None if one.zero is None else one.zero.to("cpu", torch.int16),
                one.grid,
            )
            for name, one in self.linears.items()
        }
        return linears, {name: kept[name] for name in (*self.gains, *self.biases)}


def _norms(model: Decoder) -> Iterable[str]:
    feeds = (names.ATTENTION_FEED.norm, names.MLP_FEED.norm)
    return (*feeds, names.Q_NORM, names.K_NORM) if model.anatomy.qk_norm else feeds


def _zeros(weights: Mapping[str, Tensor], tensors: Iterable[str]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(weights[name]).requires_grad_() for name in tensors}


def _exact(t: Tensor) -> Tensor:
    """As it is rounded: lower precision may multiply, and does not round."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _rms(t: Tensor) -> Tensor:
    return t.square().mean().sqrt()


def _head(model: Decoder, scheme: Scheme, tables: Mapping[str, Tensor]) -> Tensor | None:
    """The head as it will be rounded, where it is: it is not learned.

    tables: the rounded lookup table, which is the head where both are the same.
    """
    tied = model.anatomy.tied
    grid = scheme.lm_head(tied)
    name = names.EMBED if tied else names.HEAD
    if tied and grid is not None and grid == scheme.table(tied):
        return tables[f"{name}.weight"]
    return None if grid is None else rounded(model.weights[f"{name}.weight"], grid)


def _table(model: Decoder, scheme: Scheme) -> dict[str, Tensor]:
    """The lookup table likewise."""
    grid, name = scheme.table(model.anatomy.tied), f"{names.EMBED}.weight"
    return {} if grid is None else {name: rounded(model.weights[name], grid)}
