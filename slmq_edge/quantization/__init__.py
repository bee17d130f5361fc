"""The methods. Each answers with a float model made ready, and with how its linears are rounded.

A method is a module here with a frozen dataclass ``Settings``, the ``CALIBRATION`` windows it asks
for (``None``: none), and

    check(anatomy, scheme, settings)       refuses, before anything is read, what it could not do
    prepare(model, task) -> Prepared

whose model computes what ``model`` computes (to 1e-9 in float64); and a line in ``METHODS``. The
model is handed over: its tensors may be replaced, so that there is never a second copy of it.
Rounding comes after, once: to nearest, or as the method says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from slmq_edge.errors import MissingExtra, UsageError, unknown

if TYPE_CHECKING:
    from slmq_edge.anatomy import Anatomy
    from slmq_edge.calibration import Calibration, Size
    from slmq_edge.checkpoint import IntegerWeight
    from slmq_edge.decoder import Decoder
    from slmq_edge.quantization.finished import Finished
    from slmq_edge.quantization.rounding import Steps
    from slmq_edge.scheme import Scheme

METHODS: dict[str, str] = {
    "none": "round to nearest, nothing prepared",
    "gptq": "round column by column, making up for each error in the columns to come",
    "smoothquant": "move the difficulty of rounding from activations into weights",
    "omniquant": "learn, block by block, where to clip weights and how to scale channels",
    "spinquant": "rotate the stream by learned rotations, so that no channel stands out",
    "distill": "teach the rounded model, all of it at once, to answer as the model does",
}

# Those that have a step which ``Task.compiles`` compiles.
COMPILED = ("omniquant",)
# Those that learn from some windows and are judged by others.
HOLDS_OUT = ("distill",)

# Called with the share of the work done, 0..1, and what is being done.
Progress = Callable[[float, str], None]


def _silent(share: float, what: str) -> None:
    """No progress bar."""


def _unheard(line: str) -> None:
    """No one to tell."""


@dataclass(frozen=True)
class Task:
    """What a method is asked to do.

    settings: the method's own. note: told what a user should know, a line at a time, which the
    checkpoint keeps. finished: where blocks of this very task are kept, so that a killed run can
    go on; ``None``: nowhere. spill: folder for activations, ``None`` keeps them in memory.
    compiles: steps that a method repeats often are compiled, where it knows how. inputs: of static
    activations, when linears are rounded: their steps by the first linear that reads them.
    """

    scheme: Scheme
    settings: Any
    calibration: Calibration | None = None
    progress: Progress = field(default=_silent, compare=False)
    note: Callable[[str], None] = field(default=_unheard, compare=False)
    finished: Finished | None = None
    spill: Path | None = None
    compiles: bool = False
    inputs: Mapping[str, Steps] = field(default_factory=dict)


# Rounds all linears of a model, whose float weights it takes out of the model as it goes.
RoundLinears = Callable[["Decoder", Task], "dict[str, IntegerWeight]"]


def round_to_nearest(model: Decoder, task: Task) -> dict[str, IntegerWeight]:
    """Every linear to the scheme's weight grid, by its own range."""
    from slmq_edge.checkpoint import IntegerWeight
    from slmq_edge.quantization.rounding import quantize

    grids = {linear: task.scheme.weight_grid(linear) for linear in model.anatomy.linears()}
    return {
        linear: IntegerWeight.of(quantize(model.weights.pop(f"{linear}.weight"), grid), grid)
        for linear, grid in grids.items()
        if grid is not None
    }


def round_searched(model: Decoder, task: Task) -> dict[str, IntegerWeight]:
    """Every linear to nearest, within the range that a search finds best (METHODS 3.6)."""
    from slmq_edge.checkpoint import IntegerWeight
    from slmq_edge.quantization.rounding import quantize, search_clip

    found: dict[str, IntegerWeight] = {}
    for linear in model.anatomy.linears():
        asked = task.scheme.weight_grid(linear)
        assert asked is not None, "prepare() sees to it"
        grid = replace(asked, lowest=asked.symmetric)
        weight = model.weights.pop(f"{linear}.weight")
        found[linear] = IntegerWeight.of(quantize(weight, grid, search_clip(weight, grid)), grid)
        task.progress(len(found) / (7 * model.anatomy.layers), "searching clips")
    return found


@dataclass(frozen=True)
class Prepared:
    """A method's answer: a model that computes what the source does, and how to round it."""

    model: Decoder
    round_linears: RoundLinears = round_to_nearest


class Method(Protocol):
    """What the module of a method offers."""

    Settings: type[Any]
    CALIBRATION: Size | None

    def check(self, shape: Anatomy, scheme: Scheme, settings: Any) -> None: ...

    def prepare(self, model: Decoder, task: Task) -> Prepared: ...


def method(name: str) -> Method:
    """Import a method by name (and torch with it).

    Raises:
        UsageError: unknown name; MissingExtra: torch is not installed.
    """
    if name not in METHODS:
        raise UsageError(unknown("method", name, tuple(METHODS)))
    try:
        import torch  # noqa: F401  the one dependency all methods share
    except ImportError as error:
        raise MissingExtra("torch", "quantize") from error
    return cast("Method", import_module(f"slmq_edge.quantization.{name}"))
