"""Tensors that say they are on a GPU, on a machine without: shapes and devices, no numbers.

Operators raise where devices are mixed, and where the host asks for a value: what passes can be
enqueued without waiting, and so captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from slmq_edge import decoder

GPU = torch.device("cuda", 0)


@contextlib.contextmanager
def gpu() -> Iterator[FakeTensorMode]:
    """Within it, tensors made on `GPU` are fake; real ones are not let in."""
    decoder._rotary_table.cache_clear()
    try:
        with FakeTensorMode() as mode, _Bindings():
            yield mode
    finally:
        decoder._rotary_table.cache_clear()  # fake ones, which nobody else may have


@contextlib.contextmanager
def nothing_crosses() -> Iterator[None]:
    """Within it, and within `gpu`, no tensor may go from the host to the GPU, or back."""
    _Bindings.crossing = False
    try:
        yield
    finally:
        _Bindings.crossing = True


def moved(module: nn.Module, mode: FakeTensorMode) -> None:
    """Make all of a module's buffers fake ones on the GPU, as `nn.Module.to` would."""
    for one in module.modules():
        for name, buffer in one._buffers.items():
            if buffer is not None:
                one._buffers[name] = mode.from_tensor(buffer)
    module.to(GPU)


class _Bindings(TorchFunctionMode):
    """What a CPU build of torch asks CUDA for before it sees fake tensors: by operators instead."""

    crossing = True

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__:
            return _at(*args)
        if func is Tensor.__setitem__:
            into, index, value = args
            return self._copied(_at(into, index), value)
        if func is Tensor.copy_:
            return self._copied(*args)
        if func is Tensor.contiguous:
            (one,) = args
            whole = one.is_contiguous()
            return one if whole else one.clone(memory_format=torch.contiguous_format)
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.to, Tensor.cpu) and not self.crossing:
            assert result.device == args[0].device, "a tensor crosses"
        return result

    def _copied(self, into: Tensor, value: Tensor) -> Tensor:
        assert self.crossing or into.device == value.device, "a tensor crosses"
        return torch.ops.aten.copy_(into, value)


def _at(t: Tensor, index: Any) -> Tensor:
    if isinstance(index, Tensor):
        return torch.ops.aten.index(t, [index])
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        whole = t.dim() - sum(part is not None for part in parts) + 1
        parts[at : at + 1] = [slice(None)] * whole
    dimension = 0
    for part in parts:
        if part is None:
            t = t.unsqueeze(dimension)
        elif isinstance(part, int):
            t = t.select(dimension, part)
            continue
        else:
            start, stop, step = part.indices(t.shape[dimension])
            assert step == 1, "slices have no step here"
            t = t.narrow(dimension, start, stop - start)
        dimension += 1
    return t
