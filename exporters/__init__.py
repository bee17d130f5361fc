"""What is put on a device. A target is a module here and a line in ``TARGETS``."""

TARGETS: dict[str, str] = {
    "ort": "ONNX Runtime on a CPU: fused operators, exact integers, opset 21 (1.19 and later)",
    "ort-cuda": "ONNX Runtime on an NVIDIA GPU: float16, int8 by int8 for w8a8 and w4a8",
}
