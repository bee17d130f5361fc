"""A process on an NVIDIA GPU: what NVML tells of the board, and torch of its own tensors.

NVML samples: a process's memory is what it holds now, and its peak is told by nobody. A GPU goes
idle within the time of a reading, so besides the states of the moment, the milliseconds are counted
that its power limit or its heat has held clocks down. This adapter has met no GPU yet: its tests
run on stand-ins of NVML.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Mapping

from slmq_edge.errors import NotFound
from slmq_edge.profiles import nvml
from slmq_edge.profiles.board import Mode
from slmq_edge.profiles.linux import Linux
from slmq_edge.profiles.nvml import Absent, Gpu, Nvml, Refused
from slmq_edge.profiles.nvml_header import CLOCKS, POLICIES

if TYPE_CHECKING:
    from slmq_edge.profiles.board import Board

BOARD = "gpu_board"
UNNAMED = "a GPU without NVML"
VISIBLE, ORDER, BY_BUS = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
# Bits of nvmlClocksEventReasons. Idle (1), application clocks (2) and display clocks (0x100) are
# settings, or nothing to do: they throttle nobody.
SETTINGS = 0x103
THROTTLES = {
    "gpu_power_cap_now": 0x4,
    "gpu_hardware_now": 0x8,
    "gpu_sync_boost_now": 0x10,
    "gpu_software_thermal_now": 0x20,
    "gpu_hardware_thermal_now": 0x40,
    "gpu_power_brake_now": 0x80,
}
OTHER = "gpu_other_now"
TORCH = {
    "torch_peak_allocated": "max_memory_allocated",
    "torch_peak_reserved": "max_memory_reserved",
}


class Cuda(Linux):
    """library: in place of NVML's, an object with its functions; see `nvml.load`."""

    kind = "cuda"

    def __init__(
        self,
        root: str = "/",
        library: Any = None,
        environment: Mapping[str, str] = os.environ,
        total_rails: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        super().__init__(root)
        self._total_rails = total_rails or ((BOARD,),)
        self._started: float | None = None
        self._nvml, self._gpu = _opened(library, environment)

    @classmethod
    def of(cls, board: Board) -> Cuda:
        return cls(board.root, total_rails=board.total_rails)

    def reset_peak(self) -> None:
        super().reset_peak()
        torch = _torch()
        if torch is not None:
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, int | None]:
        """Besides the CPU's: gpu_process_used, and torch's peaks where it is at work on a GPU."""
        return {**super().memory(), "gpu_process_used": self._own_bytes(), **_torch_peaks()}

    def held(self) -> dict[str, int | None]:
        """Bytes on the GPU now: gpu_process of this process, gpu_board of all of them."""
        return {"gpu_process": self._own_bytes(), "gpu_board": self._gpu.memory_used()}

    def system(self) -> dict[str, float | None]:
        """Besides the machine's: gpu_memory_used_bytes, gpu_processes (that compute, less ours)."""
        return {
            **super().system(),
            "gpu_memory_used_bytes": self._gpu.memory_used(),
            "gpu_processes": self._others(),
        }

    def power(self) -> dict[str, float | None]:
        return {BOARD: self._gpu.watts()}

    def energy(self) -> float | None:
        """Joules of the board since the first call."""
        now = self._gpu.joules()
        if now is None:
            return None
        if self._started is None:
            self._started = now
        if now < self._started:
            self._reasons["energy"] = "the counter began anew: the driver was loaded again"
            return None
        return now - self._started

    def clocks(self) -> dict[str, float | None]:
        """Besides the CPU's: gpu (its multiprocessors) and gpu_memory."""
        return {**super().clocks(), **{domain: self._gpu.hertz(domain) for domain in CLOCKS}}

    def temperatures(self) -> dict[str, float | None]:
        return {**super().temperatures(), "gpu": self._gpu.celsius()}

    def throttling(self) -> dict[str, int | None]:
        """Besides the CPU's: the states of `THROTTLES`, and milliseconds since the driver came."""
        bits = self._gpu.throttling()
        known = {**THROTTLES, OTHER: ~(SETTINGS | sum(THROTTLES.values()))}
        return {
            **super().throttling(),
            **{
                name: None if bits is None else int(bool(bits & bit)) for name, bit in known.items()
            },
            **{f"gpu_{policy}_ms": self._gpu.held_back(policy) for policy in POLICIES},
        }

    def mode(self) -> Mode | None:
        """The power limit that holds: ``300 W limit``."""
        watts = self._gpu.limit_watts()
        return None if watts is None else Mode(f"{watts:.0f} W limit")

    def facts(self) -> Mapping[str, Any]:
        """Besides what every adapter tells: ``gpu``, what it is and how its power is read."""
        watts = self.power()
        total = [rails for rails in self._total_rails if all(map(watts.get, rails))]
        found = dict(super().facts())
        found["gpu"] = {
            "name": self._gpu.name(),
            "uuid": self._gpu.uuid(),
            "index": self._gpu.index,
            "compute_capability": self._gpu.compute_capability(),
            "memory_bytes": self._gpu.memory_bytes(),
            "driver": self._driver(),
            "power_source": self._gpu.power_source,
            "default_limit_watts": self._gpu.limit_watts(default=True),
        }
        found["energy_of"] = "the GPU board"
        found["total_rails"] = list(total[0]) if total else []
        found["reasons"] = {**self._gpu.reasons, **self._reasons}
        return found

    def close(self) -> None:
        self._nvml.close()

    def _driver(self) -> str | None:
        try:
            return self._nvml.driver()
        except Refused as error:
            self._reasons["driver"] = str(error)
            return None

    def _own_bytes(self) -> int | None:
        """What this process holds on the GPU: nothing is told before it computes there."""
        processes = self._gpu.processes()
        if processes is None:
            why = self._gpu.reasons["gpu_processes"]
        elif os.getpid() not in processes:
            why = "this process is not among those that NVML lists: not at work, or in a container"
        elif processes[os.getpid()] is None:
            why = "NVML lists this process without its memory"
        else:
            self._reasons.pop("gpu_process_used", None)
            return processes[os.getpid()]
        self._reasons["gpu_process_used"] = why
        return None

    def _others(self) -> int | None:
        """How many other processes compute there; None where their numbers are of no use to us."""
        processes = self._gpu.processes()
        if processes is None:
            return None
        others = [pid for pid in processes if pid != os.getpid()]
        named = len(others) < len(processes)  # then all numbers are of our namespace
        if not named and not all((self._root / f"proc/{pid}").exists() for pid in others):
            self._reasons["gpu_processes"] = "NVML lists processes of another namespace (container)"
            return None
        self._reasons.pop("gpu_processes", None)
        return len(others)


