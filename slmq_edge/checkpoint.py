"""Checkpoint: a quantized model on disk.

weights.safetensors   NAME.weight integers (int8 [out, in], or 4-bit packed uint8), NAME.scale
                      float32 [out]; everything that stays float as float32
checkpoint.json       format, version, anatomy, scheme, method and its settings, calibration,
                      source, cost, and the sha256 of every file
tokenizer.json ...    as the source had them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import __version__
from slmq_edge import anatomy as names
from slmq_edge.anatomy import Anatomy
from slmq_edge.errors import Damaged
from slmq_edge.files import CHECKPOINT_FILE, describe, new_folder
from slmq_edge.models import TOKENIZER_FILES, check_tensors, load_tensors
from slmq_edge.packing import pack4, unpack4
from slmq_edge.runner.manifest import read_manifest, verify
from slmq_edge.scheme import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from slmq_edge.decoder import Decoder

FORMAT = "slmq-edge-checkpoint"
VERSION = 1
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
PROMPTS = "golden.prompts"
ROTATIONS = (f"{names.EMBED_ROTATION}.weight", f"{names.HEAD_ROTATION}.weight")


@dataclass(frozen=True)
class IntegerWeight:
    """integers int8 [out, in] within the grid, scale float32 [out]: weight = integers * scale."""

    integers: Tensor
    scale: Tensor
    grid: Grid

    @property
    def dequantized(self) -> Tensor:
        """float32 [out, in]."""
        return self.integers.to(self.scale.dtype) * self.scale[:, None]


@dataclass(frozen=True)
class Checkpoint:
    """A quantized model in memory.

    integers: full name of linear (or of the tied table) -> its integer weight. tensors: all that
    stays float32, by tensor name. extras: files that travel along unchanged, by name. prompts:
    int64 [windows, length] of the calibration text, for golden prompts.
    """

    anatomy: Anatomy
    scheme: Scheme
    integers: dict[str, IntegerWeight]
    tensors: dict[str, Tensor]
    method: str
    settings: dict[str, Any]
    source: dict[str, Any]
    calibration: dict[str, Any] | None
    cost: dict[str, Any]
    extras: dict[str, bytes]
    prompts: Tensor | None = None

    def integer_weight(self, linear: str) -> IntegerWeight | None:
        """The integers a linear multiplies by, or ``None`` where it multiplies floats."""
        if linear == names.HEAD and self.anatomy.tied:
            return self.integers.get(names.EMBED)
        return self.integers.get(linear)


def round_weights(
    model: Decoder, scheme: Scheme
) -> tuple[dict[str, IntegerWeight], dict[str, Tensor]]:
    """Round a prepared model to nearest: its integer weights, and the tensors that stay float32."""
    import torch

    from slmq_edge.quantization.rounding import quantize

    grids: dict[str, Grid | None] = dict.fromkeys(model.anatomy.linears(), scheme.weights)
    grids[names.EMBED if model.anatomy.tied else names.HEAD] = scheme.head
    integers: dict[str, IntegerWeight] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.weights.items():
        value = tensor.detach().to("cpu", torch.float32)
        linear, _, kind = name.rpartition(".")
        grid = grids.get(linear) if kind == "weight" else None
        if grid is None:
            tensors[name] = value.contiguous()
        else:
            rounded, scale = quantize(value, grid)
            integers[linear] = IntegerWeight(rounded.to(torch.int8), scale[:, 0], grid)
    return integers, tensors


def save(checkpoint: Checkpoint, path: Path, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint folder, the whole of it or nothing, and return its manifest."""
    from safetensors import torch as safetensors

    with new_folder(path, force) as folder:
        for name, content in checkpoint.extras.items():
            (folder / name).write_bytes(content)
        # Not save_file: its errors, a full disk among them, are no OSErrors.
        (folder / WEIGHTS).write_bytes(safetensors.save(dict(_stored(checkpoint))))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "created_by": f"slmq-edge {__version__}",
            "anatomy": checkpoint.anatomy.as_json(),
            "scheme": checkpoint.scheme.as_json(),
            "integers": {
                name: {"bits": weight.grid.bits, "shape": list(weight.integers.shape)}
                for name, weight in checkpoint.integers.items()
            },
            "method": checkpoint.method,
            "settings": checkpoint.settings,
            "source": checkpoint.source,
            "calibration": checkpoint.calibration,
            "cost": checkpoint.cost,
            "files": describe(folder),
        }
        (folder / CHECKPOINT_FILE).write_text(
            json.dumps(manifest, indent=1) + "\n", encoding="utf-8"
        )
    return manifest


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, every file checked against its sha256.

    Raises:
        NotFound, Damaged: not a checkpoint; a file missing, truncated or changed, by name.
    """
    manifest = read_manifest(folder, CHECKPOINT_FILE, FORMAT, VERSION)
    try:
        if WEIGHTS not in manifest["files"]:
            raise KeyError(WEIGHTS)
        verify(folder, manifest["files"])
        return _assembled(folder, manifest, load_tensors(folder / WEIGHTS))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(
            f"{folder / CHECKPOINT_FILE} does not describe a checkpoint: {error}"
        ) from error


def _assembled(folder: Path, manifest: Mapping[str, Any], stored: dict[str, Tensor]) -> Checkpoint:
    """The checkpoint that a manifest describes, every tensor's name and shape checked."""
    shape = Anatomy.from_json(manifest["anatomy"])
    prompts = stored.pop(PROMPTS, None)
    integers = {
        name: _integer_weight(stored, name, **entry) for name, entry in manifest["integers"].items()
    }
    taken = {f"{name}.{kind}" for name in integers for kind in ("weight", "scale")}
    tensors = {name: t for name, t in stored.items() if name not in taken}
    found = {f"{name}.weight": tuple(w.integers.shape) for name, w in integers.items()}
    found |= {name: tuple(t.shape) for name, t in tensors.items() if name not in ROTATIONS}
    check_tensors(found, shape, folder / WEIGHTS)
    cost = manifest["cost"]
    if not isinstance(cost, dict) or not {"seconds", "memory", "device"} <= set(cost):
        raise ValueError("its cost lacks seconds, memory or device")
    return Checkpoint(
        anatomy=shape,
        scheme=Scheme.from_json(manifest["scheme"]),
        integers=integers,
        tensors=tensors,
        extras={
            name: (folder / name).read_bytes()
            for name in (CONFIG, *TOKENIZER_FILES)
            if name in manifest["files"]
        },
        prompts=prompts,
        **{key: manifest[key] for key in _PLAIN},
    )


