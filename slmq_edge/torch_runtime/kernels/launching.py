"""How a kernel is launched: one way for all, which tests replace to compile without a GPU."""

from __future__ import annotations

import subprocess
from typing import Any

import torch
from triton.errors import TritonError

from slmq_edge.errors import SlmqError

# A driver's refusal, a kernel too large for a GPU, no C compiler, or one without Python's headers.
REFUSALS = (RuntimeError, TritonError, subprocess.SubprocessError, OSError, ImportError)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """Run ``kernel`` on the device of its first tensor.

    Products and sums are rounded one after the other, as torch's operators do: nothing is fused.

    Raises:
        SlmqError: Triton cannot compile or launch it here.
    """
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _run(kernel, grid, arguments, settings)
    else:
        _run(kernel, grid, arguments, settings)


def _run(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], settings: dict[str, Any]
) -> None:
    try:
        kernel[grid](*arguments, **settings, enable_fp_fusion=False)
    except REFUSALS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SlmqError(
            f"Triton cannot run {kernel.__name__} on this GPU: {reason}; at its first launch it "
            "needs a C compiler and Python's headers (apt-get install gcc python3-dev)"
        ) from error
