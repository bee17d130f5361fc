"""Manifests: which files a folder holds, and whether they are still what they were.

A manifest is a JSON file with a ``format`` name, a ``version`` number and ``files``::

    {"format": "slmq-edge-bundle", "version": 1,
     "files": {"ort/model.onnx": {"bytes": 1234, "sha256": "9f86..."}, ...}}

Shared by bundles and checkpoints, by the device and the host.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Iterator, Mapping

from slmq_edge.errors import Damaged, NotFound, Unsupported

BUNDLE_FILE = "bundle.json"
BUNDLE_FORMAT = "slmq-edge-bundle"
BUNDLE_VERSION = 1
# A bundle's graph, its weights beside it, and the probe of its integer kernel; and both once more
# for CPUs and runtimes that multiply signed weights exactly, and faster.
GRAPH_FOLDER = "ort"
GRAPH = f"{GRAPH_FOLDER}/model.onnx"
PROBE = f"{GRAPH_FOLDER}/probe.onnx"
SIGNED_GRAPH = f"{GRAPH_FOLDER}/signed.onnx"
SIGNED_PROBE = f"{GRAPH_FOLDER}/signed_probe.onnx"
# A bundle for TensorRT: the graph of standard operators, and what is asked of its engine.
TRT = "trt"
TRT_GRAPH = f"{TRT}/model.onnx"
TRT_RECIPE = f"{TRT}/recipe.json"
# A bundle for torch: integers and floats as modules take them, and what they are of.
TORCH = "torch"
TORCH_WEIGHTS = f"{TORCH}/weights.safetensors"
TORCH_MODEL = f"{TORCH}/model.json"
TORCH_RUNTIME = "slmq_edge.torch_runtime"  # what runs it: no part of what is sent to boards
GRAPHS = {TRT: TRT_GRAPH, TORCH: TORCH_WEIGHTS}

BLOCK_BYTES = 1 << 20
DIGEST = re.compile("[0-9a-f]{64}")


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as 64 hexadecimal digits, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


def read_bundle(folder: Path) -> dict[str, Any]:
    """Read ``bundle.json``; see `read_manifest` for what is refused.

    Raises:
        Damaged: a file that would be run is not among those that can be verified.
    """
    document = read_manifest(folder, BUNDLE_FILE, BUNDLE_FORMAT, BUNDLE_VERSION)
    files = document.get("files")
    listed = set(files) if isinstance(files, dict) else set()
    graph = graph_of(document)
    home = graph.partition("/")[0]
    here = {f"{home}/{path.name}" for path in (folder / home).glob("*")}
    for name in sorted({graph} - listed) + sorted(here - listed):
        raise Damaged(f"{folder / BUNDLE_FILE} is damaged: it does not list {name}")
    return document


def kind_of(bundle: Mapping[str, Any]) -> str:
    """Return what a bundle is for: ``runtime.kind``, one of the targets."""
    runtime = bundle.get("runtime")
    return str(runtime.get("kind", GRAPH_FOLDER)) if isinstance(runtime, dict) else GRAPH_FOLDER


def graph_of(bundle: Mapping[str, Any]) -> str:
    """Return the file of a bundle's graph; of one for torch, of its weights."""
    return GRAPHS.get(kind_of(bundle), GRAPH)


def described(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bundle's fields; those that the lowering decided are in its own section."""
    lowering = bundle.get("lowering")
    return {**(lowering if isinstance(lowering, dict) else {}), **bundle}


def read_manifest(folder: Path, filename: str, format: str, version: int) -> dict[str, Any]:
    """Read ``folder/filename``, whose ``format`` and ``version`` must be the ones given.

    Raises:
        NotFound: there is no such file.
        Damaged: it is not a JSON object.
        Unsupported: it is another format, or a version that this release does not know.
    """
    path = folder / filename
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is damaged: not UTF-8 text") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise Damaged(f"{path} is damaged: not a JSON object")
    if document.get("format") != format:
        raise Unsupported(f"{path} is no {format}: its format is {document.get('format')!r}")
    found = document.get("version")
    if type(found) is not int or found != version:
        raise Unsupported(f"{path} has version {found!r}; this release reads version {version}")
    return document


def verify(folder: Path, files: Mapping[str, Mapping[str, object]]) -> None:
    """Check the size and the SHA-256 of every file named in a manifest.

    Raises:
        Damaged: a file is missing, truncated or changed, or its name or entry is not
            acceptable; the message names the file.
    """
    for name, path, expected_bytes, expected_sha256 in entries(folder, files):
        if not path.is_file():
            raise Damaged(f"{folder}: {name} is missing")
        found_bytes = path.stat().st_size
        if found_bytes < expected_bytes:
            raise Damaged(f"{folder}: {name} is truncated: {found_bytes} of {expected_bytes} bytes")
        if found_bytes > expected_bytes or sha256(path) != expected_sha256:
            raise Damaged(f"{folder}: {name} has changed since it was written")


def entries(
    folder: Path, files: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[str, Path, int, str]]:
    """Yield name, path, bytes and SHA-256 of every file named in a manifest.

    Raises:
        Damaged: a name leads out of ``folder``, or an entry is not acceptable.
    """
    if not isinstance(files, dict):
        raise Damaged(f"the manifest of {folder} is damaged: 'files' is not an object")
    for name, entry in files.items():
        yield (name, _inside(folder, name), *_entry(folder, name, entry))


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a manifest's file, which must lie in ``folder``, links followed."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise Damaged(f"{folder}: the manifest names a file outside the folder: {name!r}")
    try:
        path = folder / name
        real, root = path.resolve(), folder.resolve()
    except (ValueError, OSError, RuntimeError) as error:  # NUL bytes, too long, link loops
        raise Damaged(f"{folder}: {name!r} is no file name") from error
    if root not in real.parents:
        raise Damaged(f"{folder}: {name} leads out of the folder")
    return path


def _entry(folder: Path, name: str, entry: object) -> tuple[int, str]:
    if isinstance(entry, dict):
        size, digest = entry.get("bytes"), entry.get("sha256")
        if type(size) is int and isinstance(digest, str) and DIGEST.fullmatch(digest):
            return size, digest
    raise Damaged(f"{folder}: the manifest's entry of {name!r} is damaged")
