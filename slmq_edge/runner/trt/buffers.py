"""What goes into an engine and comes out of it, beside the caches: on the host and on the device.

The host's side is pinned, so that copies are asynchronous and may be part of a CUDA graph.
"""

from __future__ import annotations

import ctypes
from typing import Any, Mapping

import numpy as np

from slmq_edge.errors import SlmqError
from slmq_edge.runner.trt.cuda import TO_DEVICE, TO_HOST, Cuda, Memory
from slmq_edge.runner.trt.rooms import ALIGNMENT

PURPOSE = "inputs and outputs"


class Inputs:
    """Flat arrays of so many integers each, sent in one copy.

    arrays: name -> numpy, to be written before `send`. addresses: on the device.
    """

    def __init__(
        self, cuda: Cuda, memory: Memory, counts: Mapping[str, int], types: Mapping[str, str]
    ) -> None:
        self._cuda = cuda
        offsets, count = {}, 0
        for name, length in counts.items():
            offsets[name] = count
            size = length * np.dtype(types[name]).itemsize
            count += -(-size // ALIGNMENT) * ALIGNMENT
        self._count = count
        self._host = cuda.malloc_host(count)
        self._device = memory.take("io", count, PURPOSE)
        self.arrays = {
            name: _view(self._host + offset, counts[name], types[name])
            for name, offset in offsets.items()
        }
        self.addresses = {name: self._device + offset for name, offset in offsets.items()}

    def send(self, stream: int) -> None:
        self._cuda.copy(self._device, self._host, self._count, TO_DEVICE, stream)

    def free(self) -> None:
        self._cuda.free_host(self._host)


class Logits:
    """Rows of logits, float32 [rows, vocab]; ``rows`` holds them after `fetch` and a wait."""

    def __init__(self, cuda: Cuda, memory: Memory, rows: int, vocab: int) -> None:
        self._cuda, self._memory, self._vocab = cuda, memory, vocab
        count = rows * vocab
        self._host = cuda.malloc_host(count * np.dtype(np.float32).itemsize)
        self.rows = _view(self._host, count, "float32").reshape(rows, vocab)
        try:
            self.address = memory.take("io", self.rows.nbytes, PURPOSE)
        except SlmqError:
            cuda.free_host(self._host)
            raise

    def fetch(self, count: int, stream: int) -> None:
        size = self.rows[:count].nbytes
        self._cuda.copy(self._host, self.address, size, TO_HOST, stream)

    def free(self) -> None:
        self._cuda.free_host(self._host)
        self._memory.give_back(self.address)


def _view(address: int, count: int, dtype: str) -> Any:
    """``count`` numbers of the host's memory as numpy sees them."""
    kind = np.dtype(dtype)
    memory: Any = (ctypes.c_ubyte * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, kind)
