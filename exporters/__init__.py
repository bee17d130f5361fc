"""What is put on a device. A target is a module here and a line in ``TARGETS``."""

TARGETS: dict[str, str] = {
    "ort": "ONNX Runtime on a CPU: fused operators, exact integers, opset 21 (1.19 and later)",
}
