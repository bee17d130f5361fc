"""What the artifact is worth: exported bundles on held-out text, scored by the runner.

The benchmark's own functions, on one seed and short learning; its table has all seeds and methods.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest

from benchmarks.quality import STORIES, Case, measured, shuffled, table
from tests.shared import shared

FULL_PRECISION = 3.2057
ROUNDED = {"w8a8": 3.2085, "w4a8": 3.838}
SHORT: dict[str, dict[str, Any]] = {"spinquant": {"steps": 20}, "omniquant": {"epochs": 4}}
METHODS = ("smoothquant", "gptq", "omniquant", "spinquant")


@lru_cache
def log_perplexity(model: str, scheme: str, method: str, preset: str = "upstream") -> float:
    if model == STORIES:
        shared("models/stories260K")  # skips, with the reason, where it is missing
    settings = dict(SHORT.get(method, {}))
    found: float = measured(model, Case(scheme, method, preset, settings=settings))[
        "log_perplexity"
    ]
    return found


def share_won_back(model: str, scheme: str, method: str, preset: str = "upstream") -> float:
    full = log_perplexity(model, "fp32", "none")
    rounded = log_perplexity(model, "w4a8", "none")
    return (rounded - log_perplexity(model, scheme, method, preset)) / (rounded - full)


def test_the_baseline_is_the_model() -> None:
    found = math.exp(log_perplexity(STORIES, "fp32", "none"))
    assert found == pytest.approx(FULL_PRECISION, abs=1e-4)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_plain_rounding_is_what_it_was(scheme: str) -> None:
    found = math.exp(log_perplexity(STORIES, scheme, "none"))
    assert found == pytest.approx(ROUNDED[scheme], rel=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_w8a8_is_no_worse_than_rounding(method: str) -> None:
    worse = log_perplexity(STORIES, "w8a8", method) - log_perplexity(STORIES, "w8a8", "none")
    # The benchmark's bar is half of this, for the mean of three seeds.
    assert worse <= math.log(1.002)


# What the benchmark's three seeds never went below, and room for other machines' rounding.
@pytest.mark.parametrize(
    ("scheme", "method", "preset", "least"),
    [
        ("w4a8", "gptq", "upstream", 0.45),
        pytest.param("w4a8", "omniquant", "upstream", 0.35, marks=pytest.mark.slow),
        pytest.param("w4a8", "spinquant", "best", 0.50, marks=pytest.mark.slow),
        pytest.param("w4a8-g32", "spinquant", "best", 0.60, marks=pytest.mark.slow),
    ],
)
def test_methods_win_back_what_four_bits_lose(
    scheme: str, method: str, preset: str, least: float
) -> None:
    assert share_won_back(STORIES, scheme, method, preset) >= least


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smoothquant", "spinquant"])
def test_outliers_are_what_smoothing_and_rotating_are_for(method: str) -> None:
    """On demo-qwen2, whose gains have outliers: at least three quarters of what is lost."""
    assert share_won_back("demo-qwen2", "w4a8", method) > 0.75


def test_the_table_says_what_was_won_back() -> None:
    def row(scheme: str, case: str, seed: int, perplexity: float) -> dict[str, Any]:
        return {
            "model": "m",
            "scheme": scheme,
            "case": case,
            "seed": seed,
            "log_perplexity": math.log(perplexity),
            "accuracy": None,
            "quantize_seconds": 2.0,
        }

    rows = [
        row("fp32", "none", 0, 2.0),
        row("w4a8", "none", 0, 8.0),
        row("w4a8-g32", "gptq", 0, 4.0),
        row("w4a8-g32", "gptq", 1, 2.0),
    ]
    assert table(rows).splitlines()[2:] == [
        "| m | fp32 | none | 2.000 |  |  |  | 2 |",
        "| m | w4a8 | none | 8.000 | +0.00 % | 0 % |  | 2 |",
        "| m | w4a8-g32 | gptq | 3.000 ± 1.000 | -64.64 % | 75 ± 25 % |  | 2 |",
    ]


def test_a_seed_shuffles_the_documents() -> None:
    documents = [str(number) for number in range(9)]
    assert shuffled(documents, 1) != shuffled(documents, 0) != shuffled(documents, 2)
    assert sorted(shuffled(documents, 1)) == sorted(shuffled(documents, 0))
