"""What is put on a device. A target is a writer of bundles here and a line in ``TARGETS``."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS: dict[str, str] = {
    "ort": "ONNX Runtime on a CPU: fused operators, exact integers, opset 21 (1.19 and later)",
    "ort-cuda": "ONNX Runtime on an NVIDIA GPU: float16, int8 by int8 for w8a8 and w4a8",
    "trt": "TensorRT engines: float16, symmetric Q/DQ, opset 19 (10.3 and later; 17 for 8.5)",
    "torch": "torch on an NVIDIA GPU or a CPU: float16, integers as they are, CUDA graphs",
}
# How activations are rounded for TensorRT: by token as it runs, or by a calibrated scale.
ACTIVATION_MODES = ("pertoken", "static")


@dataclass(frozen=True)
class Wanted:
    """What a bundle is for.

    target: one of ``TARGETS``. runtime: of ``limits.RUNTIMES[target]``, ``None``: what
    ``limits.needed_runtime`` says. activation_mode: of ``ACTIVATION_MODES``, for TensorRT alone;
    ``None``: the scheme's.
    """

    target: str = "ort"
    runtime: str | None = None
    activation_mode: str | None = None


ON_ONNXRUNTIME = Wanted()
