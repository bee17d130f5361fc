"""NVIDIA's management library by ctypes: what a GPU says of itself. No binding package is needed.

Every call is optional: next to none is supported on a Jetson's "Orin (nvgpu)", some are on Thor. So
what a GPU does not tell is None, its reason is kept, and the next call is made all the same. Names
that older drivers lack have their older names behind them: `nvml_header`.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from ctypes import c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar

from slmq_edge.errors import NotFound
from slmq_edge.profiles.nvml_header import (
    CLOCKS,
    COUNT,
    FUNCTION_NOT_FOUND,
    FUNCTIONS,
    HANDLE,
    INIT,
    INSUFFICIENT_SIZE,
    MEMORY_V2,
    NOT_AVAILABLE,
    POISON,
    POLICIES,
    POWER_INSTANT,
    PROCESSES,
    STRIDES,
    TEMPERATURE_GPU,
    TEXT_BYTES,
    THROTTLING,
    UNSIGNED_INT,
    FieldValue,
    Memory,
    MemoryV2,
    Violation,
)

LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")

T = TypeVar("T")


class Refused(Exception):
    """NVML said no. code: its nvmlReturn_t; None where this driver has no such function."""

    def __init__(self, words: str, code: int | None = None) -> None:
        super().__init__(words)
        self.code = code


class Nvml:
    """The library, initialised. Its own calls raise `Refused`; those of a `Gpu` return None."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._missing: set[str] = set()
        for name, arguments in FUNCTIONS.items():
            if hasattr(library, name):
                getattr(library, name).argtypes = arguments
        if hasattr(library, "nvmlErrorString"):
            library.nvmlErrorString.restype = c_char_p
        self.call(INIT)

    def close(self) -> None:
        """Let go of the library; NVML counts who has asked for it."""
        with suppress(Refused):
            self.call(("nvmlShutdown",))

    def call(self, names: Sequence[str], *arguments: Any) -> str:
        """Call the first of ``names`` that this driver has, and return which it was."""
        for name in names:
            if name in self._missing or not hasattr(self._library, name):
                continue
            code = getattr(self._library, name)(*arguments)
            if code == 0:
                return name
            if code != FUNCTION_NOT_FOUND:
                raise Refused(f"{name}: {self._words(code)}", code)
            self._missing.add(name)
        raise Refused(f"this driver has no {names[0]}")

    def number(self, names: Sequence[str], *arguments: Any, kind: Any = c_uint) -> int:
        """What a function returns by way of its last argument."""
        value = kind()
        self.call(names, *arguments, ctypes.byref(value))
        return int(value.value)

    def text(self, name: str, *arguments: Any) -> str:
        """What a function writes into a buffer of which it is told the length."""
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        self.call((name,), *arguments, buffer, TEXT_BYTES)
        return buffer.value.decode("utf-8", "replace")

    def driver(self) -> str:
        return self.text("nvmlSystemGetDriverVersion")

    def gpus(self) -> Iterator[Gpu]:
        """Those that answer, in the order of their places on the bus, which CUDA's need not be."""
        for index in range(self.number(COUNT)):
            handle = c_void_p()
            try:
                self.call(HANDLE, index, ctypes.byref(handle))
            except Refused:  # fallen off the bus, or another user's
                continue
            yield Gpu(self, handle, index)

    def by_uuid(self, uuid: str) -> Gpu:
        """A GPU, or a part of one (MIG), by its whole UUID."""
        handle = c_void_p()
        self.call(("nvmlDeviceGetHandleByUUID",), uuid.encode(), ctypes.byref(handle))
        return Gpu(self, handle)

    def _words(self, code: int) -> str:
        if not hasattr(self._library, "nvmlErrorString"):
            return f"error {code}"
        words = self._library.nvmlErrorString(code)
        return words.decode("utf-8", "replace") if words else f"error {code}"


class Absent(Nvml):
    """No library, or none of its GPUs: whatever is asked is refused with these words."""

    def __init__(self, why: str) -> None:
        self._why = why

    def call(self, names: Sequence[str], *arguments: Any) -> str:
        raise Refused(self._why)


