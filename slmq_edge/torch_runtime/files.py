"""The payload of a bundle for torch.

torch/weights.safetensors   the tensors of a checkpoint's (`slmq_edge.checkpoint`): integers with
                            their steps as they are, what is float in the artifact's type
torch/model.json            format, version, that type, and what the tensors are of
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slmq_edge import checkpoint as checkpoints
from slmq_edge.checkpoint import PROMPTS, Checkpoint
from slmq_edge.errors import Damaged, Unsupported
from slmq_edge.exporters.floats import FLOAT16, FLOAT32, Floats
from slmq_edge.models import load_tensors
from slmq_edge.runner.manifest import TORCH_MODEL, TORCH_WEIGHTS, read_manifest

FORMAT, VERSION = "slmq-edge-torch", 1
TYPES = {one.name: one for one in (FLOAT16, FLOAT32)}


def write(checkpoint: Checkpoint, folder: Path, floats: Floats) -> dict[str, int]:
    """Write the payload to a bundle's ``folder``; return bytes by tensor.

    Raises:
        Unsupported: a float is too large for ``floats``.
    """
    from safetensors import torch as safetensors

    (folder / TORCH_WEIGHTS).parent.mkdir()
    found = checkpoints.stored(checkpoint)
    found.pop(PROMPTS, None)
    for name, tensor in checkpoint.tensors.items():
        found[name] = _as_floats(tensor, floats, name)
    # Not save_file: its errors, a full disk among them, are no OSErrors.
    (folder / TORCH_WEIGHTS).write_bytes(safetensors.save(found))
    document = {
        "format": FORMAT,
        "version": VERSION,
        "floats": floats.name,
        **checkpoints.layout(checkpoint),
    }
    (folder / TORCH_MODEL).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return {name: tensor.nbytes for name, tensor in found.items()}


def read(folder: Path, bundle: Mapping[str, Any]) -> tuple[Checkpoint, Floats]:
    """What a verified bundle runs, and the type of its floats.

    bundle: bundle.json, or what there is of it.

    Raises:
        NotFound, Damaged, Unsupported: the payload is not there, or is not what it should be.
    """
    path = folder / TORCH_MODEL
    document = read_manifest(path.parent, path.name, FORMAT, VERSION)
    try:
        floats = TYPES[document["floats"]]
        found = checkpoints.assembled(
            document,
            load_tensors(folder / TORCH_WEIGHTS),
            folder / TORCH_WEIGHTS,
            method=str(bundle.get("method")),
            settings=bundle.get("settings") or {},
            source=bundle.get("model") or {},
            calibration=bundle.get("calibration"),
            cost=bundle.get("cost") or {},
            extras={},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} does not describe {TORCH_WEIGHTS}: {error}") from error
    return found, floats


def _as_floats(tensor: Tensor, floats: Floats, name: str) -> Tensor:
    found = tensor.to(getattr(torch, floats.name)).contiguous()
    if not torch.isfinite(found).all():
        raise Unsupported(floats.too_large(name, tensor.abs().max().item()))
    return found
