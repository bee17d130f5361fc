"""The ranges of shapes that an engine is built for: a prefill of many tokens, a decode of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from slmq_edge.runner.trt.recipe import KEPT, NEW, ROOM

# What `slmq-edge build` takes where nothing else is said.
PROMPT, KEPT_LOGITS, CONTEXT = 512, 64, 2048


class Range(NamedTuple):
    """Of one dimension: its least, the one to be fast at, and its most."""

    least: int
    typical: int
    most: int


Profiles = Mapping[str, Mapping[str, Range]]


def profiles(
    context_length: int = CONTEXT, prompt: int = PROMPT, kept: int = KEPT_LOGITS
) -> Profiles:
    """Both profiles, by name and dimension, of a model for ``context_length`` positions."""
    room = min(context_length, CONTEXT)
    prompt = min(prompt, room)
    kept = min(kept, prompt)
    rooms, one = Range(1, room, room), Range(1, 1, 1)
    return {
        "prefill": {NEW: Range(1, prompt, prompt), ROOM: rooms, KEPT: Range(1, 1, kept)},
        "decode": {NEW: one, ROOM: rooms, KEPT: one},
    }
