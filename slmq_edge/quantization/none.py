"""Round to nearest, with nothing prepared: the honest baseline of every method."""

from __future__ import annotations

from dataclasses import dataclass

from slmq_edge.calibration import Calibration
from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Progress
from slmq_edge.scheme import Scheme

CALIBRATION = None


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def prepare(
    model: Decoder,
    calibration: Calibration | None,
    scheme: Scheme,
    settings: Settings,
    progress: Progress,
) -> Decoder:
    """The model as it is."""
    return model
