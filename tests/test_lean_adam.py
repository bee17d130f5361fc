"""Adam in two bytes a weight: it is Adam where it can be, and forgets gradients as it goes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slmq_edge.quantization.lean_adam import DECAY, MOMENTUM, LeanAdam

STEPS, RATE = 60, 1e-2


def made(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"tensor {n}": torch.randn(shape, generator=generator).requires_grad_()
        for n, shape in enumerate(shapes)
    }


def rates(tensors: dict[str, Tensor], rate: float) -> dict[str, float]:
    return dict.fromkeys(tensors, rate)


def as_published(tensors: dict[str, Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(list(tensors.values()), lr=RATE, betas=(MOMENTUM, DECAY), eps=1e-12)


def assert_as_adam(tensors: dict[str, Tensor], slopes: dict[str, Tensor], sizes: Tensor) -> None:
    """Both along gradients that are the same at every step, but for a factor."""
    there = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    begun = {name: t.detach().clone() for name, t in tensors.items()}
    lean, adam = LeanAdam(tensors), as_published(there)
    for size in sizes:
        losses = [
            size * sum((t * slopes[n]).sum() for n, t in part.items()) for part in (tensors, there)
        ]
        lean.backward(losses[0], rates(tensors, RATE))
        adam.zero_grad()
        losses[1].backward()
        adam.step()
    for name, tensor in tensors.items():
        moved, expected = tensor - begun[name], there[name] - begun[name]
        assert expected.abs().max() > 5 * RATE
        torch.testing.assert_close(moved, expected, rtol=0.02, atol=0.02 * RATE)


def test_squares_of_rank_one_are_adams() -> None:
    """v_ij = r_i c_j / mean(r) is exact where g_ij^2 is a product, of whatever size."""
    tensors = made((12, 7), (5, 30))
    generator = torch.Generator().manual_seed(1)
    slopes = {}
    for name, tensor in tensors.items():
        rows, columns = (torch.randn(n, generator=generator).exp() for n in tensor.shape)
        signs = torch.randn(tensor.shape, generator=generator).sign()
        slopes[name] = 1e-3 * signs * rows[:, None] * columns
    assert_as_adam(tensors, slopes, 1 + 0.5 * torch.randn(STEPS, generator=generator))


def test_what_is_no_matrix_is_adams() -> None:
    tensors = made((9,), (6, 1), (1, 8), ())
    generator = torch.Generator().manual_seed(2)
    slopes = {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    assert_as_adam(tensors, slopes, 1 + 0.5 * torch.randn(STEPS, generator=generator))


def test_it_finds_the_least_of_a_quadratic() -> None:
    tensors, targets = made((8, 5), (6,)), made((8, 5), (6,), seed=3)
    lean = LeanAdam(tensors)
    for step in range(300):
        loss = sum((t - targets[n].detach()).square().mean() for n, t in tensors.items())
        assert isinstance(loss, Tensor)
        lean.backward(loss, rates(tensors, 0.05 * (1 + math.cos(math.pi * step / 300))))
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, targets[name], rtol=0, atol=0.01)


def test_gradients_are_gone_behind_a_step_and_every_tensor_has_its_rate() -> None:
    tensors = made((4, 3), (4, 3), (3,))
    begun = {name: t.detach().clone() for name, t in tensors.items()}
    lean = LeanAdam(tensors)
    wanted = dict(zip(tensors, (0.1, 0.0, 0.2), strict=True))
    loss = sum(t.sum() for t in tensors.values())
    assert isinstance(loss, Tensor)
    lean.backward(loss, wanted)
    assert lean.step == 1
    for name, tensor in tensors.items():
        assert tensor.grad is None
        # The first step of Adam is its rate, whatever the gradient.
        moved = torch.full_like(tensor, wanted[name])
        torch.testing.assert_close(begun[name] - tensor, moved, rtol=0.005, atol=1e-6)


def test_a_gradient_that_is_nothing_moves_nothing() -> None:
    tensors = made((4, 3), (3,))
    begun = {name: t.detach().clone() for name, t in tensors.items()}
    lean = LeanAdam(tensors)
    for _ in range(3):
        lean.backward(sum((0.0 * t).sum() for t in tensors.values()), rates(tensors, 1.0))  # type: ignore[arg-type]  # of tensors
    assert all(torch.equal(tensor, begun[name]) for name, tensor in tensors.items())


def test_it_goes_on_from_a_state_to_the_same_bits() -> None:
    def walk(tensors: dict[str, Tensor], lean: LeanAdam, first: int, last: int) -> None:
        for step in range(first, last):
            loss = sum((t * t + math.sin(step) * t).sum() for t in tensors.values())
            assert isinstance(loss, Tensor)
            lean.backward(loss, rates(tensors, RATE))

    shapes = ((6, 4), (5,), (3, 1))
    whole, broken = made(*shapes), made(*shapes)
    walk(whole, LeanAdam(whole), 0, 9)
    first = LeanAdam(broken)
    walk(broken, first, 0, 4)
    state = {name: t.clone() for name, t in first.state().items()}
    assert state["tensor 0.mean"].dtype == torch.bfloat16
    on = {name: t.detach().clone().requires_grad_() for name, t in broken.items()}
    second = LeanAdam(on)
    second.load(state, first.step)
    walk(on, second, 4, 9)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in on.items())


def test_two_bytes_a_weight_and_little_more() -> None:
    tensors = made((200, 300))
    held = sum(t.numel() * t.element_size() for t in LeanAdam(tensors).state().values())
    assert held == 2 * 200 * 300 + 4 * (200 + 300)
