"""One decoding step, over and over: enqueued at first, then replayed as a CUDA graph.

A step of fixed shapes and addresses is the same list of kernels every time, and launching them one
by one costs more than a small model's kernels take. TensorRT asks for one run after a change of
shapes before it is captured; the copies of the token to the device, and of its logits back, are
captured with it.
"""

from __future__ import annotations

from typing import Callable

from slmq_edge.errors import SlmqError
from slmq_edge.runner.trt.cuda import Cuda


class Graphs:
    """Whether steps are replayed, for the record. refused: why they cannot be; None: they can."""

    def __init__(self, refused: str | None = None) -> None:
        self.refused = refused
        self.captured = 0
        self.launches = 0

    def fact(self) -> str | None:
        """``replayed``, or why not; None before any step came twice."""
        if self.refused is not None:
            return f"not used: {self.refused}"
        return "replayed" if self.launches else None


class Step:
    """``enqueue`` puts all of a step's work on the stream, and touches nothing else."""

    def __init__(
        self, cuda: Cuda, stream: int, enqueue: Callable[[], None], graphs: Graphs
    ) -> None:
        self._cuda, self._stream, self._enqueue, self._graphs = cuda, stream, enqueue, graphs
        self._graph = 0
        self._warm = False

    def run(self) -> None:
        """Put the step on the stream."""
        if not self._graph and self._warm and self._graphs.refused is None:
            self._capture()
        if self._graph:
            self._cuda.launch(self._graph, self._stream)
            self._graphs.launches += 1
            return
        self._enqueue()
        self._warm = True

    def free(self) -> None:
        if self._graph:
            self._cuda.destroy_graph(self._graph)
            self._graph = 0

    def _capture(self) -> None:
        """Record the step; where that fails the engine runs on without, and says so."""
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue()
            finally:
                captured = self._cuda.end_capture(self._stream)
            self._graph = self._cuda.instantiate(captured)
        except SlmqError as error:  # of two, TensorRT's reason and not the broken capture's
            self._graphs.refused = str(error.__context__ or error)
        else:
            self._graphs.captured += 1
