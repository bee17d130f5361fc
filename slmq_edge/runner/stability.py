"""Were the last repetitions like the first? If not, the machine warmed up or was disturbed.

Drift is the median of the last third over the median of the first, and it is believed only where
it is large and the two thirds do not overlap: with three values each, noise alone does that to one
series in ten, and makes few of those large.
"""

from __future__ import annotations

import statistics
from typing import Sequence

FEWEST = 6  # repetitions: two in a third
LARGE = 0.05


def drift(values: Sequence[float]) -> float | None:
    """Last third over first, less 1. None where they cannot be told apart, or are too few.

    Example:
        ``drift([1.0, 1.01, 1.0, 1.1, 1.2, 1.21])`` is 0.2.
    """
    third = len(values) // 3
    if len(values) < FEWEST:
        return None
    first, last = values[:third], values[-third:]
    apart = min(last) > max(first) or max(last) < min(first)
    change = statistics.median(last) / statistics.median(first) - 1
    return change if apart and abs(change) > LARGE else None
