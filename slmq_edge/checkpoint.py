"""Checkpoint: a quantized model on disk.

weights.safetensors   NAME.weight integers (int8 [out, in], or 4-bit packed uint8), NAME.scale
                      float32 [out, groups], NAME.zero int16 likewise where the grid is asymmetric;
                      NAME.input_scale and NAME.input_zero [1] of static activations; everything
                      that stays float as float32
checkpoint.json       format, version, anatomy, scheme, method and its settings, online rotations,
                      calibration, source, cost, notes, and the sha256 of every file
recipe.toml           the same choices as words of the command line: --config makes it again
tokenizer.json ...    as the source had them, its licence texts too
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import __version__, licenses
from slmq_edge import anatomy as names
from slmq_edge.anatomy import NOTHING_ONLINE, Anatomy, Online
from slmq_edge.errors import Damaged
from slmq_edge.files import (
    CHECKPOINT_FILE,
    CHECKPOINT_FORMAT,
    CHECKPOINT_VERSION,
    MANIFESTS,
    describe,
    new_folder,
)
from slmq_edge.models import TOKENIZER_FILES, check_tensors, load_tensors
from slmq_edge.packing import pack4, unpack4
from slmq_edge.recipe import FILE as RECIPE
from slmq_edge.runner.manifest import read_manifest, verify
from slmq_edge.scheme import Grid, Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from slmq_edge.decoder import Decoder
    from slmq_edge.quantization.rounding import Rounded, Steps

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
PROMPTS = "golden.prompts"
ROTATIONS = (f"{names.EMBED_ROTATION}.weight", f"{names.HEAD_ROTATION}.weight")


@dataclass(frozen=True)
class IntegerWeight:
    """A rounded weight: (integers - zero) * scale, group by group.

    integers: int8 [out, in], levels of the grid. scale: float32 [out, groups]. zero: int16
    [out, groups], ``None`` on a symmetric grid.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor | None
    grid: Grid

    @staticmethod
    def of(rounded: Rounded, grid: Grid) -> IntegerWeight:
        """What ``rounding`` found, as it is stored."""
        import torch

        zero = rounded.steps.zero
        return IntegerWeight(
            rounded.integers.detach().to("cpu", torch.int8),
            rounded.steps.scale.detach().to("cpu", torch.float32),
            None if zero is None else zero.detach().to("cpu", torch.int16),
            grid,
        )

    def to(self, device: torch.device | str) -> IntegerWeight:
        """The same, on a device."""
        zero = None if self.zero is None else self.zero.to(device)
        there = self.integers.to(device), self.scale.to(device), zero
        return IntegerWeight(*there, self.grid)

    @property
    def centred(self) -> Tensor:
        """integers - zero, int16 [out, in]."""
        import torch

        from slmq_edge.quantization.rounding import spread

        integers = self.integers.to(torch.int16)
        return integers if self.zero is None else integers - spread(self.zero, integers, self.grid)

    @property
    def dequantized(self) -> Tensor:
        """float32 [out, in]."""
        from slmq_edge.quantization.rounding import spread

        return self.centred.to(self.scale.dtype) * spread(self.scale, self.integers, self.grid)

    def split(self, rows: int) -> Iterator[IntegerWeight]:
        """Itself in pieces of at most so many rows."""
        for start in range(0, len(self.integers), rows):
            part = slice(start, start + rows)
            zero = None if self.zero is None else self.zero[part]
            yield IntegerWeight(self.integers[part], self.scale[part], zero, self.grid)

    @property
    def row_sums(self) -> Tensor:
        """Sum over in of the weight, float32 [out]: what one unit of an input's zero point adds."""
        import torch

        centred = self.centred.to(torch.float64)
        pieces = torch.split(centred, self.grid.group or centred.shape[1], dim=1)
        sums = torch.stack([piece.sum(1) for piece in pieces], dim=1).to(self.scale.dtype)
        return (sums * self.scale).sum(1)


