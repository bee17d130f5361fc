"""torch as a runtime: whether it is here, which device it takes, and what that is.

What runs a bundle for torch is `slmq_edge.torch_runtime`, which is no part of what is sent to
boards. Asking which device there is makes no CUDA context.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any, Callable, Mapping

from slmq_edge.errors import MissingExtra, NotFound, Unsupported, UsageError, unknown
from slmq_edge.profiles.cuda import UNNAMED, VISIBLE, Cuda
from slmq_edge.runner import manifest
from slmq_edge.runner.probe import ProbeReport

CPU, CUDA = "cpu", "cuda"
RUNTIME = manifest.TORCH_RUNTIME
ELSEWHERE = (
    "a bundle for torch runs where all of slmq-edge is installed, and boards are sent its runner "
    "alone: run slmq-edge on that machine itself, or export with --target ort-cuda"
)


def module() -> Any:
    """Return torch.

    Raises:
        MissingExtra: it is not installed. Unsupported: this is the runner alone.
    """
    if importlib.util.find_spec(RUNTIME) is None:
        raise Unsupported(ELSEWHERE)
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtra("torch", "quantize") from error


def check_name(device: str) -> None:
    """Refuse what is no name of a device: cpu, cuda, cuda:1.

    Raises:
        UsageError: guesses what was meant.
    """
    kind, colon, index = device.partition(":")
    if kind not in (CPU, CUDA) or (colon and not (kind == CUDA and index.isdecimal())):
        raise UsageError(unknown("torch device", device, (CPU, CUDA, f"{CUDA}:1")))


def chosen(asked: str | None, torch: Any) -> str:
    """The device that a bundle runs on: as asked, else the first GPU that torch sees, else the CPU.

    Raises:
        UsageError: no such name. NotFound: torch sees no such GPU.
    """
    if asked is None:
        return CUDA if torch.cuda.is_available() else CPU
    check_name(asked)
    kind, _, index = asked.partition(":")
    count = int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
    if kind == CUDA and int(index or 0) >= count:
        seen = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU"
        raise NotFound(
            f"--torch-device {asked}: torch {torch.__version__} sees {seen} here; leave it out, or "
            "say --torch-device cpu"
        )
    return asked


def described(device: str, torch: Any) -> dict[str, Any]:
    """What runs: releases, and of a GPU its name and driver as NVML tells them."""
    found = {"torch": str(torch.__version__)}
    if device == CPU:
        return found
    profile = Cuda(environment={**os.environ, **visible(device)})
    try:
        gpu = profile.facts()["gpu"]
    finally:
        profile.close()
    return {
        **found,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "gpu": gpu["name"] or UNNAMED,
        "driver": gpu["driver"],
    }


def visible(device: str | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables by which a process sees that GPU alone, as its first: memory and power are of it.

    Empty where it is the first already, or none, or hidden from this process: see `chosen`.
    """
    _, colon, index = (device or "").partition(":")
    if not colon:
        return {}
    if VISIBLE not in environment:
        return {VISIBLE: index}
    listed = [one.strip() for one in environment[VISIBLE].split(",") if one.strip()]
    return {VISIBLE: listed[int(index)]} if int(index) < len(listed) else {}


class Torch:
    """See `runtimes.Runtime`; its places are of bundles for torch."""

    def check(self, place: Any) -> Mapping[str, Any]:
        torch = module()
        return described(chosen(place.torch_device, torch), torch)

    def probe(self, place: Any) -> ProbeReport | None:
        lowering = place.bundle.get("lowering") or {}
        if lowering.get("integer_gemm") is None:
            return None
        device = chosen(place.torch_device, module())
        probe = importlib.import_module(f"{RUNTIME}.probe")
        operator, error = probe.run(place.folder, device)
        return ProbeReport(operator, error == 0, error, manifest.TORCH_WEIGHTS)

    def placed(self, place: Any, graph: str) -> Mapping[str, Any] | None:
        return None

    def prepare(self, place: Any, graph: str) -> Callable[[], Any]:
        device = chosen(place.torch_device, module())
        session = importlib.import_module(f"{RUNTIME}.session")
        return lambda: session.open_bundle(place.folder, place.bundle, place.threads, device)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
