"""slmq-edge: quantize small language models, put them on edge devices, and measure what ran."""

__version__ = "0.1.0"
