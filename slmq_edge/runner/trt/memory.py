"""Is there memory enough to build an engine here? Asked first: a board that runs out just hangs.

    on the host   H = base + factor * weights       the parser's and compiler's copies
    on the GPU    D = context + 2 weights + workspace + rooms + logits

With two profiles an engine may hold its weights twice. Base and factor are what TensorRT-RTX 1.7.1
took for decoders of 135 M and 494 M parameters in int8 (1.87 and 4.85 GB resident): of classic
TensorRT they are a guess, so a refusal can be overruled. On a board where the GPU has no memory of
its own, both come out of the same; swap helps the host's part alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from slmq_edge.errors import SlmqError
from slmq_edge.runner.trt import cuda
from slmq_edge.runner.trt.cuda import Device
from slmq_edge.runner.trt.recipe import Recipe
from slmq_edge.runner.trt.shapes import Shapes

HOST_BASE = 700 * 10**6
HOST_FACTOR = 8.5
CONTEXT = 400 * 10**6
MIB = 1 << 20


class Needs(NamedTuple):
    """Bytes at the peak of a build."""

    host: int
    device: int


class Free(NamedTuple):
    """Bytes that can be had. device: of a board without GPU memory, what the host has."""

    host: int
    swap: int
    device: int
    integrated: bool


def needs(recipe: Recipe, shapes: Shapes, workspace_mib: int) -> Needs:
    """Estimate what a build takes."""
    rooms = 2 * recipe.kv_bytes_per_token * shapes.context
    logits = 4 * recipe.vocab * shapes.kept
    device = CONTEXT + 2 * recipe.weight_bytes + workspace_mib * MIB + rooms + logits
    return Needs(HOST_BASE + int(HOST_FACTOR * recipe.weight_bytes), device)


def free(device: Device, root: str = "/") -> Free | None:
    """What this machine has left; ``None`` where it does not say."""
    try:
        text = (Path(root) / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    kilobytes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            kilobytes[name] = int(number[0])
    if "MemAvailable" not in kilobytes:
        return None
    host = kilobytes["MemAvailable"] * 1024
    swap = kilobytes.get("SwapFree", 0) * 1024
    return Free(host, swap, host if device.integrated else cuda.memory()[0], device.integrated)


def check(needed: Needs, there: Free | None) -> None:
    """Refuse a build for which memory will be short.

    Raises:
        SlmqError: says how much is needed, how much is free, and what to do.
    """
    if there is None:
        return
    if there.integrated:
        whole = needed.host + needed.device
        if needed.device > there.host or whole > there.host + there.swap:
            raise SlmqError(
                f"too little memory to build here: about {_gb(whole)} needed, of them "
                f"{_gb(needed.device)} not from swap; {_gb(there.host)} and {_gb(there.swap)} of "
                "swap are free: end the desktop (sudo systemctl isolate multi-user.target), add "
                "swap, or lower --workspace and --context; --force tries all the same"
            )
        return
    if needed.device > there.device:
        raise SlmqError(
            f"too little GPU memory to build here: about {_gb(needed.device)} needed, "
            f"{_gb(there.device)} free: end what else runs there, or lower --workspace and "
            "--context; --force tries all the same"
        )
    if needed.host > there.host + there.swap:
        raise SlmqError(
            f"too little memory to build here: about {_gb(needed.host)} needed, "
            f"{_gb(there.host + there.swap)} free with swap: end what else runs, or add swap; "
            "--force tries all the same"
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
