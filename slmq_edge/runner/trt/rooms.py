"""Rooms: the memory of keys and values, twice, as a step may not write what it reads.

A room holds so many positions of every layer. Of the two sets of rooms a step reads one, the side
that the cache is on, and writes the other, with all that was in it and the new positions.
"""

from __future__ import annotations

import math

import numpy as np

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.runner.trt.cuda import Cuda, Memory
from slmq_edge.runner.trt.recipe import ROOM, Port, Recipe

PAST, PRESENT = "past_key_values.", "present."
ALIGNMENT = 256  # what TensorRT asks of addresses
BUCKET = 64  # positions; rooms of few sizes are shapes, and CUDA graphs, that come again
PURPOSE = "keys and values"


class Rooms:
    """Two sets for ``positions`` each, all zeros: TensorRT multiplies what it does not look at."""

    def __init__(self, cuda: Cuda, memory: Memory, recipe: Recipe, stream: int, positions: int):
        self._cuda, self._memory, self.positions = cuda, memory, positions
        self._ports = [port for port in recipe.inputs if port.name.startswith(PAST)]
        names = {port.name for port in recipe.outputs}
        missing = [port.name for port in self._ports if _present(port.name) not in names]
        if missing or not self._ports:
            raise Damaged(f"the recipe has no present of {missing or 'any past'}")
        self._strides = [-(-self._bytes(port) // ALIGNMENT) * ALIGNMENT for port in self._ports]
        count = sum(self._strides)
        self._sides = [memory.take("kv", count, PURPOSE)]
        try:
            self._sides.append(memory.take("kv", count, PURPOSE))
        except SlmqError:
            self.free()
            raise
        for side in self._sides:
            cuda.zero(side, count, stream)

    def free(self) -> None:
        for address in self._sides:
            self._memory.give_back(address)
        self._sides = []

    def addresses(self, side: int) -> dict[str, int]:
        """Of all pasts on a side, and of the presents on the other."""
        found = {}
        past, present = self._sides[side], self._sides[1 - side]
        for port, stride in zip(self._ports, self._strides):
            found[port.name], found[_present(port.name)] = past, present
            past, present = past + stride, present + stride
        return found

    def copy_from(self, other: Rooms, side: int, length: int, stream: int) -> None:
        """Take the first ``length`` positions of another pair's side, to the same side."""
        ours, theirs = self.addresses(side), other.addresses(side)
        for port in self._ports:
            rows, width = _rows(port), _width(port)
            self._cuda.copy_rows(
                (ours[port.name], self.positions * width),
                (theirs[port.name], other.positions * width),
                length * width,
                rows,
                stream,
            )

    def _bytes(self, port: Port) -> int:
        return _rows(port) * self.positions * _width(port)


def bucket(positions: int, most: int) -> int:
    """The size of rooms for so many positions, at most what the engine takes."""
    return min(-(-positions // BUCKET) * BUCKET, most)


def _present(name: str) -> str:
    return name.replace(PAST, PRESENT)


def _rows(port: Port) -> int:
    """Heads: what lies before the room."""
    heads: int = math.prod(port.shape[: port.shape.index(ROOM)])
    return heads


def _width(port: Port) -> int:
    """Bytes of one position of one head."""
    elements: int = math.prod(port.shape[port.shape.index(ROOM) + 1 :])
    return elements * np.dtype(port.dtype).itemsize
