"""What a target cannot express, said before any work is done. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from slmq_edge.anatomy import Anatomy
from slmq_edge.errors import Unsupported, UsageError, unknown
from slmq_edge.exporters import ACTIVATION_MODES
from slmq_edge.scheme import GROUPS, Grid, Scheme

# Which releases of a target's runtime a graph is written for: by name, the oldest one.
ONNXRUNTIMES = {"portable": "1.19", "modern": "1.23"}
TENSORRTS = {"8.5": "8.5", "10.3": "10.3"}
RUNTIMES: dict[str, dict[str, str]] = {
    "ort": ONNXRUNTIMES,
    "ort-cuda": ONNXRUNTIMES,
    "trt": TENSORRTS,
    "torch": {},
}
# Blocks of int4 weights that TensorRT reads as they are (TENSORRT 1.3).
INT4_BLOCKS = (16, 32, 64, 128)
# Blocks that MatMulNBits' integer kernels take, and the one for rows with one scale.
LEAST_BLOCK, MOST_BLOCK, ROW_BLOCK = 16, 256, 128


def check(scheme: Scheme, runtime: str | None = None, target: str = "ort") -> None:
    """Refuse a scheme that a target cannot express; online rotations both always can.

    runtime: one of the target's ``RUNTIMES``; ``None``: that of `needed_runtime`. target: one of
    ``TARGETS``.

    Raises:
        Unsupported: names the part, the reason and what to do.
        UsageError: no such runtime.
    """
    check_runtime(runtime, target)
    in_graphs = (
        _operands(scheme),
        _weights(scheme.weights),
        _head(scheme),
        _table("lookup table", scheme.embedding),
    )
    # Modules multiply whatever the simulation does.
    refusals = (*ONLY_OF[target](scheme), *(() if target == "torch" else in_graphs))
    for refusal in refusals:
        if refusal is not None:
            raise Unsupported(f"target {target} cannot express this scheme: {refusal}")
    if runtime == "portable" and needed_runtime(scheme) != "portable":
        advice = "leave --protect out" if scheme.protects else "use w8a8 or w4a8-b32"
        raise Unsupported(
            f"scheme {scheme.label} multiplies 8-bit blocks, which onnxruntime "
            f"{ONNXRUNTIMES['portable']} does not know: leave --runtime portable out, or {advice}"
        )
    if runtime == "8.5" and has_int4(scheme):
        raise Unsupported(
            f"scheme {scheme.name} has int4 weights, which TensorRT knows from 10.0 on: leave "
            "--runtime 8.5 out, or use w8a16"
        )


def check_runtime(runtime: str | None, target: str = "ort") -> None:
    """Refuse a name that is none of a target's ``RUNTIMES``.

    Raises:
        UsageError: guesses what was meant.
    """
    if runtime is not None and not RUNTIMES[target]:
        raise UsageError(f"--runtime {runtime}: target {target} is of one kind, leave it out")
    if runtime is not None and runtime not in RUNTIMES[target]:
        raise UsageError(unknown("runtime", runtime, tuple(RUNTIMES[target])))


def needed_runtime(scheme: Scheme, target: str = "ort") -> str:
    """Of a target's ``RUNTIMES``, the one that a scheme's graph is written for unasked.

    For TensorRT that is not the oldest: 8.5 is of Jetsons whose last release it was.
    """
    if target == "trt":
        return "10.3"
    if scheme.weights is None or scheme.activations is None or not is_in_blocks(scheme):
        return "portable"
    return "modern" if scheme.weights.bits == 8 or scheme.protects else "portable"


def _weights(grid: Grid | None) -> str | None:
    if grid is None or (grid.bits in (4, 8) and grid.per == "channel"):
        return None
    return f"weights of {grid}; it stores 4 or 8 bits per channel or group (w4a8, w8a8, w4a16)"


def block_size(grid: Grid) -> int | None:
    """Inputs in a block that MatMulNBits takes for this grid; ``None``: it cannot.

    A row with one scale is a row of blocks that share it.
    """
    if grid.group is None:
        return ROW_BLOCK
    fits = LEAST_BLOCK <= grid.group <= MOST_BLOCK and grid.group & (grid.group - 1) == 0
    return grid.group if fits else None


def is_in_blocks(scheme: Scheme) -> bool:
    """Whether the blocks' linears are one operator, which takes weights in blocks of inputs.

    Its integer kernel rounds inputs by the weights' own blocks; its float kernel is slower than a
    product of floats unless weights have 4 bits.
    """
    if scheme.weights is None:
        return False
    if scheme.activations is not None:
        return scheme.activations.group is not None
    return scheme.weights.bits == 4 and block_size(scheme.weights) is not None


def _activations(grid: Grid | None, weights: Grid | None) -> str | None:
    if grid is None:
        return None
    if grid.group is not None:
        return _blocks(grid, weights)
    if grid.bits != 8 or grid.per not in ("token", "tensor"):
        return f"activations of {grid}; its kernels multiply 8 bits, per token or per tensor"
    if not grid.symmetric and not grid.zero:
        return "activations whose range need not hold zero have zero points that do not fit 8 bits"
    return None


def _blocks(grid: Grid, weights: Grid | None) -> str | None:
    if weights is None or weights.group != grid.group or block_size(weights) is None:
        return (
            "activations whose groups are not the weights', or not of 16 to 256 inputs, a power of "
            "two: its integer product takes one scale a token for all inputs, or one for each "
            "block of weights (w4a8-b32)"
        )
    if grid.bits != 8 or grid.per != "token" or not grid.symmetric:
        return f"activations of {grid}; by blocks it rounds to 8 bits per token, symmetrically"
    return None


def _table(part: str, grid: Grid | None) -> str | None:
    if grid is None or grid == Grid(8, "channel"):
        return None
    return f"{part} of {grid}; it is float, or int8 per channel, symmetric"


def _head(scheme: Scheme) -> str | None:
    if _table("lm_head", scheme.head) is None or _is_head_in_blocks(scheme):
        return None
    return (
        f"lm_head of {scheme.head}; it is float, or int8 per channel, symmetric, or int4 in a "
        "scheme whose linears are multiplied in blocks (w4a8-b128, w4a16-g32): use --lm-head int8"
    )


def _is_head_in_blocks(scheme: Scheme) -> bool:
    """Whether the head is multiplied as the blocks' linears are, by 4 bits a weight."""
    head, inputs = scheme.head, scheme.activations
    if head is None or not is_in_blocks(scheme) or block_size(head) is None:
        return False
    shares = inputs is None or inputs.group == head.group
    return shares and dataclasses.replace(head, group=None) == Grid(4, "channel")


