"""What a student learns from: windows of the text, windows that its teacher wrote, or both.

Which windows a step sees depends on the step's number alone, so that a run goes on anywhere. What
the teacher says of a window is never computed twice: of the text it is kept, and what the teacher
wrote it has already read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slmq_edge.decoder import Decoder, head_input
from slmq_edge.errors import UsageError
from slmq_edge.estimate import side_by_side
from slmq_edge.quantization import Progress
from slmq_edge.quantization.moving import moves
from slmq_edge.quantization.sampling import Lesson, write
from slmq_edge.quantization.streams import advance, batches, embedded

# So many tokens in a row that are also held out are no longer unseen.
RUN = 64


@dataclass(frozen=True)
class Split:
    """Windows int64 [.., length] to learn from, and held out.

    left: how many were left aside; seen: all would have been, so that what is held out is learned.
    """

    train: Tensor
    held: Tensor
    left: int
    seen: bool


def split(tokens: Tensor, share: float) -> Split:
    """Hold a share of the windows out, evenly spread; what overlaps them is not learned from.

    Raises:
        UsageError: fewer than two windows.
    """
    if len(tokens) < 2:
        raise UsageError("distill holds some windows out, and needs at least 2 (--windows)")
    count = min(len(tokens) - 1, max(1, round(share * len(tokens))))
    places = ((torch.arange(count) + 0.5) * len(tokens) / count).long()
    is_held = torch.zeros(len(tokens), dtype=torch.bool)
    is_held[places] = True
    train, held = tokens[~is_held], tokens[is_held]
    known = set().union(*(_runs(row) for row in held))
    apart = torch.tensor([known.isdisjoint(_runs(row)) for row in train])
    # A text that repeats itself leaves nothing apart: it is judged for what it is.
    seen = not apart.any()
    kept = train if seen else train[apart]
    return Split(kept, held, len(train) - len(kept), seen)


def _runs(row: Tensor) -> set[bytes]:
    run = min(RUN, len(row))
    values = row.numpy()
    return {values[at : at + run].tobytes() for at in range(len(values) - run + 1)}


def heard(
    teacher: Decoder, tokens: Tensor, progress: Progress, spill: Path | None = None
) -> Lesson:
    """The teacher on windows int64 [windows, length] of a text."""
    stream = embedded(teacher, tokens, spill)
    layers, device = teacher.anatomy.layers, next(iter(teacher.weights.values())).device
    for layer in range(layers):
        progress(layer / layers, "asking the model")
        advance(teacher, layer, stream)
    with torch.no_grad(), moves(stream, device) as way:
        for part in batches(stream):
            way.put(part, head_input(teacher, way.get(part)))
    return Lesson(tokens.to(stream.device), stream)


def written(
    teacher: Decoder, first: Tensor, windows: int, length: int, seed: int, number: int = 0
) -> Lesson:
    """Windows that the teacher writes, each of which begins as one of ``first`` does, int64 [..].

    number: of the lot; windows of another are others.
    """
    device = next(iter(teacher.weights.values())).device
    drawn, sampled = (_generator(place, seed, 2 * number + 1) for place in ("cpu", device))
    begun = first[torch.randint(len(first), (windows,), generator=drawn)]
    together = torch.split(begun, _side_by_side(teacher, length))
    return _joined([write(teacher, some, length, sampled) for some in together])


def _side_by_side(teacher: Decoder, length: int) -> int:
    shape = teacher.anatomy
    kept = 2 * 4 * shape.layers * shape.kv_width * length
    return side_by_side(shape.linear_macs_per_token, kept)


def _generator(device: torch.device | str, seed: int, number: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(1_000_003 * seed + number)


def _joined(parts: Sequence[Lesson]) -> Lesson:
    return Lesson(torch.cat([p.tokens for p in parts]), torch.cat([p.hidden for p in parts]))


class Lessons:
    """The windows of every step, ``batch`` of them, of which the teacher writes ``own``.

    text: what is learned from the text, ``None`` for nothing. first: first tokens of its windows,
    int64 [..], as many as make an epoch.
    """

    def __init__(
        self,
        teacher: Decoder,
        text: Lesson | None,
        first: Tensor,
        length: int,
        batch: int,
        own: int,
        seed: int,
    ) -> None:
        self._teacher, self._text, self._first, self._length = teacher, text, first, length
        self._read, self._own, self._seed = batch - own, own, seed
        self._device = next(iter(teacher.weights.values())).device
        self._order: tuple[int, Tensor] | None = None
        self._lot: tuple[int, Lesson] | None = None
        self._steps_a_lot = max(1, _side_by_side(teacher, length) // max(1, own))
        self.steps_per_epoch = math.ceil(len(first) / (self._read or own))

    def writes(self, step: int) -> bool:
        """Whether the teacher has to write before a step."""
        return bool(self._own) and step % self._steps_a_lot == 0

    def at(self, step: int) -> Lesson:
        """Windows of a step, from 0, where the teacher is."""
        parts = [] if self._text is None else [self._of_text(self._text, step)]
        if self._own:
            parts.append(self._of_teacher(step))
        return _joined(parts)

    def _of_text(self, text: Lesson, step: int) -> Lesson:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            drawn = _generator("cpu", self._seed, 2 * epoch)
            order = torch.randperm(len(text.tokens), generator=drawn)
            # Sent once an epoch: a step waits for nothing.
            self._order = epoch, order.to(text.hidden.device)
        chosen = self._order[1][place * self._read : (place + 1) * self._read]
        return text.part(chosen).to(self._device)

    def _of_teacher(self, step: int) -> Lesson:
        number, place = divmod(step, self._steps_a_lot)
        if self._lot is None or self._lot[0] != number:
            self._lot = None  # room for the next
            count = self._steps_a_lot * self._own
            lot = written(self._teacher, self._first, count, self._length, self._seed, number + 1)
            self._lot = number, lot
        part = slice(place * self._own, (place + 1) * self._own)
        return self._lot[1].part(part)
