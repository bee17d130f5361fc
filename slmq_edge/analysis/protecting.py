"""Which linears keep 8-bit weights: those whose weights, rounded to nearest alone, cost most.

It is the damage of the weights alone that decides, since that is what more bits for weights take
away; and of the model as its method has prepared it, since what smoothing or rotating has mended
needs no protection. Preparing itself knows nothing of what will be protected (docs/decisions/0024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slmq_edge.analysis.damage import Case, measure
from slmq_edge.anatomy import LINEARS, Anatomy
from slmq_edge.calibration import Size, Text, cut, split
from slmq_edge.checkpoint import Checkpoint, round_rest
from slmq_edge.decoder import Decoder
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Progress, Task, round_to_nearest
from slmq_edge.scheme import PROTECT, Scheme

if TYPE_CHECKING:
    from slmq_edge.quantize import Plan

# Held-out windows that damage is measured on.
MEASURED = Size(windows=16, length=128)
FEWEST = 8
# What a run keeps of it, to go on from.
KEPT = "ranking"


def named(planned: Plan, model: Decoder, tokenizer: Any, task: Task) -> Plan:
    """A plan that says how many linears keep 8 bits, with their names in scheme and recipe.

    model: as its method has prepared it for ``task``, float32. The task is told which linears, and
    what each would cost; what an interrupted run has measured is not measured again.

    Raises:
        SlmqError: the calibration text is too short.
    """
    assert planned.text is not None, "quantize.plan() sees to it"
    scheme = planned.request.scheme
    tokens = held_out(planned.text, tokenizer, planned.anatomy)
    damage = _damage(model, task, tokens)
    names = worst(damage, scheme.protects)
    task.note(in_words(damage, names))
    scheme = dataclasses.replace(scheme, protected=names)
    recipe = planned.recipe
    if recipe is not None:
        words = {**recipe.scheme, PROTECT: list(names)}
        recipe = dataclasses.replace(recipe, scheme=words)
    request = dataclasses.replace(planned.request, scheme=scheme)
    return dataclasses.replace(planned, request=request, recipe=recipe)


def held_out(text: Text, tokenizer: Any, shape: Anatomy, windows: int | None = None) -> Tensor:
    """Windows int64 [windows, length] of what is held out of a calibration text.

    Raises:
        SlmqError: the text is too short.
    """
    count = windows or MEASURED.windows
    size = Size(count, min(MEASURED.length, shape.max_positions))
    try:
        return cut(split(text)[1], tokenizer, size, fewest=min(count, FEWEST)).tokens
    except SlmqError as error:
        raise SlmqError(
            f"calibration text '{text.name}' is too short to measure on: what is held out of it, a "
            f"fifth, makes fewer than {min(count, FEWEST)} windows of {size.length} tokens (give "
            "a longer text with --calib)"
        ) from error


def plainly_rounded(model: Decoder, scheme: Scheme) -> Checkpoint:
    """A model as it stands, rounded to nearest, to be simulated; ``model`` keeps its weights."""
    taken = dataclasses.replace(model, weights=dict(model.weights))
    integers = round_to_nearest(taken, Task(scheme, None))
    rest, tensors = round_rest(taken, scheme)
    return Checkpoint(
        anatomy=model.anatomy,
        scheme=scheme,
        integers=integers | rest,
        tensors=tensors,
        method="none",
        settings={},
        source={},
        calibration=None,
        cost={},
        extras={},
        online=model.online,
    )


def weight_damage(
    model: Decoder, scheme: Scheme, tokens: Tensor, progress: Progress
) -> dict[str, float]:
    """Mean KL in nats by full name of linear, each with its weights alone rounded to nearest.

    model: float32. tokens: int64 [windows, length].
    """
    weights_alone = Scheme(scheme.name, scheme.weights, None)
    cases = {
        linear: Case(frozenset({linear}), "weights", layer)
        for layer in range(model.anatomy.layers)
        for linear in model.anatomy.blocks(layer, LINEARS)
    }
    checkpoint = plainly_rounded(model, weights_alone)
    _, found = measure(model, checkpoint, tokens, list(cases.values()), progress)
    return {linear: found[case].kl for linear, case in cases.items()}


def _damage(model: Decoder, task: Task, tokens: Tensor) -> dict[str, float]:
    """``weight_damage``, or what a run that was interrupted found of it."""
    linears = tuple(model.anatomy.linears())
    stored = None if task.finished is None else task.finished.load(KEPT)
    if stored is not None:
        return dict(zip(linears, stored["kl"].tolist(), strict=True))
    found = weight_damage(model, task.scheme, tokens, task.progress)
    if task.finished is not None:
        values = [found[linear] for linear in linears]
        task.finished.save(KEPT, {"kl": torch.tensor(values, dtype=torch.float64)})
    return found


def worst(damage: Mapping[str, float], count: int) -> tuple[str, ...]:
    """The names of the ``count`` largest, in the order in which they run; of equals the first."""
    chosen = sorted(damage, key=lambda name: -damage[name])[:count]
    return tuple(name for name in damage if name in chosen)


def in_words(damage: Mapping[str, float], chosen: Sequence[str]) -> str:
    """One line: what keeps 8 bits, the worst first, and the mean KL that each would cost alone."""
    ranked = sorted(chosen, key=lambda name: -damage[name])
    told = ", ".join(
        f"{name.removeprefix('model.layers.')} ({damage[name]:.1e} nats)" for name in ranked
    )
    return f"8-bit weights in {len(ranked)} of {len(damage)} linears: {told}"
