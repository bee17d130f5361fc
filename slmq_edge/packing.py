"""Two 4-bit integers a byte, as they lie on disk.

The flattened values are cut into halves: byte i holds value i in its low nibble and value
i + half in its high one, so that unpacking is two elementwise operations and one concatenation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack4(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack values 0..15 (any shape, n of them) into ceil(n / 2) bytes."""
    flat = values.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    low, high = np.split(flat, 2)
    return (low | (high << 4)).astype(np.uint8)


def unpack4(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Undo ``pack4``: values 0..15 in ``shape``."""
    flat = np.concatenate([packed & 0x0F, packed >> 4])
    return flat[: int(np.prod(shape))].reshape(shape)
