"""Track 3 on a target: what it takes there until a bundle can answer.

Quantizing is done where torch is, and its cost is a checkpoint's. On the device that runs a bundle
something else is paid: with TensorRT an engine is built, once for each device; and every process
loads its session. Neither is ever scored against quantizing. No energy is measured: a session is
loaded in less time than a sensor needs, and a build is not watched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge import results
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from slmq_edge.results import Run
from slmq_edge.runner.manifest import BUNDLE_FILE, read_bundle
from slmq_edge.runner.trt import cache

BUILD, SESSION = "engine build", "session"
LOAD = "load"  # the phase of memory
PEAK = "peak"  # a kind with this in its name is a high-water mark


@dataclass(frozen=True)
class Prepared:
    """One engine that was built, or one session that was loaded.

    model, method: ``None`` of an engine that lies beside no bundle. scheme: what runs. device:
    where; runtime: by what. memory: the kind of its peak, in bytes. seconds: the median of
    ``times``. energy_joules: ``None``, as long as nothing measures it.
    """

    place: str
    what: str
    model: str | None
    method: str | None
    scheme: str
    device: str
    runtime: str
    memory: str | None
    memory_bytes: int | None
    seconds: float
    times: int
    energy_joules: float | None = None


def read(path: Path) -> Prepared:
    """What a run.json, or the sidecar of an engine, says of preparing.

    Raises:
        NotFound, Damaged, Unsupported: it is neither, or not whole.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    kind = document.get("format") if isinstance(document, dict) else None
    if kind == results.FORMAT:
        return of_run(results.load(path), path.name)
    if kind == cache.FORMAT:
        return of_engine(cache.read_sidecar(path), path, _bundle_above(path))
    raise Unsupported(
        f"{path} is no run.json and no engine's sidecar (its format is {kind!r}): "
        "give these, checkpoints or bundles"
    )


def engines(bundle: Path) -> list[Prepared]:
    """All that were built of a bundle and lie in it; none where none do."""
    home = bundle / cache.ENGINES
    found = cache.sidecars(home) if home.is_dir() else []
    above = _bundle_above(home / "any")
    return [of_engine(one, home / f"{one['key']}.json", above) for one in found]


def of_run(run: Run, place: str) -> Prepared:
    """The session of a run: its files were in the page cache, for the check had read them."""
    kinds = {k: v for k, v in run.memory.get(LOAD, {}).items() if PEAK in k and v is not None}
    kind = min(kinds, default=None)
    loads, environment = run.series["load_seconds"], run.environment
    name = next((one for one in ("tensorrt", "torch") if environment.get(one)), "onnxruntime")
    return Prepared(
        place=place,
        what=SESSION,
        model=run.artifact.model,
        method=run.artifact.method,
        scheme=run.artifact.scheme_ran,
        device=run.device.name,
        runtime=f"{name} {environment.get(name) or 'of an unknown release'}",
        memory=kind,
        memory_bytes=None if kind is None else kinds[kind],
        seconds=loads.median,
        times=len(loads.values),
    )


def of_engine(sidecar: Mapping[str, Any], path: Path, bundle: Mapping[str, Any] | None) -> Prepared:
    """A build, by the sidecar that it left; ``bundle``: the manifest of what it was built of.

    Raises:
        Damaged: a field is missing or of the wrong type.
    """
    try:
        identity = sidecar["identity"]
        made_of = bundle if bundle and cache.content(bundle) == identity["content"] else {}
        ((kind, count),) = (sidecar.get("memory") or {None: None}).items()
        return Prepared(
            place=path.name,
            what=BUILD,
            model=str(made_of["model"]["name"]) if made_of else None,
            method=str(made_of["method"]) if made_of else None,
            scheme=str(sidecar["scheme_ran"]),
            device=str(identity["gpu"]),
            runtime=f"tensorrt {identity['tensorrt']}",
            memory=None if count is None else str(kind),
            memory_bytes=None if count is None else int(count),
            seconds=float(sidecar["seconds"]),
            times=1,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} does not say what its engine cost: {error}") from error


def _bundle_above(path: Path) -> Mapping[str, Any] | None:
    """The manifest of the bundle whose folder of engines holds ``path``; None: it is elsewhere."""
    folder = path.absolute().parent.parent
    if not (folder / BUNDLE_FILE).is_file():
        return None
    try:
        return read_bundle(folder)
    except SlmqError:  # an engine's cost is its own, whatever became of the bundle
        return None
