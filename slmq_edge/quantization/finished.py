"""Blocks that are finished, kept beside the output so that a killed run goes on behind the last.

A folder holds ``task.json``, which says whose blocks these are, and one safetensors file for each
finished block, written whole or not at all. Blocks of any other task (another model, text, setting,
library version or number of threads) are thrown away: going on from them would give a checkpoint
that no single run gives.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from slmq_edge.files import disk_errors

IDENTITY = "task.json"
SUFFIX = ".safetensors"
BLOCKS = f"*-[0-9]*{SUFFIX}"
# As safetensors files call them.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Finished:
    """The finished blocks of one task, in ``folder``.

    identity: everything that the blocks depend on, as JSON.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        ours = json.dumps({**identity, **environment()}, indent=1, sort_keys=True, default=str)
        file = folder / IDENTITY
        if not file.is_file() or file.read_text(encoding="utf-8") != ours:
            self.remove()
            with disk_errors(folder):
                folder.mkdir(parents=True)
                file.write_text(ours, encoding="utf-8")

    @property
    def count(self) -> int:
        """How many blocks there are to go on from."""
        return len(list(self._folder.glob(BLOCKS)))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what else there is: rotations that were learned, a ranking of linears."""
        files = {*self._folder.glob(f"*{SUFFIX}")} - {*self._folder.glob(BLOCKS)}
        return tuple(sorted(file.name.removesuffix(SUFFIX) for file in files))

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was kept by this name; ``None`` where it is still to be done, or is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._folder / f"{name}{SUFFIX}"
        if not file.is_file():
            return None
        try:
            found: dict[str, Tensor] = load_file(file)
        except SafetensorError:
            file.unlink()
            return None
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what is finished, all of it or nothing; a block's name ends in its number."""
        scratch = self._folder / f".{name}"
        with disk_errors(self._folder):
            with scratch.open("wb") as handle:
                _write(handle, tensors)
                handle.flush()
                os.fsync(handle.fileno())
            scratch.replace(self._folder / f"{name}{SUFFIX}")

    def remove(self) -> None:
        """Forget all blocks: the run has ended, or was another one's."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _write(handle: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, tensor by tensor.

    The library's ``save`` holds all of it twice beside the tensors, which of a student is more than
    the model; its ``save_file`` has errors that are no OSErrors.
    """
    # Wide types first: each then begins where its kind may.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header, at = {}, 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        offsets, kind = [at, end], DTYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    handle.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        handle.write(flat.view(torch.uint8).numpy().data)


def environment() -> dict[str, Any]:
    """What makes equal arithmetic give equal bits."""
    from slmq_edge.runner.environment import capture

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": capture()["cpu_model"],
        "cuda": cuda,
    }
