"""What the contestants run, made from one folder of random weights per shape, and kept.

A thing is made under another name and renamed when it is whole, so that a run that was interrupted
leaves nothing that looks made. Ours are made again whenever our code has changed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.cpu_w8a8 import ROOT, random_model
from benchmarks.peers.contestants import Contestant, Entry
from benchmarks.peers.process import Failed, run
from slmq_edge.runner.manifest import GRAPH_FOLDER

SHAPES = {"SmolLM-135M": "smollm2", "SmolLM2-360M": "smollm2", "Qwen2.5-0.5B": "qwen2.5"}
POSITIONS = 4096  # at least so many, where the config has fewer: rotary tables must reach that far
SOURCES = ("slmq_edge", "exporters")


def base(shared: Path, shape: str, folder: Path) -> Path:
    """The folder of random weights of a shape, made if it is not there.

    Raises:
        Failed: its process did.
    """

    def make(target: Path) -> None:
        context = multiprocessing.get_context("spawn")
        arguments = (shared, shape, SHAPES[shape], target)
        process = context.Process(target=_base, args=arguments)  # torch stays out of our memory
        process.start()
        process.join()
        if process.exitcode:
            raise Failed(f"making random weights ended with exit code {process.exitcode}")

    return _made(folder / "model", "", make)


def _base(shared: Path, shape: str, tokenizer: str, target: Path) -> None:
    random_model(shared, shape, tokenizer, target)
    path = target / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["max_position_embeddings"] = max(POSITIONS, config["max_position_embeddings"])
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def artifact(entry: Entry, model: Path, calib: Path, peers: Path) -> Path:
    """What a contestant loads, beside ``model``, made if it is not there.

    Args:
        entry: the contestant.
        model: folder of random weights.
        calib: a text, from which a bundle's golden prompts are cut.
        peers: the interpreter that has gguf and onnxruntime-genai.

    Raises:
        Failed: the program that makes it did; the message is its last line.
    """
    contestant = entry.contestant

    def make(target: Path) -> None:
        run(command(contestant, model, target, calib, peers))

    stamp = digest() if contestant.runtime == "ours" else " ".join(contestant.recipe)
    suffix = ".gguf" if contestant.runtime == "llama.cpp" else ""
    return _made(model.parent / f"{contestant.name}{suffix}", stamp, make)


def command(
    contestant: Contestant, model: Path, target: Path, calib: Path, peers: Path
) -> list[str]:
    """The program that makes a contestant's file or folder."""
    ours = [sys.executable, "-m"]
    commands = {
        "ours": [*ours, "slmq_edge", "export", str(model), "--method", "none", *contestant.recipe,
                 "--calib", str(calib), "--windows", "8", "--length", "64", "-o", str(target)],
        "llama.cpp": [str(peers), "-m", "benchmarks.peers.gguf_file", str(model), str(target),
                      *contestant.recipe],
        "genai": [str(peers), "-m", "onnxruntime_genai.models.builder", "-i", str(model),
                  "-o", str(target), "-p", *contestant.recipe, "-e", "cpu",
                  "-c", str(target.parent / "cache")],
        "optimum": [*ours, "optimum.exporters.onnx", "--model", str(model),
                    "--task", "text-generation-with-past", str(target)],
    }  # fmt: skip
    return commands[contestant.runtime]


def size(path: Path) -> int:
    """Bytes of graph and weights on disk: a GGUF file, or a folder's ONNX files and their data."""
    if path.is_file():
        return path.stat().st_size
    graphs = path / GRAPH_FOLDER if (path / GRAPH_FOLDER).is_dir() else path
    return sum(file.stat().st_size for file in graphs.glob("*.onnx*"))


def digest() -> str:
    """SHA-256 over our own sources: what a bundle depends on besides the model."""
    found = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def _made(target: Path, stamp: str, make: Callable[[Path], None]) -> Path:
    """``target``, made anew unless it was made with the same ``stamp``."""
    note = target.with_name(f"{target.name}.made")
    if target.exists() and note.is_file() and note.read_text("utf-8") == stamp:
        return target
    partial = target.with_name(f"{target.name}.partial")
    for old in (target, partial):
        _remove(old)
    note.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    make(partial)
    partial.rename(target)
    note.write_text(stamp, encoding="utf-8")
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
