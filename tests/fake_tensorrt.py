"""TensorRT and CUDA's runtime, faked where a process meets them: a module and a shared library.

The library's memory is the host's, guarded and poisoned; what runs on a stream runs at once, or is
recorded where the stream is captured. The module's engines compute: they run their ONNX graph on
ONNX Runtime, read what lies at the addresses they were given, and refuse what TensorRT documents
as an error. Each release has the names that it has, and no others.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import numpy as np

ALIGNMENT = 256
POISON = 0xFF  # NaN in every float
ERRORS = {
    1: ("cudaErrorInvalidValue", "invalid argument"),
    2: ("cudaErrorMemoryAllocation", "out of memory"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    719: ("cudaErrorLaunchFailure", "unspecified launch failure"),
    901: ("cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error"),
}
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
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
# Calls that ask of a device, or of the library, and make no context.
CONTEXT_FREE = (
    "cudaGetDeviceCount", "cudaDeviceGetAttribute", "cudaGetDeviceProperties",
    "cudaRuntimeGetVersion", "cudaGetLastError",
)  # fmt: skip
KINDS = {1: ("device", "host"), 2: ("host", "device"), 3: ("device", "device")}


class Failure(Exception):
    """What a call returns in place of 0."""


class Cudart:
    """One device and its library. version: of the runtime, 12060 for 12.6."""

    def __init__(
        self, version: int = 12060, total: int = 1 << 28, integrated: bool = False
    ) -> None:
        self.version, self.total, self.integrated = version, total, integrated
        self.devices = 1
        self.blocks: dict[int, tuple[Any, int, str]] = {}
        self.captures: dict[int, list[Callable[[], None]] | None] = {}
        self.broken: set[int] = set()  # streams whose capture has failed
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.has_context = False
        self.calls: list[str] = []
        self._next = 1000

    def library(self) -> Any:
        """An object with the functions of a ``ctypes.CDLL``."""
        made = types.SimpleNamespace()
        names = dict(PROTOTYPES)
        flags = (POINTER(c_void_p), c_void_p, c_ulonglong)
        if self.version >= 11040:
            names["cudaGraphInstantiateWithFlags"] = flags
        log = (POINTER(c_void_p), c_void_p, c_void_p, c_void_p, c_size_t)
        names["cudaGraphInstantiate"] = flags if self.version >= 12000 else log
        for name, arguments in names.items():
            setattr(made, name, CFUNCTYPE(c_int, *arguments)(self._guarded(name)))
        for index, name in enumerate(("cudaGetErrorName", "cudaGetErrorString")):
            texts = {
                code: ctypes.create_string_buffer(words[index].encode())
                for code, words in ERRORS.items()
            }
            setattr(made, name, CFUNCTYPE(c_void_p, c_int)(_addresses(texts)))
        return made

    def bytes(self, kind: str = "device") -> int:
        return sum(size for _, size, where in self.blocks.values() if where == kind)

    def check(self, address: int, size: int, kind: str) -> None:
        """That so many bytes from an address are of one block."""
        for start, (_, whole, where) in self.blocks.items():
            if start <= address and address + size <= start + whole and where == kind:
                return
        raise Failure(1)

    def submit(self, stream: int, work: Callable[[], None]) -> None:
        recorded = self.captures[stream]
        if recorded is None:
            work()
        else:
            recorded.append(work)

    def capturing(self, stream: int) -> bool:
        return self.captures[stream] is not None

    def _guarded(self, name: str) -> Callable[..., int]:
        function = getattr(self, name.replace("InstantiateWithFlags", "Instantiate"))

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            self.has_context |= name not in CONTEXT_FREE
            try:
                function(*arguments)
            except Failure as failure:
                return int(failure.args[0])
            return 0

        return call

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _allocate(self, size: int, kind: str) -> int:
        buffer = ctypes.create_string_buffer(size + ALIGNMENT)
        address = -(-ctypes.addressof(buffer) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(address, POISON, size)
        self.blocks[address] = buffer, size, kind
        return address

    def cudaGetDeviceCount(self, count: Any) -> None:  # noqa: N802
        if not self.devices:
            raise Failure(100)
        count[0] = self.devices

    def cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:  # noqa: N802
        value[0] = {75: 8, 76: 7, 18: int(self.integrated)}[attribute]

    def cudaGetDeviceProperties(self, properties: int, device: int) -> None:  # noqa: N802
        name = b"Fake Orin\0"
        ctypes.memmove(properties, name, len(name))

    def cudaRuntimeGetVersion(self, version: Any) -> None:  # noqa: N802
        version[0] = self.version

    def cudaMemGetInfo(self, free: Any, total: Any) -> None:  # noqa: N802
        free[0], total[0] = self.total - self.bytes(), self.total

    def cudaGetLastError(self) -> None:  # noqa: N802
        pass

    def cudaMalloc(self, pointer: Any, size: int) -> None:  # noqa: N802
        if size > self.total - self.bytes():
            raise Failure(2)
        pointer[0] = self._allocate(size, "device")

    def cudaMallocHost(self, pointer: Any, size: int) -> None:  # noqa: N802
        pointer[0] = self._allocate(size, "host")

    def cudaFree(self, address: int) -> None:  # noqa: N802
        if address not in self.blocks or self.blocks[address][2] != "device":
            raise Failure(1)
        block = self.blocks.pop(address)
        ctypes.memset(address, POISON, block[1])

    def cudaFreeHost(self, address: int) -> None:  # noqa: N802
        if self.blocks.pop(address)[2] != "host":
            raise Failure(1)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        self.check(address, size, "device")
        self.submit(stream, lambda: _ignored(ctypes.memset(address, value, size)))

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> None:
        self.check(target, size, KINDS[kind][0])
        self.check(source, size, KINDS[kind][1])
        self.submit(stream, lambda: _ignored(ctypes.memmove(target, source, size)))

    def cudaMemcpy2DAsync(  # noqa: N802
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int,
        kind: int, stream: int,
    ) -> None:  # fmt: skip
        if width > min(target_pitch, source_pitch):
            raise Failure(1)
        for row in range(rows):
            places = target + row * target_pitch, source + row * source_pitch
            self.cudaMemcpyAsync(*places, width, kind, stream)

    def cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> None:  # noqa: N802
        stream[0] = self._new()
        self.captures[stream[0]] = None

    def cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        del self.captures[stream]

    def cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        if self.capturing(stream):
            self.broken.add(stream)
            raise Failure(901)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        if self.capturing(stream):
            raise Failure(1)
        self.captures[stream] = []

    def cudaStreamEndCapture(self, stream: int, graph: Any) -> None:  # noqa: N802
        recorded, self.captures[stream] = self.captures[stream], None
        if recorded is None:
            raise Failure(1)
        if stream in self.broken:
            self.broken.remove(stream)
            raise Failure(901)
        graph[0] = self._new()
        self.graphs[graph[0]] = recorded

    def cudaGraphInstantiate(self, made: Any, graph: int, *_: Any) -> None:  # noqa: N802
        made[0] = self._new()
        self.graphs[made[0]] = self.graphs[graph]

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        self.launches += 1
        for work in self.graphs[graph]:
            work()

    def cudaGraphDestroy(self, graph: int) -> None:  # noqa: N802
        del self.graphs[graph]

    cudaGraphExecDestroy = cudaGraphDestroy  # noqa: N815


def _ignored(_: object) -> None:
    """What a C function returns that nobody asked for."""


def _addresses(texts: dict[int, Any]) -> Callable[[int], int]:
    return lambda code: ctypes.addressof(texts[code])


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    INT64 = 8


DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
}
ACTIVATION_BYTES = 4096
Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
Strategy = enum.Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")


class ILogger:
    Severity = Severity


def plan_of(graph: str, version: str, profiles: list[dict[str, Any]], **knobs: Any) -> bytes:
    """A plan. profiles: input -> (smallest, usual, largest) shape. knobs: ``capturable``."""
    document = {"graph": graph, "tensorrt": version, "profiles": profiles, **knobs}
    return json.dumps(document).encode()


class Engine:
    """What all releases have. Integers of 64 bits are 32 in 8.x, as onnx-tensorrt makes them."""

    def __init__(self, document: dict[str, Any], logger: Any, cuda: Cudart, version: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.intra_op_num_threads = 1
        self.graph = onnxruntime.InferenceSession(document["graph"], options)
        self.document, self.logger, self.cuda = document, logger, cuda
        self.narrow = version.startswith("8.")
        self.shares_profiles = not self.narrow or document.get("profile_sharing", False)
        self.ports = {node.name: node for node in self.graph.get_inputs()}
        self.outputs = {node.name: node for node in self.graph.get_outputs()}
        self.in_use: dict[int, Any] = {}
        self.num_optimization_profiles = len(document["profiles"])
        self.num_io_tensors = len(self.ports) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.ports, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> DataType:
        node = {**self.ports, **self.outputs}.get(name)
        if node is None:  # as TensorRT does
            return DataType.FLOAT
        name = DTYPES[node.type]
        return DataType["INT32" if self.narrow and name == "INT64" else name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.document["profiles"][profile_index][name]]

    def create_engine_inspector(self) -> Any:
        return Inspector(self.document)

    def error(self, text: str) -> bool:
        self.logger.log(Severity.ERROR, text)
        return False


class Engine8(Engine):
    device_memory_size = ACTIVATION_BYTES

    def create_execution_context_without_device_memory(self) -> Context:
        user = self.in_use.get(0)
        if user is not None and user() is not None and not self.shares_profiles:
            self.error("Profile 0 has been chosen by another IExecutionContext.")
        return Context8(self)


class Engine10(Engine):
    def create_execution_context(self, strategy: Any = Strategy.STATIC) -> Context:
        assert strategy in (Strategy.USER_MANAGED, Strategy.STATIC), "STATIC to look into it"
        return Context10(self)

    device_memory_size_v2 = ACTIVATION_BYTES

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return ACTIVATION_BYTES // (1 + profile_index)

    @property
    def device_memory_size(self) -> int:
        warnings.warn("Deprecated in TensorRT 10.1", DeprecationWarning, stacklevel=2)
        return ACTIVATION_BYTES


class Inspector:
    """Tells that the plan's ``products`` are of int8, once a context has all its shapes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._names: list[str] = document.get("products", [])
        self.execution_context: Any = None

    def get_engine_information(self, kind: Any) -> str:
        from tests import fake_builder

        assert kind is LayerInformationFormat.JSON
        context = self.execution_context
        assert context.has_shapes(), "without shapes there are no types"
        return fake_builder.layer_information(context.profile, self._names)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._memory: tuple[int, int] | None = None
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._flushed = False
        self._changes = 0

    @property
    def profile(self) -> int:
        return self._profile or 0

    def has_shapes(self) -> bool:
        return set(self._shapes) == set(self._engine.ports)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        user = self._engine.in_use.get(profile_index)
        if user is not None and user() not in (None, self) and not self._engine.shares_profiles:
            self._engine.error(f"profile {profile_index} is in use by another execution context")
            raise RuntimeError("Error in set optimization profile async.")
        self._engine.in_use[profile_index] = weakref.ref(self)
        self._profile, self._shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        inside = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not inside:
            return self._engine.error(f"{name} {shape} is not in the profile's range {low} {high}")
        if self._shapes.get(name) != shape:
            self._shapes[name], self._flushed = shape, False
            self._changes += 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT or name not in {**self._engine.ports, **self._engine.outputs}:
            return self._engine.error(f"{name}: unknown, or its memory is not aligned")
        self._addresses[name] = memory
        self._changes += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self._engine, self._cuda
        if set(self._shapes) != set(engine.ports):
            return engine.error("not all input shapes are specified")
        if set(self._addresses) != {*engine.ports, *engine.outputs}:
            return engine.error("a tensor has no address")
        if self._memory is None or self._memory[1] < ACTIVATION_BYTES // (1 + (self._profile or 0)):
            return engine.error("not enough device memory for activations")
        if cuda.capturing(stream_handle):
            if not self._flushed or not engine.document.get("capturable", True):
                cuda.broken.add(stream_handle)
                return engine.error("the stream is capturing, and this needs to synchronize")
            expected = self._changes
            run = self._work()

            def replay() -> None:
                if self._changes != expected:  # undefined, as NVIDIA's developer guide has it
                    raise Failure(719)
                run()

            cuda.submit(stream_handle, replay)
            return True
        cuda.submit(stream_handle, self._work())
        self._flushed = True
        return True

    def _work(self) -> Callable[[], None]:
        """The run of these shapes and addresses, whatever is set later."""
        engine, cuda = self._engine, self._cuda
        shapes, addresses, memory = dict(self._shapes), dict(self._addresses), self._memory
        assert memory is not None

        def run() -> None:
            cuda.check(*memory, "device")
            ctypes.memset(memory[0], POISON, memory[1])
            feeds, spans = {}, []
            for name, shape in shapes.items():
                dtype = np.dtype(NUMPY[engine.get_tensor_dtype(name)])
                size = dtype.itemsize * int(np.prod(shape))
                cuda.check(addresses[name], size, "device")
                spans.append((addresses[name], size))
                array = np.frombuffer(ctypes.string_at(addresses[name], size), dtype)
                wide = np.int64 if dtype == np.int32 else dtype
                feeds[name] = array.reshape(shape).astype(wide)
            names = list(engine.outputs)
            for name, array in zip(names, engine.graph.run(names, feeds), strict=True):
                cuda.check(addresses[name], array.nbytes, "device")
                for start, size in spans:
                    if addresses[name] < start + size and start < addresses[name] + array.nbytes:
                        raise Failure(719)
                content = np.ascontiguousarray(array).tobytes()
                ctypes.memmove(addresses[name], content, len(content))

        return run


