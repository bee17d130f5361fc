"""Round to nearest, with nothing prepared: the honest baseline of every method."""

from __future__ import annotations

from dataclasses import dataclass

from slmq_edge.anatomy import Anatomy
from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Prepared, Task
from slmq_edge.scheme import Scheme

CALIBRATION = None


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
    """Rounding to nearest refuses nothing."""


def prepare(model: Decoder, task: Task) -> Prepared:
    """The model as it is."""
    return Prepared(model)
