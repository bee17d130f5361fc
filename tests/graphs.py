"""A stand-in for CUDA graphs on a CPU: what is recorded is replayed at the same addresses.

As on a GPU, recording leaves all memory as it was, and a replay runs the very operators with the
very tensors and numbers that were recorded: a value that the host had a hand in stays what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for operator, args, kwargs, results in self.calls:
            again = operator(*args, **kwargs)
            if operator.is_view:
                continue  # its result shares what it is a view of
            for then, now in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(then, Tensor) and then.data_ptr() != now.data_ptr():
                    then.copy_(now)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operator, keeps it in a graph, and in the end undoes what was written."""

    def __init__(
        self, graph: Graph, stream: object = None, capture_error_mode: str = "global"
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before.append((value, value.clone()))
        results = func(*args, **kwargs)
        self._graph.calls.append((func, args, kwargs, results))
        return results

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for value, before in reversed(self._before):
            value.copy_(before)


# What waits for the device to tell a value, which a capture does not allow.
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class Stream:
    made = 0

    def __init__(self, device: object = None) -> None:
        Stream.made += 1

    def wait_stream(self, other: object) -> None:
        """All of it is one stream."""


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let ``torch.cuda``'s graphs be these; returns those that are recorded."""
    made: list[Graph] = []

    def graph() -> Graph:
        made.append(Graph())
        return made[-1]

    @contextlib.contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    usual = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: usual)
    return made
