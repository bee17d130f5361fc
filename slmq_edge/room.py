"""Whether a model fits a board's memory: what lies there at the peak of running it, in bytes.

On a CPU, held by the tests to within 15 % of the peaks in ``benchmarks/results/sizes.json``::

    process + weights + a copy of the largest matrix, made while loading
            + KV of all positions + p (10 h + 3 f) floats of a prompt of p tokens

On a GPU the context with its libraries comes in place of the copy, and TensorRT keeps two sets of
rooms for keys and values. Building an engine takes more than running it, and takes it first
(``runner.trt.memory``). Of a board's memory the firmware keeps a part, the system another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.bounds import Card
from slmq_edge.runner.manifest import TORCH, TRT, kind_of
from slmq_edge.runner.trt import memory, recipe, shapes
from slmq_edge.runner.trt.commands import WORKSPACE_MIB

# Python, onnxruntime and what it maps of itself; of TensorRT's libraries a guess; with torch, as a
# run of a built-in model began on x86-64.
PROCESS, PROCESS_TRT, PROCESS_TORCH = 100 * 10**6, 300 * 10**6, 240 * 10**6
FLOAT = 4
# Of what the label says, Linux never sees so much: 3 to 7 % on eight Jetsons that print their RAM.
CARVED_OUT = 0.07
# What a system that rests takes: 0.8 to 1.3 GB on Orin boards, with a desktop; of others a guess.
SYSTEM = {"jetson": 1300 * 10**6}
SYSTEM_GUESS = 500 * 10**6


@dataclass(frozen=True)
class Room:
    """Bytes at a peak, by part, and what there is for them, if that is known.

    what: running it, or building it.
    """

    what: str
    parts: Mapping[str, int]
    available: int | None

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        return None if self.available is None else self.needed <= self.available


def rooms(
    folder: Path,
    bundle: Mapping[str, Any],
    asked: Card,
    positions: int,
    kind: str,
    memory_bytes: float | None,
    seen_by_linux: bool = False,
) -> tuple[Room, ...]:
    """What a bundle needs on a device: to run, and before that, of one for TensorRT, to be built.

    Args:
        folder: the bundle's.
        bundle: its bundle.json.
        asked: its card.
        positions: of prompt and answer together.
        kind: the device's adapter; "cuda" has memory of its own.
        memory_bytes: of the device, as its sheet says; None: it comes with several sizes.
        seen_by_linux: that number is MemTotal, of which nothing is carved out.

    Raises:
        NotFound, Damaged, Unsupported: a bundle for TensorRT whose recipe cannot be read.
    """
    apart = kind == "cuda"
    available = None if memory_bytes is None else _left(memory_bytes, kind, seen_by_linux)
    if kind_of(bundle) != TRT:
        return (Room("running", _onnxruntime(bundle, asked, positions, apart), available),)
    asks = recipe.read(folder)
    # Rooms are of the engine, whose context is at least the usual one.
    limits = shapes.of(asks)
    limits = limits._replace(context=max(limits.context, positions))
    running = {
        "weights": asks.weight_bytes,
        "KV cache, twice": 2 * asks.kv_bytes_per_token * positions,
        "CUDA and TensorRT": memory.CONTEXT,
        **({} if apart else {"process": PROCESS_TRT}),
    }
    build = memory.needs(asks, limits, WORKSPACE_MIB)
    building = {"on the GPU": build.device, **({} if apart else {"compiler": build.host})}
    return Room("running", running, available), Room("building its engine", building, available)


def _left(memory_bytes: float, kind: str, seen_by_linux: bool) -> int:
    """What firmware and system leave."""
    if kind == "cuda":
        return int(memory_bytes)
    seen = memory_bytes * (1.0 if seen_by_linux else 1 - CARVED_OUT)
    return max(0, int(seen) - SYSTEM.get(kind, SYSTEM_GUESS))


def _onnxruntime(
    bundle: Mapping[str, Any], asked: Card, positions: int, apart: bool
) -> dict[str, int]:
    shape = bundle.get("anatomy") or {}
    width = 10 * shape.get("hidden", 0) + 3 * shape.get("ffn", 0)
    parts = {
        "weights": asked.read_bytes + (asked.table_bytes or 0),
        "KV cache": asked.kv_bytes_per_token * positions,
        "activations": asked.prompt_tokens * width * FLOAT,
    }
    if asked.on_gpu:
        parts["CUDA context"] = memory.CONTEXT
    else:
        parts["copy while loading"] = asked.largest_bytes
    process = PROCESS_TORCH if kind_of(bundle) == TORCH else PROCESS
    return parts if apart else {**parts, "process": process}
