"""How large an engine's inputs may be: its optimization profiles.

=========  ==================  ==============  ===============
profile    new                 room            kept
=========  ==================  ==============  ===============
prefill    1 to ``prompt``     1 to context    1 to ``kept``
decode     1                   1 to context    1
=========  ==================  ==============  ===============

Where trtexec takes only one profile it is prefill's, which holds decode's shapes too.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

from slmq_edge.errors import UsageError
from slmq_edge.runner.trt.recipe import KEPT, NEW, ROOM, Port, Recipe

PROMPT, CONTEXT, KEPT_MOST = 512, 2048, 64
# Kernels are chosen for these, and right for all: a prompt of usual length in a room to go on in.
USUAL_PROMPT, USUAL_ROOM = 128, 512
PREFILL, DECODE = "prefill", "decode"


class Shapes(NamedTuple):
    """The largest piece of a prompt, the largest room, and of how many positions logits fit."""

    prompt: int
    context: int
    kept: int


class Sizes(NamedTuple):
    """One value for each of the graph's dimensions."""

    new: int
    room: int
    kept: int


class Profile(NamedTuple):
    name: str
    least: Sizes
    usual: Sizes
    most: Sizes


def of(recipe: Recipe, prompt: int | None = None, context: int | None = None) -> Shapes:
    """Shapes for a graph; what is not said is as large as is usual.

    Raises:
        UsageError: they do not fit each other or the graph.
    """
    most = recipe.context_length
    room = min(most, max(CONTEXT, prompt or 0)) if context is None else context
    if not 1 <= room <= most:
        raise UsageError(f"--context is {room}: the graph takes 1 to {most}")
    new = min(PROMPT, room) if prompt is None else prompt
    if not 1 <= new <= room:
        raise UsageError(f"--prompt is {new}: it must be between 1 and the context, {room}")
    return Shapes(new, room, min(KEPT_MOST, new))


def profiles(shapes: Shapes, several: bool = True) -> tuple[Profile, ...]:
    """The optimization profiles, prefill first."""
    room = min(USUAL_ROOM, shapes.context)
    one = Sizes(1, 1, 1)
    prefill = Profile(
        PREFILL,
        one,
        Sizes(min(USUAL_PROMPT, shapes.prompt, room), room, 1),
        Sizes(shapes.prompt, shapes.context, shapes.kept),
    )
    decode = Profile(DECODE, one, Sizes(1, room, 1), Sizes(1, shapes.context, 1))
    return (prefill, decode) if several else (prefill,)


def shape(port: Port, sizes: Sizes) -> tuple[int, ...]:
    """A port's shape with its dimensions filled in."""
    values = {NEW: sizes.new, ROOM: sizes.room, KEPT: sizes.kept}
    return tuple(values.get(dim, dim) for dim in port.shape)


def spelled(ports: Sequence[Port], new: object, room: object, kept: object) -> str:
    """Shapes as trtexec takes them: ``input_ids:1x512,...``."""
    values = {NEW: new, ROOM: room, KEPT: kept}
    return ",".join(
        f"{port.name}:{'x'.join(str(values.get(dim, dim)) for dim in port.shape)}" for port in ports
    )
