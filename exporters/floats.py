"""The types of floats that an artifact may have, whatever it is written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Floats:
    """The type of an artifact's floats: of its stream, norms, attention and caches.

    name: as numpy calls it. scheme: of a model that multiplies nothing else, as schemes are named.
    """

    name: str
    scheme: str

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.name)

    @property
    def bits(self) -> int:
        return 8 * self.numpy.itemsize

    @property
    def lowest(self) -> float:
        return float(np.finfo(self.numpy).min)

    def too_large(self, name: str, largest: float) -> str:
        """What is said of a weight that holds a value which these floats do not."""
        return (
            f"{name} holds {largest:.4g}, too large for {self.name}: "
            "leave --target out, for a graph of float32"
        )


FLOAT32 = Floats("float32", "fp32")
FLOAT16 = Floats("float16", "fp16")
