"""Engines beside their bundle: which one is for this machine, and was it checked?

An engine is right for one graph, one release of TensorRT and of CUDA's runtime, and one kind of
GPU; everywhere else it is refused or, worse, slow. So beside every ``<key>.plan`` lies
``<key>.json``, its sidecar, which says what it was built of, on what, and what came of it; it is
written last, so that where it is the engine is whole. ``<key>.layers.json`` is TensorRT's own layer
information; ``timing.cache`` makes the next build shorter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.runner.manifest import TRT_GRAPH, TRT_RECIPE, sha256
from slmq_edge.runner.trt import cuda, versions
from slmq_edge.runner.trt.recipe import Recipe, read

ENGINES = "engines"
TIMING = "timing.cache"
FORMAT, VERSION = "slmq-edge-trt-engine", 1
KEY_DIGITS = 16
# What must be the same where an engine runs, in the words of a refusal.
MACHINE = {"tensorrt": "TensorRT", "cuda": "CUDA", "gpu": "GPU", "sm": "compute capability"}
BUILD = "slmq-edge build {}"


class Identity(NamedTuple):
    """What an engine is: another in any of these is another engine.

    content: SHA-256 over the graph, its data and the recipe, by their digests in bundle.json.
    prompt, context, kept: of `shapes.Shapes`. precision: the builder's flags, "" where strongly
    typed. tensorrt, cuda: versions. sm: compute capability, "87". gpu: its name.
    """

    content: str
    prompt: int
    context: int
    kept: int
    precision: str
    tensorrt: str
    cuda: str
    sm: str
    gpu: str


class Engine(NamedTuple):
    """An engine on disk. sidecar: the document of ``<key>.json``."""

    plan: Path
    sidecar: dict[str, Any]
    recipe: Recipe

    @property
    def key(self) -> str:
        return self.plan.stem


class Machine(NamedTuple):
    """What `Identity` takes from where it is built, as text."""

    tensorrt: str
    cuda: str
    sm: str
    gpu: str


def key(identity: Identity) -> str:
    """The name of an engine's files: a digest of all fields."""
    text = json.dumps(identity._asdict(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:KEY_DIGITS]


def content(bundle: Mapping[str, Any]) -> str:
    """Digest of what a bundle's engine is made of, from the digests of its files."""
    files = bundle.get("files")
    listed = files if isinstance(files, dict) else {}
    made_of = [name for name in listed if name == TRT_RECIPE or name.startswith(TRT_GRAPH)]
    if not {TRT_GRAPH, TRT_RECIPE} <= set(made_of):
        raise Damaged(f"bundle.json is damaged: it does not list {TRT_GRAPH} and {TRT_RECIPE}")
    lines = "".join(f"{name} {listed[name]['sha256']}\n" for name in sorted(made_of))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def machine(tensorrt: versions.Version | None = None) -> Machine:
    """This machine; TensorRT's release is that of the Python package, or the one given.

    Raises:
        SlmqError: TensorRT or a CUDA device is missing.
    """
    version = versions.installed() if tensorrt is None else tensorrt
    device = cuda.device()
    return Machine(str(version), device.cuda, device.sm, device.name)


def folder_of(bundle: Path, engines: Path | None) -> Path:
    """Where a bundle's engines are, or are to be."""
    return bundle / ENGINES if engines is None else engines


def find(folder: Path, bundle: Mapping[str, Any], engines: Path | None = None) -> Engine:
    """The engine of a bundle for this machine; of several that have not failed, the largest room's.

    Raises:
        NotFound: there is none, or none of this graph.
        SlmqError: all were built elsewhere, or have failed their golden check.
        Damaged: it is not what was written.
    """
    home, command = folder_of(folder, engines), BUILD.format(folder)
    found = sidecars(home)
    if not found:
        raise NotFound(f"no engine for {folder} in {home}: {command}")
    made_of = content(bundle)
    same = [one for one in found if one["identity"]["content"] == made_of]
    if not same:
        raise NotFound(f"the engines in {home} are of another graph: {command}")
    here = machine()
    own = [one for one in same if not differing(one["identity"], here)]
    if not own:
        raise SlmqError(_elsewhere(same, here, command))
    good = [one for one in own if not one.get("golden_error")]
    if not good:
        raise SlmqError(f"the engine {own[-1]['key']} is not used: {own[-1]['golden_error']}")
    best = max(good, key=lambda one: [one["identity"][size] for size in ("context", "prompt")])
    return Engine(checked(home, best), best, read(folder))


def sidecars(home: Path) -> list[dict[str, Any]]:
    """The sidecars of a folder, oldest first.

    Raises:
        Damaged: a file that ought to be one is none.
    """
    return sorted(
        (read_sidecar(path) for path in paths(home)), key=lambda one: float(one.get("built_at", 0))
    )


def paths(home: Path) -> list[Path]:
    """Where the sidecars of a folder are, by name; none where there is no folder."""
    return [path for path in sorted(home.glob("*.json")) if path.name.count(".") == 1]


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read ``<key>.json``; Damaged where it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"its format is {document['format']} {document['version']}")
        identity = Identity(**document["identity"])
        if document["key"] != path.stem or key(identity) != path.stem:
            raise ValueError("its name is not that of its identity")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} is no engine's sidecar ({error}): delete it, build again") from error
    return dict(document)


def checked(home: Path, sidecar: Mapping[str, Any]) -> Path:
    """The plan of a sidecar, after a look at its size and digest."""
    plan = home / f"{sidecar['key']}.plan"
    whole = plan.is_file() and plan.stat().st_size == sidecar["plan_bytes"]
    if not whole or sha256(plan) != sidecar["plan_sha256"]:
        raise Damaged(f"{plan} is not what was built: slmq-edge build --force makes it anew")
    return plan


def differing(identity: Mapping[str, Any], here: Machine) -> Sequence[str]:
    """Fields in which an engine's machine was another."""
    return [name for name, value in here._asdict().items() if identity[name] != value]


def _elsewhere(found: Sequence[Mapping[str, Any]], here: Machine, command: str) -> str:
    nearest = min((one["identity"] for one in found), key=lambda one: len(differing(one, here)))
    fields = [name for name in MACHINE if name in differing(nearest, here)]
    there = ", ".join(f"{MACHINE[name]} {nearest[name]}" for name in fields)
    ours = ", ".join(f"{MACHINE[name]} {getattr(here, name)}" for name in fields)
    return f"the engine was built with {there}; this machine has {ours}: {command}"


def save(home: Path, sidecar: Mapping[str, Any]) -> None:
    """Write a sidecar: the whole of it, or nothing."""
    text = json.dumps(sidecar, indent=1, allow_nan=False) + "\n"
    with whole(home / f"{sidecar['key']}.json") as partial:
        partial.write_text(text, encoding="utf-8")


def remove(home: Path, name: str) -> None:
    """Remove an engine, its sidecar first: what is left without one is no engine."""
    for ending in ("json", "plan", "layers.json"):
        with contextlib.suppress(FileNotFoundError):
            (home / f"{name}.{ending}").unlink()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a file beside ``path`` that takes its place when the block ends well, or vanishes."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
