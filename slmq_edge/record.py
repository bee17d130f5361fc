"""What a run says of how its artifact was made: all that `reproduce` needs to make it again.

model      name, origin, revision, license; files: sha256 of config, weights and tokenizer, by name
recipe     the words that make its checkpoint (`slmq_edge.recipe`)
export     target, runtime and activation_mode, as they were asked for
files      sha256 of what the bundle computes with, by name
made_with  of ``quantize`` and of ``export``: versions, CPU and threads
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from slmq_edge import __version__, licenses
from slmq_edge import recipe as recipes
from slmq_edge.exporters import Wanted
from slmq_edge.reports import card
from slmq_edge.runner import environment

# What decides the bits of a checkpoint and of a graph.
PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
)
# Of a bundle, what is for people: it says when and by which release it was made.
FOR_PEOPLE = (card.FILE, recipes.FILE)
# Parts of a record, and why a run may lack one.
PARTS = {
    "model": "sha256 of the model's files",
    "recipe": "the words that made its checkpoint",
    "export": "the options of export",
    "files": "sha256 of the bundle's files",
}


def here() -> dict[str, Any]:
    """What makes things in this process: versions by package, CPU, torch's threads.

    ``None`` where a package is not installed or a machine does not tell.
    """
    import torch

    seen = environment.capture()
    return {
        "slmq-edge": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "machine": seen["machine"],
        "cpu": seen["cpu_model"],
        "cpu_flags": seen["cpu_flags"],
        "threads": int(torch.get_num_threads()),
    }


def of_export(wanted: Wanted) -> dict[str, Any]:
    """The section ``export`` of bundle.json."""
    return {
        "target": wanted.target,
        "runtime": wanted.runtime,
        "activation_mode": wanted.activation_mode,
        "made_with": here(),
    }


def of_bundle(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """The record of bundle.json; what that does not say is not in it."""
    found: dict[str, Any] = {}
    model = bundle.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("files"), Mapping):
        found["model"] = dict(model)
    if isinstance(bundle.get("recipe"), Mapping):
        found["recipe"] = dict(bundle["recipe"])
    export, cost = bundle.get("export"), bundle.get("cost")
    made_with = {}
    if isinstance(cost, Mapping) and isinstance(cost.get("made_with"), Mapping):
        made_with["quantize"] = dict(cost["made_with"])
    if isinstance(export, Mapping):
        asked = {name: value for name, value in export.items() if name != "made_with"}
        found["export"] = asked
        made_with["export"] = dict(export.get("made_with") or {})
    files = bundle.get("files")
    if isinstance(files, Mapping):
        found["files"] = {
            name: entry["sha256"]
            for name, entry in files.items()
            if isinstance(entry, Mapping) and "sha256" in entry and computes(name)
        }
    return {**found, "made_with": made_with}


def computes(name: str) -> bool:
    """Whether a file of a bundle decides what it computes."""
    return name not in FOR_PEOPLE and not licenses.is_text(name)


def lacks(record: Mapping[str, Any] | None) -> list[str]:
    """What of a record is missing, in words."""
    return [why for part, why in PARTS.items() if not (record or {}).get(part)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