@dataclass(frozen=True)
class Checkpoint:
    """A quantized model in memory.

    integers: full name of linear (or of the tied table) -> its integer weight. tensors: all that
    stays float32, by tensor name. inputs: of static activations, full name of the first linear that
    reads them -> scale and zero point [1]. online: rotations left for run time. notes: what the
    method had to say, a line each. recipe: the words that make it again, ``None`` where no words
    can. extras: files that travel along unchanged, by name. prompts:
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
    online: Online = NOTHING_ONLINE
    inputs: dict[str, Steps] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None

    def integer_weight(self, linear: str) -> IntegerWeight | None:
        """The integers a linear multiplies by, or ``None`` where it multiplies floats."""
        if linear == names.HEAD and self.anatomy.tied:
            return self.integers.get(names.HEAD, self.integers.get(names.EMBED))
        return self.integers.get(linear)


def round_rest(
    model: Decoder, scheme: Scheme
) -> tuple[dict[str, IntegerWeight], dict[str, Tensor]]:
    """Round table and head to nearest where the scheme says so; all else but the linears is float.

    Returns their integers by name, and the tensors that stay float32.
    """
    import torch

    from slmq_edge.quantization.rounding import quantize

    tied = model.anatomy.tied
    grids = {names.EMBED: scheme.table(tied), names.HEAD: scheme.lm_head(tied)}
    if scheme.weights is not None:
        rounded_already = {f"{linear}.weight" for linear in model.anatomy.linears()}
    else:
        rounded_already = set()
    integers: dict[str, IntegerWeight] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.weights.items():
        if name in rounded_already:
            continue
        value = tensor.detach().to("cpu", torch.float32)
        linear, _, kind = name.rpartition(".")
        grid = grids.get(linear) if kind == "weight" else None
        if grid is None:
            tensors[name] = value.contiguous()
        else:
            integers[linear] = IntegerWeight.of(quantize(value, grid), grid)
        head = grids[names.HEAD]
        if tied and linear == names.EMBED and head is not None and head != grid:
            integers[names.HEAD] = IntegerWeight.of(quantize(value, head), head)
    return integers, tensors


def save(checkpoint: Checkpoint, path: Path, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint folder, the whole of it or nothing, and return its manifest."""
    from safetensors import torch as safetensors

    with new_folder(path, force) as folder:
        for name, content in checkpoint.extras.items():
            (folder / name).write_bytes(content)
        # Not save_file: its errors, a full disk among them, are no OSErrors.
        (folder / WEIGHTS).write_bytes(safetensors.save(dict(stored(checkpoint))))
        manifest = {
            "format": CHECKPOINT_FORMAT,
            "version": CHECKPOINT_VERSION,
            "created_by": f"slmq-edge {__version__}",
            **layout(checkpoint),
            "method": checkpoint.method,
            "settings": checkpoint.settings,
            "notes": list(checkpoint.notes),
            "recipe": checkpoint.recipe,
            "source": checkpoint.source,
            "calibration": checkpoint.calibration,
            "cost": checkpoint.cost,
            "files": describe(folder),
        }
        (folder / CHECKPOINT_FILE).write_text(
            json.dumps(manifest, indent=1) + "\n", encoding="utf-8"
        )
    return manifest


