"""What is inside a bundle or a checkpoint: its manifest, its sizes, whether it is still whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import licenses, parts, presets
from slmq_edge.errors import Damaged, SlmqError, UsageError
from slmq_edge.files import Kind, existing, manifest_of
from slmq_edge.runner.manifest import (
    TORCH,
    graph_of,
    kind_of,
    read_bundle,
    verify,
)

if TYPE_CHECKING:
    from slmq_edge.runner.profiled import Step

NEEDED: dict[Kind, tuple[str, ...]] = {
    "bundle": ("model", "method", "settings", "scheme_requested", "lowering", "runtime", "golden"),
    "checkpoint": ("source", "method", "settings", "scheme", "anatomy", "integers"),
}


@dataclass(frozen=True)
class Inspected:
    """What was found in a folder.

    model: name, origin, revision, license. settings: of the method, those that are not what the
    default preset says. sizes: bytes on disk by part. verified: whether all files are what the
    manifest says, ``None``: not looked at; problem: what is wrong. license_texts: names of files.
    ran: what onnxruntime did in one prefill and one decode, by its own record.
    """

    kind: Kind
    place: str
    manifest: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    sizes: Mapping[str, int]
    verified: bool | None
    problem: str | None
    license_texts: tuple[str, ...]
    ran: Mapping[str, Step] = field(default_factory=dict)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The lowering's row of each linear; none of a checkpoint, or of an older bundle."""
        rows: list[Mapping[str, Any]] = self.manifest.get("lowering", {}).get("linears", [])
        return rows


def inspect(folder: Path, check: bool = True, threads: int | None = None) -> Inspected:
    """Look into a folder.

    check: hash every file. threads: run the graph with so many, to see what runs; ``None``: do not.

    Raises:
        NotFound, Damaged, Unsupported: it is neither bundle nor checkpoint, or its manifest is not
            whole; that another file is not is told in the answer, unless it would be run.
        UsageError: a checkpoint, which cannot be run.
    """
    existing(folder, "bundle or checkpoint")
    kind, file, manifest = _read(folder)
    if threads is not None and kind != "bundle":
        raise UsageError(f"{folder} is a checkpoint: --run is of bundles, export it first")
    problem = _problem(folder, kind, manifest) if check else None
    if problem is not None and threads is not None:
        raise Damaged(problem)
    try:
        _check_rows(manifest)
        listed = {name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
        return Inspected(
            kind=kind,
            place=folder.name or str(folder),
            manifest=manifest,
            model=dict(manifest["model" if kind == "bundle" else "source"]),
            settings=changed(manifest),
            sizes=_sizes(folder, kind, manifest, listed),
            verified=problem is None if check else None,
            problem=problem,
            license_texts=tuple(name for name in listed if licenses.is_text(name)),
            ran={} if threads is None else _ran(folder, manifest, threads),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / file} does not describe a {kind}: {error}") from error


ROW = (
    "name",
    "macs_per_token",
    "exact",
    "asked_weights",
    "asked_activations",
    "scheme",
    "operator",
    "storage_bits",
    "memory_bits",
    "activation_mode",
)


def _check_rows(manifest: Mapping[str, Any]) -> None:
    """The report reads these of every row of the lowering: raise KeyError or TypeError here."""
    for row in manifest.get("lowering", {}).get("linears", []):
        for name in ROW:
            row[name]


def changed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not the default preset's, or of which it is silent and which are set."""
    method, settings = manifest["method"], manifest["settings"]
    scheme = manifest.get("scheme_requested") or manifest["scheme"]["name"]
    preset = presets.PRESETS[presets.DEFAULT].get(method, presets.Preset())
    usual = preset.values(4 if scheme.startswith("w4") else 8)
    return {
        name: value
        for name, value in settings.items()
        if (value != usual[name] if name in usual else bool(value))
    }


def _read(folder: Path) -> tuple[Kind, str, dict[str, Any]]:
    kind, file, manifest = manifest_of(folder)
    lacking = [name for name in (*NEEDED[kind], "cost", "files") if name not in manifest]
    if lacking:
        raise Damaged(f"{folder / file} is damaged: it lacks {lacking[0]}")
    return kind, file, manifest


def _problem(folder: Path, kind: Kind, manifest: Mapping[str, Any]) -> str | None:
    try:
        if kind == "bundle":
            read_bundle(folder)
        verify(folder, manifest["files"])
    except SlmqError as error:
        return str(error)
    return None


def _sizes(
    folder: Path, kind: Kind, manifest: Mapping[str, Any], listed: Mapping[str, int]
) -> dict[str, int]:
    """Bytes by part: those of weights by what they are of, where that is known."""
    from slmq_edge.checkpoint import CONFIG, WEIGHTS
    from slmq_edge.models import TOKENIZER_FILES

    graph = graph_of(manifest)
    data = graph if kind_of(manifest) == TORCH else f"{graph}.data"
    whole = data if kind == "bundle" else WEIGHTS
    if kind == "bundle":
        weights = manifest.get("weight_bytes")
    elif (folder / WEIGHTS).is_file():
        weights = parts.sizes(parts.of_safetensors(folder / WEIGHTS))
    else:
        weights = None
    found = {part: count for part, count in (weights or {}).items() if count}
    golden = manifest.get("golden", {}).get("file")
    found = found or {"weights": listed.get(whole, 0)}
    for name, count in listed.items():
        if name == whole:
            continue
        is_text = name in (CONFIG, *TOKENIZER_FILES)
        is_graph = name.startswith(f"{graph.partition('/')[0]}/") and not name.endswith(CONFIG)
        part = "graph" if is_graph else "tokenizer and config" if is_text else "other files"
        part = "golden prompts" if name == golden else part
        found[part] = found.get(part, 0) + count
    return found


def _ran(folder: Path, manifest: Mapping[str, Any], threads: int) -> Mapping[str, Step]:
    from slmq_edge.runner import profiled

    return profiled.run(folder, manifest, threads)
