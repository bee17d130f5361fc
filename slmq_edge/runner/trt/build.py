"""From a bundle's graph to an engine on this machine: built, looked into, checked, kept.

Nothing that takes long begins before it is known that it can end well: the files are what they
were, the release is new enough, there is memory. Then

    build      the Python API, or trtexec            api, trtexec
    look       which products multiply int8          layers
    keep       plan, layer information, sidecar      sidecar, cache
    check      the golden prompts, through the engine

An engine that fails the golden check is kept for the report alone: `cache.find` refuses it.
"""

from __future__ import annotations

import contextlib
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from slmq_edge.errors import NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.profiles.cpu import Cpu
from slmq_edge.runner import golden, manifest
from slmq_edge.runner.trt import (
    api,
    cache,
    commands,
    cuda,
    layers,
    log,
    memory,
    shapes,
    sidecar,
    trtexec,
    versions,
)
from slmq_edge.runner.trt import recipe as recipes
from slmq_edge.runner.trt.cache import Engine, Identity
from slmq_edge.runner.trt.recipe import Recipe
from slmq_edge.runner.trt.shapes import Shapes
from slmq_edge.runner.trt.sidecar import PEAK, Made
from slmq_edge.runner.trt.versions import Version

Tell = Callable[[str], object]


class Request(NamedTuple):
    """What to build. force: anew, and where memory looks short. trtexec: that program, no other."""

    folder: Path
    prompt: int | None = None
    context: int | None = None
    workspace_mib: int = commands.WORKSPACE_MIB
    engines: Path | None = None
    force: bool = False
    trtexec: Path | None = None


class Builder(NamedTuple):
    """What builds. program: ``None`` for the Python API. profiles: by name."""

    version: Version
    program: Path | None

    @property
    def name(self) -> str:
        return "python" if self.program is None else "trtexec"

    @property
    def profiles(self) -> Sequence[str]:
        several = self.program is None or versions.traits(self.version).profiles
        return (shapes.PREFILL, shapes.DECODE) if several else (shapes.PREFILL,)


def build(request: Request, tell: Tell) -> Engine:
    """Build, look into, keep and check an engine; where it is there already, return it.

    Raises:
        SlmqError: one line; what is left behind is no half engine.
    """
    folder = request.folder
    bundle = manifest.read_bundle(folder)
    if manifest.kind_of(bundle) != manifest.TRT:
        raise Unsupported(f"{folder} is no bundle for TensorRT: slmq-edge export --target trt")
    if request.workspace_mib < 1:
        raise UsageError(f"--workspace is {request.workspace_mib}: it must be at least 1 MiB")
    recipe = recipes.read(folder)
    limits = shapes.of(recipe, request.prompt, request.context)
    builder = choose(request.trtexec)
    if builder.version < versions.parse(recipe.tensorrt):
        raise Unsupported(
            f"this graph needs TensorRT {recipe.tensorrt} or later, here is {builder.version}"
        )
    identity = _identity(bundle, recipe, limits, builder)
    home = cache.folder_of(folder, request.engines)
    there = None if request.force else _there(home, identity, recipe)
    if there is not None:
        return _kept(there, request, bundle, tell)
    manifest.verify(folder, bundle.get("files", {}))
    _holds_golden(folder, bundle, limits)
    if not request.force:
        needed = memory.needs(recipe, limits, request.workspace_mib)
        memory.check(needed, memory.free(cuda.device()))
    _writable(home)
    tell(f"building for TensorRT {identity.tensorrt} on {identity.gpu} (sm_{identity.sm})")
    engine = _built(request, bundle, recipe, limits, builder, identity, tell)
    return check_golden(engine, folder, bundle, tell)


