"""Where torch may work: typos, GPUs that are not there, and the precision of float32 products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slmq_edge.errors import UsageError
from slmq_edge.torch_device import at_work, checked, exact_float32, release

MATMUL: Any = torch.backends.cuda.matmul


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cudda", "unknown device 'cudda' (did you mean cuda?)"),
        ("gpu", "unknown device 'gpu'"),
        ("cuda:", "cuda:N (a GPU's number, from 0), not 'cuda:'"),
        ("cuda:first", "not 'cuda:first'"),
        ("cuda:-1", "not 'cuda:-1'"),
        ("cpu:1", "not 'cpu:1'"),
        ("cuda:0", "--device cuda:0: torch sees no CUDA device here; use --device cpu"),
    ],
)
def test_what_is_no_device_here_is_one_line(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        checked(name)
    assert words in str(caught.value)


def test_the_cpu_is_always_there() -> None:
    assert checked("cpu") == "cpu"
    with at_work("cpu"):
        release("cpu")


def with_gpus(patch: pytest.MonkeyPatch, count: int, zeros: Callable[..., Any]) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch, "zeros", zeros)


def test_a_gpu_is_tried_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = torch.zeros, list[str]()

    def zeros(count: int, device: str) -> torch.Tensor:
        asked.append(device)
        if device == "cuda:1":
            raise RuntimeError("CUDA error: no kernel image is available\nmore lines")
        return plain(count)

    with_gpus(monkeypatch, 2, zeros)
    assert (checked("cuda"), checked("cuda:0")) == ("cuda", "cuda:0")
    with pytest.raises(UsageError) as caught:
        checked("cuda:1")
    assert str(caught.value) == (
        "--device cuda:1: torch cannot work there: CUDA error: no kernel image is available"
    )
    with pytest.raises(UsageError, match="cuda:2: torch sees 2 here, cuda:0 to cuda:1"):
        checked("cuda:2")
    assert asked == ["cuda", "cuda:0", "cuda:1"]


def set_by_older() -> None:
    torch.set_float32_matmul_precision("high")


def set_by_newer() -> None:
    MATMUL.fp32_precision = "tf32"


@pytest.mark.parametrize("given", [None, set_by_older, set_by_newer])
def test_no_product_of_float32_takes_fewer_bits(given: Callable[[], None] | None) -> None:
    """Whichever of torch's two names it was set by; and it is as it was afterwards."""
    if given is set_by_newer and not hasattr(MATMUL, "fp32_precision"):
        pytest.skip("this torch has the older name alone")
    plain = torch.get_float32_matmul_precision()
    try:
        if given is not None:
            given()
        before = told()
        assert (before[0] == "tf32") == (given is not None)
        with exact_float32():
            assert told()[0] in ("ieee", None)
            assert MATMUL.allow_tf32 is False
        assert told() == before
        with pytest.raises(ZeroDivisionError), exact_float32():
            raise ZeroDivisionError
        assert told() == before
    finally:
        if given is set_by_newer:
            MATMUL.fp32_precision = "none"
        torch.set_float32_matmul_precision(plain)


def told() -> tuple[Any, ...]:
    mkldnn = getattr(torch.backends.mkldnn, "matmul", None)
    return tuple(getattr(place, "fp32_precision", None) for place in (MATMUL, mkldnn))
