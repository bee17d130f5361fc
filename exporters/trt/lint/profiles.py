"""The ranges of shapes that an engine is built for: a prefill of many tokens, a decode of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from slmq_edge.runner.trt import shapes
from slmq_edge.runner.trt.recipe import DIMENSIONS
from slmq_edge.runner.trt.shapes import CONTEXT, KEPT_MOST, PROMPT, Shapes


class Range(NamedTuple):
    """Of one dimension: its least, the one to be fast at, and its most."""

    least: int
    typical: int
    most: int


Profiles = Mapping[str, Mapping[str, Range]]


def profiles(
    context_length: int = CONTEXT, prompt: int = PROMPT, kept: int = KEPT_MOST
) -> Profiles:
    """Those that `slmq-edge build` takes, by name and dimension, for ``context_length``."""
    room = min(context_length, CONTEXT)
    prompt = min(prompt, room)
    built = shapes.profiles(Shapes(prompt, room, min(kept, prompt)))
    return {
        one.name: {
            dim: Range(*sizes)
            for dim, *sizes in zip(DIMENSIONS, one.least, one.usual, one.most, strict=True)
        }
        for one in built
    }
