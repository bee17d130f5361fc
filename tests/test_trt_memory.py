"""Memory that a build takes, and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmq_edge.errors import SlmqError
from slmq_edge.runner.trt import cuda, memory
from tests import trt_bundle


def _needs(weights: int) -> memory.Needs:
    of = trt_bundle.recipe(weight_bytes=weights)
    return memory.needs(of, trt_bundle.LIMITS, 1024)


def test_what_a_build_needs() -> None:
    small, large = _needs(0), _needs(10**9)
    assert large.host - small.host == 8_500_000_000
    assert large.device - small.device == 2 * 10**9
    rooms = 2 * trt_bundle.recipe().kv_bytes_per_token * trt_bundle.LIMITS.context
    logits = 4 * trt_bundle.recipe().vocab * trt_bundle.LIMITS.kept
    assert small.device == memory.CONTEXT + 1024 * memory.MIB + rooms + logits


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (memory.Free(7 * 10**9, 0, 7 * 10**9, True), "not from swap"),
        (memory.Free(10**9, 99 * 10**9, 10**9, True), "not from swap"),
        (memory.Free(99 * 10**9, 0, 10**9, False), "too little GPU memory"),
        (memory.Free(10**9, 10**9, 99 * 10**9, False), "free with swap"),
    ],
)
def test_too_little_memory_is_refused(free: memory.Free, words: str) -> None:
    with pytest.raises(SlmqError, match=words) as caught:
        memory.check(_needs(10**9), free)
    assert "--force tries all the same" in str(caught.value)


@pytest.mark.parametrize(
    "free",
    [
        None,
        memory.Free(20 * 10**9, 0, 20 * 10**9, True),
        memory.Free(8 * 10**9, 8 * 10**9, 8 * 10**9, True),
        memory.Free(20 * 10**9, 0, 8 * 10**9, False),
    ],
)
def test_enough_memory_is_enough(free: memory.Free | None) -> None:
    memory.check(_needs(10**9), free)


def test_free_memory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    text = "MemTotal: 8000 kB\nMemAvailable:  5000 kB\nSwapFree: 100 kB\nHugePages_Total: 0\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    kilo = 1024
    found = memory.free(trt_bundle.ORIN, str(tmp_path))
    assert found == (5000 * kilo, 100 * kilo, 5000 * kilo, True)  # CUDA was not asked
    monkeypatch.setattr(cuda, "memory", lambda: (77, 99))
    found = memory.free(trt_bundle.H200, str(tmp_path))
    assert found == (5000 * kilo, 100 * kilo, 77, False)
    assert memory.free(trt_bundle.ORIN, str(tmp_path / "nowhere")) is None