_PLAIN = ("method", "settings", "source", "calibration", "cost")


def is_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINT_FILE).is_file()


def extras_of(folder: Path) -> dict[str, bytes]:
    """The config and tokenizer files of a model folder."""
    found = (folder / name for name in (CONFIG, *TOKENIZER_FILES))
    return {file.name: file.read_bytes() for file in found if file.is_file()}


def _stored(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    import torch

    stored = dict(checkpoint.tensors)
    if checkpoint.prompts is not None:
        stored[PROMPTS] = checkpoint.prompts.contiguous()
    for name, weight in checkpoint.integers.items():
        values = weight.integers
        if weight.grid.bits == 4:
            nibbles = (values.numpy() + 8).astype("uint8")
            values = torch.from_numpy(pack4(nibbles))
        stored[f"{name}.weight"] = values.contiguous()
        stored[f"{name}.scale"] = weight.scale.contiguous()
    return stored


def _integer_weight(
    stored: Mapping[str, Tensor], name: str, bits: int, shape: list[int]
) -> IntegerWeight:
    import torch

    values, scale = stored[f"{name}.weight"], stored[f"{name}.scale"]
    if scale.shape != (shape[0],):
        raise ValueError(f"{name}.scale has shape {tuple(scale.shape)}")
    if bits == 4:
        nibbles = unpack4(values.numpy(), tuple(shape))
        values = torch.from_numpy(nibbles.astype("int8") - 8)
    return IntegerWeight(values, scale, Grid(bits, "channel"))
