"""What is distilled goes wherever a checkpoint goes, and is there what was judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slmq_edge import checkpoint as checkpoints
from slmq_edge import golden as goldens
from slmq_edge.export import export
from slmq_edge.exporters import Wanted
from slmq_edge.runner import manifest
from tests.decoders import random_qwen2
from tests.students import distilled, same_bits, task_for

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("target", "words", "start"),
    [
        ("torch", {"name": "w4a8", "kv": 8, "lm_head": "int8"}, "spinquant"),
        pytest.param("ort", {"name": "w4a8", "kv": 8, "lm_head": "int8"}, "spinquant", marks=slow),
        pytest.param("ort", {"name": "w4a8-b32"}, "clipped", marks=slow),
        pytest.param("trt", {"name": "w4a8"}, "gptq", marks=slow),
    ],
)
def test_a_bundle_answers_as_its_golden_prompts_say(
    target: str, words: dict[str, Any], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goldens, "MOST_NOISE_TOKENS", 2048)
    model = random_qwen2()
    found, course = distilled(model, task_for(model, words, start=start, weight_rate=0.05))
    export(found, tmp_path / "bundle", Wanted(target))
    document = manifest.read_bundle(tmp_path / "bundle")
    assert course.step
    assert document["method"] == "distill"
    assert document["lowering"]["scheme_ran"] == words["name"]
    assert document["verified"]["mean_kl"] < document["golden"]["kl_limit"]
    manifest.verify(tmp_path / "bundle", document["files"])


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = random_qwen2()
    words = {"name": "w4a8-g32", "weights": "asymmetric", "activation_scale": "tensor"}
    found, _ = distilled(model, task_for(model, words, start="gptq"))
    checkpoints.save(found, tmp_path / "checkpoint")
    again = checkpoints.load(tmp_path / "checkpoint")
    assert again.method == "distill"
    assert same_bits(again, found)
    assert again.inputs.keys() == found.inputs.keys()
