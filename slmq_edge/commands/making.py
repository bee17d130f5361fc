"""What quantize and export share: from the words of a command line to a checkpoint in memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import presets
from slmq_edge.files import check_not_input, check_space

if TYPE_CHECKING:
    from slmq_edge.quantize import Plan, Request
    from slmq_edge.recipe import Recipe

FLOAT_BYTES = 4
# Of a scale and a zero point, one for each row or group.
STEP_BYTES = 6
ROOM_BYTES = 2_000_000


def request_of(recipe: Recipe, words: Mapping[str, Any]) -> Request:
    """What a recipe asks for; ``words`` say how the run itself is to go (spill, fresh).

    Raises:
        UsageError: an unknown name, or words that contradict each other.
    """
    from slmq_edge.quantize import Request

    assert recipe.method is not None, "options.recipe"
    assert recipe.preset is not None, "options.recipe"
    chosen = presets.preset(recipe.preset, recipe.method)
    # A recipe that was written has every word; of its --kv only the command line's was said.
    said = {**recipe.scheme, "kv": words.get("kv")}
    presets.check_words(recipe.preset, recipe.method, said)
    calib = recipe.calibration.get("file")
    return Request(
        scheme=presets.scheme_for(chosen, recipe.scheme),
        method=recipe.method,
        calib=None if calib is None else Path(calib),
        windows=recipe.calibration.get("windows"),
        length=recipe.calibration.get("length"),
        device=recipe.device or "cpu",
        settings=dict(recipe.settings),
        preset=recipe.preset,
        revision=recipe.revision,
        text_sha256=recipe.calibration.get("sha256"),
        spill=words["spill"],
        fresh=words["fresh"],
    )


def planned(model: str, request: Request, destination: Path) -> Plan:
    """Find every mistake of a request, and whether the disk can hold the result."""
    from slmq_edge.quantize import plan

    found = plan(model, request, note, destination)
    check_not_input(destination, found.source.folder)
    check_space(destination, largest_bytes(found))
    return found


def largest_bytes(found: Plan) -> int:
    """Bytes that the result will hardly exceed.

    All linears at their bits with their steps, the rest in float32, two rotations, the rotary
    table, and room for tokenizer, graph and golden prompts.
    """
    shape, scheme = found.anatomy, found.request.scheme
    linear_bits = scheme.weights.bits if scheme.weights else 8 * FLOAT_BYTES
    linears = shape.linear_macs_per_token
    steps = linears // (scheme.weights.group or shape.head_dim) if scheme.weights else 0
    floats = shape.parameters - linears + 2 * shape.hidden**2
    floats += shape.max_positions * shape.head_dim
    extras = sum(file.stat().st_size for file in found.source.folder.glob("*.json"))
    stored = linears * linear_bits // 8 + steps * STEP_BYTES
    return stored + floats * FLOAT_BYTES + extras + ROOM_BYTES


def note(text: str) -> None:
    # Not by echo, which goes round the progress bar that stands for stderr and into its middle.
    sys.stderr.write(f"note: {text}\n")
