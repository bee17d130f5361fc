"""Parts of a stream, brought to where they are worked on and back.

A stream that is spilled lies in a file, and the work may be on a GPU. A plain copy between the two
waits for all that the GPU was asked before. So parts go through pinned memory: one part's way there
is asked for while the part before is still worked on, and what comes back is put into the file one
part later, when the GPU has long been asked for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

# Buffers for either direction: one in use by the GPU, one by the CPU.
BUFFERS = 2


class Way(Protocol):
    """Between a stream [windows, ...] and a device."""

    def get(self, part: slice) -> Tensor:
        """These windows, on the device."""

    def put(self, part: slice, value: Tensor) -> None:
        """``value``, of the device, in the place of these windows; there after ``settle``."""

    def settle(self) -> None:
        """See to it that the stream itself holds all that was put."""


class Near:
    """The stream lies on the device, or both are the CPU's: there is no way."""

    def __init__(self, stream: Tensor) -> None:
        self._stream = stream

    def get(self, part: slice) -> Tensor:
        return self._stream[part]

    def put(self, part: slice, value: Tensor) -> None:
        self._stream[part] = value

    def settle(self) -> None:
        pass


class _Buffer:
    """Pinned memory, and the event after which the GPU has done with it."""

    def __init__(self, room: Tensor, event: Any) -> None:
        self._room, self.event, self.in_use = room, event, False

    def view(self, shape: torch.Size) -> Tensor:
        """Memory of that shape, when the GPU has done with what was there."""
        self.wait()
        return self._room[: shape.numel()].view(shape)

    def record(self) -> None:
        self.event.record()
        self.in_use = True

    def wait(self) -> None:
        if self.in_use:
            self.event.synchronize()
            self.in_use = False


def _pinned(count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, dtype=dtype, pin_memory=True)


class Staged:
    """The stream lies in the host's memory or in a file, the device is a GPU.

    room, event: of pinned memory and of CUDA, or what stands in for them.
    """

    def __init__(
        self,
        stream: Tensor,
        device: torch.device,
        room: Callable[[int, torch.dtype], Tensor] = _pinned,
        event: Callable[[], Any] = torch.cuda.Event,
    ) -> None:
        self._stream, self._device, self._room, self._event = stream, device, room, event
        self._there: deque[_Buffer] = deque()
        self._back: deque[_Buffer] = deque()
        self._waiting: deque[tuple[slice, Tensor, _Buffer]] = deque()

    def get(self, part: slice) -> Tensor:
        if any(other.start < part.stop and part.start < other.stop for other, *_ in self._waiting):
            self.settle()
        here = self._stream[part]
        buffer = self._next(self._there, here)
        staged = buffer.view(here.shape)
        staged.copy_(here)
        found = staged.to(self._device, non_blocking=True, copy=True)
        buffer.record()
        return found

    def put(self, part: slice, value: Tensor) -> None:
        while len(self._waiting) >= BUFFERS:
            self._settle_first()
        buffer = self._next(self._back, value)
        staged = buffer.view(value.shape)
        staged.copy_(value, non_blocking=True)
        buffer.record()
        self._waiting.append((part, staged, buffer))
        if len(self._waiting) == BUFFERS:
            self._settle_first()

    def settle(self) -> None:
        while self._waiting:
            self._settle_first()

    def _settle_first(self) -> None:
        part, staged, buffer = self._waiting.popleft()
        buffer.wait()
        self._stream[part] = staged

    def _next(self, buffers: deque[_Buffer], like: Tensor) -> _Buffer:
        """A buffer in turn; all are as large as the first part, and no later part is larger."""
        if len(buffers) < BUFFERS:
            buffers.append(_Buffer(self._room(like.numel(), like.dtype), self._event()))
        else:
            buffers.rotate(-1)
        return buffers[-1]


def way(stream: Tensor, device: torch.device) -> Way:
    """How parts of a stream come to a device, and back."""
    if stream.device == device or device.type == "cpu":
        return Near(stream)
    return Staged(stream, device)


@contextmanager
def moves(stream: Tensor, device: torch.device) -> Iterator[Way]:
    """A way on which everything has arrived in the end."""
    found = way(stream, device)
    yield found
    found.settle()