def _opened(library: Any, environment: Mapping[str, str]) -> tuple[Nvml, Gpu]:
    try:
        found = nvml.load(library)
    except NotFound as error:
        absent = Absent(str(error))
        return absent, Gpu(absent)
    try:
        return found, chosen(found, environment)
    except Refused as error:
        return found, Gpu(Absent(str(error)))


def chosen(library: Nvml, environment: Mapping[str, str]) -> Gpu:
    """The GPU that CUDA_VISIBLE_DEVICES names first, by number or UUID or its beginning, or GPU 0.

    Raises:
        Refused: it names none, or a number that is another GPU for CUDA than it is for NVML, as may
            be where a machine has several kinds: CUDA counts the fastest first.
    """
    asked = environment.get(VISIBLE, "0").split(",")[0].strip()
    if asked.startswith("MIG-"):
        return library.by_uuid(asked)
    gpus = list(library.gpus())
    if asked.isdecimal():
        by_bus = environment.get(ORDER) == BY_BUS
        if not by_bus and len({gpu.name() for gpu in gpus}) > 1:
            raise Refused(
                f"several kinds of GPU are here, which CUDA numbers by speed and NVML by bus: set "
                f"{ORDER}={BY_BUS}, or {VISIBLE} to a UUID"
            )
        found = [gpu for gpu in gpus if gpu.index == int(asked)]
    else:
        found = [gpu for gpu in gpus if asked and (gpu.uuid() or "").startswith(asked)]
    if len(found) != 1:
        which = f"{VISIBLE}={asked!r} names" if VISIBLE in environment else "NVML finds"
        raise Refused(f"{which} {'several GPUs' if found else 'no GPU'}, of {len(gpus)} here")
    return found[0]


def _torch() -> Any | None:
    """Torch, where this process has imported it and computes on a GPU with it."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return torch


def _torch_peaks() -> dict[str, int | None]:
    torch = _torch()
    if torch is None:
        return {}
    return {kind: int(getattr(torch.cuda, name)()) for kind, name in TORCH.items()}
