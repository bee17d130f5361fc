"""Adam in two bytes a weight, and its gradients gone as soon as they are used.

    m = b1 m + (1 - b1) g                             in bfloat16
    r = b2 r + (1 - b2) mean_columns(g^2)             c likewise, of rows
    v = r c^T / mean(r)                               (Shazeer & Stern 2018, Adafactor, section 3)
    w = w - rate * m' / (sqrt(v') + e)                m', v': m and v, their bias corrected

What is no matrix is small, and has its v in full. Adam as published would hold eight bytes a
weight, and all gradients at once another four: more than is left beside a model on a small GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM, DECAY = 0.9, 0.999
TINY = 1e-12


@dataclass(frozen=True)
class State:
    """m of the tensor's shape, bfloat16; rows [out, 1] and columns [1, in], or [] and all of v."""

    mean: Tensor
    rows: Tensor
    columns: Tensor

    @staticmethod
    def of(tensor: Tensor) -> State:
        mean = torch.zeros_like(tensor, dtype=torch.bfloat16)
        if tensor.dim() != 2 or 1 in tensor.shape:
            return State(mean, tensor.new_zeros(()), torch.zeros_like(tensor))
        return State(mean, tensor.new_zeros(len(tensor), 1), tensor.new_zeros(1, tensor.shape[1]))

    def move(self, tensor: Tensor, gradient: Tensor, rate: float, step: int) -> None:
        """One step, in place; step: from 1."""
        squares = gradient.square()
        self.mean.lerp_(gradient.to(torch.bfloat16), 1 - MOMENTUM)
        if self.rows.dim():
            self.rows.lerp_(squares.mean(1, keepdim=True), 1 - DECAY)
            self.columns.lerp_(squares.mean(0, keepdim=True), 1 - DECAY)
            root = (self.rows / self.rows.mean().clamp(min=TINY**2)).sqrt() * self.columns.sqrt()
        else:
            self.columns.lerp_(squares, 1 - DECAY)
            root = self.columns.sqrt()
        root.mul_((1 - DECAY**step) ** -0.5).add_(TINY)
        tensor.addcdiv_(self.mean.to(tensor), root, value=-rate / (1 - MOMENTUM**step))


class LeanAdam:
    """Moves each tensor when its gradient is complete, within the backward pass, and drops that.

    rates: by name of the tensor, of the coming step. step: how many were taken.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._states = {name: State.of(t) for name, t in tensors.items()}
        self.rates: Mapping[str, float] = {}
        self.step = 0
        for name, tensor in tensors.items():
            hook = self._moving(name)
            tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def backward(self, loss: Tensor, rates: Mapping[str, float]) -> None:
        """Take a step: gradients of ``loss``, and every tensor by its own."""
        self.rates, self.step = rates, self.step + 1
        torch.autograd.backward(loss)

    def _moving(self, name: str) -> Callable[[Tensor], None]:
        def move(tensor: Tensor) -> None:
            assert tensor.grad is not None, "called behind it"
            with torch.no_grad():
                self._states[name].move(tensor, tensor.grad, self.rates[name], self.step)
            tensor.grad = None

        return move

    def state(self) -> dict[str, Tensor]:
        """What going on needs, by name."""
        return dict(self._parts())

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on from a ``state`` after so many steps."""
        for name, tensor in self._parts():
            tensor.copy_(state[name])
        self.step = step

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        for name, one in self._states.items():
            for part in ("mean", "rows", "columns"):
                yield f"{name}.{part}", getattr(one, part)
