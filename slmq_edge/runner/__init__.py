"""The part that runs ON the device: Python 3.8, stdlib, numpy and onnxruntime only."""
