"""CUDA's runtime by ctypes: memory, streams and graphs. No binding package is needed.

Names and signatures are those of cuda_runtime_api.h of CUDA 11.8, 12.9 and 13.5. Of several
libraries the first that the driver is new enough for is taken.
"""

from __future__ import annotations

import ctypes
import re
import sys
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from slmq_edge.errors import NotFound, SlmqError

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
# Where the linker may not look: toolkits, JetPack's, and the wheels of the package registry.
FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
WHEELS = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")
DRIVER = "/proc/driver/nvidia/version"

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaGetLastError": (),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMallocHost": (POINTER(c_void_p), c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemcpy2DAsync": (
        c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p,
    ),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}  # fmt: skip
# cudaGraphInstantiate has another signature before CUDA 12; this name, from 11.4, has but one.
WITH_FLAGS = (POINTER(c_void_p), c_void_p, c_ulonglong)
WITH_LOG = (POINTER(c_void_p), c_void_p, c_void_p, c_void_p, c_size_t)

TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
NON_BLOCKING = 1
THIS_THREAD = 1  # cudaStreamCaptureModeThreadLocal
OUT_OF_MEMORY = 2
MAJOR, MINOR, INTEGRATED = 75, 76, 18  # cudaDeviceAttr
NAME_BYTES, PROPERTIES_BYTES = 256, 1 << 14  # the name comes first; of the rest, sizes differ


class Device(NamedTuple):
    """sm: ``87`` for 8.7. cuda: version of the runtime library.

    integrated: the GPU's memory is the machine's own.
    """

    name: str
    sm: str
    cuda: str
    driver: str | None
    integrated: bool


class Cuda:
    """The library, loaded. What fails raises SlmqError with CUDA's own words."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in FUNCTIONS.items():
            getattr(library, name).argtypes = arguments
        for name in ("cudaGetErrorString", "cudaGetErrorName"):
            getattr(library, name).restype = c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            self._library.cudaGetLastError()  # so that the next call does not report it
            raise SlmqError(f"{name}: {self._words(code)}")

    def _words(self, code: int) -> str:
        parts = self._library.cudaGetErrorName(code), self._library.cudaGetErrorString(code)
        name, text = (part.decode("utf-8", "replace") for part in parts)
        return f"{text} ({name})"

    def malloc(self, count: int, purpose: str) -> int:
        """Address of ``count`` bytes on the device."""
        pointer = c_void_p()
        code = self._library.cudaMalloc(ctypes.byref(pointer), count)
        if code == OUT_OF_MEMORY:
            self._library.cudaGetLastError()
            free, total = self.memory()
            raise SlmqError(
                f"the GPU has no {count / 1e6:.0f} MB for {purpose}: {free / 1e6:.0f} of "
                f"{total / 1e6:.0f} MB are free; close other programs, or build an engine for "
                "less: slmq-edge build BUNDLE --context N"
            )
        if code:
            raise SlmqError(f"cudaMalloc: {self._words(code)}")
        return int(pointer.value or 0)

    def free(self, address: int) -> None:
        self.call("cudaFree", address)

    def malloc_host(self, count: int) -> int:
        """Address of ``count`` bytes of the host that stay where they are (pinned)."""
        pointer = c_void_p()
        self.call("cudaMallocHost", ctypes.byref(pointer), count)
        return int(pointer.value or 0)

    def free_host(self, address: int) -> None:
        self.call("cudaFreeHost", address)

    def copy(self, target: int, source: int, count: int, kind: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", target, source, count, kind, stream)

    def copy_rows(
        self, target: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: int
    ) -> None:
        """On the device: ``rows`` of ``width`` bytes between (address, bytes from row to row)."""
        self.call("cudaMemcpy2DAsync", *target, *source, width, rows, ON_DEVICE, stream)

    def zero(self, address: int, count: int, stream: int) -> None:
        self.call("cudaMemsetAsync", address, 0, count, stream)

    def stream(self) -> int:
        """A stream of its own: the legacy one cannot be captured."""
        pointer = c_void_p()
        self.call("cudaStreamCreateWithFlags", ctypes.byref(pointer), NON_BLOCKING)
        return int(pointer.value or 0)

    def destroy_stream(self, stream: int) -> None:
        self.call("cudaStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        self.call("cudaStreamBeginCapture", stream, THIS_THREAD)

    def end_capture(self, stream: int) -> int:
        """End a capture, which has to be ended even where it failed, and return its graph."""
        graph = c_void_p()
        self.call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        return int(graph.value or 0)

    def instantiate(self, graph: int) -> int:
        """Make a captured graph executable, and let go of the captured one."""
        made = c_void_p()
        flags = hasattr(self._library, "cudaGraphInstantiateWithFlags")  # else CUDA 11.0 to 11.3
        name = "cudaGraphInstantiateWithFlags" if flags else "cudaGraphInstantiate"
        getattr(self._library, name).argtypes = WITH_FLAGS if flags else WITH_LOG
        rest = (0,) if flags else (None, None, 0)
        try:
            self.call(name, ctypes.byref(made), graph, *rest)
        finally:
            self.call("cudaGraphDestroy", graph)
        return int(made.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        self.call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self.call("cudaGraphExecDestroy", graph)

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all, as the device says."""
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return int(free.value), int(total.value)

    def number(self, name: str, *arguments: Any) -> int:
        """What a function returns by way of its first argument."""
        value = c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def sees(self) -> bool:
        """Whether there is a device, and a driver that this library can use."""
        count = c_int()
        code = self._library.cudaGetDeviceCount(ctypes.byref(count))
        self._library.cudaGetLastError()
        return not code and count.value > 0

    def name(self) -> str:
        buffer = ctypes.create_string_buffer(PROPERTIES_BYTES)
        newer = "cudaGetDeviceProperties_v2"
        known = newer if hasattr(self._library, newer) else "cudaGetDeviceProperties"
        getattr(self._library, known).argtypes = (c_void_p, c_int)
        self.call(known, ctypes.addressof(buffer), 0)
        return buffer.raw[:NAME_BYTES].partition(b"\0")[0].decode("utf-8", "replace")


