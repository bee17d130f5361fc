"""What cannot run on a machine is refused before anything is sent there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.remote.run import Remote
from slmq_edge.runner import manifest
from slmq_edge.runner.runtimes import Place
from tests import toy_graph
from tests.remote_client import local


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "device"


class Seen(Remote):
    """A machine that says something else of itself, and that no GPU is in it."""

    def __init__(self, home: Path, **packages: str | None) -> None:
        super().__init__(local(home, "board"))
        self._said = packages

    @property
    def seen(self) -> Mapping[str, Any]:
        found = super().seen
        return {**found, "packages": {**found["packages"], **self._said}, "gpus": []}


def _place(bundle: Path, kind: str = "ort") -> Place:
    document = manifest.read_bundle(bundle)
    section = {**document["runtime"], "kind": kind, "minimum_version": "1.19"}
    return Place(bundle, {**document, "runtime": section}, 1)


@pytest.mark.parametrize(
    ("packages", "kind", "error", "text"),
    [
        ({"onnxruntime": None}, "ort", Unsupported, "no onnxruntime there: .*pip install onnx"),
        ({"numpy": None}, "ort", Unsupported, "no numpy there"),
        ({"onnxruntime": "1.16.3"}, "ort", SlmqError, "board: onnxruntime 1.16.3 is too old"),
        ({"onnxruntime-gpu": "1.19"}, "ort", SlmqError, "board: onnxruntime and onnxruntime-gpu"),
        ({"tensorrt": None}, "trt", Unsupported, "no tensorrt there: .*python3-libnvinfer"),
        ({"tensorrt": "10.3"}, "trt", NotFound, "board: no GPU is seen there: slmq-edge doctor"),
        ({}, "tpu", UsageError, "unknown runtime 'tpu'"),
    ],
)
def test_what_cannot_run_there_is_not_sent(
    packages: dict[str, str | None],
    kind: str,
    error: type[SlmqError],
    text: str,
    bundle: Path,
    home: Path,
) -> None:
    with Seen(home, **packages) as machine, pytest.raises(error, match=text):
        machine.device(_place(bundle, kind))
    assert not (home / "store").exists()


def test_the_default_number_of_threads_is_that_machine_s(home: Path) -> None:
    with Remote(local(home)) as machine:
        assert machine.cores() == len(os.sched_getaffinity(0))
