"""Which tensors of two bundles differ: of graphs by name, of golden prompts by array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from slmq_edge.runner import golden


def differing(then: Path, now: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield ``file: tensor`` of every tensor that is not the same, to the bit, in both folders.

    names: files of both bundles; those that hold no tensors of their own are passed over.
    """
    wanted = {one.removesuffix(".data") for one in names}
    for name in sorted(wanted, key=lambda name: (not _is_graph(name), name)):
        read = _arrays if name.endswith(".npz") else _initializers if _is_graph(name) else None
        if read is None or not ((then / name).is_file() and (now / name).is_file()):
            continue
        before, after = read(then / name), read(now / name)
        for tensor in sorted({*before, *after}):
            if before.get(tensor) != after.get(tensor):
                yield f"{name}: {tensor}"


def _is_graph(name: str) -> bool:
    return name.endswith(".onnx")


def _initializers(file: Path) -> Mapping[str, str]:
    import onnx_ir

    found = onnx_ir.load(file).graph.initializers
    return {
        name: hashlib.sha256(value.const_value.tobytes()).hexdigest()
        for name, value in found.items()
        if value.const_value is not None
    }


def _arrays(file: Path) -> Mapping[str, str]:
    return {
        name: hashlib.sha256(array.tobytes()).hexdigest()
        for name, array in golden.load(file).items()
    }
