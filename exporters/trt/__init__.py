"""A decoder for TensorRT: standard operators, symmetric Q/DQ (TENSORRT 5.1)."""
