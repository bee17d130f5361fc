"""Checkpoints for the torch runtime, and its operators with a record of what they were given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from slmq_edge.calibration import Calibration, Text
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.quantization import Prepared, Task, spinquant
from slmq_edge.quantization.rounding import Steps
from slmq_edge.scheme import WEIGHTS_4, WEIGHTS_8, Grid, Scheme, in_words
from slmq_edge.torch_runtime import reference
from slmq_edge.torch_runtime.ops import Levels, Packed
from tests.decoders import DECODERS, checkpoint_of, text_for

TRAINED = ("stories260K", "demo-llama", "demo-qwen2")
# The smallest in every form; the others take minutes, and have found nothing else.
SMALLEST_FIRST = (TRAINED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED[1:]))
WORDS: dict[str, dict[str, object]] = {
    "w8a8": {"name": "w8a8"},
    "w4a8": {"name": "w4a8"},
    "w4a8, two protected": {"name": "w4a8", "protect": 2},
    "w8a8, kv 8": {"name": "w8a8", "kv": 8},
    "w8a8, int8 head and embedding": {"name": "w8a8", "lm_head": "int8", "embedding": "int8"},
    "w4a8, int4 head": {"name": "w4a8", "lm_head": "int4"},
    "asymmetric": {"name": "w4a8", "weights": "asymmetric", "activations": "asymmetric"},
    "static": {"name": "w8a8", "activation_scale": "tensor"},
    "static, asymmetric": {
        "name": "w8a8",
        "activation_scale": "tensor",
        "activations": "asymmetric",
        "range": "percentile",
    },
    "w4a8-g32": {"name": "w4a8-g32"},
    "w4a8-b32": {"name": "w4a8-b32"},
    "w4a16-g32": {"name": "w4a16-g32", "lm_head": "int8"},
    "fp32": {"name": "fp32"},
}
# As the released SpinQuant rounds: rotated online, o_proj's input by head, keys and values too.
ROTATED = "rotated"
FORMS = (*WORDS, ROTATED)
UPSTREAM = Scheme(
    "w4a8",
    WEIGHTS_4,
    Grid(8, "token", symmetric=False),
    head=WEIGHTS_8,
    kv=Grid(8, "token", symmetric=False),
)
BY_HEAD = "by head"


@lru_cache(maxsize=8)
def checkpoint(name: str, form: str) -> Checkpoint:
    """A model in a form; nobody changes it."""
    model = DECODERS[name]()
    tokens = Calibration(Text("text under test", ()), text_for(name, 2, 48))
    if form in (ROTATED, BY_HEAD):
        settings = spinquant.Settings(steps=0, rounding="nearest")
        by_head = Grid(8, "token", symmetric=False, group=model.anatomy.head_dim)
        scheme = UPSTREAM if form == ROTATED else dataclasses.replace(UPSTREAM, mixed=by_head)
        task = Task(scheme, settings, tokens)
        made = checkpoint_of(spinquant.prepare(model, task), task, "spinquant")
        assert made.online.keys
        return made
    words = dict(WORDS[form])
    if "protect" in words:
        linears = list(model.anatomy.linears())
        words["protect"] = (linears[1], linears[-1])
    return checkpoint_of(Prepared(model), Task(in_words(words), None, tokens), "none")


@dataclass
class Recorded:
    """The reference's operators, and what went through them. An `ops.Ops`."""

    rounded: list[tuple[Tensor, Levels]]
    products: list[tuple[Levels, Packed, Tensor]]
    NAME: str = "recorded"
    turned_stored = staticmethod(reference.turned_stored)
    turned = staticmethod(reference.turned)
    stored = staticmethod(reference.stored)
    attend = staticmethod(reference.attend)

    def round_rows(self, x: Tensor, grid: Grid, static: Steps | None) -> Levels:
        found = reference.round_rows(x, grid, static)
        self.rounded.append((x, found))
        return found

    def normed(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        return reference.normed(x, gain, eps)

    def normed_rounded(self, x: Tensor, gain: Tensor, eps: float, grid: Grid) -> Levels:
        return self.round_rows(reference.normed(x, gain, eps), grid, None)

    def gated(self, gate_up: Tensor) -> Tensor:
        return reference.gated(gate_up)

    def gated_rounded(self, gate_up: Tensor, grid: Grid) -> Levels:
        return self.round_rows(reference.gated(gate_up), grid, None)

    def linear(self, x: Levels, weight: Packed, bias: Tensor | None, floats: torch.dtype) -> Tensor:
        found = reference.linear(x, weight, bias, floats)
        self.products.append((x, weight, found))
        return found

    def weight_only(self, x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
        return reference.weight_only(x, weight, bias)


def recorded() -> Recorded:
    return Recorded([], [])
