"""Kernels in Triton's interpreter, on a CPU, with numpy: for tests and rehearsals."""

from __future__ import annotations

from typing import Any

import triton

# TRITON_INTERPRET, as it was when Triton was imported.
IS_ON = bool(triton.knobs.runtime.interpret)


def repair() -> None:
    """Let a loop's bound be a number that was read from memory.

    There it is an array of one value, and Triton 3.6 makes an index of it in a way that numpy 2.4
    refuses.
    """
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


if IS_ON:
    repair()
