"""A ``tensorrt`` that builds nothing, with the names of one release and no others.

What is asked of it ends up in the plan, as JSON, so that a test can read what was asked; what is
not in that release raises AttributeError. Sources: the table of `slmq_edge.runner.trt.versions`.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence
from typing import Any

from slmq_edge.runner.trt import versions

Text = Callable[[int, Sequence[str]], str]  # profile, names -> layer information


def layer_information(index: int, names: Sequence[str]) -> str:
    """Every product int8, in the form of 10.x."""
    return json.dumps({"Layers": [product(name) for name in names]})


def product(name: str, kind: str = "Int8") -> dict[str, Any]:
    tensor = {"Name": "x", "Dimensions": [1, 4, 8], "Format/Datatype": kind}
    metadata = f"[ONNX Layer: {name}]"
    return {"Name": f"{name}_myl0_1", "LayerType": "gemm", "Inputs": [tensor], "Metadata": metadata}


class Fake:
    """What the module is to do, and what it was asked."""

    def __init__(self, release: str, products: Sequence[str], text: Text = layer_information):
        self.release = versions.parse(release)
        self.products = products
        self.text = text
        self.errors: list[types.SimpleNamespace] = []  # of the parser
        self.messages: list[tuple[int, str]] = []  # that parsing logs: severity, text
        self.during_build: Callable[[Any], Any] = lambda config: None
        self.fails = False
        self.refuses_timing = False
        self.asked: dict[str, Any] = {}
        self.module = _module(self)


def _enum(*names: str) -> Any:
    return types.SimpleNamespace(**{name: index for index, name in enumerate(names)})


def _module(fake: Fake) -> Any:
    ten, eleven = fake.release.is_at_least("10.0"), fake.release.is_at_least("11.0")
    module = types.ModuleType("tensorrt")
    made: dict[str, Any] = {
        "__version__": str(fake.release),
        "ILogger": type("ILogger", (), {}),
        "MemoryPoolType": _enum("WORKSPACE"),
        "ProfilingVerbosity": _enum("LAYER_NAMES_ONLY", "DETAILED"),
        "LayerInformationFormat": _enum("ONELINE", "JSON"),
        "BuilderFlag": _flags(*(("TF32",) if eleven else ("FP16", "INT8", "TF32"))),
        "NetworkDefinitionCreationFlag": _creation(ten),
        "Builder": lambda logger: _Builder(fake, logger),
        "OnnxParser": lambda network, logger: _Parser(fake, logger, ten),
        "Runtime": lambda logger: types.SimpleNamespace(
            deserialize_cuda_engine=lambda plan: _engine(fake, plan)
        ),
    }
    if ten:
        made["IProgressMonitor"] = type("IProgressMonitor", (), {})
    elif fake.release.is_at_least("8.6"):
        made["PreviewFeature"] = _flags("PROFILE_SHARING_0806")
    for name, value in made.items():
        setattr(module, name, value)
    return module


def _flags(*names: str) -> Any:
    return types.SimpleNamespace(**{name: name for name in names})


def _creation(ten: bool) -> Any:
    if ten:  # EXPLICIT_BATCH, a no-op there, keeps its number
        return types.SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    return types.SimpleNamespace(EXPLICIT_BATCH=0)


class _Builder:
    def __init__(self, fake: Fake, logger: Any) -> None:
        self._fake, self._logger = fake, logger
        fake.asked = {"profiles": [], "flags": [], "cleared": [], "features": []}

    def create_network(self, flags: int) -> Any:
        self._fake.asked["creation"] = flags
        return object()

    def create_builder_config(self) -> Any:
        return _config(self._fake)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        profile = types.SimpleNamespace(shapes=shapes)
        profile.set_shape = lambda name, *extents: shapes.update({name: extents})
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self._fake.during_build(config)
        if self._fake.fails:
            self._logger.log(1, "Error Code 10: no implementation\n for node x")
            return None
        return json.dumps(self._fake.asked).encode()


def _config(fake: Fake) -> Any:
    asked = fake.asked

    def add(profile: Any) -> int:
        asked["profiles"].append(profile.shapes)
        return len(asked["profiles"]) - 1

    def timing(saved: bytes) -> Any:
        return types.SimpleNamespace(saved=saved, serialize=lambda: saved + b"+timed")

    def attach(cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        asked["timing"] = cache.saved.decode()
        return not (fake.refuses_timing and cache.saved)

    config = types.SimpleNamespace(
        set_memory_pool_limit=lambda pool, count: asked.update(workspace=count),
        set_flag=asked["flags"].append,
        clear_flag=asked["cleared"].append,
        add_optimization_profile=add,
        create_timing_cache=timing,
        set_timing_cache=attach,
    )
    if fake.release.is_at_least("8.6") and not fake.release.is_at_least("10.0"):
        config.set_preview_feature = lambda name, on: asked["features"].append(name)
    return config


class _Parser:
    def __init__(self, fake: Fake, logger: Any, names: bool) -> None:
        self._fake, self._logger, self._names = fake, logger, names

    def parse_from_file(self, path: str) -> bool:
        self._fake.asked["graph"] = path
        for severity, text in self._fake.messages:
            self._logger.log(severity, text)
        return not self._fake.errors

    @property
    def num_errors(self) -> int:
        return len(self._fake.errors)

    def get_error(self, index: int) -> Any:
        error = self._fake.errors[index]
        methods = {"desc": error.desc, "node": 7}
        if self._names:
            methods.update(node_name=error.name, node_operator=error.operator)
        return types.SimpleNamespace(
            **{name: (lambda value=value: value) for name, value in methods.items()}
        )


def _engine(fake: Fake, plan: Any) -> Any:
    asked = json.loads(bytes(plan))
    engine = types.SimpleNamespace(
        num_optimization_profiles=len(asked["profiles"]),
        create_execution_context=lambda: _Context(asked),
        create_engine_inspector=lambda: _Inspector(fake),
    )
    release = fake.release
    if release.is_at_least("10.3"):
        engine.device_memory_size_v2 = 4096
    if not release.is_at_least("11.0"):
        engine.device_memory_size = 4096
    return engine


class _Context:
    def __init__(self, asked: Any) -> None:
        self._asked, self.profile = asked, 0
        self.shapes: dict[str, Any] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self._asked["profiles"][self.profile][name]
        assert all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self.shapes[name] = shape
        return True


class _Inspector:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.execution_context: Any = None

    def get_engine_information(self, kind: int) -> str:
        assert kind == 1
        return self._fake.text(self.execution_context.profile, self._fake.products)