class Memory:
    """Device memory that was asked for, by what it is for."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._taken: dict[int, tuple[str, int]] = {}

    def take(self, part: str, count: int, purpose: str) -> int:
        """Address of ``count`` bytes for ``purpose``, counted as ``part``."""
        address = self._cuda.malloc(max(count, 1), purpose)
        self._taken[address] = part, count
        return address

    def give_back(self, address: int) -> None:
        del self._taken[address]
        self._cuda.free(address)

    def give_all_back(self) -> None:
        for address in list(self._taken):
            self.give_back(address)

    def by_part(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for part, count in self._taken.values():
            found[part] = found.get(part, 0) + count
        return found


def load() -> Cuda:
    """Load the runtime library: of those that are here, the first that sees a device.

    Raises:
        NotFound: there is none where it could be.
    """
    blind = None
    for library in filter(None, map(_opened, _candidates())):
        cuda = Cuda(library)
        if cuda.sees():
            return cuda
        blind = blind or cuda
    if blind is not None:
        return blind
    raise NotFound(
        "CUDA's runtime is not here (libcudart.so of CUDA 11, 12 or 13): on a Jetson it comes "
        "with JetPack, elsewhere with the CUDA toolkit or pip install 'slmq-edge[tensorrt]'"
    )


def _opened(candidate: str) -> Any | None:
    try:
        return ctypes.CDLL(candidate)
    except OSError:
        return None


def _candidates() -> Iterator[str]:
    yield from LIBRARIES
    wheels = [Path(home or ".") / wheel for home in sys.path for wheel in WHEELS]
    for folder in [*map(Path, FOLDERS), *wheels]:
        yield from map(str, sorted(folder.glob("libcudart.so*"), reverse=True))


def device() -> Device:
    """Describe the GPU that CUDA calls the first, by calls that make no context there.

    A context takes some hundred MB, and to end it takes whatever else this process has on the GPU.

    Raises:
        NotFound: no library, no driver that it can use, or no device.
    """
    cuda = load()
    try:
        count = cuda.number("cudaGetDeviceCount")
    except SlmqError as error:
        raise NotFound(f"no GPU that CUDA can use is here: {error}") from error
    if count < 1:
        raise NotFound("no GPU that CUDA can use is here: it counts none")
    version = cuda.number("cudaRuntimeGetVersion")
    major, minor, integrated = (
        cuda.number("cudaDeviceGetAttribute", attribute, 0)
        for attribute in (MAJOR, MINOR, INTEGRATED)
    )
    return Device(
        name=cuda.name(),
        sm=f"{major}{minor}",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        driver=_driver(),
        integrated=bool(integrated),
    )


def memory() -> tuple[int, int]:
    """Bytes of the device, free and in all; this process has a context there from now on."""
    return load().memory()


def _driver() -> str | None:
    """Version of the kernel's driver; a Jetson's comes with its system and has none."""
    try:
        text = Path(DRIVER).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found.group(1) if found else None
