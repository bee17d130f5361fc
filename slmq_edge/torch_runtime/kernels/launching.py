"""How a kernel is launched: one way for all, which tests replace to compile without a GPU."""

from __future__ import annotations

from typing import Any

import torch


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """Run ``kernel`` on the device of its first tensor.

    Products and sums are rounded one after the other, as torch's operators do: nothing is fused.
    """
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **settings, enable_fp_fusion=False)
    else:
        kernel[grid](*arguments, **settings, enable_fp_fusion=False)
