"""NVIDIA's own parser and compiler on a graph, without a GPU (TENSORRT 1.2, 1.3; extra trt-check).

TensorRT-RTX is a sibling of TensorRT: what it accepts, warns of, and multiplies as int8 by int8 is
evidence, and no proof, of what TensorRT does. Its plan is read from what its builder logs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import MissingExtra, SlmqError
from slmq_edge.runner.trt import log, shapes
from slmq_edge.runner.trt.recipe import Recipe

PACKAGE, EXTRA = "tensorrt_rtx", "trt-check"
# It must be told for which GPU it compiles, where there is none: A100, the oldest that has all.
COMPUTE_CAPABILITY = "SM80"
# What every graph with positions in int64 is told by the parser, and is right.
EXPECTED = ("Int64 binding",)
LAYER = re.compile(
    r"Name: (\S+), LayerType: (\S+), Inputs: \[(.*?)\], Constants: \[(.*?)\], "
    r"Outputs: \[(.*?)\], TacticName"
)
# What it appends to the name of a layer.
SUFFIX = re.compile(r"_myl\d+_\d+$")


@dataclass(frozen=True)
class Layer:
    """A layer of a plan: the names of the nodes in it, and the types of what it reads and writes.

    reads: inputs first, then constants.
    """

    kind: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        return self.kind == "gemm" or any("Fc" in node for node in self.nodes)

    @property
    def is_int8(self) -> bool:
        return self.kind == "gemm" and self.reads[:2] == ("Int8", "Int8")


@dataclass(frozen=True)
class Compiled:
    """What came of a graph. plan_bytes: ``None`` where errors say why there is no plan."""

    version: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    plan_bytes: int | None
    layers: tuple[Layer, ...]

    @property
    def int8(self) -> frozenset[str]:
        """Names of the MatMul nodes that are products of int8 by int8."""
        return frozenset(node for layer in self.layers if layer.is_int8 for node in layer.nodes)

    @property
    def products(self) -> Mapping[str, int]:
        """How many products there are of each pair of types."""
        return Counter(
            f"{' x '.join(layer.reads[:2])} -> {', '.join(layer.writes)}"
            for layer in self.layers
            if layer.is_product
        )


def compile_graph(graph: Path, recipe: Recipe) -> Compiled:
    """Parse and compile a graph, for prompts and rooms as an engine is built for.

    Raises:
        MissingExtra: the package is not installed.
    """
    rtx = loaded()
    logger = log.logger(rtx)
    log.LINES.clear()
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = tuple(
            f"{one.node_operator()} {one.node_name()}: {one.desc().strip()}" for one in found
        )
        return Compiled(rtx.__version__, errors, _warnings(), None, ())
    with log.LINES.everything() as told:
        plan = builder.build_serialized_network(network, _config(rtx, builder, recipe))
    errors = tuple(log.LINES.errors) if plan is None else ()
    layers = tuple(layer for text in told for layer in _layers(text))
    size = None if plan is None else int(plan.nbytes)
    return Compiled(rtx.__version__, errors, _warnings(), size, layers)


def _config(rtx: Any, builder: Any, recipe: Recipe) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(rtx.ComputeCapability, COMPUTE_CAPABILITY), 0)
    for wanted in shapes.profiles(shapes.of(recipe), several=False):
        profile = builder.create_optimization_profile()
        for port in recipe.inputs:
            profile.set_shape(port.name, *(shapes.shape(port, size) for size in wanted[1:]))
        config.add_optimization_profile(profile)
    return config


def _warnings() -> tuple[str, ...]:
    said = log.LINES.warnings
    return tuple(one for one in said if not any(known in one for known in EXPECTED))


def check(graph: Path, recipe: Recipe) -> Compiled:
    """Compile a graph, which must become what its recipe says: every product of integers int8.

    Raises:
        SlmqError: an error, a warning, or another set of products; says which.
        MissingExtra: the package is not installed.
    """
    found = compile_graph(graph, recipe)
    said = (*found.errors, *found.warnings)
    if said:
        raise SlmqError(f"TensorRT-RTX {found.version} refuses {graph}: {said[0]}")
    missing = sorted(set(recipe.int8) - found.int8)
    surplus = sorted(found.int8 - set(recipe.int8))
    for names, verdict in ((missing, "does not multiply"), (surplus, "multiplies")):
        if names:
            raise SlmqError(
                f"TensorRT-RTX {found.version} {verdict} {names[0]} as int8 by int8 "
                f"({len(names)} such of {len(recipe.int8)} that should be)"
            )
    return found


def _layers(text: str) -> Iterator[Layer]:
    if not text.startswith("Layers:"):
        return
    for name, kind, inputs, constants, outputs in LAYER.findall(text):
        yield Layer(
            kind,
            tuple(SUFFIX.sub("", name).split("+")),
            (*_types(inputs), *_types(constants)),
            _types(outputs),
        )


def _types(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"Datatype: (\w+)", text))


def loaded() -> Any:
    """TensorRT-RTX's module.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise MissingExtra(PACKAGE, EXTRA) from error
    return tensorrt_rtx
