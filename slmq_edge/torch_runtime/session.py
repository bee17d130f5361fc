"""A checkpoint's modules behind the runner's `Session`: prompts whole, then a token at a time.

A session has one conversation at a time, in a static cache that the next one takes over where its
size is the same, and with it the CUDA graph of its step. As in ``ort``, of two continuations of one
cache the last one counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import SlmqError
from slmq_edge.torch_runtime import cache, files
from slmq_edge.torch_runtime.captured import Steps
from slmq_edge.torch_runtime.model import IntegerModel

# Logits that come to the host at a time.
MOST_LOGITS = 2**26
CPU, CUDA = "cpu", "cuda"


class Past(NamedTuple):
    """Positions seen so far, and in which conversation: what a caller is given as its cache."""

    length: int
    turn: int


class Session:
    """A model that is loaded and ready."""

    batches = True
    appends = True  # what a piece may follow is masked by position
    most_positions = None  # as many as there is memory for: the bundle says how long a text is
    together = None  # any prompt, and logits of all of it

    def __init__(self, model: IntegerModel) -> None:
        self._model = model
        self._on_gpu = model.device.type == CUDA
        self._steps: Steps | None = None
        self._turn = 0
        self._token: Any = None  # what lies where the step reads it; None: not known
        self._replayed = False

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of all blocks' keys and values for one position, with their scales."""
        return self._model.kv_bytes_per_token

    def device_memory(self) -> dict[str, int] | None:
        """Bytes on a GPU by what they are for; None on a CPU, whose memory is the process's.

        weights, kv: of the model and its cache. rest: what else torch holds: activations, the
        graph's, and what its allocator keeps of the largest that there were.
        """
        if not self._on_gpu:
            return None
        parts = {
            "weights": self._model.integer_bytes + self._model.float_bytes,
            "kv": 0 if self._steps is None else self._steps.kept.bytes,
        }
        taken = torch.cuda.memory_reserved(self._model.device)
        return {**parts, "rest": max(0, taken - sum(parts.values()))}

    def facts(self) -> dict[str, Any]:
        """What ran, for the record. integer_linears: of how many linears integers are multiplied.

        cuda_graph: ``replayed``, where steps were.
        """
        held = self._model.table()
        device = torch.cuda.get_device_name(self._model.device) if self._on_gpu else CPU
        return {
            "torch": torch.__version__,
            "device": device,
            "floats": str(self._model.floats).removeprefix("torch."),
            "operators": self._model.ops.NAME,
            "linears": sum(len(one.names) for one in held),
            "integer_linears": sum(len(one.names) for one in held if one.integer),
            "integer_bytes": self._model.integer_bytes,
            "float_bytes": self._model.float_bytes,
            "cuda_graph": "replayed" if self._replayed else None,
        }

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Past]:
        """Run whole prompts from an empty cache.

        Args:
            tokens: int64 [batch, length], of one length.
            keep: for how many last positions logits are wanted; None: for all.
            room: how many steps will follow; more are possible, and cost a larger cache.
            piece: tokens that run together; by default all.

        Returns:
            logits, float32 [batch, kept, vocab], and the cache of ``length`` positions.

        Raises:
            SlmqError: a token beyond the vocabulary, or a step that cannot be captured.
        """
        hidden, past = self._read(tokens, room, piece)
        kept = hidden if keep is None else hidden[:, -keep:]
        return np.concatenate(list(self._logits(kept)), axis=1), past

    def first(self, tokens: Any, room: int) -> tuple[Any, Past]:
        """Read prompts as `prefill` does, behind which ``room`` steps follow.

        Returns:
            The token that follows each, int64 [batch, 1], chosen on the device; and the cache.
        """
        hidden, past = self._read(tokens, room, None)
        steps = self._at(past)
        with _memory_for("a prompt's logits"):
            steps.token.copy_(self._model.logits(hidden[:, -1:])[:, -1].argmax(-1, keepdim=True))
        return self._chosen(steps), past

    def forward(self, tokens: Any, keep: int | None = None) -> int:
        """One pass over prompts, whose logits stay on the device: see `runner.greedy.Greedy`.

        150,000 logits of 128 positions are 78 MB: sending them to the host takes longer than
        computing them.
        """
        hidden, _ = self._read(tokens, 0, None)
        with _memory_for("a prompt's logits"):
            found = self._model.logits(hidden if keep is None else hidden[:, -keep:])
        if self._on_gpu:
            torch.cuda.synchronize(self._model.device)
        return found.shape[1]

    def logits(self, tokens: Any, keep: int) -> Iterator[Any]:
        """Run whole texts, which nothing follows, beside the conversation.

        Args:
            tokens: int64 [batch, length], of one length.
            keep: for how many last positions logits are wanted, at most ``length``.

        Yields:
            Logits, float32 [batch, positions, vocab], ``keep`` positions in all.
        """
        rows = self._checked(tokens)
        with _memory_for("{} x {} tokens".format(*tokens.shape)):
            hidden = self._model.read(rows, self._model.cache(*tokens.shape))
        yield from self._logits(hidden[:, -keep:])

    def step(self, tokens: Any, past: Past) -> tuple[Any, Past]:
        """Run one more token: int64 [batch, 1] -> float32 [batch, 1, vocab] and the new cache."""
        steps = self._at(past)
        self._hand_over(steps, tokens)
        self._take(steps)
        self._token = None  # the next one is there, and was not read
        assert steps.logits is not None, "a step leaves its logits"
        return steps.logits.cpu().numpy(), past._replace(length=past.length + 1)

    def next(self, token: Any, past: Past) -> tuple[Any, Past]:
        """Read one more token, int64 [batch, 1]; return the one that follows, and the cache.

        A token that the last step chose is on the device already, and is not sent there.
        """
        steps = self._at(past)
        self._hand_over(steps, token)
        self._take(steps)
        return self._chosen(steps), past._replace(length=past.length + 1)

    def _read(self, tokens: Any, room: int, piece: int | None) -> tuple[Tensor, Past]:
        """What the head reads of prompts, F [batch, length, hidden], and the cache behind them."""
        batch, length = tokens.shape
        if length < 1:
            raise ValueError("a prompt has at least one token")
        rows = self._checked(tokens)
        with _memory_for(f"a prompt of {length} tokens and room for {room} more"):
            steps = self._conversation(batch, length, room)
            steps.kept.go_to(0)
            pieces = torch.split(rows, piece or length, dim=1)
            hidden = [self._model.read(part, steps.kept) for part in pieces]
            return torch.cat(hidden, dim=1), Past(length, self._turn)

    def _conversation(self, batch: int, length: int, room: int) -> Steps:
        """A new one, in the cache of the last where that is of the size asked for."""
        self._turn += 1
        self._token = None
        needed = length + room
        if self._steps is not None and self._steps.kept.batch == batch:
            there = self._steps.kept.room
            # Of a prompt alone the size does not matter; a step costs as much as there is room.
            if there == cache.rounded_up(needed) or (room == 0 and there >= needed):
                return self._steps
        self._steps = None  # first its memory is free
        self._steps = Steps(self._model, self._model.cache(batch, needed))
        if self._on_gpu and room:
            self._steps.capture()  # here rather than in the first step that is timed
        return self._steps

    def _at(self, past: Past) -> Steps:
        """Steps that go on from there."""
        steps = self._steps
        if steps is None or past.turn != self._turn:
            raise ValueError("this cache is another prompt's by now")
        if past.length >= steps.kept.room:
            steps = self._roomier(steps, past.length)
        elif steps.kept.length != past.length:
            steps.kept.go_to(past.length)
        return steps

    def _roomier(self, steps: Steps, length: int) -> Steps:
        """The same positions in a cache twice as long, and the step that goes with it."""
        kept = self._model.cache(steps.kept.batch, 2 * steps.kept.room)
        kept.copy_from(steps.kept, length)
        self._steps = Steps(self._model, kept)
        self._token = None
        return self._steps

    def _hand_over(self, steps: Steps, tokens: Any) -> None:
        """Put tokens int64 [batch, 1] where the step reads them."""
        if tokens.shape != steps.token.shape:
            raise ValueError("one token at a time, of every text")
        if self._token is None or not np.array_equal(self._token, tokens):
            steps.token.copy_(self._checked(tokens))

    def _take(self, steps: Steps) -> None:
        if self._on_gpu and not steps.captured:
            steps.capture()
        steps.run()
        self._replayed = self._replayed or steps.captured

    def _chosen(self, steps: Steps) -> Any:
        self._token = steps.token.cpu().numpy().copy()
        return self._token.copy()

    def _logits(self, hidden: Tensor) -> Iterator[Any]:
        """Of F [batch, n, hidden], a piece of the positions at a time, on the host."""
        batch = hidden.shape[0]
        positions = max(1, MOST_LOGITS // (batch * self._model.anatomy.vocab))
        for part in torch.split(hidden, positions, dim=1):
            with _memory_for("a prompt's logits"):
                found = self._model.logits(part).cpu().numpy()
            yield found

    def _checked(self, tokens: Any) -> Tensor:
        """On the device, where a token beyond the vocabulary would end the process's use of it."""
        least, most, vocab = int(tokens.min()), int(tokens.max()), self._model.anatomy.vocab
        if least < 0 or most >= vocab:
            wrong = least if least < 0 else most
            raise SlmqError(f"token {wrong} is none of a vocabulary of {vocab}")
        return torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(self._model.device)


@contextlib.contextmanager
def _memory_for(what: str) -> Iterator[None]:
    """One line where a GPU's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())
        raise SlmqError(f"the GPU's memory does not hold {what}: {reason}") from error


def device_here() -> torch.device:
    """The GPU that torch has, or else the CPU."""
    return torch.device(CUDA if torch.cuda.is_available() else CPU)


def of_checkpoint(
    checkpoint: Checkpoint,
    floats: torch.dtype,
    threads: int,
    device: torch.device | str | None = None,
) -> Session:
    """A session of a checkpoint; what is float in it runs as ``floats``.

    threads: that torch computes with on a CPU. device: by default the GPU, where torch has one.

    Raises:
        Unsupported: a tensor that the floats cannot hold, or a linear too wide for int32 sums.
        SlmqError: the GPU's memory does not hold it.
    """
    torch.set_num_threads(threads)
    place = device_here() if device is None else torch.device(device)
    with _memory_for("the model"):
        return Session(IntegerModel.of(checkpoint, floats, place))


def open_bundle(
    folder: Path,
    bundle: Mapping[str, Any],
    threads: int,
    device: torch.device | str | None = None,
) -> Session:
    """Open the payload of a verified bundle; see `of_checkpoint`."""
    checkpoint, floats = files.read(folder, bundle)
    return of_checkpoint(checkpoint, getattr(torch, floats.name), threads, device)
