"""A bundle's files for torch: the checkpoint's integers, run by modules that multiply integers.

What is written is data; what runs it is `slmq_edge.torch_runtime`, on a GPU with fused operators,
on a CPU with torch's own. What is said of it is what the modules themselves hold and do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from slmq_edge import anatomy as names
from slmq_edge import parts
from slmq_edge.anatomy import Anatomy
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import SlmqError
from slmq_edge.exporters import Wanted
from slmq_edge.exporters.bundle import Written, guesses
from slmq_edge.exporters.floats import FLOAT16
from slmq_edge.exporters.limits import check, check_runtime
from slmq_edge.exporters.lowering import Form, lowering
from slmq_edge.exporters.rows import Multiplication, Part, joint_name
from slmq_edge.golden import Draft, Golden
from slmq_edge.quantization.hadamard import factors
from slmq_edge.runner import golden as checks
from slmq_edge.runner.manifest import TORCH, TORCH_WEIGHTS
from slmq_edge.torch_runtime import files
from slmq_edge.torch_runtime.model import IntegerModel
from slmq_edge.torch_runtime.session import Session, open_bundle

OLDEST_TORCH = "2.5"
INTEGER, WEIGHT_ONLY, FLOAT = "torch_runtime.linear", "torch_runtime.weight_only", "torch.linear"
ATTENTION = "scaled_dot_product_attention, static caches"
CPU = "cpu"


class Together(Protocol):
    """Linears that the modules hold and run as one: see `IntegerModel.table`.

    bits: of each weight as it lies in memory, one for all or one for each name.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def integer(self) -> bool: ...

    @property
    def bits(self) -> tuple[int, ...]: ...


def write(checkpoint: Checkpoint, folder: Path, wanted: Wanted) -> Written:
    """Write ``torch/``, and ask the modules that run it what they are.

    Raises:
        Unsupported: a float of the checkpoint is too large for float16, or a linear too wide.
    """
    check_runtime(wanted.runtime, TORCH)
    check(checkpoint.scheme, None, TORCH)
    sizes = files.write(checkpoint, folder, FLOAT16)
    model = IntegerModel.of(checkpoint, torch.float16, CPU)
    form = Form(FLOAT16, INTEGER, "int8", ATTENTION, keeps_levels=True)
    report = lowering(list(multiplications(model, checkpoint)), checkpoint, form)
    section = {"kind": TORCH, "minimum_version": OLDEST_TORCH, "floats": FLOAT16.name}
    graphs: dict[str, str | None] = {TORCH_WEIGHTS: None}
    return Written(checkpoint, report, FLOAT16, graphs, parts.sizes(sizes), section)


def multiplications(model: IntegerModel, checkpoint: Checkpoint) -> Iterator[Multiplication]:
    """Everything that is multiplied by, as the modules hold it."""
    for held in model.table():
        yield from _of_linears(held, checkpoint)
    yield from _rotations(checkpoint)


def _of_linears(held: Together, checkpoint: Checkpoint) -> Iterator[Multiplication]:
    """Linears that lie as one weight are one row; those with weights of their own, one each."""
    alone = len(held.bits) > 1
    for index, linears in enumerate([(one,) for one in held.names] if alone else [held.names]):
        weight = checkpoint.integer_weight(linears[0])
        reads = checkpoint.scheme.input_grid(linears[0])
        part: Part = "head" if linears == (names.HEAD,) else "linear"
        yield Multiplication(
            name=joint_name(linears),
            part=part,
            grid=None if weight is None else weight.grid,
            is_integer=held.integer,
            macs_per_token=sum(_size(checkpoint.anatomy, name) for name in linears),
            operator=INTEGER if held.integer else FLOAT if weight is None else WEIGHT_ONLY,
            blocks_share=held.integer and reads is not None and reads.group is not None,
            floats=FLOAT16,
            stored=held.bits[index],
        )


def _rotations(checkpoint: Checkpoint) -> Iterator[Multiplication]:
    """Those that are taken at run time, with their multiply-adds for a token."""
    shape, online = checkpoint.anatomy, checkpoint.online
    of_head, of_ffn = (_macs_of_rotation(width) for width in (shape.head_dim, shape.ffn))
    for layer in range(shape.layers):
        if online.keys:
            name = f"{shape.block(layer, 'self_attn')}.spread"
            yield _rotation(name, (shape.heads + shape.kv_heads) * of_head)
        if online.down:
            yield _rotation(f"{shape.block(layer, 'mlp')}.spread", of_ffn)
    for name in (names.EMBED_ROTATION, names.HEAD_ROTATION):
        if f"{name}.weight" in checkpoint.tensors:
            yield _rotation(name, shape.hidden**2)


def _rotation(name: str, macs: int) -> Multiplication:
    return Multiplication(
        name, "rotation", None, False, macs, "torch.matmul", floats=FLOAT16, stored=FLOAT16.bits
    )


def _macs_of_rotation(width: int) -> int:
    found = factors(width)
    return 0 if found is None else width * (len(found[0]) + len(found[1]))


def _size(shape: Anatomy, linear: str) -> int:
    out, width = shape.shape(names.kind_of(linear))
    return out * width


def draft(checkpoint: Checkpoint, folder: Path, written: Written) -> Draft | None:
    """Greedy guesses by the modules, read back from the files, on this CPU."""
    return guesses(_session(folder, written))


def verify(folder: Path, written: Written, golden: Golden) -> dict[str, Any]:
    """Read the files back, and run the golden check on this CPU.

    Raises:
        SlmqError: it fails.
    """
    limits = checks.limits({"golden": golden.limits})
    session = _session(folder, written)
    try:
        report = checks.check(session, golden.arrays, limits)
    except SlmqError as error:
        raise SlmqError(
            f"the modules do not compute what the simulation computes: {error} Nothing was "
            f"written; this is a bug of ours or of torch {torch.__version__}, please report it."
        ) from error
    return {"torch": torch.__version__, "device": CPU, **report._asdict()}


def _session(folder: Path, written: Written) -> Session:
    bundle = {"runtime": written.runtime, "context_length": written.lowering.context_length}
    return open_bundle(folder, bundle, torch.get_num_threads(), CPU)
