"""The benchmark of kernels, rehearsed by plain torch; test_triton.py has it by the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_kernels
from slmq_edge.errors import SlmqError, UsageError


def test_a_rehearsal_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_kernels.main(dry_run=True, rows=[1, 20], output=tmp_path / "kernels.json")
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["dry_run"] is True
    assert document["gpu"] is None
    assert document["operators"] == "reference"
    rows = document["rows"]
    assert {row["form"] for row in rows} == set(gpu_kernels.FORMS)
    assert {row["rows"] for row in rows} == {1, 20}
    assert all(row["equal"] in (None, True) for row in rows)
    assert [row["bytes"] for row in rows if (row["operator"], row["form"]) == ("head", "fp16")] == [
        2 * (40 * 64 + rows * (64 + 40)) for rows in (1, 20)
    ]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows)
    assert "x fp16" in next(line for line in lines if "w4a8-g32" in line)


def test_what_cannot_run_is_said_first() -> None:
    with pytest.raises(UsageError, match="did you mean w8a8"):
        gpu_kernels.main(form=["w8a9"])
    if not torch.cuda.is_available():
        with pytest.raises(SlmqError, match="--dry-run"):
            gpu_kernels.main()
