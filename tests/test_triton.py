"""GPU kernels where there is no GPU: interpreted against plain torch, and compiled for two kinds.

Numbers come from the interpreter (interpreted_triton*.py, in a process of their own); of what the
compiler makes, the instructions that decide about numbers are looked at.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from slmq_edge.errors import SlmqError
from slmq_edge.scheme import OPERANDS_8, Grid
from slmq_edge.torch_runtime import cache
from slmq_edge.torch_runtime.kernels import blocks
from slmq_edge.torch_runtime.ops import Levels, Packed
from tests import decoders

triton = pytest.importorskip("triton", reason="triton is not installed: there are wheels for Linux")

from triton.runtime.errors import OutOfResources  # noqa: E402

from slmq_edge.torch_runtime import triton_ops  # noqa: E402  imports triton
from slmq_edge.torch_runtime.kernels import launching  # noqa: E402  imports triton
from tests.compiled_triton import MOST_SHARED, Compiled, compiling  # noqa: E402  imports triton

F16, F32 = torch.float16, torch.float32
ROOT = Path(__file__).parent.parent
INTERPRETED = sorted(Path(__file__).parent.glob("interpreted_triton*.py"))
# hidden, ffn, heads, heads of keys and values, vocabulary
SMOLLM, QWEN = (576, 1536, 9, 3, 49152), (896, 4864, 14, 2, 151936)
# Divisions, roots and inverses that are not IEEE's.
INEXACT = r"(div\.(full|approx)|(sqrt|rsqrt|rcp)\.approx)"
INTEGER_DOT = r"mma[^;]*\.s32\.s8\.s8"
# 1.5 * 2^23, which is added and taken away again: rounding half to even.
HALF_EVEN = "0f4B400000"
GIVEN_BY_ITSELF = Grid(8, "token")


@pytest.fixture(autouse=True)
def kernels_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "kernels"))


def interpreted(examples: int, marked: str) -> None:
    """Run what is in interpreted_triton*.py and so marked, with so many examples of a property."""
    files = map(str, INTERPRETED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *files],
        env={
            **os.environ, "TRITON_INTERPRET": "1", "SLMQ_EDGE_TRITON_EXAMPLES": str(examples),
            "OMP_NUM_THREADS": "1", "PYTEST_XDIST_AUTO_NUM_WORKERS": "1",
        },
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "gcc.*exit status 1"),
        (OutOfResources(200_000, 101_376, "shared memory"), "out of resource: shared memory"),
        (RuntimeError("Failed to find\nC compiler"), "Failed to find C compiler"),
    ],
)
def test_what_triton_cannot_run_is_one_line(error: Exception, said: str) -> None:
    class Kernel:
        __name__ = "integer_gemv"

        def __getitem__(self, grid: object) -> Callable[..., None]:
            def run(*arguments: object, **settings: object) -> None:
                raise error

            return run

    with pytest.raises(SlmqError, match=rf"cannot run integer_gemv .*{said}.*python3-dev") as seen:
        launching.launch(Kernel(), (1,), torch.zeros(1))
    assert "\n" not in str(seen.value)


def test_kernels_compute_what_plain_torch_does() -> None:
    interpreted(examples=3, marked="not triton")


@pytest.mark.triton
def test_kernels_compute_what_plain_torch_does_on_many_shapes() -> None:
    interpreted(examples=40, marked="")


def levels(rows: int, width: int, group: int | None = None, zero: bool = False) -> Levels:
    scale = torch.ones(rows, 1 if group is None else -(-width // group))
    integers = torch.zeros(rows, width, dtype=torch.int8)
    return Levels(integers, scale, scale if zero else None, group)


def weight(
    out: int, width: int, bits: int, group: int | None, zeros: bool = False, blocked: bool = False
) -> Packed:
    """As memory that is never written: of a vocabulary's size too it costs nothing."""
    groups = 1 if group is None else -(-width // group)
    integers = torch.empty((out, width * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8)
    zero = torch.empty((out, groups), dtype=torch.int16) if zeros else None
    sums = torch.empty((out, groups) if blocked else (out,)) if zeros else None
    return Packed(integers, bits, width, torch.empty(out, groups), zero, group, sums)


def linears(model: tuple[int, int, int, int, int]) -> Iterator[tuple[int, int]]:
    """[out, in] of what a step multiplies by, the head last."""
    hidden, ffn, heads, kv_heads, vocabulary = model
    yield (heads + 2 * kv_heads) * 64, hidden
    yield hidden, heads * 64
    yield 2 * ffn, hidden
    yield hidden, ffn
    yield vocabulary, hidden


def check(kernel: Compiled) -> None:
    """What holds for every kernel."""
    assert kernel.stack == 0, f"{kernel.name}: registers spill"
    assert kernel.registers <= 255
    assert kernel.shared <= MOST_SHARED[kernel.arch]
    assert kernel.count(INEXACT) == 0
    if kernel.name.startswith("integer") or kernel.name in ("row_kernel", "turn_and_store"):
        assert kernel.count(r"fma\.rn\.f32") == 0, "a product and a sum are rounded apart"


def check_linear(kernel: Compiled, rows: int) -> None:
    check(kernel)
    if rows <= blocks.MOST_GEMV_ROWS:
        assert kernel.name == "integer_gemv"
        assert kernel.count("dp4a") > 0
        assert kernel.count(r"ld\.global[.\w]*\.v4\.b32") > 0, "16 bytes a thread"
        assert kernel.grid[0] >= 132, "every multiprocessor of an H100 has some of it"
    else:
        assert kernel.name == "integer_gemm"
        assert kernel.count(INTEGER_DOT) > 0


def one(arch: int, run: Callable[..., object], *arguments: object) -> Compiled:
    with compiling(arch) as found:
        run(*arguments)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("arch", "rows", "bits", "group"),
    [(80, 1, 8, None), (90, 1, 4, 32), (80, 128, 4, 32), (90, 128, 8, None)],
)
def test_a_linear_compiles(arch: int, rows: int, bits: int, group: int | None) -> None:
    found = one(
        arch, triton_ops.linear, levels(rows, 576), weight(960, 576, bits, group), None, F16
    )
    check_linear(found, rows)


def test_rows_are_divided_and_rounded_as_ieee_says() -> None:
    x, gain = torch.zeros(1, 576, dtype=F16), torch.zeros(576, dtype=F16)
    found = one(80, triton_ops.normed_rounded, x, gain, 1e-5, GIVEN_BY_ITSELF)
    check(found)
    assert found.count(r"div\.rn\.f32") >= 576 // (32 * found.warps)
    assert found.count(r"sqrt\.rn\.f32") == 1
    assert found.count(rf"add(\.rn)?\.f32[^;]*{HALF_EVEN}") > 0


def attention(
    arch: int, model: tuple[int, int, int, int, int], grid: Grid | None, room: int
) -> list[str]:
    _, _, heads, kv_heads, _ = model
    shape = dataclasses.replace(decoders.QWEN2, heads=heads, kv_heads=kv_heads, head_dim=64)
    held = cache.new(shape, grid, F16, torch.device("cpu"), 1, room)
    x = torch.empty(1, 1, heads + 2 * kv_heads, 64, dtype=F16)
    with compiling(arch) as found:
        triton_ops.turned_stored(
            x, held.cosine[:1], held.sine[:1], held.position, *held.blocks[0], grid
        )
        triton_ops.attend(x[:, :, :heads], *held.blocks[0], held.position)
    for kernel in found:
        check(kernel)
    return [kernel.name for kernel in found]


def test_attention_compiles() -> None:
    assert attention(90, SMOLLM, OPERANDS_8, 192) == ["turn_and_store", "attend_stretch"]


@pytest.mark.triton
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("model", [SMOLLM, QWEN], ids=["SmolLM-135M", "Qwen2.5-0.5B"])
class TestEveryKernelCompiles:
    @pytest.mark.parametrize("rows", [1, 4, 16, 128, 1024])
    @pytest.mark.parametrize(
        ("bits", "group"), [(8, None), (8, 32), (4, None), (4, 32), (4, 64), (4, 128)]
    )
    def test_linears(
        self, arch: int, model: tuple[int, int, int, int, int], rows: int, bits: int, group: int
    ) -> None:
        for out, width in linears(model):
            x, w = levels(rows, width), weight(out, width, bits, group)
            check_linear(one(arch, triton_ops.linear, x, w, None, F16), rows)

    @pytest.mark.parametrize("rows", [1, 128])
    def test_zero_points_blocks_and_biases(
        self, arch: int, model: tuple[int, int, int, int, int], rows: int
    ) -> None:
        for out, width in list(linears(model))[:4]:
            bias = torch.empty(out, dtype=F16)
            for group in (None, 32):
                blocked = group is not None
                x = levels(rows, width, group, zero=True)
                w = weight(out, width, 4, group, zeros=True, blocked=blocked)
                check_linear(one(arch, triton_ops.linear, x, w, bias, F16), rows)

    @pytest.mark.parametrize("rows", [1, 4, 128])
    @pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 32), (4, 128)])
    @pytest.mark.parametrize("dtype", [F16, torch.bfloat16, F32])
    def test_weights_alone(
        self,
        arch: int,
        model: tuple[int, int, int, int, int],
        rows: int,
        bits: int,
        group: int,
        dtype: torch.dtype,
    ) -> None:
        for out, width in list(linears(model))[2:4]:
            x, w = torch.empty(rows, width, dtype=dtype), weight(out, width, bits, group)
            check(one(arch, triton_ops.weight_only, x, w, None))

    @pytest.mark.parametrize(
        "grid", [GIVEN_BY_ITSELF, OPERANDS_8, Grid(8, "token", group=32)], ids=str
    )
    def test_rows(self, arch: int, model: tuple[int, int, int, int, int], grid: Grid) -> None:
        for width in model[:2]:
            x, both = torch.empty(2, width, dtype=F16), torch.empty(2, 2 * width, dtype=F16)
            check(one(arch, triton_ops.round_rows, x, grid, None))
            check(one(arch, triton_ops.normed_rounded, x, x[0], 1e-5, grid))
            check(one(arch, triton_ops.gated_rounded, both, grid))
            check(one(arch, triton_ops.normed, x, x[0], 1e-5))
            check(one(arch, triton_ops.gated, both))

    @pytest.mark.parametrize("grid", [None, OPERANDS_8], ids=str)
    def test_attention(
        self, arch: int, model: tuple[int, int, int, int, int], grid: Grid | None
    ) -> None:
        assert len(attention(arch, model, grid, 192)) == 2
        assert len(attention(arch, model, grid, 2048)) == 3