def layout(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `assembled` needs besides the tensors to make a checkpoint of them again. JSON."""
    return {
        "anatomy": checkpoint.anatomy.as_json(),
        "scheme": checkpoint.scheme.as_json(),
        "integers": {
            name: {"grid": dataclasses.asdict(weight.grid), "shape": list(weight.integers.shape)}
            for name, weight in checkpoint.integers.items()
        },
        "online": dataclasses.asdict(checkpoint.online),
        "static_inputs": list(checkpoint.inputs),
    }


def described(folder: Path) -> tuple[Anatomy, Scheme]:
    """What a checkpoint is of, by its manifest alone: in no time, whatever its size.

    Raises:
        NotFound, Damaged: not a checkpoint, or a manifest that does not describe one.
    """
    manifest = read_manifest(folder, *MANIFESTS["checkpoint"])
    try:
        return Anatomy.from_json(manifest["anatomy"]), Scheme.from_json(manifest["scheme"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _undescribed(folder, error) from error


def _undescribed(folder: Path, error: Exception) -> Damaged:
    return Damaged(f"{folder / CHECKPOINT_FILE} does not describe a checkpoint: {error}")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, every file checked against its sha256.

    Raises:
        NotFound, Damaged: not a checkpoint; a file missing, truncated or changed, by name.
    """
    manifest = read_manifest(folder, *MANIFESTS["checkpoint"])
    try:
        if WEIGHTS not in manifest["files"]:
            raise KeyError(WEIGHTS)
        verify(folder, manifest["files"])
        cost = manifest["cost"]
        if not isinstance(cost, dict) or not {"seconds", "memory", "device"} <= set(cost):
            raise ValueError("its cost lacks seconds, memory or device")
        return assembled(
            manifest,
            load_tensors(folder / WEIGHTS),
            folder / WEIGHTS,
            extras={
                name: (folder / name).read_bytes()
                for name in manifest["files"]
                if name in (CONFIG, RECIPE, *TOKENIZER_FILES) or licenses.is_text(name)
            },
            notes=tuple(manifest["notes"]),
            recipe=manifest.get("recipe"),
            **{key: manifest[key] for key in _PLAIN},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _undescribed(folder, error) from error


def assembled(
    described: Mapping[str, Any], found: Mapping[str, Tensor], file: Path, **rest: Any
) -> Checkpoint:
    """The checkpoint that a `layout` describes, every tensor's name and shape checked.

    Args:
        described: with the fields of the layout.
        found: tensors, as `stored` names them; nothing of them is copied but 4-bit integers.
        file: what they are of, for errors.
        rest: of the checkpoint's fields those that neither says.

    Raises:
        KeyError, TypeError, ValueError: a field or a tensor is missing, or is not what it should
            be. Damaged, Unsupported: see `models.check_tensors`.
    """
    shape = Anatomy.from_json(described["anatomy"])
    integers = {
        name: _integer_weight(found, name, **entry) for name, entry in described["integers"].items()
    }
    inputs = {name: _input_steps(found, name) for name in described["static_inputs"]}
    taken = {f"{name}.{kind}" for name in integers for kind in ("weight", "scale", "zero")}
    taken |= {f"{name}.{kind}" for name in inputs for kind in ("input_scale", "input_zero")}
    tensors = {name: t for name, t in found.items() if name not in taken | {PROMPTS}}
    shapes = {f"{name}.weight": tuple(w.integers.shape) for name, w in integers.items()}
    shapes |= {name: tuple(t.shape) for name, t in tensors.items() if name not in ROTATIONS}
    if shape.tied and names.HEAD in integers:
        # A copy of the table, on a grid of its own.
        table = {f"{names.EMBED}.weight": shapes.pop(f"{names.HEAD}.weight")}
        check_tensors(shapes | table, shape, file)
    check_tensors(shapes, shape, file)
    return Checkpoint(
        anatomy=shape,
        scheme=Scheme.from_json(described["scheme"]),
        integers=integers,
        tensors=tensors,
        prompts=found.get(PROMPTS),
        online=Online(**described["online"]),
        inputs=inputs,
        **rest,
    )


_PLAIN = ("method", "settings", "source", "calibration", "cost")


def is_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINT_FILE).is_file()


def extras_of(folder: Path) -> dict[str, bytes]:
    """The config, the tokenizer files and the licence texts of a model folder."""
    found = (folder / name for name in (CONFIG, *TOKENIZER_FILES))
    files = {file.name: file.read_bytes() for file in found if file.is_file()}
    return files | licenses.texts(folder)


def stored(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Its tensors by name, as they lie on disk: see above."""
    import torch

    found = dict(checkpoint.tensors)
    if checkpoint.prompts is not None:
        found[PROMPTS] = checkpoint.prompts.contiguous()
    for name, weight in checkpoint.integers.items():
        values = weight.integers
        if weight.grid.bits == 4:
            nibbles = (values.numpy() + 8).astype("uint8")
            values = torch.from_numpy(pack4(nibbles))
        found[f"{name}.weight"] = values.contiguous()
        found[f"{name}.scale"] = weight.scale.contiguous()
        if weight.zero is not None:
            found[f"{name}.zero"] = weight.zero.contiguous()
    for name, steps in checkpoint.inputs.items():
        found[f"{name}.input_scale"] = steps.scale.contiguous()
        if steps.zero is not None:
            found[f"{name}.input_zero"] = steps.zero.contiguous()
    return found


def _integer_weight(
    stored: Mapping[str, Tensor], name: str, grid: dict[str, Any], shape: list[int]
) -> IntegerWeight:
    import torch

    found = Grid(**grid)
    values, scale = stored[f"{name}.weight"], stored[f"{name}.scale"]
    zero = None if found.symmetric else stored[f"{name}.zero"]
    for kind, tensor in (("scale", scale), ("zero", zero)):
        if tensor is not None and tensor.shape != (shape[0], found.groups(shape[1])):
            raise ValueError(f"{name}.{kind} has shape {tuple(tensor.shape)}")
    if found.bits == 4:
        nibbles = unpack4(values.numpy(), tuple(shape))
        values = torch.from_numpy(nibbles.astype("int8") - 8)
    return IntegerWeight(values, scale, zero, found)


def _input_steps(stored: Mapping[str, Tensor], name: str) -> Steps:
    from slmq_edge.quantization.rounding import Steps

    return Steps(stored[f"{name}.input_scale"], stored.get(f"{name}.input_zero"))
