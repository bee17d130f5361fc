"""What quantize and export share: from the words of a command line to a checkpoint in memory."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import estimate, presets
from slmq_edge.exporters import limits
from slmq_edge.files import check_not_input, check_space
from slmq_edge.reports.format import bytes_text

if TYPE_CHECKING:
    from slmq_edge.quantize import Plan, Request
    from slmq_edge.recipe import Recipe

# Needs below this are not worth a line.
WORTH_SAYING_BYTES = 1_000_000_000


def request_of(recipe: Recipe, words: Mapping[str, Any]) -> Request:
    """What a recipe asks for; ``words`` say how the run itself is to go (spill, fresh, compile).

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
        compiles=words["compile"],
    )


def planned(model: str, request: Request, destination: Path, target: str | None = None) -> Plan:
    """Find every mistake of a request, and whether memory and disk can hold the work.

    target: what is made becomes a bundle for it, and ``destination`` is its place; ``None``: a
    checkpoint.

    Raises:
        SlmqError: a mistake, or a disk with less room than the result needs.
    """
    from slmq_edge.quantize import plan

    found = plan(model, request, note, destination)
    check_not_input(destination, found.source.folder)
    disk = disk_bytes(found, target)
    check_space(destination, disk)
    say_needs(memory_bytes(found, target is not None), disk)
    return found


def memory_bytes(found: Plan, exports: bool) -> int | None:
    """Bytes of the host's memory at the peak; ``None`` where another device does the work."""
    shape, request = found.anatomy, found.request
    if found.device != "cpu":
        return None
    settings, spilled = dataclasses.asdict(found.settings), request.spill is not None
    quantizing = estimate.quantizing(
        shape, request.scheme, request.method, found.size, settings, spilled
    )
    return max(quantizing, estimate.exporting(shape, request.scheme)) if exports else quantizing


def disk_bytes(found: Plan, target: str | None = None) -> int:
    """Bytes that the result will hardly exceed, and the finished blocks that are kept beside it."""
    shape, request, folder = found.anatomy, found.request, found.source.folder
    settings = dataclasses.asdict(found.settings)
    kept = 0
    if found.unfinished:
        kept = estimate.unfinished(shape, request.scheme, request.method, settings)
    travels = sum(file.stat().st_size for file in folder.glob("*.json"))
    scheme = request.scheme if target is None else limits.on_disk(request.scheme, target)
    return estimate.written(shape, scheme) + kept + travels


def say_needs(memory: int | None, disk: int) -> None:
    """A line on stderr where a need is large, or memory is short: the disk was checked."""
    available = available_bytes()
    is_short = memory is not None and available is not None and memory > available
    if not is_short and max(memory or 0, disk) < WORTH_SAYING_BYTES:
        return
    needs = [bytes_text(disk) + " of disk"]
    if memory is not None:
        needs.insert(0, bytes_text(memory) + " of memory")
    short = f"; only {bytes_text(available)} of memory are free" if is_short else ""
    note(f"needs about {' and '.join(needs)}{short}")


def available_bytes() -> int | None:
    """Memory that can be had without swapping; ``None`` where the system does not say."""
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except (ImportError, OSError, RuntimeError):
        return None


def note(text: str) -> None:
    # Not by echo, which goes round the progress bar that stands for stderr and into its middle.
    sys.stderr.write(f"note: {text}\n")
