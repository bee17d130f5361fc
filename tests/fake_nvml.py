"""NVML, faked where a process meets it: an object with the functions of the shared library.

Every function has the C signature that nvml.h gives it, and refuses what a test says it refuses.
The same library in C, fake_nvml.c, holds the layouts of structures to account.
"""

from __future__ import annotations

import ctypes
import dataclasses
import types
from collections.abc import Callable, Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, c_char, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass, field
from typing import Any

from slmq_edge.profiles.nvml_header import FieldValue, Memory, MemoryV2, Violation

WORDS = {
    3: "Not Supported",
    4: "Insufficient Permissions",
    6: "Not Found",
    7: "Insufficient Size",
    9: "Driver Not Loaded",
    13: "Function Not Found",
    15: "GPU is lost",
}
_BUFFER = POINTER(c_char)
# Newer names first, as a driver that has them all.
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "nvmlInit_v2": (),
    "nvmlShutdown": (),
    "nvmlSystemGetDriverVersion": (_BUFFER, c_uint),
    "nvmlDeviceGetCount_v2": (POINTER(c_uint),),
    "nvmlDeviceGetHandleByIndex_v2": (c_uint, POINTER(c_void_p)),
    "nvmlDeviceGetHandleByUUID": (c_void_p, POINTER(c_void_p)),
    "nvmlDeviceGetName": (c_void_p, _BUFFER, c_uint),
    "nvmlDeviceGetUUID": (c_void_p, _BUFFER, c_uint),
    "nvmlDeviceGetCudaComputeCapability": (c_void_p, POINTER(c_int), POINTER(c_int)),
    "nvmlDeviceGetMemoryInfo_v2": (c_void_p, POINTER(MemoryV2)),
    "nvmlDeviceGetMemoryInfo": (c_void_p, POINTER(Memory)),
    "nvmlDeviceGetComputeRunningProcesses_v3": (c_void_p, POINTER(c_uint), c_void_p),
    "nvmlDeviceGetFieldValues": (c_void_p, c_int, POINTER(FieldValue)),
    "nvmlDeviceGetPowerUsage": (c_void_p, POINTER(c_uint)),
    "nvmlDeviceGetTotalEnergyConsumption": (c_void_p, POINTER(c_ulonglong)),
    "nvmlDeviceGetClockInfo": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetTemperature": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetCurrentClocksEventReasons": (c_void_p, POINTER(c_ulonglong)),
    "nvmlDeviceGetViolationStatus": (c_void_p, c_int, POINTER(Violation)),
    "nvmlDeviceGetEnforcedPowerLimit": (c_void_p, POINTER(c_uint)),
    "nvmlDeviceGetPowerManagementDefaultLimit": (c_void_p, POINTER(c_uint)),
}
OLDER = {
    "nvmlInit_v2": "nvmlInit",
    "nvmlDeviceGetCount_v2": "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex_v2": "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetComputeRunningProcesses_v3": "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetCurrentClocksEventReasons": "nvmlDeviceGetCurrentClocksThrottleReasons",
}
# Those that take no GPU.
OF_LIBRARY = (
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
)
FIRST_HANDLE = 1 << 32  # one that a handle cut to 32 bits would not be


class Refusal(Exception):
    """What a call returns in place of 0."""


@dataclass
class FakeGpu:
    """An A800 at work. refuses: function -> the code that it returns, for this GPU alone."""

    name: str = "NVIDIA A800 80GB PCIe"
    uuid: str = "GPU-11111111-2222-3333-4444-555555555555"
    capability: tuple[int, int] = (8, 0)
    total: int = 80 << 30
    used: int = 5 << 30
    reserved: int = 600 << 20
    processes: Sequence[tuple[int, int]] = ()
    milliwatts: int = 250_000
    mean_milliwatts: int = 240_000
    millijoules: int = 7_000_000_000
    megahertz: dict[int, int] = field(default_factory=lambda: {1: 1410, 2: 1512})
    celsius: int = 61
    bits: int = 0
    held_back: dict[int, int] = field(default_factory=lambda: {0: 4_000_000_000, 1: 0, 3: 0})
    limit: int = 300_000
    default_limit: int = 300_000
    refuses: dict[str, int] = field(default_factory=dict)


def silent(name: str = "Orin (nvgpu)", **kept: Any) -> FakeGpu:
    """A GPU that answers next to nothing, as a Jetson's; the rest of its functions say so."""
    answers = ("nvmlDeviceGetName", "nvmlDeviceGetUUID", *kept.pop("answers", ()))
    of_gpu = (n for n, arguments in PROTOTYPES.items() if arguments and n not in OF_LIBRARY)
    refused = {function: 3 for function in of_gpu if function not in answers}
    return FakeGpu(name=name, refuses=refused, **kept)


