"""Values that come from a device to the host: all of a method's pass through here.

Reading a value waits until the device has done all that was asked of it before, and leaves it idle
until it is asked again. So what a step finds (its loss, whether that is a number) stays where it is
and is read for many steps together; a method may read once a block, an epoch, or ``STEPS`` steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Steps between two readings on a GPU: what a diverging run computes in vain, at most.
STEPS = 32


def numbers(*values: Tensor) -> list[float]:
    """All values of tensors of any shape and of one device, in order, by one copy; exact."""
    flat: list[float] = torch.cat([v.detach().flatten().to(torch.float64) for v in values]).tolist()
    return flat


def steps_between(device: torch.device) -> int:
    """After how many steps to read: on a CPU nothing is gained by waiting."""
    return 1 if device.type == "cpu" else STEPS


class Losses:
    """The losses of steps on one device, read together."""

    def __init__(self, device: torch.device) -> None:
        self.read: list[float] = []
        self._every = steps_between(device)
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor, last: bool = False) -> bool:
        """One more, of shape []; whether all of them have been read now, as at the ``last``."""
        self._waiting.append(loss.detach())
        if not last and len(self._waiting) < self._every:
            return False
        self.read += numbers(*self._waiting)
        self._waiting.clear()
        return True

    @property
    def failed(self) -> int | None:
        """The first step, from 0, whose loss was read and is no number."""
        return next((i for i, loss in enumerate(self.read) if not math.isfinite(loss)), None)
