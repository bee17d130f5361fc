"""A compiled step: the same numbers, one compilation for all blocks, and a way out without one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from slmq_edge.errors import UsageError
from slmq_edge.quantization import COMPILED, METHODS, compiling, omniquant
from slmq_edge.quantization.compiling import Compiled
from slmq_edge.quantization.fitting import Block, Learnable, Pace, block_error, learn
from slmq_edge.quantize import Request, plan
from slmq_edge.scheme import scheme
from tests.decoders import random_qwen2
from tests.test_omniquant import block_for, ignore, start_for, task_for

BRIEFLY = Pace(2, 5e-3, 1e-2)


def second_block() -> Block:
    model, first = random_qwen2(), block_for(random_qwen2())
    inputs = first.targets[0].clone()
    targets = inputs.clone()
    omniquant.advance_watched(model, 1, targets)
    return Block(model, 1, first.scheme, first.rotary, inputs, (targets,))


def compared(backend: str, patch: pytest.MonkeyPatch) -> None:
    """Two blocks, learned with and without the compiler."""
    plain = torch.compile
    patch.setattr(torch, "compile", lambda function, **how: plain(function, backend=backend, **how))
    torch._dynamo.reset()
    counters.clear()
    notes: list[str] = []
    compiled = Compiled(block_error, notes.append)
    for this in (block_for(random_qwen2()), second_block()):
        start = start_for(this)
        losses = [learn(this, start, BRIEFLY, ignore)[1].loss]
        losses.append(learn(this, start, BRIEFLY, ignore, compiled=compiled)[1].loss)
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert notes == []
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_every_block_is_one_graph_to_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compared("aot_eager", monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_the_compiler_finds_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler on a CPU: no g++ here")
    compared("inductor", monkeypatch)


def test_without_a_compiler_steps_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it fails in the backward pass, when gradients have begun to be there."""
    tried: list[int] = []

    def compile_(function: Callable[..., torch.Tensor], **how: object) -> object:
        def fails_late(this: Block, learnable: Learnable, *parts: torch.Tensor) -> torch.Tensor:
            loss = function(this, learnable, *parts)
            next(iter(learnable.scales.values())).register_hook(refuse)  # type: ignore[no-untyped-call]
            return loss

        return fails_late

    def refuse(gradient: torch.Tensor) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise BackendCompilerFailed(compile_, RuntimeError("no Triton here"), None)

    monkeypatch.setattr(torch, "compile", compile_)
    notes: list[str] = []
    compiled = Compiled(block_error, notes.append)
    this = block_for(random_qwen2())
    start = start_for(this)
    without = learn(this, start, BRIEFLY, ignore)[1]
    found = learn(this, start, BRIEFLY, ignore, compiled=compiled)[1]
    assert found.loss == without.loss
    assert len(tried) > 1, "a hook stays where it is"
    (note,) = notes
    assert note.startswith("--compile does not work here, steps run as they are: BackendCompiler")
    assert "no Triton here" in note


def test_other_errors_are_no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)

    def no_memory(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    compiled = Compiled(no_memory, pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        compiled.used(lambda function: function())


def test_a_task_says_whether_its_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Recorded(Compiled):
        def __init__(self, *arguments: object) -> None:
            made.append(arguments[0])
            self._fast, self._plain = None, block_error

    monkeypatch.setattr(omniquant, "Compiled", Recorded)
    assert compiling.Compiled is not Recorded
    for compiles in (False, True):
        model = random_qwen2()
        task = dataclasses.replace(task_for(model, epochs=1), compiles=compiles)
        omniquant.prepare(model, task)
    assert made == [block_error]


def test_only_a_method_with_such_a_step_is_asked_for_it() -> None:
    w4a8 = scheme("w4a8")
    assert plan("demo-llama", Request(w4a8, "omniquant", compiles=True)).request.compiles
    for name in set(METHODS) - set(COMPILED):
        with pytest.raises(UsageError, match=f"--compile: {name} has no step that is compiled"):
            plan("demo-llama", Request(w4a8, name, compiles=True))
