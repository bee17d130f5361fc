"""What goes between a device and the host, counted where torch dispatches its operators.

No GPU is needed: meta tensors stand for any device but the CPU. They refuse to tell a value, have a
backward pass, and can be cut into parts; fake tensors of CUDA can be neither on a torch without it.
``closed`` stands in for the one door by which values are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slmq_edge import decoder
from slmq_edge.quantization import hadamard, readback


class Spy(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists what crosses: copies between devices, and operators on tensors of two of them.

    A copy to the CPU is zeros there: of meta tensors nothing could be copied. A single number
    of the CPU goes to a kernel as it is, and is no tensor of another device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if func is torch.ops.aten._to_copy.default:
            wanted = torch.device(kwargs.get("device") or args[0].device)
            if wanted.type != args[0].device.type:
                self.copies.append(f"{args[0].device.type} to {wanted.type}")
            if wanted.type == "cpu" and args[0].device.type != "cpu":
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        found = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
        kinds = {x.device.type for x in tensors if x.dim() or x.device.type != "cpu"}
        if len(kinds) > 1 and func is not torch.ops.aten._to_copy.default:
            self.mixed.append(name)
        return found


class Door:
    """In the place of ``readback.numbers``: flags are true, all else is 0; counts how often."""

    def __init__(self) -> None:
        self.opened = 0

    def numbers(self, *values: Tensor) -> list[float]:
        self.opened += 1
        return [float(v.dtype == torch.bool) for v in values for _ in range(v.numel())]


@contextmanager
def closed(patch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Let nobody read a value, and let no table that stands for another outlive it."""
    door = Door()
    with patch.context() as inner:
        inner.setattr(readback, "numbers", door.numbers)
        forget()
        try:
            yield door
        finally:
            forget()


def forget() -> None:
    """Empty what is kept of tables from one call to the next."""
    decoder._rotary_table.cache_clear()
    hadamard._factors_at.cache_clear()
    hadamard.factors.cache_clear()
