"""The torch runtime's kernels at models' shapes, beside torch's float16: time and bandwidth.

Every row is a CUDA graph of one operator over copies of its weight that together exceed the cache,
so that weights come from memory, as they do between two steps of a model; what has no weight finds
its input in the cache. Bytes are those that the operator cannot do without: weight, scales, input
and output (without a weight the input alone). They are held against what a plain
copy of memory reaches on the same GPU (bytes read and written). Integer products are compared
with the reference's first: ``equal``.

    python -m benchmarks.gpu_kernels [--model SmolLM-135M] [--rows 1] [-o kernels.json]

``--dry-run`` rehearses it on a CPU at a toy's size, by Triton's interpreter with TRITON_INTERPRET=1
and else by plain torch; its times say nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor
from torch.nn import functional

from slmq_edge.errors import SlmqError, UsageError, unknown
from slmq_edge.runner import environment
from slmq_edge.scheme import SCHEMES, Grid
from slmq_edge.torch_runtime import ops, packing, reference, reference_attention
from slmq_edge.torch_runtime.cache import Kept
from slmq_edge.torch_runtime.ops import Ops, Packed

FLOATS = torch.float16
TOKENS = Grid(8, "token")
# More than the cache of an H100 (50 MB) or A800 (80 MB): of the smallest weight 1,100 copies.
BEYOND_CACHE = 192 * 2**20
WARM_UP, REPLAYS = 3, 20
EPS = 1e-5
# Of the cache: its room, and how much of it is filled. Rows are texts there, and are not many.
DIM, ROOM, FILLED, MOST_TEXTS = 64, 192, 160, 16


class Shape(NamedTuple):
    """A model's sizes; heads of `DIM`."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> [out, in], as the runtime joins them."""
        attended = self.heads * DIM
        return {
            "qkv": (attended + 2 * self.kv_heads * DIM, self.hidden),
            "o": (self.hidden, attended),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
            "head": (self.vocab, self.hidden),
        }


MODELS = {
    "SmolLM-135M": Shape(576, 1536, 9, 3, 49152),
    "Qwen2.5-0.5B": Shape(896, 4864, 14, 2, 151936),
}
TOY = Shape(64, 96, 1, 1, 40)
# As schemes are called; fp16 is torch's own product, and with torch- in front it is the reference,
# whose int8 product is torch's.
TORCH = "torch-"
FORMS = ("fp16", "w8a8", "torch-w8a8", "w4a8", "w4a8-g32", "w4a8-b32", "w8a16", "w4a16-g32")


@dataclass(frozen=True)
class Row:
    """One operator at one shape. bytes: see the module; equal: to the reference, of integers."""

    model: str
    operator: str
    form: str
    rows: int
    shape: tuple[int, ...]
    copies: int
    bytes: int
    seconds: float
    equal: bool | None

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds


def main(
    model: Annotated[list[str] | None, typer.Option(help="Default: both.")] = None,
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Default: 1, 4, 16, 128.")] = None,
    form: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(FORMS)}.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="On a CPU, at a toy's size.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Time every operator at every shape; a table on stdout, and a document with -o."""
    for names, known in ((model, MODELS), (form, FORMS)):
        for name in names or ():
            if name not in known:
                raise UsageError(unknown("model or form", name, tuple(known)))
    device = torch.device("cpu" if dry_run else "cuda")
    if not dry_run and not torch.cuda.is_available():
        raise SlmqError("no GPU that torch sees; rehearse with --dry-run")
    shapes = {"toy": TOY} if dry_run else {name: MODELS[name] for name in model or MODELS}
    bench = Bench(chosen(device), device)
    copied = bench.copy_bytes_per_second()
    typer.echo(f"a copy moves {copied / 1e9:.0f} GB/s; operators of {bench.ops.NAME}")
    found: list[Row] = []
    for name, shape in shapes.items():
        for count in rows or ((1, 8) if dry_run else (1, 4, 16, 128)):
            for row in bench.model(name, shape, count, form or FORMS):
                typer.echo(line(row, found, copied))
                found.append(row)
    if output is not None:
        document = {
            "dry_run": dry_run,
            "operators": bench.ops.NAME,
            "gpu": None if dry_run else torch.cuda.get_device_name(),
            "copy_bytes_per_second": copied,
            "environment": environment.capture(),
            "rows": [asdict(row) for row in found],
        }
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    wrong = [f"{row.operator} {row.form}, {row.rows} rows" for row in found if row.equal is False]
    if wrong:
        raise SlmqError(f"integer products differ from the reference's: {'; '.join(wrong)}")


def chosen(device: torch.device) -> Ops:
    """The device's operators; on a CPU Triton's where its interpreter is asked for."""
    import importlib
    import os

    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        found: Any = importlib.import_module("slmq_edge.torch_runtime.triton_ops")
        return found  # type: ignore[no-any-return]  # a module with the functions of Ops
    return ops.choose(device)


def line(row: Row, before: Sequence[Row], copied: float) -> str:
    """A row of the table, with its time as a share of fp16's at the same shape."""
    base = next(
        (b for b in before if (b.model, b.operator, b.rows, b.form)
         == (row.model, row.operator, row.rows, FORMS[0])), None,
    )  # fmt: skip
    beside = "" if base is None else f" {base.seconds / row.seconds:5.2f}x fp16"
    equal = {None: "", True: "  equal", False: "  DIFFERS"}[row.equal]
    return (
        f"{row.model:13} {row.operator:8} {row.form:10} {row.rows:4} rows "
        f"{1e6 * row.seconds:9.2f} us {row.bytes_per_second / 1e9:7.0f} GB/s "
        f"{row.bytes_per_second / copied:6.1%} of a copy"
        f"{beside}{equal}"
    )


