"""An engine in TensorRT's Python API: what it takes, and the contexts that run it.

From 8.5, where tensors have names, to 11. Contexts that never run at the same time may share the
memory of their activations; a CUDA graph holds on to its context, so whatever is captured has one
of its own (NVIDIA's developer guide on CUDA graphs). Two contexts on one profile are possible from
10.0, and on 8.6 where the engine was built with PROFILE_SHARING_0806.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Mapping, Sequence

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.runner.trt import log
from slmq_edge.runner.trt.recipe import DIMENSIONS, ROOM, Port, Recipe

PREFILL, DECODE = 0, 1  # profiles; an engine of one profile does both in it
TYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64"}
LAST_WORDS = 3  # lines of TensorRT's errors that are worth repeating


class Loaded:
    """An engine on the device. ``limits``: the largest `DIMENSIONS` that its profiles take.

    Raises:
        SlmqError: TensorRT refuses the plan.
        Damaged: its inputs and outputs are not what the recipe says.
    """

    def __init__(self, trt: Any, plan: Path, recipe: Recipe) -> None:
        self._trt, self._heard = trt, len(log.LINES.errors)
        self._runtime = trt.Runtime(log.logger(trt))
        with plan.open("rb") as stream:  # mapped: a copy would take the host as much again
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise SlmqError(f"TensorRT {trt.__version__} refuses {plan}: {self.words()}")
        self.plan_bytes = plan.stat().st_size
        self.refusal = ""  # what was said when a context last got no profile
        self.profiles = int(self.engine.num_optimization_profiles)
        self.decode_profile = min(DECODE, self.profiles - 1)
        self.inputs = recipe.inputs
        ports = (*recipe.inputs, *recipe.outputs)
        self._check_names({port.name for port in ports})
        self.types = {port.name: self._type(port) for port in ports}
        self.limits = self._limits(recipe.inputs)

    def words(self) -> str:
        """What TensorRT has called an error since this was asked last."""
        said, self._heard = log.LINES.errors[self._heard :], len(log.LINES.errors)
        return " | ".join(said[-LAST_WORDS:]) or "it does not say why"

    def activation_bytes(self) -> int:
        """What the largest of its profiles needs while it runs."""
        for name in ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile"):
            size_of = getattr(self.engine, name, None)
            if size_of is not None:
                return max(int(size_of(profile)) for profile in range(self.profiles))
        return int(self.engine.device_memory_size)  # 8.x

    def context(self, profile: int, memory: int, count: int, stream: int) -> Context | None:
        """A context on a profile, or None where another one has it and they cannot share it."""
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategies is not None:
            made = self.engine.create_execution_context(strategies.USER_MANAGED)
        else:
            made = self.engine.create_execution_context_without_device_memory()
        if made is None:
            raise SlmqError(f"TensorRT makes no context of the engine: {self.words()}")
        if hasattr(made, "set_device_memory"):
            made.set_device_memory(memory, count)
        else:
            made.device_memory = memory
        try:
            is_set = made.set_optimization_profile_async(profile, stream)
        except RuntimeError:  # what the binding makes of a refusal
            is_set = False
        # 8.x calls it an error that another context has profile 0; it is none of what follows.
        said = self.words()
        if is_set:
            return Context(self, made)
        self.refusal = said
        return None

    def _check_names(self, asked: set[str]) -> None:
        """TensorRT drops an input that nothing reads, and runs nothing where one has no memory."""
        engine = self.engine
        here = {str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)}
        for names, problem in ((asked - here, "lacks"), (here - asked, "has besides")):
            if names:
                raise Damaged(f"of the recipe's tensors the engine {problem} {sorted(names)[0]}")

    def _type(self, port: Port) -> str:
        """The type of a tensor; integers of 64 bits may be 32 in engines of TensorRT 8."""
        name = str(self.engine.get_tensor_dtype(port.name).name)
        found = TYPES.get(name, name)
        if found != port.dtype and (port.dtype, found) != ("int64", "int32"):
            raise Damaged(f"the engine's {port.name} is {found}, the recipe says {port.dtype}")
        return found

    def _limits(self, ports: Sequence[Port]) -> dict[str, int]:
        """Of new and kept the prefill's; of the room what both profiles take."""
        found: dict[str, int] = {}
        for profile in (PREFILL, self.decode_profile):
            for port in ports:
                largest = self.engine.get_tensor_profile_shape(port.name, profile)[2]
                for name, size in zip(port.shape, tuple(largest)):
                    if name == ROOM or (name in DIMENSIONS and profile == PREFILL):
                        found[name] = min(found.get(name, int(size)), int(size))
        if set(found) != set(DIMENSIONS):
            raise Damaged(f"the engine's inputs lack one of {', '.join(DIMENSIONS)}")
        return found


class Context:
    """One execution context: shapes and addresses are told to TensorRT where they change."""

    def __init__(self, loaded: Loaded, context: Any) -> None:
        self._loaded, self._context = loaded, context
        self._sizes: Mapping[str, int] = {}
        self._addresses: dict[str, int] = {}

    def shape(self, sizes: Mapping[str, int]) -> None:
        """Set what the `DIMENSIONS` are.

        Raises:
            SlmqError: the profile does not take them.
        """
        if sizes == self._sizes:
            return
        for port in self._loaded.inputs:
            shape = tuple(sizes.get(size, size) for size in port.shape)
            if not self._context.set_input_shape(port.name, shape):
                words = self._loaded.words()
                raise SlmqError(f"the engine does not take {port.name} {shape}: {words}")
        self._sizes = dict(sizes)

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise SlmqError(f"TensorRT takes no memory for {name}: {self._loaded.words()}")
                self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise SlmqError(f"TensorRT cannot run the engine: {self._loaded.words()}")
