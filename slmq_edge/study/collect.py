"""Files -> Study: every document that slmq-edge wrote below a folder, recognized by its format.

Layout and file names mean nothing. What cannot be read is listed with its reason where it was found
in a folder, and an error where it was named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from slmq_edge import results
from slmq_edge.analysis import distributions
from slmq_edge.analysis.distributions import Distributions
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from slmq_edge.files import MANIFESTS, existing, manifest_of
from slmq_edge.results import Run
from slmq_edge.runner.trt import cache
from slmq_edge.study import bench
from slmq_edge.study.bench import Cell
from slmq_edge.tracks import preparing
from slmq_edge.tracks.accuracy import results as evaluations
from slmq_edge.tracks.accuracy.results import Evaluation
from slmq_edge.tracks.preparing import Prepared

T = TypeVar("T")
OURS = b'"slmq-edge-'
HEAD = 4096  # bytes in which a document says its format
ANALYSIS = "slmq-edge-analysis"


@dataclass(frozen=True)
class Filed(Generic[T]):
    """A document. path: below the folder that was named, with slashes."""

    path: str
    value: T


@dataclass(frozen=True)
class Manifest:
    """Of a folder that we made. sha256: of its bundle.json or checkpoint.json."""

    folder: Path
    kind: Literal["bundle", "checkpoint"]
    sha256: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Unread:
    """A document of ours that cannot be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Study:
    """What was found. engines: what building each took; cells: of benches, those not done."""

    runs: tuple[Filed[Run], ...] = ()
    evaluations: tuple[Filed[Evaluation], ...] = ()
    manifests: tuple[Filed[Manifest], ...] = ()
    analyses: tuple[Filed[Mapping[str, Any]], ...] = ()
    distributions: tuple[Filed[Distributions], ...] = ()
    engines: tuple[Filed[Prepared], ...] = ()
    benches: tuple[Filed[Mapping[str, Any]], ...] = ()
    cells: tuple[Filed[Cell], ...] = ()
    unread: tuple[Unread, ...] = ()


@dataclass
class _Shelf:
    """What is being collected: field of `Study` -> documents; digests that are there already."""

    found: dict[str, list[Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def put(self, where: str, item: Any) -> None:
        self.found.setdefault(where, []).append(item)

    def is_new(self, digest: str) -> bool:
        new = digest not in self.seen
        self.seen.add(digest)
        return new


def collect(paths: Sequence[Path]) -> Study:
    """Read files and folders, and folders below them; the same content once.

    Raises:
        NotFound: a path is not there.
        Unsupported, Damaged: a file that was named is no document of ours, or cannot be read.
        SlmqError: there is nothing to report on.
    """
    shelf = _Shelf()
    for path in paths:
        existing(path, "result")
        if path.is_dir():
            _folder(path, f"{_name(path, paths)}/" if len(paths) > 1 else "", shelf)
        elif _is_ours(path):
            _file(path, _name(path, paths), shelf, named=True)
        else:
            raise Unsupported(f"{path} is no document of slmq-edge")
    study = Study(**{name: tuple(items) for name, items in shelf.found.items()})
    if not shelf.found:
        named = ", ".join(map(str, paths))
        raise SlmqError(
            f"no results in {named}: slmq-edge export, profile and eval make some, or a whole bench"
        )
    return study


def _name(path: Path, paths: Sequence[Path]) -> str:
    """The last part of a path; more of it where another that was given ends alike."""
    whole = path.resolve()
    others = {other.resolve() for other in paths} - {whole}
    for count in range(1, len(whole.parts)):
        if all(other.parts[-count:] != whole.parts[-count:] for other in others):
            return Path(*whole.parts[-count:]).as_posix()
    return whole.as_posix()


def _folder(root: Path, prefix: str, shelf: _Shelf) -> None:
    for path in _documents(root):
        name = prefix + path.relative_to(root).as_posix()
        try:
            _file(path, name, shelf)
        except SlmqError as error:
            reason = str(error).replace(str(path), name)
            shelf.put("unread", Unread(name, reason.replace(f"{root}{os.sep}", prefix)))


def _documents(root: Path) -> Iterator[Path]:
    """Our documents below ``root``, in the order of their names; of what we made, its manifest."""
    manifests = {file for file, _, _ in MANIFESTS.values()}
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        made = sorted(manifests & {*files})
        if made:
            below.clear()
        for name in made or sorted(files):
            path = Path(folder) / name
            if made or (name.endswith(".json") and _may_be_ours(path)):
                yield path


def is_result(path: Path) -> bool:
    """Whether a file that is there is a result, and no report on some."""
    if not path.is_file() or not _is_ours(path):
        return False
    try:
        return _format(path.read_bytes(), path) in {*TYPED, *PLAIN, bench.FORMAT, *OF_FOLDERS}
    except Damaged:
        return False


def _may_be_ours(path: Path) -> bool:
    """Whether it says so; what cannot be read may be."""
    try:
        return _is_ours(path)
    except SlmqError:
        return True


def _is_ours(path: Path) -> bool:
    """Whether it says so itself, at its beginning."""
    try:
        with path.open("rb") as handle:
            return OURS in handle.read(HEAD)
    except OSError as error:
        raise SlmqError(f"{path} cannot be read: {error.strerror}") from error


def _file(path: Path, name: str, shelf: _Shelf, named: bool = False) -> None:
    """Put a document where it belongs; reports on such are passed over, unless they are named."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if not shelf.is_new(digest):
        return
    for kind, (file, _, _) in MANIFESTS.items():
        if path.name == file:
            document = manifest_of(path.parent)[2]
            folder = Path(name).parent.as_posix()
            place = path.parent.resolve().name if folder == "." else folder
            shelf.put("manifests", Filed(place, Manifest(path.parent, kind, digest, document)))
            for sidecar in cache.paths(path.parent / cache.ENGINES):
                _engine(sidecar, f"{place}/{cache.ENGINES}/{sidecar.name}", shelf)
            return
    format = _format(content, path)
    if format in TYPED:
        where, load = TYPED[format]
        shelf.put(where, Filed(name, load(path)))
    elif format in PLAIN:
        shelf.put(PLAIN[format], Filed(name, _object(content, path)))
    elif format == bench.FORMAT:
        plan = _object(content, path)
        shelf.put("benches", Filed(name, plan))
        for cell in bench.unfinished(plan, path.parent):
            shelf.put("cells", Filed(name, cell))
    elif named:
        raise Unsupported(f"{path} is {format!r}: a study is of what was made and measured")


def _engine(path: Path, name: str, shelf: _Shelf) -> None:
    """What an engine in a bundle cost; a bundle is worth its row without it."""
    try:
        if shelf.is_new(hashlib.sha256(path.read_bytes()).hexdigest()):
            shelf.put("engines", Filed(name, preparing.read(path)))
    except (SlmqError, OSError) as error:
        shelf.put("unread", Unread(name, str(error).replace(str(path), name)))


# Format -> where its documents go in a `Study`, and what reads them.
TYPED: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    results.FORMAT: ("runs", results.load),
    evaluations.FORMAT: ("evaluations", evaluations.load),
    distributions.FORMAT: ("distributions", distributions.load),
    cache.FORMAT: ("engines", preparing.read),
}
PLAIN = {ANALYSIS: "analyses"}
OF_FOLDERS = {format for _, format, _ in MANIFESTS.values()}


def _format(content: bytes, path: Path) -> str:
    return str(_object(content, path).get("format"))


def _object(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise Damaged(f"{path} is damaged: not a JSON object")
    return document