class Bench:
    """What is timed, and how, on one device."""

    def __init__(self, found: Ops, device: torch.device) -> None:
        self.ops, self.device = found, device
        self._random = torch.Generator(device="cpu").manual_seed(0)

    def model(self, name: str, shape: Shape, rows: int, forms: Sequence[str]) -> Iterator[Row]:
        """All linears in all forms, then what stands between them."""
        for operator, (out, width) in shape.linears().items():
            for form in forms:
                yield self._linear(name, operator, form, rows, out, width)
        for operator, width, run in self._between(shape, rows):
            read = rows * width * FLOATS.itemsize
            yield Row(name, operator, "w8a8", rows, (width,), 1, read, self.seconds([run]), None)

    def _linear(self, model: str, operator: str, form: str, rows: int, out: int, width: int) -> Row:
        x = self.random(rows, width)
        if form == FORMS[0]:
            weight = self.random(out, width) / width**0.5
            copies = [weight.clone() for _ in range(self._copies(weight.nbytes))]
            runs = [lambda w=w: functional.linear(x, w) for w in copies]
            held, read, equal = weight.nbytes, x.nbytes, None
        else:
            packed = self._packed(form, out, width)
            held = bytes_of(packed)
            others = [moved(packed, self.device) for _ in range(self._copies(held))]
            by: Any = reference if form.startswith(TORCH) else self.ops
            grid = SCHEMES[form.removeprefix(TORCH)].activations
            if grid is None:
                runs = [lambda w=w: by.weight_only(x, w, None) for w in others]
                read, equal = x.nbytes, None
            else:
                levels = self.ops.round_rows(x, grid, None)
                runs = [lambda w=w: by.linear(levels, w, None, FLOATS) for w in others]
                expected = reference.linear(levels, others[0], None, FLOATS)
                read, equal = levels.integers.nbytes, torch.equal(runs[0](), expected)
        moved_bytes = held + read + rows * out * FLOATS.itemsize
        seconds = self.seconds(runs)
        return Row(
            model, operator, form, rows, (out, width), len(runs), moved_bytes, seconds, equal
        )

    def _packed(self, form: str, out: int, width: int) -> Packed:
        from slmq_edge.checkpoint import IntegerWeight
        from slmq_edge.quantization.rounding import quantize

        scheme = SCHEMES[form.removeprefix(TORCH)]
        assert scheme.weights is not None, "a form of integers"
        values = (self.random(out, width) / width**0.5).to(torch.float32)
        weight = IntegerWeight.of(quantize(values, scheme.weights), scheme.weights)
        return packing.packed([weight], scheme.activations)

    def _between(self, shape: Shape, rows: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
        """Operator, values that it reads a row, and its call."""
        x, gain = self.random(rows, shape.hidden), self.random(shape.hidden)
        gate_up = self.random(rows, 2 * shape.ffn)
        yield "norm", shape.hidden, lambda: self.ops.normed_rounded(x, gain, EPS, TOKENS)
        yield "gate", 2 * shape.ffn, lambda: self.ops.gated_rounded(gate_up, TOKENS)
        if rows > MOST_TEXTS:
            return
        attention: Any = self.ops if self.ops.NAME == ops.TRITON else reference_attention
        keys, values = (
            Kept(self.random(rows, shape.kv_heads, ROOM, DIM), None, None, None, FLOATS)
            for _ in range(2)
        )
        start = torch.tensor([FILLED - 1], device=self.device)
        heads = self.random(rows, 1, shape.heads + 2 * shape.kv_heads, DIM)
        query, angle = heads[:, :, : shape.heads].contiguous(), self.random(1, DIM)
        yield (
            "turn",
            heads[0].numel(),
            lambda: attention.turned_stored(heads, angle, angle, start, keys, values, None),
        )
        yield (
            "attend",
            2 * shape.kv_heads * FILLED * DIM,
            lambda: attention.attend(query, keys, values, start),
        )

    def copy_bytes_per_second(self) -> float:
        """Bytes that a copy reads and writes a second."""
        size = BEYOND_CACHE if self.device.type == "cuda" else 2**20
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        into = torch.empty_like(source)
        return 2 * size / self.seconds([lambda: into.copy_(source)])

    def seconds(self, runs: Sequence[Callable[[], object]]) -> float:
        """Of one run, all of them in turn, as a graph where there is a GPU."""
        if self.device.type == "cpu":
            begin = time.perf_counter()
            for run in runs:
                run()
            return (time.perf_counter() - begin) / len(runs)
        return graph_seconds(runs)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random).to(self.device, FLOATS)

    def _copies(self, size: int) -> int:
        if self.device.type == "cpu":
            return 1
        return max(2, -(-BEYOND_CACHE // size))


def graph_seconds(runs: Sequence[Callable[[], object]]) -> float:
    """Of one of ``runs``, captured in turn and replayed; the least of the replays."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    times: list[float] = []
    for index in range(WARM_UP + REPLAYS):
        begin, end = (timer() for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if index >= WARM_UP:
            times.append(begin.elapsed_time(end) / 1e3)
    return min(times) / len(runs)


def timer() -> Any:
    """A moment on the GPU."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def bytes_of(weight: Packed) -> int:
    parts = (weight.integers, weight.scale, weight.zero, weight.row_sums)
    return sum(t.nbytes for t in parts if t is not None)


def moved(weight: Packed, device: torch.device) -> Packed:
    """A copy of it on a device."""

    def there(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(device, copy=True)

    return Packed(
        weight.integers.to(device, copy=True), weight.bits, weight.width,
        weight.scale.to(device, copy=True), there(weight.zero), weight.group,
        there(weight.row_sums),
    )  # fmt: skip


def cli() -> None:
    """The script, its refusals one line each."""
    try:
        typer.run(main)
    except SlmqError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    cli()
