"""docs/a800.md and its plan: right as far as one can tell without a GPU and the hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.bench import matrix, plan
from slmq_edge.bench.cells import Cell
from slmq_edge.bench.feasible import check
from tests.test_cli import slmq

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PLAN = DOCS / "a800.toml"
HUB = {"HuggingFaceTB/SmolLM-135M": "demo-llama", "Qwen/Qwen2.5-0.5B": "demo-qwen2"}
PAPER = {"smoothquant", "omniquant", "spinquant"}


def test_here_nothing_but_the_hub_and_the_gpu_is_missing() -> None:
    done = slmq("bench", "check", PLAN, cwd=ROOT)
    first, *lines = done.stdout.splitlines()
    assert first == "110 cells: 16 eval, 14 quantize, 20 export, 60 profile"
    refused = [line for line in lines if line.startswith("refused: ")]
    for line in refused:
        assert re.search(r"cannot fetch '(\S+)' from the hub|torch sees no CUDA device", line), line
    (waits,) = [line for line in lines if line.startswith("would wait: ")] or [""]
    assert not waits or "needs an NVIDIA GPU" in waits
    assert done.returncode == (1 if refused else 0)


def read(tmp_path: Path, device: str) -> tuple[Cell, ...]:
    """The plan's cells, of built-in models, quantized on a device."""
    text = PLAN.read_text()
    for hub, built_in in HUB.items():
        assert hub in text
        text = text.replace(hub, built_in)
    text = re.sub(r'^device = "cuda"', f'device = "{device}"', text, flags=re.MULTILINE)
    path = tmp_path / "plan.toml"
    path.write_text(text.replace('["slmquant"]', '["builtin"]'))
    return matrix.cells_of(plan.read(path, {}), None)


def test_with_models_at_hand_no_cell_is_refused(tmp_path: Path) -> None:
    assert check(read(tmp_path, "cpu")).refused == {}


def test_the_plan_is_the_papers_matrix_on_the_gpu(tmp_path: Path) -> None:
    cells = read(tmp_path, "cuda")
    timed = [cell for cell in cells if cell.kind == "profile"]
    assert all(cell.gpu for cell in cells if cell.kind in ("quantize", "profile", "eval"))
    by_target = {
        target: {
            (cell.of["method"], cell.of["scheme"])
            for cell in timed
            if cell.of["target"] == target and cell.of["model"] == "demo-llama"
        }
        for target in ("torch", "ort-cuda")
    }
    rows = {(method, scheme) for method in PAPER for scheme in ("w8a8", "w4a8")}
    assert by_target["torch"] == rows | {("none", "fp32")}
    assert {method for method, _ in by_target["ort-cuda"]} == {"none", "smoothquant"}
    # Where an [[except]] went too far, a candidate would be there without its baseline.
    for cell in timed:
        assert ("--protocol", "paper") in zip(cell.command, cell.command[1:], strict=False)


def commands() -> list[str]:
    blocks = re.findall(
        r"^```\n(.*?)^```", (DOCS / "a800.md").read_text(), re.MULTILINE | re.DOTALL
    )
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("slmq-edge ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one(line: str) -> None:
    import typer

    from slmq_edge.cli import app

    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):  # a group, whichever click it is of
        command = command.commands[words.pop(0)]
    assert command.make_context("slmq-edge", words).params  # or it raises: an unknown option


def test_the_links_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / "a800.md").read_text()):
        assert (DOCS / target).exists(), target
