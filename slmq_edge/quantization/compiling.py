"""A step compiled by torch where that works, and as it is where it does not.

Compiling needs what torch itself does not bring (Triton for a GPU, a C++ compiler for a CPU), and
is opt-in: no figure of ours shows yet what it is worth. Numbers are those of the plain step up to
the rounding of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Compiled:
    """``function``, compiled at its first use; ``note`` hears once if that fails.

    Whoever uses it says what is done with it, since a backward pass is compiled when it is taken.
    """

    def __init__(self, function: Callable[..., Any], note: Callable[[str], None]) -> None:
        self._plain, self._note = function, note
        self._fast: Callable[..., Any] | None = torch.compile(function, dynamic=False)

    def used(self, by: Callable[[Callable[..., Any]], T]) -> T:
        """What ``by`` makes of the function; it is called again if the compiler fails in it."""
        if self._fast is not None:
            try:
                return by(self._fast)
            except _failures() as error:
                self._fast = None
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                self._note(f"--compile does not work here, steps run as they are: {why}")
        return by(self._plain)


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)
