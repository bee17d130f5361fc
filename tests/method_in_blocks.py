"""A method for tests: it works block by block, keeps finished blocks, and can be made to fail."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from typing import Literal

import pytest

from slmq_edge import quantization
from slmq_edge.anatomy import Anatomy
from slmq_edge.calibration import Size
from slmq_edge.decoder import Decoder
from slmq_edge.errors import Unsupported, UsageError
from slmq_edge.quantization import Prepared, Task
from slmq_edge.scheme import Scheme

NAME = "blocks"


@dataclass(frozen=True)
class Settings:
    """One field of every kind that a setting may have."""

    steps: int = 3
    rate: float = 0.5
    careful: bool = False
    gqa: str = "shared"
    alpha: float | Literal["auto"] | None = None
    learn_weights: Literal[16, "target"] = 16
    online: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UsageError(f"--steps cannot be {self.steps}")


@dataclass
class Script:
    """failures: block -> what is raised there, once. worked: blocks that were worked on."""

    failures: dict[int, BaseException] = field(default_factory=dict)
    worked: list[int] = field(default_factory=list)


def install(patch: pytest.MonkeyPatch) -> Script:
    """Make the method known under ``NAME`` for as long as the test runs."""
    script = Script()

    def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
        if settings.gqa == "never":
            raise Unsupported(f"blocks cannot do {scheme.name} with {shape.heads} heads")

    def prepare(model: Decoder, task: Task) -> Prepared:
        assert task.calibration is not None
        weights, total = dict(model.weights), model.anatomy.layers
        for layer in range(total):
            task.progress(layer / total, f"blocks, block {layer + 1} of {total}")
            name = f"{model.anatomy.block(layer, 'mlp.down_proj')}.weight"
            kept = task.finished and task.finished.load(f"block-{layer:04}")
            if kept:
                weights[name] = kept["weight"]
                continue
            failure = script.failures.pop(layer, None)
            if failure is not None:
                raise failure
            script.worked.append(layer)
            weights[name] = weights[name] * (1 + task.settings.rate * 2.0**-layer)
            if task.finished is not None:
                task.finished.save(f"block-{layer:04}", {"weight": weights[name]})
        task.note(f"worked on {total} blocks")
        return Prepared(Decoder(model.anatomy, weights))

    module = types.ModuleType(f"slmq_edge.quantization.{NAME}")
    module.__dict__.update(Settings=Settings, CALIBRATION=Size(8, 64), check=check, prepare=prepare)
    patch.setitem(sys.modules, module.__name__, module)
    patch.setitem(quantization.METHODS, NAME, "a method under test")
    return script
