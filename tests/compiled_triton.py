"""Kernels compiled for GPUs that are not there: every launch of an operator becomes a compilation.

Operators are called with CPU tensors of a model's shapes, so that what is compiled is what they
would launch: same specialization, same tiles.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from slmq_edge.torch_runtime.kernels import launching

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Of one program, by the architecture: bytes of shared memory.
MOST_SHARED = {80: 166_912, 86: 101_376, 90: 232_448}


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture, and what the compiler said of it."""

    name: str
    arch: int
    grid: tuple[int, ...]
    ptx: str
    warps: int
    shared: int
    registers: int
    stack: int

    @property
    def code(self) -> str:
        """Its instructions, without what debuggers read."""
        return self.ptx.partition(".section")[0]

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.code))


class _Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)


@contextmanager
def compiling(arch: int) -> Iterator[list[Compiled]]:
    """Within it operators compute nothing: the kernels that they would launch are collected."""
    found: list[Compiled] = []
    launch = launching.launch

    def compile_instead(
        kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any
    ) -> None:
        made = kernel.run(*arguments, grid=grid, warmup=True, enable_fp_fusion=False, **settings)
        registers, stack = _resources(made.asm["cubin"])
        name, warps, shared = made.metadata.name, made.metadata.num_warps, made.metadata.shared
        found.append(Compiled(name, arch, grid, made.asm["ptx"], warps, shared, registers, stack))

    active = driver._active
    driver.set_active(_Driver(arch))
    launching.launch = compile_instead
    try:
        yield found
    finally:
        launching.launch = launch
        driver._active = active


@functools.lru_cache(maxsize=256)
def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack: what did not fit into them."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [str(CUOBJDUMP), "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]
