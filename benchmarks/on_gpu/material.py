"""What a machine without network must be given: the same files, by the same names, as ../shared.

Weights are not among them: they are drawn there, since neither speed nor the cost of quantizing
depends on their values. Token ids are made there too, by the tokenizers, of the texts.

    python -m benchmarks.on_gpu.material FOLDER SHAPE [--toy]     draws a model into models/SHAPE
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmq_edge import builtin
from slmq_edge.errors import Damaged, NotFound
from slmq_edge.runner.manifest import sha256

# Shape -> its tokenizer; the paper's two models.
SHAPES = {"SmolLM-135M": "smollm2", "Qwen2.5-0.5B": "qwen2.5"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
VALID, TEST = "data/wikitext2/wiki.valid.raw", "data/wikitext2/wiki.test.raw"
MANIFEST = "material.json"
MOST_BYTES = 20_000_000
# Of a toy: what takes seconds on a CPU, with the built-in tokenizer's few words.
TOY = {
    "vocab_size": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_window_layers": 2,
}


def files(shapes: Mapping[str, str] = SHAPES) -> list[str]:
    """Paths below the folder of all that is needed."""
    configs = [f"configs/{shape}/config.json" for shape in shapes]
    words = [f"tokenizers/{name}/{file}" for name in shapes.values() for file in TOKENIZER]
    return [*configs, *words, VALID, TEST]


def pack(shared: Path, folder: Path) -> int:
    """Copy what is needed from ``shared`` to ``folder``, and say in it what it is; its bytes.

    Raises:
        NotFound: a file is missing there. ValueError: it is more than can be carried.
    """
    check(shared)
    for name in files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / name, target)
    total = sum((folder / name).stat().st_size for name in files())
    if total > MOST_BYTES:
        raise ValueError(f"{folder} has {total} bytes: at most {MOST_BYTES} can be carried")
    sums = {name: sha256(folder / name) for name in files()}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return total


def check(folder: Path, shapes: Mapping[str, str] = SHAPES) -> None:
    """Refuse, before anything starts, a folder that lacks a file or has a damaged one.

    Raises:
        NotFound, Damaged: names the first.
    """
    for name in files(shapes):
        if not (folder / name).is_file():
            raise NotFound(
                f"{folder} lacks {name}: python -m benchmarks.gpu --pack FOLDER makes one that has "
                "all, of ../shared"
            )
    if not (folder / MANIFEST).is_file():
        return
    sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in files(shapes):
        if sums.get(name) != sha256(folder / name):
            raise Damaged(f"{folder / name} is not what was packed: pack it again")


def digest(folder: Path, shapes: Mapping[str, str] = SHAPES) -> str:
    """Of all files together."""
    sums = "".join(sha256(folder / name) for name in files(shapes))
    return hashlib.sha256(sums.encode()).hexdigest()


def write_calibration(folder: Path, target: Path) -> None:
    """WikiText-2's validation and test text: the released codes' 128 x 2048 tokens need both."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in (VALID, TEST)]
    target.write_text("".join(texts), encoding="utf-8")


def draw(folder: Path, shape: str, target: Path, toy: bool = False) -> None:
    """A Hugging Face folder of the shape, at ``target``, whole or not there."""
    from benchmarks.cpu_w8a8 import random_model

    scratch = target.with_name(f".{target.name}.drawing")
    shutil.rmtree(scratch, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    changes: Mapping[str, Any] = TOY if toy else {}
    random_model(folder, shape, SHAPES[shape], scratch, changes=changes)
    if toy:
        for name in TOKENIZER:
            shutil.copyfile(builtin.folder(builtin.MODELS[0]) / name, scratch / name)
    shutil.rmtree(target, ignore_errors=True)
    scratch.replace(target)


def main(words: list[str]) -> None:
    folder, shape = words[:2]
    draw(Path(folder), shape, Path("models") / shape, toy="--toy" in words)


if __name__ == "__main__":
    main(sys.argv[1:])