class Context8(Context):
    """``device_memory`` can be set and not read, and tells no size."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            name, value = "_memory", (value, ACTIVATION_BYTES)
        super().__setattr__(name, value)


class Context10(Context):
    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % ALIGNMENT:
            raise ValueError("not aligned")
        self._memory = memory, size


def module(version: str, cuda: Cudart) -> types.ModuleType:
    """The package ``tensorrt`` of a release."""
    made: Any = types.ModuleType("tensorrt")
    ten = not version.startswith("8.")
    kind = Engine10 if ten else Engine8

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
            document = json.loads(bytes(memoryview(serialized_engine)))
            if document["tensorrt"] != version:
                self._logger.log(Severity.ERROR, f"the plan is of TensorRT {document['tensorrt']}")
                return None
            return kind(document, self._logger, cuda, version)

    made.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    made.__version__, made.ILogger, made.Runtime = version, ILogger, Runtime
    made.DataType, made.LayerInformationFormat = DataType, LayerInformationFormat
    if ten:
        made.ExecutionContextAllocationStrategy = Strategy
    return made


def install(
    version: str | None = "10.3.0", cuda: Cudart | None = None, patch: Any = None
) -> Cudart:
    """Put both in the place of the real ones. patch: pytest's, which takes them out again.

    version: None for a machine without TensorRT. A library of ``devices = 0`` is one without a GPU.
    """
    device = cuda or Cudart()
    library, real = device.library(), ctypes.CDLL

    def opened(name: str | None, *arguments: Any, **named: Any) -> Any:
        return library if "libcudart" in str(name) else real(name, *arguments, **named)

    found = None if version is None else module(version, device)
    if patch is None:
        ctypes.CDLL = opened  # type: ignore[assignment,misc]
        sys.modules["tensorrt"] = found  # type: ignore[assignment]
    else:
        patch.setattr(ctypes, "CDLL", opened)
        patch.setitem(sys.modules, "tensorrt", found)
    return device
