"""A bundle, a fake TensorRT of some release, and what was told on the way."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.runner.trt import build, cache, memory
from tests import trt_bundle
from tests.fake_builder import Fake

NAMES = trt_bundle.recipe().int8


class Bench:
    """A bundle, a fake TensorRT of some release, and what was told on the way."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle = trt_bundle.write(folder / "bundle")
        self.home = self.bundle / cache.ENGINES
        self.told: list[str] = []
        self._patch = monkeypatch
        self.session = trt_bundle.ToySession()
        engine = types.ModuleType("slmq_edge.runner.trt.engine")
        engine.open_engine = lambda found: self.session  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "slmq_edge.runner.trt.engine", engine)
        monkeypatch.setattr(memory, "free", lambda device: None)
        trt_bundle.pretend(monkeypatch)
        self.use("10.3.0")

    def use(self, release: str, **fields: Any) -> Fake:
        self.fake = Fake(release, NAMES, **fields)
        self._patch.setitem(sys.modules, "tensorrt", self.fake.module)
        return self.fake

    def build(self, **fields: Any) -> cache.Engine:
        return build.build(build.Request(self.bundle, **fields), self.told.append)

    def names(self) -> set[str]:
        return {path.name for path in self.home.iterdir()} if self.home.exists() else set()
