"""Where torch works: a CPU or one NVIDIA GPU, found to be there before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from slmq_edge.errors import UsageError, did_you_mean

KINDS = ("cpu", "cuda")


def checked(name: str, option: str = "--device") -> str:
    """``cpu``, ``cuda`` (GPU 0) or ``cuda:N``, as given.

    Raises:
        UsageError: another name, a GPU that torch does not see, or one on which it cannot work.
    """
    import torch

    kind, colon, number = name.partition(":")
    if kind not in KINDS:
        raise UsageError(f"unknown device '{name}'{did_you_mean(kind, KINDS)}")
    if kind == "cpu" and not colon:
        return name
    if kind == "cpu" or (colon and re.fullmatch(r"\d+", number) is None):
        raise UsageError(f"{option} is cpu, cuda or cuda:N (a GPU's number, from 0), not '{name}'")
    if not torch.cuda.is_available():
        raise UsageError(f"{option} {name}: torch sees no CUDA device here; use {option} cpu")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise UsageError(f"{option} {name}: torch sees {count} here, cuda:0 to cuda:{count - 1}")
    try:
        torch.zeros(1, device=name).add_(1)
    except RuntimeError as error:  # memory, a GPU that this torch was not built for, one in use
        reason = str(error).splitlines()[0]
        raise UsageError(f"{option} {name}: torch cannot work there: {reason}") from error
    return name


@contextmanager
def at_work(device: str) -> Iterator[None]:
    """Float32 products are float32's (no TF32), and a GPU is torch's current one, meanwhile."""
    import torch

    with exact_float32():
        if device == "cpu":
            yield
        else:
            with torch.cuda.device(device):
                yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """No product of float32 matrices takes fewer bits; what was set before is set again after.

    Torch has an older and a newer name for it, and refuses to read the one where the other was set.
    """
    import torch

    newer = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    set_newly = [(place, getattr(place, "fp32_precision", None)) for place in newer]
    older = None
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    if older is None:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    else:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for place, precision in set_newly:
            if place is not None and precision is not None:
                place.fp32_precision = precision


def release(device: str) -> None:
    """Give back what torch's allocator keeps of a stage that is over, so that peaks do not add."""
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
