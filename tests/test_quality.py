"""What the artifact is worth: perplexity of exported bundles on real text, scored by the runner."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import methods
from slmq_edge import builtin, models
from slmq_edge.export import export
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.runner import manifest
from slmq_edge.runner.ort import Session, open_bundle
from slmq_edge.scheme import scheme
from tests.shared import shared

FULL_PRECISION = 3.2057
ROUNDED = {"w8a8": 3.2085, "w4a8": 3.838}
RANDOM_HADAMARD_W4A8 = 3.899  # ONNXRUNTIME, last paragraph


def bundle(folder: Path, method: str, precision: str) -> Session:
    model = str(shared("models/stories260K"))
    request = Request(
        scheme(precision), method, calib=shared("data/tinystories/train_head290.jsonl")
    )
    export(quantize(plan(model, request)), folder)
    return open_bundle(folder, manifest.read_bundle(folder), threads=1)


def perplexity(session: Session) -> float:
    """Token perplexity over the held-out stories, each alone, BOS first, cut at 512 tokens."""
    tokenizer = models.read_tokenizer(shared("models/stories260K"))
    rows = shared("data/tinystories/valid_head14.jsonl").read_text().splitlines()
    scored = []
    for row in rows:
        encoded = tokenizer(json.loads(row)["text"], truncation=True, max_length=512)
        scored.append(methods.log_probabilities(session, encoded["input_ids"]))
    return math.exp(-float(np.concatenate(scored).mean()))


def test_the_baseline_is_the_model(tmp_path: Path) -> None:
    assert perplexity(bundle(tmp_path / "b", "none", "fp32")) == pytest.approx(
        FULL_PRECISION, abs=1e-4
    )


@pytest.mark.parametrize("method", ["smoothquant", "spinquant"])
def test_w8a8_costs_nearly_nothing(method: str, tmp_path: Path) -> None:
    found = perplexity(bundle(tmp_path / "b", method, "w8a8"))
    assert abs(found / FULL_PRECISION - 1) <= 0.002


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_plain_rounding_is_what_it_was(precision: str, tmp_path: Path) -> None:
    found = perplexity(bundle(tmp_path / "b", "none", precision))
    assert found == pytest.approx(ROUNDED[precision], rel=5e-4)


def test_learned_rotations_beat_random_ones_at_four_bits(tmp_path: Path) -> None:
    assert perplexity(bundle(tmp_path / "b", "spinquant", "w4a8")) < RANDOM_HADAMARD_W4A8


@pytest.mark.parametrize("method", ["smoothquant", "spinquant"])
def test_methods_win_back_what_rounding_to_four_bits_loses(method: str, tmp_path: Path) -> None:
    """On demo-qwen2: full precision 3.225, plain rounding 3.570. At least three quarters of it."""

    def artifact(name: str, used: str, precision: str) -> float:
        windows, length = (None, None) if used == "none" else (64, 256)
        request = Request(scheme(precision), used, windows=windows, length=length)
        export(quantize(plan("demo-qwen2", request)), tmp_path / name)
        session = open_bundle(tmp_path / name, manifest.read_bundle(tmp_path / name), threads=1)
        tokenizer = models.read_tokenizer(builtin.folder("demo-qwen2"))
        return math.log(methods.perplexity(session, tokenizer))

    full, rounded = artifact("full", "none", "fp32"), artifact("rounded", "none", "w4a8")
    assert rounded > full + 0.05
    assert (rounded - artifact("prepared", method, "w4a8")) / (rounded - full) > 0.75
