"""A greedy decoding step at fixed addresses: on a GPU one CUDA graph, on a CPU the same calls.

A token goes in, its logits and the most likely next token come out, and that token lies where the
step reads it: a continuation needs nothing of the host. A small model's step is some hundreds of
kernels that take less time than launching them does, so on a GPU it is captured once and replayed.
A capture that fails is an error: timings of kernels launched one by one are of something else.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from slmq_edge.errors import SlmqError
from slmq_edge.torch_runtime.cache import Cache
from slmq_edge.torch_runtime.model import IntegerModel

# Libraries choose their kernels and take their workspaces in the first few runs.
WARMUPS = 3


class Steps:
    """Steps over one cache: ``run`` reads ``token`` and leaves ``logits`` and the next ``token``.

    kept: the cache. token: int64 [batch, 1]. logits: float32 [batch, 1, vocab], valid until the
    next step.
    """

    def __init__(self, model: IntegerModel, kept: Cache) -> None:
        self._model, self.kept = model, kept
        self.token = torch.zeros(kept.batch, 1, dtype=torch.int64, device=model.device)
        self.logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def captured(self) -> bool:
        """Whether steps are replays of a CUDA graph."""
        return self._graph is not None

    def capture(self) -> None:
        """Record the step as a CUDA graph; where the cache is filled to stays as it was.

        Raises:
            SlmqError: the cache is full, or CUDA or torch refuses the capture; says why.
        """
        length = self.kept.length
        self._check()
        device = self.token.device
        stream, usual = _apart(device), torch.cuda.current_stream(device)
        try:
            with torch.cuda.stream(stream):  # which makes its device the current one
                stream.wait_stream(usual)
                self._warm_up(length)
                self._graph = self._recorded(stream)
            usual.wait_stream(stream)
        except RuntimeError as error:  # torch's own, and those of CUDA
            reason = " ".join(str(error).split())
            raise SlmqError(
                f"torch {torch.__version__} cannot capture the decoding step in a CUDA graph: "
                f"{reason}"
            ) from error
        self.kept.go_to(length)

    def run(self) -> None:
        """Take one step.

        Raises:
            SlmqError: the cache is full.
        """
        self._check()
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()
        self.kept.length += 1

    def _step(self) -> None:
        """All of a step that happens on the device."""
        self.logits = self._model.advance(self.token, self.kept)
        self.token.copy_(self.logits[:, -1].argmax(dim=-1, keepdim=True))

    def _warm_up(self, length: int) -> None:
        """Each time from the same position."""
        token = self.token.clone()
        for _ in range(WARMUPS):
            self.kept.position.fill_(length)
            self._step()
        self.token.copy_(token)
        self.kept.position.fill_(length)

    def _recorded(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may ask CUDA for memory meanwhile: those that watch this run.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._step()
        return graph

    def _check(self) -> None:
        if self.kept.length >= self.kept.room:
            raise SlmqError(f"the cache is full: it has room for {self.kept.room} positions")


@functools.cache
def _apart(device: torch.device) -> torch.cuda.Stream:
    """Where steps warm up and are recorded, one stream for all of them.

    cuBLAS keeps a workspace for every stream that it has met, on an H100 of 32 MiB.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
