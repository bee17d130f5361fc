"""What quantizing costs: seconds by stage, peak memory, energy where the machine measures it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from slmq_edge.profiles.cpu import Cpu
from slmq_edge.profiles.cuda import VISIBLE, Cuda
from slmq_edge.runner import environment
from slmq_edge.sampled import Sampled

if TYPE_CHECKING:
    from slmq_edge.profiles import Profile
    from slmq_edge.quantization import Progress

# A counter of energy may run over within minutes: it is read this often at least, if work reports.
ENERGY_SECONDS = 10.0


class Meter:
    """Counts from here to ``read``; ``watched`` progress says which stage the time belongs to.

    A stage is named by the text of the progress before its first comma; what comes before the first
    report belongs to ``first``. On a GPU there are three memories beside each other: what tensors
    took and what torch reserved for them, both exact peaks, and what NVML was seen to tell of the
    process and of the board (`sampled`). ``close`` must be called, whatever happens.
    """

    def __init__(
        self,
        device: str,
        first: str = "starting",
        profile: Profile | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._clock = device, clock
        self._profile = _profile(device) if profile is None else profile
        self._profile.reset_peak()
        self._profile.energy()
        if device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        held = getattr(self._profile, "held", None)
        self._sampled = None if held is None else Sampled(held)
        self._start = self._begun = self._energy_read = clock()
        self._stage = first
        self._stages: dict[str, float] = {}

    def watched(self, progress: Progress) -> Progress:
        """The same progress, and the meter hears of it."""

        def report(share: float, what: str) -> None:
            self._enter(what.split(",")[0])
            progress(share, what)

        return report

    def read(self) -> dict[str, Any]:
        """seconds; stages: seconds by name; memory: peak bytes by kind; energy_joules; device.

        energy_joules is what ``energy_of`` says: all processors, or the GPU's board; or ``None``
        and a reason. sampled: of a GPU, how NVML's peaks were come by; gpu: what it is.
        """
        self._wait()
        self._enter(self._stage)
        joules, memory = self._profile.energy(), self._memory()
        facts = self._profile.facts()
        found = {
            "seconds": self._clock() - self._start,
            "stages": dict(self._stages),
            "memory": memory,
            "energy_joules": joules,
            "energy_of": facts.get("energy_of"),
            "energy_reason": None if joules is not None else facts["reasons"].get("energy"),
            "device": self._device,
            "device_name": _device_name(self._device),
            "threads": _threads(),
        }
        if self._sampled is not None:
            found["sampled"] = self._sampled.as_json()
            found["memory_reasons"] = {
                name: why for name, why in facts["reasons"].items() if name.startswith("gpu_")
            }
            found["gpu"] = facts.get("gpu")
        return found

    def close(self) -> None:
        """End what runs beside the work."""
        if self._sampled is not None:
            self._sampled.close()
        self._profile.close()

    def _wait(self) -> None:
        """What a GPU was asked for belongs to the stage that it ends."""
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
            if self._sampled is not None:
                self._sampled.look()

    def _enter(self, stage: str) -> None:
        if stage != self._stage:
            self._wait()
        now = self._clock()
        self._stages[self._stage] = self._stages.get(self._stage, 0.0) + now - self._begun
        self._stage, self._begun = stage, now
        if now - self._energy_read >= ENERGY_SECONDS:
            self._profile.energy()
            self._energy_read = now

    def _memory(self) -> dict[str, int | None]:
        memory = {"cpu_peak_rss": self._profile.memory().get("cpu_peak_rss")}
        if self._device != "cpu":
            import torch

            memory["torch_peak_allocated"] = torch.cuda.max_memory_allocated(self._device)
            memory["torch_peak_reserved"] = torch.cuda.max_memory_reserved(self._device)
        if self._sampled is not None:
            memory |= self._sampled.peaks()
        return memory


def went_on(block: int, parts: Iterable[str]) -> str:
    """Where an interrupted run goes on, in words: behind how many blocks, and with what else."""
    behind = [f"behind block {block}"] if block else []
    return " and ".join([*behind, *(f"with the {part}" for part in parts)])


def _profile(device: str) -> Profile:
    """The CPU's adapter, or that of the very GPU that torch calls ``device``."""
    return Cpu() if device == "cpu" else Cuda(environment=_seen_by_torch(device))


def _seen_by_torch(device: str) -> Mapping[str, str]:
    """The environment, with that GPU alone by its UUID: torch and NVML count differently."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None or os.environ.get(VISIBLE, "").startswith("MIG-"):
        return os.environ
    return {**os.environ, VISIBLE: f"GPU-{uuid}"}


def _device_name(device: str) -> str | None:
    if device == "cpu":
        name: str | None = environment.capture()["cpu_model"]
        return name
    import torch

    return str(torch.cuda.get_device_name(device))


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
