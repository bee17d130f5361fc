"""What a machine can say of TensorRT and of the engines built on it, as JSON to paste.

It says what is here and what is missing, and never fails over the latter: a report without a GPU
tells us something too. Nothing private is in it: no names of hosts, users or files; of a model's
name only the last part where it is a path, and of TensorRT's log nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from pathlib import Path, PurePath
from typing import Any, Mapping, Sequence

import slmq_edge
from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.runner import manifest
from slmq_edge.runner.trt import cache, cuda, trtexec, versions

FORMAT, VERSION = "slmq-edge-trt-report", 1
RUN_FORMAT = "slmq-edge-run"
TEGRA_RELEASE = "etc/nv_tegra_release"
BOARD = "proc/device-tree/model"
L4T = re.compile(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
# L4T -> JetPack, as NVIDIA's archive has it.
JETPACKS = {
    "35": "5.1",
    "35.1": "5.0.2",
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1 or 6.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
# Of a sidecar, what is told; the rest is TensorRT's log.
TOLD = (
    "key",
    "slmq_edge",
    "builder",
    "workspace_mib",
    "profiles",
    "seconds",
    "memory",
    "plan_bytes",
    "activation_bytes",
    "layers",
    "products",
    "scheme_ran",
    "int8_gemm_share",
    "int8_missing",
    "int8_reasons",
    "golden",
    "golden_error",
)
OF_RUN = ("artifact", "device", "environment", "workload", "golden", "memory", "device_memory")
OF_ENVIRONMENT = (
    "cpu_model", "cores", "machine", "governor", "memory_total_bytes", "kernel", "os", "python",
    "numpy", "tensorrt", "gpu", "cuda",
)  # fmt: skip


def report(
    bundles: Sequence[Path],
    engines: Path | None = None,
    runs: Sequence[Path] = (),
    root: str = "/",
) -> dict[str, Any]:
    """Describe this machine, the engines of some bundles, and some measurements.

    Raises:
        SlmqError: what was named is not there, or no bundle or run at all.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "slmq_edge": slmq_edge.__version__,
        **here(root),
        "bundles": [_bundle(folder, engines) for folder in bundles],
        "runs": [_run(path) for path in runs],
    }


def here(root: str = "/") -> dict[str, Any]:
    """This machine: what can be had, and under ``missing`` why the rest cannot."""
    missing: dict[str, str] = {}
    program = _or_reason(lambda: trtexec.version(trtexec.find()), "trtexec", missing)
    python = _or_reason(versions.installed, "tensorrt", missing)
    device = _or_reason(cuda.device, "gpu", missing)
    memory = None if device is None else _or_reason(cuda.memory, "gpu_memory", missing)
    release = l4t(root)
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "tensorrt": None if python is None else str(python),
        "trtexec": None if program is None else str(program),
        "cuda": None if device is None else device.cuda,
        "driver": None if device is None else device.driver,
        "gpu": None if device is None else device.name,
        "sm": None if device is None else device.sm,
        "gpu_memory_bytes": None if memory is None else memory[1],
        "integrated": None if device is None else device.integrated,
        "board": _text(Path(root) / BOARD),
        "l4t": release,
        "jetpack": jetpack(release),
        "missing": missing,
    }


def _or_reason(ask: Any, name: str, missing: dict[str, str]) -> Any:
    try:
        return ask()
    except SlmqError as error:
        missing[name] = _without_paths(str(error))
        return None


def l4t(root: str = "/") -> str | None:
    """Release of a Jetson's system, ``36.4.3``; ``None`` where it is none."""
    found = L4T.search(_text(Path(root) / TEGRA_RELEASE) or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(release: str | None) -> str | None:
    """The JetPack that a system's release comes with, where we know it."""
    parts = (release or "").split(".")
    known = (JETPACKS.get(".".join(parts[:count])) for count in (2, 1))
    return next((name for name in known if name is not None), None)


def _bundle(folder: Path, engines: Path | None) -> dict[str, Any]:
    document = manifest.read_bundle(folder)
    if manifest.kind_of(document) != manifest.TRT:
        raise NotFound(f"{folder} is no bundle for TensorRT")
    try:
        found, problem = cache.sidecars(cache.folder_of(folder, engines)), None
    except Damaged as error:
        found, problem = [], _without_paths(str(error))
    made_of = cache.content(document)
    lowering = document.get("lowering")
    return {
        "model": _name(document.get("model")),
        "method": document.get("method"),
        "scheme_requested": document.get("scheme_requested"),
        "scheme_ran": lowering.get("scheme_ran") if isinstance(lowering, dict) else None,
        "engines": [_engine(one, made_of) for one in found],
        "problem": problem,
    }


def _engine(sidecar: Mapping[str, Any], made_of: str) -> dict[str, Any]:
    told = {name: sidecar.get(name) for name in TOLD}
    error = told["golden_error"]
    return {
        **told,
        "golden_error": None if error is None else _without_paths(error),
        "identity": sidecar["identity"],
        "of_this_graph": sidecar["identity"]["content"] == made_of,
        "int8_products": len(sidecar.get("int8", ())),
        "warnings": len(sidecar.get("warnings", ())),
    }


def _run(path: Path) -> dict[str, Any]:
    """Of a run.json: what ran, on what, and the medians of what was timed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != RUN_FORMAT:
        raise Damaged(f"{path} is no run.json of slmq-edge profile")
    try:
        told = {name: document[name] for name in OF_RUN if name in document}
        told["artifact"] = {**told["artifact"], "model": _name(told["artifact"])}
        told["environment"] = {
            name: told["environment"][name]
            for name in OF_ENVIRONMENT
            if name in told["environment"]
        }
        medians = {
            name: {"unit": one["unit"], "count": len(one["values"]), "median": _median(one)}
            for name, one in document["series"].items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    return {**told, "series": medians}


def _median(series: Mapping[str, Any]) -> float:
    return float(statistics.median(series["values"]))


def _name(about: Any) -> str | None:
    """A model's name; of a path its last part."""
    name = about.get("name", about.get("model")) if isinstance(about, dict) else None
    if not isinstance(name, str):
        return None
    is_path = name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1
    return PurePath(name.replace("\\", "/")).name if is_path else name


def _without_paths(text: str) -> str:
    """Paths, relative ones too, shortened to their last part: what lies above may name a person."""
    for home in (str(Path.home()), os.getcwd()):  # they may have blanks
        text = text.replace(home + "/", "/")
    return re.sub(r"[^\s/:,;'\"()]*(?:/[^\s/:,;'\"()]+)+", lambda m: PurePath(m.group()).name, text)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None