def choose(program: Path | None) -> Builder:
    """The Python API where it is there, else trtexec; or the trtexec that was asked for.

    Raises:
        NotFound: neither is there.
    """
    if program is None:
        try:
            return Builder(versions.installed(), None)
        except NotFound as error:
            missing = error
        try:
            program = trtexec.find()
        except NotFound as error:
            raise NotFound(f"{error}; and {missing}") from error
    found = trtexec.find(program)
    return Builder(trtexec.version(found), found)


def _identity(
    bundle: Mapping[str, Any], recipe: Recipe, limits: Shapes, builder: Builder
) -> Identity:
    here = cache.machine(builder.version)
    flags = versions.precision(builder.version, recipe)
    return Identity(
        content=cache.content(bundle),
        prompt=limits.prompt,
        context=limits.context,
        kept=limits.kept,
        precision="+".join(flags).lower(),
        **here._asdict(),
    )


def _there(home: Path, identity: Identity, recipe: Recipe) -> Engine | None:
    """The engine of that identity, if it is there and has not failed."""
    name = cache.key(identity)
    for document in cache.sidecars(home):
        if document["key"] == name and not document.get("golden_error"):
            return Engine(cache.checked(home, document), document, recipe)
    return None


def _kept(there: Engine, request: Request, bundle: Mapping[str, Any], tell: Tell) -> Engine:
    """An engine that is there already, and what was not checked of it then."""
    tell(f"{there.plan} is there already")
    workspace = there.sidecar.get("workspace_mib")
    if workspace != request.workspace_mib:
        tell(f"it was built with --workspace {workspace}: --force builds it anew")
    if there.sidecar.get("golden") is not None:
        return there
    manifest.verify(request.folder, bundle.get("files", {}))
    return check_golden(there, request.folder, bundle, tell)


def _holds_golden(folder: Path, bundle: Mapping[str, Any], limits: Shapes) -> None:
    """Refuse rooms that the golden prompts and their continuations do not fit into."""
    arrays = golden.load(golden.golden_file(folder, bundle))
    needed = arrays["tokens"].shape[1] + arrays["greedy"].shape[1]
    if limits.context < needed:
        raise UsageError(f"--context is {limits.context}: the golden prompts take {needed}")


