"""An engine by TensorRT's Python API, which differs from release to release as `versions` says."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple

from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.runner.trt import log, shapes, versions
from slmq_edge.runner.trt.memory import MIB
from slmq_edge.runner.trt.recipe import Recipe
from slmq_edge.runner.trt.shapes import Profile, Shapes
from slmq_edge.runner.trt.versions import Version

Tell = Callable[[str], object]

PARSING = re.compile(r'While parsing node number (\d+) \[(\w+) -> "([^"]*)"')
UNUSED = re.compile(r"unused input:?\s*(\S+)", re.IGNORECASE)
LONG_AGO = 5.0  # seconds between two lines about a build that goes on
GRACE = 20.0  # seconds for a build to end once it is cancelled
DEFAULT_STREAM = 0


class Built(NamedTuple):
    """plan: the engine, anything with a buffer. timing: what the next build may read."""

    plan: Any
    timing: Any


class Seen(NamedTuple):
    """An engine as it says it is. layers: profile -> layer information, JSON as text."""

    layers: Mapping[str, str]
    activation_bytes: int


def build(
    version: Version,
    recipe: Recipe,
    graph: Path,
    limits: Shapes,
    workspace_mib: int,
    timing: bytes,
    tell: Tell,
) -> Built:
    """Parse a graph and build its engine.

    Raises:
        Unsupported: this release's parser refuses a node; names it.
        SlmqError: there is no engine at the end; says what TensorRT said.
        KeyboardInterrupt: Ctrl-C; the build is told to end where the release can be told.
    """
    trt, traits = versions.module(), versions.traits(version)
    log.LINES.clear()
    try:
        builder = trt.Builder(log.logger(trt))
    except TypeError as error:  # what the binding makes of a GPU that cannot be used
        raise SlmqError(f"TensorRT {version} has no builder here: {_last_error()}") from error
    network = builder.create_network(_creation_flags(trt, traits))
    parser = trt.OnnxParser(network, log.logger(trt))
    if not parser.parse_from_file(str(graph)):
        raise Unsupported(_refused(parser, traits, version))
    _all_used()
    config = _config(trt, builder, version, recipe, limits, workspace_mib)
    cache = _timing(config, timing)
    monitor = Monitor()
    if traits.progress:
        config.progress_monitor = monitor.of(trt)
    plan = _waiting(lambda: builder.build_serialized_network(network, config), monitor, tell)
    if plan is None:
        raise SlmqError(f"TensorRT {version} built no engine: {_last_error()}")
    return Built(plan, cache.serialize() if cache is not None else b"")


def _creation_flags(trt: Any, traits: versions.Traits) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if traits.explicit_batch:
        return 1 << int(flags.EXPLICIT_BATCH)
    return 1 << int(flags.STRONGLY_TYPED) if traits.strong_flag else 0


def _config(
    trt: Any, builder: Any, version: Version, recipe: Recipe, limits: Shapes, workspace_mib: int
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * MIB)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # a float32 that is asked for is one
    if versions.traits(version).share_profiles:
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    for name in versions.precision(version, recipe):
        config.set_flag(getattr(trt.BuilderFlag, name))
    for profile in shapes.profiles(limits):
        asked = builder.create_optimization_profile()
        for port in recipe.inputs:
            asked.set_shape(port.name, *[shapes.shape(port, sizes) for sizes in profile[1:]])
        if config.add_optimization_profile(asked) < 0:
            raise SlmqError(f"TensorRT refuses the shapes of {profile.name}: {_last_error()}")
    return config


def _timing(config: Any, saved: bytes) -> Any:
    """Attach a timing cache: the one that was saved, or where it is of another GPU a new one."""
    for data in (saved, b"") if saved else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _all_used() -> None:
    """An input that the parser drops is one that the results do not depend on: wrong, silently."""
    for line in log.LINES.warnings:
        found = UNUSED.search(line)
        if found:
            raise Unsupported(f"TensorRT ignores the input {found.group(1)} of the graph: {line}")


def _refused(parser: Any, traits: versions.Traits, version: Version) -> str:
    """The parser's errors in one line: node, operator, reason."""
    if not parser.num_errors:
        return f"TensorRT {version} cannot read the graph: {_last_error()}"
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    if reason in ("", "false"):  # what it says of an operator that it does not know
        reason = "not supported"
    if traits.parser_names:
        where = f"{error.node_operator()} {error.node_name()}".strip() or "the graph"
    else:
        found = [m for m in map(PARSING.search, log.LINES.errors) if m]
        where = f"{found[0].group(2)} {found[0].group(3)}" if found else f"node {error.node()}"
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return f"TensorRT {version} refuses {where}: {reason}{more}"


def _last_error() -> str:
    return log.LINES.errors[-1] if log.LINES.errors else "it does not say why"


class Monitor:
    """How far a build is, as TensorRT's own threads report it; and the way to end it."""

    def __init__(self) -> None:
        self.cancelled = False
        self.listens = False
        self._phases: list[tuple[str, int, int]] = []  # name, steps, done: outermost first

    @property
    def text(self) -> str:
        return ", ".join(f"{name} {done}/{steps}" for name, steps, done in self._phases[:2])

    def start(self, name: str, steps: int) -> None:
        self._phases.append((name, steps, 0))

    def step(self, name: str, done: int) -> bool:
        self._phases = [(n, s, done + 1 if n == name else d) for n, s, d in self._phases]
        return not self.cancelled

    def finish(self, name: str) -> None:
        self._phases = [phase for phase in self._phases if phase[0] != name]

    def of(self, trt: Any) -> Any:
        """An IProgressMonitor that reports here."""
        seen, self.listens = self, True

        class Listener(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
                seen.start(phase_name, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return seen.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                seen.finish(phase_name)

        return Listener()


def _waiting(work: Callable[[], Any], monitor: Monitor, tell: Tell) -> Any:
    """Do ``work`` in a thread, so that Ctrl-C arrives and the time that passes can be told."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # it is raised where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    began = told = time.monotonic()
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
            if time.monotonic() - told > LONG_AGO:
                told = time.monotonic()
                tell(f"building: {told - began:.0f} s {monitor.text}".rstrip())
    except KeyboardInterrupt:
        monitor.cancelled = True
        if monitor.listens:
            thread.join(GRACE)
        raise
    if errors:
        raise errors[0]
    return results[0]


def inspect(version: Version, recipe: Recipe, plan: Any, limits: Shapes) -> Seen:
    """Load an engine and ask it for its layers, in each profile with usual shapes.

    Raises:
        SlmqError: it cannot be loaded, or has other profiles.
    """
    trt, traits = versions.module(), versions.traits(version)
    engine = trt.Runtime(log.logger(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        raise SlmqError(f"TensorRT cannot load the engine it built: {_last_error()}")
    asked = shapes.profiles(limits)
    if engine.num_optimization_profiles < len(asked):
        asked = asked[: engine.num_optimization_profiles]
    layers = {
        profile.name: _told(trt, engine, recipe, profile, index)
        for index, profile in enumerate(asked)
    }
    return Seen(layers, int(getattr(engine, traits.memory_size)))


def _told(trt: Any, engine: Any, recipe: Recipe, profile: Profile, index: int) -> str:
    """Layer information of one profile: without shapes, TensorRT 8 tells no types."""
    context = engine.create_execution_context()
    if context is None:
        raise SlmqError(f"the engine's memory cannot be had: {_last_error()}")
    context.set_optimization_profile_async(index, DEFAULT_STREAM)
    for port in recipe.inputs:
        context.set_input_shape(port.name, shapes.shape(port, profile.usual))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