def _kv(grid: Grid | None) -> str | None:
    if grid is None:
        return None
    if grid.group is not None or grid.per != "token":
        return f"keys and values of {grid}; they are rounded by token and head"
    if not grid.symmetric and not grid.zero:
        return "keys and values whose range need not hold zero; use one that does"
    return None


def _operands(scheme: Scheme) -> str | None:
    if scheme.query is not None:
        return (
            "rounded queries, since attention multiplies floats here; leave them in float "
            "(keys and values can be rounded), or stop at the checkpoint for its simulation"
        )
    if scheme.mixed is not None:
        return (
            "o_proj's input with a grid of its own, since one product takes one scale a token; "
            "round it as the other inputs are, or stop at the checkpoint for its simulation"
        )
    return None


def _on_cpu(scheme: Scheme) -> Iterable[str | None]:
    yield _activations(scheme.activations, scheme.weights)
    yield _kv(scheme.kv)


def _on_cuda(scheme: Scheme) -> Iterable[str | None]:
    """What ONNX Runtime's CUDA provider has no kernels for (docs/decisions/0014)."""
    if scheme.activations is not None:
        yield _int8_rows("activations", scheme.activations)
        yield _int8_rows("weights", scheme.weights)
    if scheme.kv is not None:
        yield "rounded keys and values, since no kernel of a GPU rounds row by row; use --kv 16"
    if scheme.head is not None and scheme.head.bits == 4:
        yield "an int4 lm_head, which is written for the kernels of a CPU; use --lm-head int8"


def _int8_rows(part: str, grid: Grid | None) -> str | None:
    """Both sides of its integer product: symmetric, and one scale a row."""
    if grid is None or (grid.symmetric and grid.group is None and grid.per != "tensor"):
        return None
    advice = "--activation-scale token" if grid.per == "tensor" else "scheme w8a8 or w4a8"
    advice = advice if grid.symmetric else f"--{part} symmetric"
    return (
        f"{part} of {grid}; its integer product takes int8 by int8, symmetric, a scale for every "
        f"token and channel: use {advice}, or leave activations in float (w4a16-g32, w8a16)"
    )