def _writable(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise SlmqError(
            f"cannot write {home}: {error.strerror}; --engines names another folder"
        ) from error


def _built(
    request: Request,
    bundle: Mapping[str, Any],
    recipe: Recipe,
    limits: Shapes,
    builder: Builder,
    identity: Identity,
    tell: Tell,
) -> Engine:
    home = cache.folder_of(request.folder, request.engines)
    name = cache.key(identity)
    plan = home / f"{name}.plan"
    how = _by_python if builder.program is None else _by_trtexec
    with cache.whole(plan) as partial:
        made = how(request, recipe, limits, builder, partial, tell)
        cache.remove(home, name)  # one that is there goes when the other is whole, and no sooner
    try:
        _keep_layers(home / f"{name}.layers.json", made.layers)
        document = sidecar.describe(made, bundle, recipe, identity)
        document.update(plan_bytes=plan.stat().st_size, plan_sha256=manifest.sha256(plan))
        document.update(builder=builder.name, workspace_mib=request.workspace_mib)
        cache.save(home, document)
    except BaseException:
        cache.remove(home, name)
        raise
    return Engine(plan, document, recipe)


def _by_python(
    request: Request, recipe: Recipe, limits: Shapes, builder: Builder, plan: Path, tell: Tell
) -> Made:
    home = cache.folder_of(request.folder, request.engines)
    timing = home / cache.TIMING
    host = Cpu()
    host.reset_peak()
    began = time.monotonic()
    built = api.build(
        builder.version,
        recipe,
        request.folder / manifest.TRT_GRAPH,
        limits,
        request.workspace_mib,
        timing.read_bytes() if timing.is_file() else b"",
        tell,
    )
    seconds, peak = time.monotonic() - began, host.memory().get(PEAK)
    with plan.open("wb") as stream:
        stream.write(built.plan)
    with cache.whole(timing) as partial:
        partial.write_bytes(bytes(built.timing))
    tail = log.LINES.tail
    tell("looking at the layers")
    seen = api.inspect(builder.version, recipe, built.plan, limits)
    return Made(seen.layers, builder.profiles, seen.activation_bytes, seconds, tail, peak)


def _by_trtexec(
    request: Request, recipe: Recipe, limits: Shapes, builder: Builder, plan: Path, tell: Tell
) -> Made:
    home = cache.folder_of(request.folder, request.engines)
    told = home / f".{plan.name}.layers"
    files = commands.Files(
        str(request.folder / manifest.TRT_GRAPH), str(plan), str(told), str(home / cache.TIMING)
    )
    line = commands.build(
        str(builder.program), files, recipe, limits, builder.version, request.workspace_mib
    )
    began = time.monotonic()
    try:
        tail = trtexec.run(line, tell)
        seconds = time.monotonic() - began
        if not plan.stat().st_size:
            raise SlmqError("trtexec ended well and wrote no engine")
        text = told.read_text(encoding="utf-8") if told.is_file() else ""
    finally:
        if told.exists():
            told.unlink()
    told_of = {layers.ENGINE: text} if text else {}
    # Of all children that have ended: the others said their release.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Made(told_of, builder.profiles, None, seconds, tail, peak or None)


def _keep_layers(path: Path, found: Mapping[str, str]) -> None:
    documents = {name: layers.read(text) for name, text in found.items()}
    with cache.whole(path) as partial:
        partial.write_text(json.dumps(documents, indent=1) + "\n", encoding="utf-8")


def _looked_into(engine: Engine, version: Version, bundle: Mapping[str, Any], tell: Tell) -> Engine:
    """The engine, its sidecar telling what became of the products for usual shapes."""
    document = dict(engine.sidecar)
    if document["with_shapes"]:
        return engine
    tell("looking at the layers")
    limits = Shapes(*(document["identity"][name] for name in Shapes._fields))
    found = api.inspect(version, engine.recipe, engine.plan.read_bytes(), limits)
    made = Made(found.layers, document["profiles"], found.activation_bytes, document["seconds"], ())
    _keep_layers(engine.plan.with_suffix(".layers.json"), made.layers)
    document.update(sidecar.seen(made, bundle, engine.recipe))
    cache.save(engine.plan.parent, document)
    return engine._replace(sidecar=document)


def check_golden(engine: Engine, folder: Path, bundle: Mapping[str, Any], tell: Tell) -> Engine:
    """Run the golden prompts through an engine, and write into its sidecar how that went.

    Before that it is looked into where trtexec could not: TensorRT tells types only with shapes,
    and trtexec tells of layers without. Where this Python has no TensorRT, or another than built
    it, nothing is checked here, and the sidecar says nothing.

    Raises:
        SlmqError: a figure is beyond its limit, and the engine will not be found; or it cannot be
            loaded, which says nothing of its figures and is not written down.
    """
    try:
        here = versions.parse(str(versions.module().__version__))
    except NotFound:
        tell("not checked here: this Python has no tensorrt")
        return engine
    if str(here) != engine.sidecar["identity"]["tensorrt"]:
        tell(f"not checked here: this Python has TensorRT {here}")
        return engine
    from slmq_edge.runner.trt.engine import open_engine

    engine = _looked_into(engine, here, bundle, tell)
    tell("checking golden prompts")
    arrays = golden.load(golden.golden_file(folder, bundle))
    document, bounds = dict(engine.sidecar), golden.limits(bundle)
    session = open_engine(engine)
    try:
        report = golden.check(session, arrays, bounds)
        document["golden"] = report._asdict()
    except SlmqError as error:
        document["golden_error"] = str(error)
        raise
    finally:
        cache.save(engine.plan.parent, document)
        with contextlib.suppress(SlmqError):  # after an error CUDA may only repeat it
            session.close()
    return engine._replace(sidecar=document)
