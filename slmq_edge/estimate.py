"""What quantizing and exporting will need, before any of it starts: memory and disk, in bytes.

Estimates, held by the tests to within 40 % of the peaks in ``benchmarks/results/quantize-*.json``.
For T calibration tokens in windows of n, b of them together (``BATCH_TOKENS``), width h, inner
width f, and 4 bytes a float:

    all            process + model
    smoothquant    + b (10 h + 3 f)                          one batch in one block
    gptq           + T h + T max(f, q) + max(batch, 10 f^2)  stream, what lies between two linears,
                                                             its Hessian in float64 and copies of it
    omniquant      + 3 T h + 10 block + 2 n (15 h + 8 f)     three streams, a block being learned
    spinquant      + L n (15 h + 8 f) + table + 4 chunk V    the whole model, one window, and logits
                   or gptq, whichever is more
    distill        + T h + 9 bytes a weight of the linears   text; levels, momentum, integers
                   + m n (20 h + 10 f) + 4 a weight          m windows a step: in all blocks, or,
                                                             above ``ACTIVATIONS``, one, + m n h L
                   + 8 chunks of logits
                   + m n (10 h + 5 f) L                      gaps in the heap, of tensors below
                   or its start, whichever is more           ``GIVEN_BACK``
    --protect      + 1 byte a weight of the linears + 44 for each of the logits that are compared
    export         process + the weights twice, + 8 h V + 48 V for each of so many positions: table
                   and logits of the golden prompts in float64
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slmq_edge.anatomy import LINEARS, Anatomy
from slmq_edge.calibration import Size
from slmq_edge.presets import UPSTREAM
from slmq_edge.scheme import Grid, Scheme

FLOAT = 4
CLIPPED = "clipped"  # distill's start that is no method
# Python, torch and a tokenizer that has read its text.
PROCESS_BYTES = 400_000_000
# As slmq_edge.quantization.streams and learning have them, which cost torch to import.
BATCH_TOKENS, CHUNK = 4096, 256
# As slmq_edge.golden has them, ROWS.
GOLDEN_ROWS = 64
# As slmq_edge.analysis has them: logits that are compared at a time, and at least one window's.
HELD_LOGITS, WINDOW = 2**22, 128
# As slmq_edge.quantization.answers and lessons have them: bytes, logits; windows, bytes, products.
ACTIVATIONS, LOGITS = 2**30, 2**22
FEWEST, MOST, CACHE, PRODUCTS = 16, 256, 2**29, 2**31
# Of a weight that distill learns: its level, float32, and momentum, bfloat16; with its integer at
# the start, the best so far, and one that is compared with it. Of a row or group: what moves too.
LEARNED, LEARNING, STEP_LEARNED = 4 + 2, 4 + 2 + 3, 30
# Bytes that a step makes of a weight, and of a logit.
PASSED, OF_A_LOGIT = 4 * FLOAT, 8 * FLOAT
# What glibc gives back when it is freed; below, gaps remain between what blocks leave behind.
GIVEN_BACK = 2**25
# Of a scale and a zero point, one for each row or group.
STEP_BYTES = 6
# Tokenizer aside: graph, golden prompts, manifest.
ROOM_BYTES = 2_000_000


def quantizing(
    shape: Anatomy,
    scheme: Scheme,
    method: str,
    size: Size,
    settings: Mapping[str, Any],
    spilled: bool = False,
) -> int:
    """Bytes of memory at the peak of quantizing on a CPU. spilled: streams are kept in files."""
    held = 0 if spilled else size.windows * size.length
    needed = _needed(shape, scheme, method, size, settings, held)
    chosen = _choosing(shape) if scheme.is_open else 0
    return PROCESS_BYTES + shape.parameters * FLOAT + max(needed, chosen)


def exporting(shape: Anatomy, scheme: Scheme) -> int:
    """Bytes of memory at the peak of writing a bundle and checking it."""
    integers, floats = _weights(shape, scheme)
    logits = GOLDEN_ROWS * 48
    return (
        PROCESS_BYTES + 2 * (integers + floats * FLOAT) + shape.vocab * (8 * shape.hidden + logits)
    )


def written(shape: Anatomy, scheme: Scheme) -> int:
    """Bytes on disk that a checkpoint or a bundle will hardly exceed, its tokenizer aside.

    The linears at their bits with their steps, table and head likewise, the rest in float32, two
    rotations, the rotary table, and room for graph and golden prompts.
    """
    linears = shape.linear_macs_per_token
    table = shape.vocab * shape.hidden
    rest = shape.parameters - linears - table * (1 if shape.tied else 2)
    rest += 2 * shape.hidden**2 + shape.max_positions * shape.head_dim
    total = _stored(linears, scheme.weights, shape.head_dim) + rest * FLOAT + ROOM_BYTES
    if scheme.weights is not None:
        largest = max(math.prod(shape.shape(name)) for name in LINEARS)
        total += scheme.protects * largest * (8 - scheme.weights.bits) // 8
    looked_up, head = scheme.table(shape.tied), scheme.lm_head(shape.tied)
    total += _stored(table, looked_up, shape.hidden)
    once = shape.tied and head == looked_up
    return total if once else total + _stored(table, head, shape.hidden)


def unfinished(shape: Anatomy, scheme: Scheme, method: str, settings: Mapping[str, Any]) -> int:
    """Bytes on disk of what is kept until the checkpoint is written: blocks, or a student."""
    linears = shape.linear_macs_per_token
    if method == "distill":
        start, begun = _start(scheme, settings), 0
        if start != CLIPPED:
            begun = unfinished(shape, scheme, start, _settings_of(start, scheme))
        # What is learned and the best so far; written anew beside the old.
        return begun + 2 * ((LEARNED + 1) * linears + STEP_LEARNED * _groups(shape, scheme))
    rounds = method == "gptq" or settings.get("rounding") == "gptq"
    return linears if rounds else 0


def _stored(count: int, grid: Grid | None, shortest_row: int) -> int:
    if grid is None:
        return count * FLOAT
    return count * grid.bits // 8 + count // (grid.group or shortest_row) * STEP_BYTES


def _weights(shape: Anatomy, scheme: Scheme) -> tuple[int, int]:
    """How many weights are integers in memory, a byte each, and how many are floats."""
    table, tied = shape.vocab * shape.hidden, shape.tied
    integers = shape.linear_macs_per_token if scheme.weights else 0
    integers += table if scheme.table(tied) else 0
    integers += table if not tied and scheme.head else 0
    floats = shape.parameters - integers
    copied = tied and scheme.table(tied) != scheme.lm_head(tied)
    return integers + (table if copied else 0), floats


def _needed(
    shape: Anatomy,
    scheme: Scheme,
    method: str,
    size: Size,
    settings: Mapping[str, Any],
    held: int,
) -> int:
    """What a method needs beside the model, of which ``held`` tokens' streams are in memory."""
    batch = _batch(shape, size) if method != "none" or scheme.is_static else 0
    gptq = max(batch, _gptq(shape, size, settings, held))
    # A method without a line here is taken to work block by block, as most do.
    needs = {
        "none": batch,
        "smoothquant": batch,
        "omniquant": max(batch, _omniquant(shape, size, held)),
        "spinquant": max(
            _rotations(shape, scheme, size, settings),
            gptq if settings.get("rounding") == "gptq" else batch,
        ),
        "distill": _distill(shape, scheme, size, settings, held),
    }
    needed, start = needs.get(method, gptq), _start(scheme, settings)
    if method != "distill" or start == CLIPPED:
        return needed
    # The text's streams are there already.
    streams, own = held * shape.hidden * FLOAT, _settings_of(start, scheme)
    return max(needed, streams + _needed(shape, scheme, start, size, own, held))


