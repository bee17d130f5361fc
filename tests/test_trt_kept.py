"""Engines that are there already: which are kept, which are checked, and which are not used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.runner import golden, manifest
from slmq_edge.runner.trt import build, cache
from tests import trt_bundle
from tests.trt_bench import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_what_is_there_is_not_built_again(bench: Bench) -> None:
    first = bench.build()
    bench.use("10.3.0").fails = True  # would be noticed
    assert bench.build() == first
    assert bench.told[-1].endswith("is there already")
    assert bench.build(workspace_mib=4) == first
    assert bench.told[-1] == "it was built with --workspace 1024: --force builds it anew"
    bench.fake.fails = False
    again = bench.build(force=True)
    assert again.key == first.key
    assert again.sidecar["built_at"] > first.sidecar["built_at"]


def test_a_build_that_fails_leaves_the_engine_that_was_there(bench: Bench) -> None:
    engine = bench.build()
    names = bench.names()
    bench.fake.fails = True
    with pytest.raises(SlmqError, match="built no engine"):
        bench.build(force=True)
    assert bench.names() == names
    assert cache.find(bench.bundle, manifest.read_bundle(bench.bundle)) == engine


# --- golden prompts


def test_an_engine_that_computes_something_else_is_not_used(bench: Bench) -> None:
    bench.session = trt_bundle.ToySession(seed=3)
    with pytest.raises(SlmqError, match="golden check failed"):
        bench.build()
    with pytest.raises(SlmqError, match="is not used: golden check failed"):
        cache.find(bench.bundle, manifest.read_bundle(bench.bundle))
    bench.session = trt_bundle.ToySession()
    engine = bench.build()  # what has failed is built again
    assert engine.sidecar["golden_error"] is None


def test_a_session_is_closed_whatever_it_says(bench: Bench) -> None:
    bench.build()
    assert bench.session.closed == 1
    bench.session = trt_bundle.ToySession(seed=3)
    with pytest.raises(SlmqError, match="golden check failed"):
        bench.build(force=True)
    assert bench.session.closed == 1


def test_what_cannot_be_loaded_has_not_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU was full: the engine is good, and is checked when it is asked for again."""
    engine = sys.modules["slmq_edge.runner.trt.engine"]

    def full(found: cache.Engine) -> Any:
        raise SlmqError("the GPU has no 12 MB for activations")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "open_engine", full)
        with pytest.raises(SlmqError, match="the GPU has no 12 MB"):
            bench.build()
    found = cache.find(bench.bundle, manifest.read_bundle(bench.bundle))
    assert found.sidecar["golden"] is found.sidecar["golden_error"] is None
    bench.fake.fails = True  # it is not built again
    assert bench.build().sidecar["golden"]["greedy_compared"] == 10
    assert bench.told[-2:] == [f"{found.plan} is there already", "checking golden prompts"]
    found = cache.find(bench.bundle, manifest.read_bundle(bench.bundle))
    assert found.sidecar["golden"]["greedy_compared"] == 10


def test_an_engine_of_another_release_is_not_checked(bench: Bench) -> None:
    engine = bench.build()
    bench.use("10.16.2")
    bundle = manifest.read_bundle(bench.bundle)
    assert build.check_golden(engine, bench.bundle, bundle, bench.told.append) == engine
    assert bench.told[-1] == "not checked here: this Python has TensorRT 10.16.2"
    assert bench.session.closed == 1


def test_rooms_too_small_for_the_golden_prompts_are_refused(bench: Bench) -> None:
    arrays = golden.load(bench.bundle / "golden.npz")
    needed = arrays["tokens"].shape[1] + arrays["greedy"].shape[1]
    with pytest.raises(UsageError, match=f"--context is {needed - 1}: .* take {needed}"):
        bench.build(context=needed - 1)
    assert bench.fake.asked == {}
    assert bench.build(context=needed).sidecar["golden"]
