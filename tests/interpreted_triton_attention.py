"""Attention's kernels in Triton's interpreter, and whole models of all kernels.

Run by test_triton.py, like interpreted_triton.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from slmq_edge.scheme import OPERANDS_8, Grid
from slmq_edge.torch_runtime import cache, reference, reference_attention, triton_ops
from slmq_edge.torch_runtime.model import IntegerModel
from slmq_edge.torch_runtime.ops import Levels
from tests import decoders, torch_models
from tests.interpreted_triton import F16, F32, examples, floats, random


def heads_and_caches(
    heads: int, kv_heads: int, dim: int, grid: Grid | None, dtype: torch.dtype, room: int, new: int
) -> tuple[Tensor, list[cache.Cache]]:
    """What q, k and v put out for ``new`` tokens of two texts, and two caches that are alike."""
    shape = dataclasses.replace(decoders.QWEN2, heads=heads, kv_heads=kv_heads, head_dim=dim)
    made = [
        cache.new(shape, grid, dtype, torch.device("cpu"), batch=2, room=room) for _ in range(2)
    ]
    out = random(2, new, heads + 2 * kv_heads, dim, seed=heads, dtype=dtype)
    return out, made


heads_of = st.sampled_from([(9, 3, 64), (14, 2, 64), (2, 2, 16), (4, 1, 24)])
kv_grids = st.sampled_from([None, OPERANDS_8, Grid(8, "token"), Grid(4, "token", symmetric=False)])


@examples
@given(
    sizes=heads_of,
    grid=kv_grids,
    query=st.sampled_from([None, OPERANDS_8]),
    dtype=floats,
    normed=st.booleans(),
    start=st.integers(0, 13),
    new=st.integers(1, 3),
)
def test_heads_are_turned_rounded_and_kept(
    sizes: tuple[int, int, int],
    grid: Grid | None,
    query: Grid | None,
    dtype: torch.dtype,
    normed: bool,
    start: int,
    new: int,
) -> None:
    """To the bit; with norms in front, whose sums differ in order, as close as floats allow."""
    out, (mine, theirs) = heads_and_caches(*sizes, grid, dtype, 16, new)
    low, high = (random(sizes[2], seed=s, dtype=dtype) for s in (1, 2))
    gains = (low, high) if normed else None
    at = torch.tensor([start])
    angles = mine.cosine[start : start + new], mine.sine[start : start + new]
    found = triton_ops.turned_stored(out, *angles, at, *mine.blocks[0], query, gains, 1e-6)
    expected = reference_attention.turned_stored(
        out, *angles, at, *theirs.blocks[0], query, gains, 1e-6
    )
    values = [
        (m.read(16), t.read(16)) for m, t in zip(mine.blocks[0], theirs.blocks[0], strict=True)
    ]
    if not normed:
        for m, t in zip(mine.blocks[0], theirs.blocks[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(m.tensors, t.tensors, strict=True))
        assert torch.equal(found, expected)
    for a, b in [*values, (found, expected)]:
        level = 2 * b.abs().max().item() / (15 if grid is not None and grid.bits == 4 else 255)
        off = (a.to(torch.float64) - b.to(torch.float64)).abs()
        assert off.max() <= 2 * level
        assert off.median() <= torch.finfo(dtype).eps * b.abs().max()


def test_heads_that_are_turned_and_kept_apart() -> None:
    """With a rotation between: the same two steps, one after the other."""
    out, (mine, theirs) = heads_and_caches(4, 2, 16, OPERANDS_8, F16, 16, 2)
    at, angles = torch.tensor([5]), (mine.cosine[5:7], mine.sine[5:7])
    turned = triton_ops.turned(out[:, :, :6], *angles)
    assert torch.equal(turned, reference_attention.turned(out[:, :, :6], *angles))
    key, value = turned[:, :, 4:], out[:, :, 6:]
    triton_ops.stored(key, value, at, *mine.blocks[0])
    reference_attention.stored(key, value, at, *theirs.blocks[0])
    for m, t in zip(mine.blocks[0], theirs.blocks[0], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(m.tensors, t.tensors, strict=True))


@examples
@given(
    sizes=heads_of,
    grid=kv_grids,
    dtype=floats,
    room=st.sampled_from([16, 192, 600]),
    start=st.floats(0, 1),
    new=st.sampled_from([1, 2]),
)
@example(sizes=(9, 3, 64), grid=None, dtype=F16, room=192, start=1.0, new=1)
@example(sizes=(14, 2, 64), grid=OPERANDS_8, dtype=F32, room=1032, start=0.5, new=2)
def test_attention_reads_what_is_filled(
    sizes: tuple[int, int, int],
    grid: Grid | None,
    dtype: torch.dtype,
    room: int,
    start: float,
    new: int,
) -> None:
    heads, kv_heads, dim = sizes
    _, (held, _) = heads_and_caches(heads, kv_heads, dim, grid, dtype, room, 1)
    place = min(int(start * room), room - new)
    filled = random(2, place + new, 2 * kv_heads, dim, seed=room, dtype=dtype)
    keys, values = held.blocks[0]
    reference_attention.stored(
        filled[:, :, :kv_heads], filled[:, :, kv_heads:], torch.tensor([0]), keys, values
    )
    query = random(2, new, heads, dim, seed=place, dtype=dtype) / 4
    wide_keys, wide_values = (
        cache.Kept(k.read(room).to(torch.float64), None, None, None, torch.float64)
        for k in (keys, values)
    )
    at = torch.tensor([place])
    expected = reference_attention.attend(query.to(torch.float64), wide_keys, wide_values, at)
    for kept in (keys, values):
        # What is not filled is never read: it might be anything.
        kept.stored[:, :, place + new :] = 77 if grid is not None else float("nan")
        if kept.scale is not None:
            kept.scale[:, :, place + new :] = float("nan")
    mine = triton_ops.attend(query, keys, values, at)
    assert mine.dtype == dtype
    close = {F16: 4e-3, F32: 2e-5}[dtype]
    torch.testing.assert_close(mine.to(torch.float64), expected, rtol=close, atol=close)


class Both:
    """The kernels' operators, each held to the reference's by what a model gives it."""

    NAME = "both"

    def __init__(self) -> None:
        self.calls: set[str] = set()

    def __getattr__(self, operator: str) -> Any:
        def run(*given: Any) -> Any:
            self.calls.add(operator)
            mine = getattr(triton_ops, operator)(*given)
            held = [one for one in given if isinstance(one, cache.Kept)]
            written = [[t.clone() for t in one.tensors] for one in held]
            theirs = getattr(reference, operator)(*given)
            for one, tensors in zip(held, written, strict=True):
                for t, before in zip(one.tensors, tensors, strict=True):
                    close(before, t)
            if isinstance(mine, Levels):
                close(mine.integers, theirs.integers)
                close(mine.scale, theirs.scale)
            elif operator == "linear":
                assert torch.equal(mine, theirs)
            elif mine is not None:
                close(mine, theirs)
            return mine

        return run


def close(mine: Tensor, theirs: Tensor) -> None:
    """To the bit, but for the order of sums in norms; a level off by one where it was a tie."""
    if theirs.dtype == torch.int8:
        off = (mine.int() - theirs.int()).abs()
        assert off.max() <= 1
        assert off.sum() <= 1 + off.numel() // 100
    else:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("random untied Llama", "asymmetric"),
        pytest.param("random Qwen2", "w4a8-b32", marks=pytest.mark.triton),
        pytest.param("random Qwen3", torch_models.ROTATED, marks=pytest.mark.triton),
        pytest.param("random Qwen3", torch_models.BY_HEAD, marks=pytest.mark.triton),
        pytest.param("stories260K", "w4a16-g32", marks=pytest.mark.triton),
        pytest.param("stories260K", "w8a8, kv 8", marks=pytest.mark.triton),
    ],
)
def test_what_a_model_gives_its_operators(name: str, form: str) -> None:
    """A prompt and a step of whole models."""
    checkpoint = torch_models.checkpoint(name, form)
    both: Any = Both()
    model = IntegerModel.of(checkpoint, F32, chosen=both)
    kept = model.cache(room=16)
    model.prefill(torch.tensor([[1, 5, 9]]), kept)
    model.step(torch.tensor([[7]]), kept)
    assert both.calls >= {"attend", "stored" if checkpoint.online.keys else "turned_stored"}
    assert both.calls & {"linear", "weight_only"}