def _batch(shape: Anatomy, size: Size) -> int:
    """What one batch of windows holds in a block."""
    together = max(1, BATCH_TOKENS // size.length) * size.length
    tokens = min(together, size.windows * size.length)
    return tokens * (10 * shape.hidden + 3 * shape.ffn) * FLOAT


def _choosing(shape: Anatomy) -> int:
    """What finding the linears to protect holds: their integers, and logits in float64."""
    return shape.linear_macs_per_token + 44 * max(HELD_LOGITS, WINDOW * shape.vocab)


def _saved(shape: Anatomy, size: Size) -> int:
    """What a block keeps of one window for its gradients."""
    return size.length * (15 * shape.hidden + 8 * shape.ffn) * FLOAT


def _gptq(shape: Anatomy, size: Size, settings: Mapping[str, Any], held: int) -> int:
    widest = max(shape.ffn, shape.query_width)
    streams = held * (shape.hidden + widest) * FLOAT * (2 if settings.get("drift") else 1)
    return streams + max(_batch(shape, size), 40 * widest**2)


def _omniquant(shape: Anatomy, size: Size, held: int) -> int:
    block = sum(math.prod(shape.shape(name)) for name in LINEARS)
    streams = 3 * held * shape.hidden * FLOAT
    return streams + 10 * block * FLOAT + 2 * _saved(shape, size)


def _start(scheme: Scheme, settings: Mapping[str, Any]) -> str:
    """By what distill begins: where that is not said, as ``distill.Settings.begins`` has it."""
    default = CLIPPED if scheme.activations is None else "smoothquant"
    return str(settings.get("start") or default)


def _settings_of(start: str, scheme: Scheme) -> dict[str, Any]:
    """Those by which distill begins: the method's own, which are upstream's."""
    return UPSTREAM[start].values(scheme.weights.bits if scheme.weights else 8)


def _groups(shape: Anatomy, scheme: Scheme) -> int:
    """Rows or groups of all linears, each with a step of its own, or somewhat more."""
    group = scheme.weights.group if scheme.weights else None
    return shape.linear_macs_per_token // (group or min(shape.hidden, shape.query_width))


def _distill(
    shape: Anatomy, scheme: Scheme, size: Size, settings: Mapping[str, Any], held: int
) -> int:
    linears, batch = shape.linear_macs_per_token, int(settings.get("batch", 4))
    tokens, table = batch * size.length, shape.vocab * shape.hidden * FLOAT
    activations = tokens * shape.layers * (20 * shape.hidden + 10 * shape.ffn) * FLOAT
    step = activations + PASSED * linears
    if step > ACTIVATIONS:
        step = step // shape.layers + shape.layers * tokens * shape.hidden * FLOAT
    step += OF_A_LOGIT * max(LOGITS, shape.vocab)
    widths = {10: shape.hidden, 5: shape.ffn}
    step += (
        FLOAT
        * tokens
        * shape.layers
        * sum(
            count * width for count, width in widths.items() if FLOAT * tokens * width < GIVEN_BACK
        )
    )
    own = {"text": 0, "own": batch}.get(str(settings.get("learn_from")), batch // 2)
    kept = 2 * shape.layers * size.length * shape.kv_width * FLOAT
    lot = own and max(own, side_by_side(linears, kept))
    cache, written = lot * kept, lot * size.length * shape.hidden * FLOAT
    looked_up, head = scheme.table(shape.tied), scheme.lm_head(shape.tied)
    copies = bool(looked_up) + bool(head) - bool(shape.tied and head and head == looked_up)
    state = LEARNING * linears + STEP_LEARNED * _groups(shape, scheme) + copies * table
    return held * shape.hidden * FLOAT + state + written + max(step, cache)


def side_by_side(linears: int, kept: int) -> int:
    """Windows that the model writes at one time. linears: weights; kept: bytes, a window's K and V.

    A step of decoding costs a small model hardly more for many windows than for one; a large one
    has nothing from more than fill a GEMM, and the first step waits for all of them.
    """
    return max(1, min(MOST, CACHE // kept, max(FEWEST, PRODUCTS // linears)))


def _rotations(shape: Anatomy, scheme: Scheme, size: Size, settings: Mapping[str, Any]) -> int:
    """Learning them; without steps, only the copy of the table that is rotated."""
    table = shape.vocab * shape.hidden * FLOAT
    if not settings.get("steps"):
        return table
    learned = shape.layers * _saved(shape, size) + 4 * CHUNK * shape.vocab * FLOAT
    rounds = settings.get("learn_weights") == "target" and scheme.weights is not None
    return table + learned + (4 * shape.linear_macs_per_token * FLOAT if rounds else 0)
