"""Published on-device figures as points of a law: which rows are used, and why others are not.

What a row does not say is not made up: its weights are the GGUF file that it names, or the model's
shape at the bits of its format; its keys and values are those of the prompt that it names, float16.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slmq_edge.laws import Point

BANDWIDTH, PEAK, LAYERS, ONCE = "bandwidth_seconds", "peak_seconds", "layers", "once"
FLOAT16, MIB = 2, 1 << 20


@dataclass(frozen=True)
class Board:
    """A device as a row calls it: its sheet, and what decides speed, from the sheets' sources.

    bandwidth: bytes/s. fp16: dense FLOP/s, where a figure of the GPU alone is known.
    """

    sheet: str
    bandwidth: float
    fp16: float | None = None


# An Orin Nano reads 68 GB/s in its mode of 15 W, its highest before the Super release, and 102 GB/s
# in those above. Rows that do not say Super are taken to be the former: they are as much slower
# than the Orin NX's.
BOARDS = {
    "AGX Orin 64GB": Board("jetson-agx-orin-64gb", 204.8e9, 42.5e12),
    "Orin NX 16GB": Board("jetson-orin-nx-16gb", 102.4e9),
    "Orin Nano 8GB": Board("jetson-orin-nano-8gb", 68.256e9, 10e12),
    "Orin Nano 8GB (original)": Board("jetson-orin-nano-8gb", 68.256e9, 10e12),
    "Orin Nano 8GB Super": Board("jetson-orin-nano-8gb", 102.4e9, 17e12),
    "Orin Nano 8GB Super devkit": Board("jetson-orin-nano-8gb", 102.4e9, 17e12),
    "AGX Thor": Board("jetson-agx-thor", 273e9, 258.8e12),
}


@dataclass(frozen=True)
class Shape:
    """Of a decoder, from its config.json. attending: layers with keys and values, if not all.

    window: positions that all but ``attending`` layers see. twice: bits a weight of a second copy
    of the table in the GGUF file, which is looked up and not multiplied.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    attending: int | None = None
    window: int = 0
    twice: float = 0.0

    @property
    def linears(self) -> int:
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    def kv_bytes(self, depth: float) -> float:
        """Of all layers at so many positions."""
        full = self.layers if self.attending is None else self.attending
        seen = full * depth + (self.layers - full) * min(self.window, depth)
        return 2 * self.kv_heads * self.head_dim * FLOAT16 * seen


# Qwen2.5-0.5B's file holds 93 MB more than its tied weights: rows of 896 are not made of blocks of
# 256, so Q4_K_M falls back to Q5_0 (5.5 bits) for the table, and the head is a tensor of its own.
SHAPES = {
    "SmolLM2-135M": Shape(576, 1536, 30, 9, 3, 64, 49152),
    "SmolLM2-360M": Shape(960, 2560, 32, 15, 5, 64, 49152),
    "Qwen2.5-0.5B": Shape(896, 4864, 24, 14, 2, 64, 151936, twice=5.5),
    "Qwen3-0.6B": Shape(1024, 3072, 28, 16, 8, 128, 151936),
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151936),
    "Qwen3-4B": Shape(2560, 9728, 36, 32, 8, 128, 151936),
    "Qwen3-4B-VL": Shape(2560, 9728, 36, 32, 8, 128, 151936),
    "Qwen2.5-3B-VL": Shape(2048, 11008, 36, 16, 2, 128, 151936),
    "Qwen2.5-7B": Shape(3584, 18944, 28, 28, 4, 128, 152064),
    "LFM2.5-350M": Shape(1024, 4608, 16, 16, 8, 64, 65536, attending=6),
    "LFM2.5-1.2B": Shape(2048, 8192, 16, 32, 8, 64, 65536, attending=6),
    "Llama3.2-1B": Shape(2048, 8192, 16, 32, 8, 64, 128256),
    "Llama-3.2-3B": Shape(3072, 8192, 28, 24, 8, 128, 128256),
    "Llama-3.1-8B": Shape(4096, 14336, 32, 32, 8, 128, 128256),
    "Llama-2-7B": Shape(4096, 11008, 32, 32, 32, 128, 32000),
    "Gemma3-1B": Shape(1152, 6912, 26, 4, 1, 256, 262144, attending=4, window=512),
    "Gemma-2-2B": Shape(2304, 9216, 26, 8, 4, 256, 256000),
    "Phi-3.5 (3B)": Shape(3072, 8192, 32, 32, 32, 96, 32064),
}
# Bits a weight, of linears and of head: 4 and a float16 scale for each 128, 32 or (float8) 16.
FORMATS = {
    ("TensorRT", "INT4 AWQ"): (4.125, 16.0),
    ("TensorRT", "NVFP4"): (4.5, 16.0),
    ("TensorRT", "W4A16"): (4.125, 16.0),
    ("TensorRT", "W8A16"): (8.0, 16.0),
    ("TensorRT", "W16A16"): (16.0, 16.0),
    ("MLC", "INT4"): (4.5, 4.5),
    ("MLC", "q4f16"): (4.5, 4.5),
}


