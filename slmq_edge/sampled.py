"""The most memory that was seen in use on a GPU, by this process and by all.

NVML knows what is held now and no peak. So a thread of its own asks at a fixed cadence, and whoever
starts or ends a stage asks once more; what comes and goes between two readings is not seen. What a
process holds there is torch's reserved memory and the CUDA context, and changes rarely.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

SECONDS = 0.1
PROCESS, BOARD = "gpu_process_peak_sampled", "gpu_board_peak_sampled"
KINDS = {"gpu_process": PROCESS, "gpu_board": BOARD}

# Bytes now, by the names of ``KINDS``; None where it is not told. May not raise.
Look = Callable[[], Mapping[str, int | None]]


class Sampled:
    """From its making to ``close``, the most that ``look`` has told, each kind for itself."""

    def __init__(self, look: Look, every: float = SECONDS) -> None:
        self._look, self._every = look, every
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._most: dict[str, int | None] = dict.fromkeys(KINDS)
        self.readings = 0
        self.before = dict(self.look())
        self._thread = threading.Thread(target=self._run, name="memory of the GPU", daemon=True)
        self._thread.start()

    def look(self) -> Mapping[str, int | None]:
        """Read once more, now."""
        now = self._look()
        with self._lock:
            self.readings += 1
            for kind in KINDS:
                known = [held for held in (self._most[kind], now.get(kind)) if held is not None]
                self._most[kind] = max(known, default=None)
        return now

    def peaks(self) -> dict[str, int | None]:
        """Bytes by kind, None where nothing was ever told."""
        with self._lock:
            return {name: self._most[kind] for kind, name in KINDS.items()}

    def as_json(self) -> dict[str, Any]:
        """How the peaks were come by; before: what was held when it began, by others too."""
        return {"every_seconds": self._every, "readings": self.readings, "before": self.before}

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self.look()