class Gpu:
    """One GPU: each reading, or None and why in `reasons`, by the names that adapters give them.

    index: its place on the bus; None for one named by UUID.
    """

    def __init__(self, nvml: Nvml, handle: Any = None, index: int | None = None) -> None:
        self._nvml, self._handle, self.index = nvml, handle, index
        self._instant = True
        self.reasons: dict[str, str] = {}

    def name(self) -> str | None:
        return self._read("name", lambda: self._nvml.text("nvmlDeviceGetName", self._handle))

    def uuid(self) -> str | None:
        return self._read("uuid", lambda: self._nvml.text("nvmlDeviceGetUUID", self._handle))

    def compute_capability(self) -> str | None:
        """As ``8.0``."""

        def read() -> str:
            major, minor = c_int(), c_int()
            names = ("nvmlDeviceGetCudaComputeCapability",)
            self._nvml.call(names, self._handle, ctypes.byref(major), ctypes.byref(minor))
            return f"{major.value}.{minor.value}"

        return self._read("compute_capability", read)

    def memory_bytes(self) -> int | None:
        found = self._read("gpu_memory_used_bytes", self._memory)
        return None if found is None else int(found.total)

    def memory_used(self) -> int | None:
        """Bytes of the device that all processes hold."""
        found = self._read("gpu_memory_used_bytes", self._memory)
        return None if found is None else int(found.used)

    def processes(self) -> Mapping[int, int | None] | None:
        """Bytes by process, of those that compute here; None for one whose bytes are not told.

        Takes milliseconds. In a container the numbers may be those that the host has for them.
        """
        return self._read("gpu_processes", self._processes)

    def watts(self) -> float | None:
        """Power of the board, memory included."""
        return self._read("power", self._watts)

    @property
    def power_source(self) -> str:
        """What `watts` asks; a mean of a second blurs what is shorter."""
        return "NVML_FI_DEV_POWER_INSTANT" if self._instant else "nvmlDeviceGetPowerUsage"

    def joules(self) -> float | None:
        """Energy of the board since its driver was loaded."""
        names = ("nvmlDeviceGetTotalEnergyConsumption",)
        found = self._number("energy", names, kind=c_ulonglong)
        return None if found is None else found / 1e3

    def hertz(self, domain: str) -> float | None:
        """Clock of a domain of `CLOCKS`."""
        names = ("nvmlDeviceGetClockInfo",)
        found = self._positive(f"{domain}_clock", names, CLOCKS[domain])
        return None if found is None else found * 1e6

    def celsius(self) -> float | None:
        found = self._number("gpu_temperature", ("nvmlDeviceGetTemperature",), TEMPERATURE_GPU)
        return None if found is None else float(found)

    def throttling(self) -> int | None:
        """Why clocks are not higher now: bits of nvmlClocksEventReasons."""
        return self._number("gpu_throttling", THROTTLING, kind=c_ulonglong)

    def held_back(self, policy: str) -> int | None:
        """Milliseconds that a policy of `POLICIES` has held clocks down so far."""

        def read() -> int:
            found = Violation()
            names = ("nvmlDeviceGetViolationStatus",)
            self._nvml.call(names, self._handle, POLICIES[policy], ctypes.byref(found))
            return int(found.nanoseconds) // 1_000_000

        return self._read(f"gpu_{policy}_ms", read)

    def limit_watts(self, default: bool = False) -> float | None:
        """The power limit that holds now, or the one that the board starts with."""
        name = "PowerManagementDefaultLimit" if default else "EnforcedPowerLimit"
        what = "default_limit" if default else "mode"
        found = self._positive(what, (f"nvmlDeviceGet{name}",))
        return None if found is None else found / 1e3

    def _read(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            value = read()
        except Refused as error:
            self.reasons[what] = str(error)
            return None
        self.reasons.pop(what, None)
        return value

    def _number(
        self, what: str, names: Sequence[str], *arguments: Any, kind: Any = c_uint
    ) -> int | None:
        return self._read(
            what, lambda: self._nvml.number(names, self._handle, *arguments, kind=kind)
        )

    def _positive(self, what: str, names: Sequence[str], *arguments: Any) -> int | None:
        """As `_number`, of what is never 0 but where it is not known."""

        def read() -> int:
            found = self._nvml.number(names, self._handle, *arguments)
            if found == 0:
                raise Refused(f"{names[0]}: says 0")
            return found

        return self._read(what, read)

    def _memory(self) -> Any:
        newer, older = MemoryV2(version=MEMORY_V2), Memory()
        try:
            self._nvml.call(("nvmlDeviceGetMemoryInfo_v2",), self._handle, ctypes.byref(newer))
        except Refused:
            self._nvml.call(("nvmlDeviceGetMemoryInfo",), self._handle, ctypes.byref(older))
            return older
        return newer

    def _watts(self) -> float:
        if self._instant:
            try:
                return self._instant_watts()
            except Refused:
                self._instant = False
        found = self._nvml.number(("nvmlDeviceGetPowerUsage",), self._handle)
        if found == 0:
            raise Refused("nvmlDeviceGetPowerUsage: says 0 W")
        return found / 1e3

    def _instant_watts(self) -> float:
        asked = FieldValue(field=POWER_INSTANT)  # scope 0: the GPU, without a CPU in its module
        self._nvml.call(("nvmlDeviceGetFieldValues",), self._handle, 1, ctypes.byref(asked))
        if asked.code or asked.type != UNSIGNED_INT or not asked.value & 0xFFFFFFFF:
            raise Refused("NVML_FI_DEV_POWER_INSTANT is not told", asked.code)
        return float(asked.value & 0xFFFFFFFF) / 1e3

    def _processes(self) -> dict[int, int | None]:
        room = 64
        while True:
            count, buffer = c_uint(room), ctypes.create_string_buffer(POISON * STRIDES[-1] * room)
            try:
                name = self._nvml.call(PROCESSES, self._handle, ctypes.byref(count), buffer)
            except Refused as error:
                if error.code != INSUFFICIENT_SIZE or room > 1 << 16:
                    raise
                room = 2 * max(room, count.value)
                continue
            raw = buffer.raw[: STRIDES[-1] * room]
            return _listed(raw, count.value, STRIDES[0] if name == PROCESSES[-1] else STRIDES[1])


def _listed(raw: bytes, count: int, usual: int) -> dict[int, int | None]:
    """Bytes by process. usual: how many bytes a process has where those written do not say."""
    written = len(raw.rstrip(POISON))
    stride = next((one for one in STRIDES if one * count == written), usual)
    found: dict[int, int | None] = {}
    for start in range(0, stride * count, stride):
        pid = int.from_bytes(raw[start : start + 4], "little")
        used = int.from_bytes(raw[start + 8 : start + 16], "little")
        found[pid] = None if used == NOT_AVAILABLE else used
    return found


def load(library: Any = None) -> Nvml:
    """Open the library. library: in place of the system's, an object with its functions.

    Raises:
        NotFound: it is not here, or finds no driver; says which.
    """
    try:
        return Nvml(library if library is not None else _opened())
    except Refused as error:
        raise NotFound(f"NVML cannot start: {error}") from error


def open_nvml(library: Any = None) -> Nvml | None:
    """As `load`, but None where there is none."""
    try:
        return load(library)
    except NotFound:
        return None


def gpus(library: Any = None) -> list[dict[str, Any]]:
    """Name, compute capability (``8.0``) and memory of every GPU; none where NVML is not here."""
    nvml = open_nvml(library)
    if nvml is None:
        return []
    try:
        return [
            {
                "name": gpu.name(),
                "compute_capability": gpu.compute_capability(),
                "memory_bytes": gpu.memory_bytes(),
            }
            for gpu in nvml.gpus()
        ]
    except Refused:
        return []
    finally:
        nvml.close()


def _opened() -> Any:
    for name in LIBRARIES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    raise NotFound(f"{LIBRARIES[0]} is not here: it comes with NVIDIA's driver")
