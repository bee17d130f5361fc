"""Round to nearest, with nothing prepared: the honest baseline of every method."""

from __future__ import annotations

from dataclasses import dataclass

from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Prepared, Task

CALIBRATION = None


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def prepare(model: Decoder, task: Task) -> Prepared:
    """The model as it is."""
    return Prepared(model)