def _on_tensorrt(scheme: Scheme) -> Iterable[str | None]:
    """What is neither expressible nor becomes so (``trt.convert``); TENSORRT 1.3, 2.2, 5.2."""
    weights, activations = scheme.weights, scheme.activations
    if activations is not None and activations.bits != 8:
        yield f"activations of {activations}; its kernels multiply 8 bits"
    if activations is not None and weights is not None and weights.group is not None:
        yield (
            "groups of weights beside rounded activations, since its integer product takes one "
            f"scale a channel: use {scheme.name.partition('-')[0]}, or w4a16-g{weights.group}"
        )
    if activations is None and weights is not None and weights.bits == 8 and weights.group:
        yield "int8 weights in groups, which it takes only by channel; use w8a16"
    if activations is None and weights is not None and weights.bits == 4:
        if weights.group not in INT4_BLOCKS:
            yield "int4 weights without blocks of inputs; use w4a16-g32, w4a16-g64 or w4a16-g128"
        if scheme.protects:
            yield (
                f"8-bit weights in groups of {weights.group} beside int4 blocks, since it takes "
                "int8 only by channel; leave --protect out, or use w4a8"
            )
        if not weights.symmetric:
            yield "int4 weights with zero points, which are always 0 there; use --weights symmetric"
    if scheme.kv is not None:
        yield "rounded keys and values, since its caches hold floats; use --kv 16"
    if scheme.head is not None and scheme.head.bits == 4:
        yield "an int4 lm_head, which is int8 or float there; use --lm-head int8"


def check_mode(asked: str | None, target: str = "trt") -> None:
    """Refuse a name that is none of ``ACTIVATION_MODES``, or any where a target has no modes.

    Raises:
        UsageError: guesses what was meant.
    """
    if asked is not None and asked not in ACTIVATION_MODES:
        raise UsageError(unknown("activation mode", asked, ACTIVATION_MODES))
    if asked is not None and target != "trt":
        raise UsageError(
            f"--activation-mode is how --target trt rounds activations: for {target} say "
            "--activation-scale token or tensor when quantizing"
        )


def activation_mode(scheme: Scheme, asked: str | None, target: str = "trt") -> str | None:
    """How TensorRT rounds activations: as asked, or as the scheme does; ``None``: it does not.

    Raises:
        UsageError: no such mode, or nothing that it could be of.
    """
    check_mode(asked, target)
    if scheme.activations is None:
        if asked is not None:
            raise UsageError(
                f"scheme {scheme.name} leaves activations in float: leave --activation-mode out"
            )
        return None
    return asked or ("static" if scheme.is_static else "pertoken")


def check_widths(scheme: Scheme, shape: Anatomy, target: str) -> None:
    """Refuse blocks of weights that a model's widths cannot be cut into.

    Raises:
        Unsupported: names the width and blocks that fit.
    """
    if target != "trt" or not has_int4(scheme):
        return
    assert scheme.weights is not None, "it has int4 weights"
    group = scheme.weights.group
    widths = sorted({shape.hidden, shape.query_width, shape.ffn})
    uneven = [width for width in widths if group is None or width % group]
    if uneven:
        fitting = [g for g in GROUPS if g in INT4_BLOCKS and not any(w % g for w in widths)]
        advice = ", ".join(f"w4a16-g{g}" for g in fitting) or "w8a16"
        raise Unsupported(
            f"target trt cannot cut rows of {uneven[0]} inputs into whole blocks of {group}, as "
            f"TensorRT wants them: use {advice}"
        )


def on_disk(scheme: Scheme, target: str) -> Scheme:
    """The scheme in the bits that its weights have in a target's bundle."""
    if target != "trt" or scheme.weights is None or has_int4(scheme):
        return scheme
    return dataclasses.replace(scheme, weights=dataclasses.replace(scheme.weights, bits=8))


def has_int4(scheme: Scheme) -> bool:
    """Whether a graph for TensorRT holds weights of 4 bits as such."""
    return scheme.activations is None and scheme.weights is not None and scheme.weights.bits == 4


# What only one of the targets cannot express.
ONLY_OF: dict[str, Callable[[Scheme], Iterable[str | None]]] = {
    "ort": _on_cpu,
    "ort-cuda": _on_cuda,
    "trt": _on_tensorrt,
    "torch": lambda scheme: (),
}