@dataclass(frozen=True)
class Family:
    """Rows of one runtime on boards of one kind, in the words of the table.

    targets: of bundles that it stands in for. others: sheets of the same GPU that no row is of.
    """

    runtime: str
    boards: tuple[str, ...]
    title: str
    targets: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


NANO = ("Orin Nano 8GB Super devkit",)
FAMILIES = {
    "tensorrt-edge-llm-orin": Family(
        r"TensorRT Edge-LLM",
        ("AGX Orin 64GB", "Orin NX 16GB", "Orin Nano 8GB"),
        "TensorRT Edge-LLM on Jetson Orin",
        ("trt",),
        ("jetson-orin-nano-4gb", "jetson-orin-nx-8gb", "jetson-agx-orin-32gb"),
    ),
    "tensorrt-edge-llm-thor": Family(
        r"TensorRT Edge-LLM",
        ("AGX Thor",),
        "TensorRT Edge-LLM on Jetson Thor",
        ("trt",),
        ("jetson-t4000",),
    ),
    "llama.cpp-cuda-orin-nano": Family(
        r"llama\.cpp b\d+ CUDA", NANO, "llama.cpp (CUDA) on a Jetson Orin Nano"
    ),
    "ollama-orin-nano": Family(r"Ollama", NANO, "Ollama on a Jetson Orin Nano"),
    "mlc-orin": Family(
        r"MLC$",
        ("Orin Nano 8GB (original)", "Orin Nano 8GB Super", "AGX Orin 64GB"),
        "MLC on Jetson Orin",
        others=("jetson-orin-nx-16gb", "jetson-orin-nx-8gb", "jetson-agx-orin-32gb"),
    ),
}


@dataclass(frozen=True)
class Row:
    """A usable row: its family, and its points, of decode and perhaps of prefill."""

    family: str
    source: str
    decode: Point
    prefill: Point | None
    lengths: bool


def read(path: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """Rows that can be used, and for each of the others what it is and why not."""
    used, unused = [], []
    with path.open(encoding="utf-8", newline="") as handle:
        for line in csv.DictReader(handle):
            found = _row(line)
            if isinstance(found, str):
                name = ", ".join(line[key] for key in ("device", "runtime", "model"))
                unused.append((name, found))
            else:
                used.append(found)
    return used, unused


def _row(line: dict[str, str]) -> Row | str:
    family = _family(line)
    if family is None:
        return "its runtime has too few models on boards of this kind"
    if line["model"] not in SHAPES:
        return "the model's shape is not known, or not that of a plain decoder"
    if "regression" in line["trust"]:
        return "its publisher calls it a regression"
    if family.startswith("ollama") and line["model"].startswith("LFM"):
        return "2 to 5 times slower than llama.cpp with the same file and board: another graph"
    shape, board = SHAPES[line["model"]], BOARDS[line["device"]]
    weights = _weights(line, shape)
    if weights is None:
        return "its format is not known"
    prompt = re.match(r"~?(\d+)", line["prompt_tokens"])
    tokens = int(prompt.group(1)) if prompt else 0
    new = re.fullmatch(r"\d+", line["gen_tokens"])
    kv = shape.kv_bytes(tokens + (int(new.group()) if new else 0) / 2)
    mode = _mode(line["power_mode"]) if board.sheet == "jetson-orin-nano-8gb" else ""
    mode = "" if "inferred" in line["power_mode"] or family == "mlc-orin" else mode

    def point(seconds: float, features: dict[str, float]) -> Point:
        whole = {**features, LAYERS: float(shape.layers), ONCE: 1.0}
        return Point(whole, seconds, line["model"], line["device"], mode)

    decode = point(1 / float(line["decode_tok_s"]), {BANDWIDTH: (weights + kv) / board.bandwidth})
    prefill = None
    if tokens and line["prefill_tok_s"] and board.fp16 and family.startswith("tensorrt"):
        macs = shape.linears * tokens + shape.head
        prefill = point(tokens / float(line["prefill_tok_s"]), {PEAK: 2 * macs / board.fp16})
    return Row(family, line["source"], decode, prefill, bool(tokens))


def _family(line: dict[str, str]) -> str | None:
    for name, family in FAMILIES.items():
        if re.match(family.runtime, line["runtime"]) and line["device"] in family.boards:
            return name
    return None


def _weights(line: dict[str, str], shape: Shape) -> float | None:
    """Bytes of weights that a decoded token reads."""
    if line["memory_kind"].startswith("GGUF"):
        return float(line["memory_mb"]) * MIB - shape.head * shape.twice / 8
    runtime = line["runtime"].split()[0]
    if (runtime, line["quantization"]) not in FORMATS:
        return None
    bits, head = FORMATS[runtime, line["quantization"]]
    return (shape.linears * bits + shape.head * head) / 8


def _mode(text: str) -> str:
    """``25W (id 1)`` as ``25W``."""
    found = re.match(r"(\d+W|MAXN\w*)", text)
    return found.group(1) if found else ""


def of_model(point: Point) -> str:
    return point.model


def of_device(point: Point) -> str:
    return point.device


KEYS: dict[str, Callable[[Point], str]] = {"model": of_model, "device": of_device}