@dataclass
class FakeNvml:
    """A driver and its GPUs. without: functions that it lacks; older: it has only older names."""

    gpus: Sequence[FakeGpu] = (FakeGpu(),)
    driver: str = "550.54.15"
    without: Sequence[str] = ()
    older: bool = False
    refuses: dict[str, int] = field(default_factory=dict)
    stride: int = 24
    opened: int = 0
    calls: list[str] = field(default_factory=list)

    def library(self) -> Any:
        made = types.SimpleNamespace()
        for name, arguments in PROTOTYPES.items():
            known = OLDER.get(name, name) if self.older else name
            if known not in self.without:
                setattr(made, known, CFUNCTYPE(c_int, *arguments)(self._guarded(name)))
        texts = {code: ctypes.create_string_buffer(text.encode()) for code, text in WORDS.items()}

        def words(code: int) -> int:
            return ctypes.addressof(texts[code]) if code in texts else 0

        made.nvmlErrorString = CFUNCTYPE(c_void_p, c_int)(words)
        return made

    def _guarded(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            try:
                if name in self.refuses:
                    raise Refusal(self.refuses[name])
                if arguments and name not in OF_LIBRARY:
                    gpu = self._gpu(arguments[0])
                    if name in gpu.refuses:
                        raise Refusal(gpu.refuses[name])
                    arguments = (gpu, *arguments[1:])
                getattr(self, f"_{name}")(*arguments)
            except Refusal as refusal:
                return int(refusal.args[0])
            return 0

        return call

    def _gpu(self, handle: int | None) -> FakeGpu:
        index = (handle or 0) - FIRST_HANDLE
        if not 0 <= index < len(self.gpus):
            raise Refusal(2)
        return self.gpus[index]

    def _nvmlInit_v2(self) -> None:  # noqa: N802  NVML's own names
        self.opened += 1

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def _nvmlSystemGetDriverVersion(self, buffer: Any, room: int) -> None:  # noqa: N802
        _write(buffer, room, self.driver)

    def _nvmlDeviceGetCount_v2(self, count: Any) -> None:  # noqa: N802
        count[0] = len(self.gpus)

    def _nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> None:  # noqa: N802
        if index >= len(self.gpus):
            raise Refusal(2)
        if "handle" in self.gpus[index].refuses:
            raise Refusal(self.gpus[index].refuses["handle"])
        handle[0] = FIRST_HANDLE + index

    def _nvmlDeviceGetHandleByUUID(self, uuid: int, handle: Any) -> None:  # noqa: N802
        asked = ctypes.string_at(uuid).decode()
        found = [i for i, gpu in enumerate(self.gpus) if gpu.uuid == asked]
        if not found:
            raise Refusal(6)
        handle[0] = FIRST_HANDLE + found[0]

    def _nvmlDeviceGetName(self, gpu: FakeGpu, buffer: Any, room: int) -> None:  # noqa: N802
        _write(buffer, room, gpu.name)

    def _nvmlDeviceGetUUID(self, gpu: FakeGpu, buffer: Any, room: int) -> None:  # noqa: N802
        _write(buffer, room, gpu.uuid)

    def _nvmlDeviceGetCudaComputeCapability(  # noqa: N802
        self, gpu: FakeGpu, major: Any, minor: Any
    ) -> None:
        major[0], minor[0] = gpu.capability

    def _nvmlDeviceGetMemoryInfo_v2(self, gpu: FakeGpu, memory: Any) -> None:  # noqa: N802
        if memory[0].version != ctypes.sizeof(MemoryV2) | 2 << 24:
            raise Refusal(25)  # NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        found = memory[0]
        found.total, found.reserved, found.used = gpu.total, gpu.reserved, gpu.used
        found.free = gpu.total - gpu.reserved - gpu.used

    def _nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, memory: Any) -> None:  # noqa: N802
        used = gpu.used + gpu.reserved
        memory[0].total, memory[0].used, memory[0].free = gpu.total, used, gpu.total - used

    def _nvmlDeviceGetComputeRunningProcesses_v3(  # noqa: N802
        self, gpu: FakeGpu, count: Any, room: int
    ) -> None:
        asked, count[0] = count[0], len(gpu.processes)
        if asked < len(gpu.processes):
            raise Refusal(7)
        for index, (pid, used) in enumerate(gpu.processes):
            entry = pid.to_bytes(4, "little") + b"\0\0\0\0" + used.to_bytes(8, "little")
            entry += b"\xff" * 8 if self.stride > 16 else b""  # no MIG
            entry += b"\0" * 8 if self.stride > 24 else b""  # nothing protected
            ctypes.memmove(room + index * self.stride, entry, self.stride)

    def _nvmlDeviceGetFieldValues(self, gpu: FakeGpu, count: int, values: Any) -> None:  # noqa: N802
        for one in (values[index] for index in range(count)):
            one.code = 0 if one.field == 186 and one.scope == 0 else 3
            one.type, one.value = 1, gpu.milliwatts

    def _nvmlDeviceGetPowerUsage(self, gpu: FakeGpu, power: Any) -> None:  # noqa: N802
        power[0] = gpu.mean_milliwatts

    def _nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu, energy: Any) -> None:  # noqa: N802
        energy[0] = gpu.millijoules

    def _nvmlDeviceGetClockInfo(self, gpu: FakeGpu, domain: int, clock: Any) -> None:  # noqa: N802
        clock[0] = gpu.megahertz[domain]

    def _nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int, value: Any) -> None:  # noqa: N802
        if sensor != 0:
            raise Refusal(2)
        value[0] = gpu.celsius

    def _nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu, bits: Any) -> None:  # noqa: N802
        bits[0] = gpu.bits

    def _nvmlDeviceGetViolationStatus(self, gpu: FakeGpu, policy: int, time: Any) -> None:  # noqa: N802
        time[0].nanoseconds = gpu.held_back[policy]

    def _nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu, limit: Any) -> None:  # noqa: N802
        limit[0] = gpu.limit

    def _nvmlDeviceGetPowerManagementDefaultLimit(self, gpu: FakeGpu, limit: Any) -> None:  # noqa: N802
        limit[0] = gpu.default_limit


def _write(buffer: Any, room: int, text: str) -> None:
    if len(text) >= room:
        raise Refusal(7)
    ctypes.memmove(buffer, text.encode() + b"\0", len(text) + 1)


def two_kinds() -> Iterator[FakeGpu]:
    """A machine with a small GPU first on the bus: CUDA would call the other one 0."""
    first = FakeGpu(name="NVIDIA T400", uuid="GPU-aaaa1111")
    yield first
    yield dataclasses.replace(first, name="NVIDIA A800 80GB PCIe", uuid="GPU-bbbb2222")
