"""What quantizing costs: seconds by stage, peak memory, energy where the machine measures it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slmq_edge.profiles.cpu import Cpu
from slmq_edge.runner import environment

if TYPE_CHECKING:
    from slmq_edge.profiles import Profile
    from slmq_edge.quantization import Progress

# A counter of energy may run over within minutes: it is read this often at least, if work reports.
ENERGY_SECONDS = 10.0


class Meter:
    """Counts from here to ``read``; ``watched`` progress says which stage the time belongs to.

    A stage is named by the text of the progress before its first comma; what comes before the first
    report belongs to ``first``.
    """

    def __init__(
        self,
        device: str,
        first: str = "starting",
        profile: Profile | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._clock = device, clock
        self._profile = Cpu() if profile is None else profile
        self._profile.reset_peak()
        self._profile.energy()
        if device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
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

        energy_joules is that of the whole machine's processors, or ``None`` and a reason.
        """
        self._enter(self._stage)
        joules = self._profile.energy()
        reasons = self._profile.facts()["reasons"]
        return {
            "seconds": self._clock() - self._start,
            "stages": dict(self._stages),
            "memory": self._memory(),
            "energy_joules": joules,
            "energy_reason": None if joules is not None else reasons.get("energy"),
            "device": self._device,
            "device_name": _device_name(self._device),
            "threads": _threads(),
        }

    def _enter(self, stage: str) -> None:
        if stage != self._stage and self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)  # what was asked for belongs to the stage it ends
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
        return memory


def _device_name(device: str) -> str | None:
    if device == "cpu":
        name: str | None = environment.capture()["cpu_model"]
        return name
    import torch

    return str(torch.cuda.get_device_name(device))


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
