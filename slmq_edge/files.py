"""Files that are either whole or not there: written beside their place, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from slmq_edge.errors import NotFound, SlmqError, UsageError, did_you_mean
from slmq_edge.runner.manifest import (
    BUNDLE_FILE,
    BUNDLE_FORMAT,
    BUNDLE_VERSION,
    read_bundle,
    read_manifest,
    sha256,
)

CHECKPOINT_FILE, CHECKPOINT_FORMAT, CHECKPOINT_VERSION = (
    "checkpoint.json",
    "slmq-edge-checkpoint",
    2,
)
Kind = Literal["bundle", "checkpoint"]
# Of each kind of folder that we write: its manifest, and the format and version of that.
MANIFESTS: dict[Kind, tuple[str, str, int]] = {
    "bundle": (BUNDLE_FILE, BUNDLE_FORMAT, BUNDLE_VERSION),
    "checkpoint": (CHECKPOINT_FILE, CHECKPOINT_FORMAT, CHECKPOINT_VERSION),
}
# A folder that holds one of these was written by us, and --force may replace it: its manifest ->
# what it is, for whoever gives it where a model is wanted.
OURS = {
    CHECKPOINT_FILE: "a checkpoint, quantized already: export it",
    BUNDLE_FILE: "a bundle, exported already: profile it",
}


def manifest_of(folder: Path) -> tuple[Kind, str, dict[str, Any]]:
    """Of a folder that we wrote, its kind, its manifest's file, and the manifest.

    Raises:
        NotFound: it holds none.
        Damaged, Unsupported: the manifest cannot be read, or is of another version.
    """
    for kind, (file, of_format, version) in MANIFESTS.items():
        if (folder / file).is_file():
            return kind, file, read_manifest(folder, file, of_format, version)
    raise NotFound(f"{folder} is neither a bundle nor a checkpoint: it holds no manifest")


def check_output(path: Path, force: bool, *, folder: bool = False) -> None:
    """Refuse, before any work starts, an output that could not be written at the end.

    Raises:
        SlmqError: ``path`` exists and ``force`` is off; it is something that ``force`` must not
            delete (a folder not of ours, or a folder where a file is to be); or no folder above
            it is writable.
    """
    if path.exists() and not force:
        raise SlmqError(f"{path} exists already, will not overwrite it without --force")
    if path.is_dir() and not (folder and _replaceable(path)):
        raise SlmqError(f"{path} is a folder that we did not write: --force will not delete it")
    if path.exists() and folder and not path.is_dir():
        raise SlmqError(f"{path} is a file: --force will not put a folder in its place")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise SlmqError(f"cannot write {path}: {above} is not a writable folder")


def check_space(path: Path, needed_bytes: int) -> None:
    """Refuse, before any work starts, to fill the disk that holds ``path``."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(above).free
    if free < needed_bytes:
        raise SlmqError(
            f"not enough disk space for {path}: about {needed_bytes / 1e6:.0f} MB needed, "
            f"{free / 1e6:.0f} MB free"
        )


def existing(path: Path, kind: str) -> Path:
    """Return ``path`` if it is there.

    Raises:
        NotFound: nothing is there; names the nearest sibling.
    """
    if path.exists():
        return path
    siblings = [p.name for p in path.absolute().parent.glob("*")]
    raise NotFound(f"no {kind} at {path}{did_you_mean(path.name, siblings)}")


def existing_bundle(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle that is there.

    Raises:
        NotFound: nothing is there, or something else; Damaged: see ``manifest.read_bundle``.
    """
    existing(folder, "bundle")
    if not (folder / BUNDLE_FILE).is_file():
        raise NotFound(f"{folder} is not a bundle: slmq-edge export makes one")
    return read_bundle(folder)


def write_text_atomically(path: Path, text: str, force: bool = False) -> None:
    """Write ``text`` (UTF-8) to ``path``: the whole of it, or nothing."""
    check_output(path, force)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            Path(name).chmod(_default_mode())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``path`` when the block ends well, and vanishes if not.

    Ctrl-C and a full disk leave what was at ``path`` before untouched. Only a folder that we wrote,
    or an empty one, is ever replaced.
    """
    check_output(path, force, folder=True)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=f".{path.name}."))
        try:
            scratch.chmod(_default_mode(folder=True))
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    _flush(file)
            _swap(scratch, path.absolute())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk can say while ``path`` is written into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SlmqError(f"the disk is full: {path} was not written") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise SlmqError(f"cannot write {path}: {error.strerror}") from error
        raise


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of all files below ``folder``, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def check_not_input(output: Path, source: Path) -> None:
    """Refuse to replace the folder that is read, or one that holds it."""
    target, read = output.resolve(), source.resolve()
    if target == read or target in read.parents:
        raise UsageError(f"{output} holds what is read: choose another output")


def _replaceable(folder: Path) -> bool:
    ours = any((folder / name).is_file() for name in OURS)
    return ours or not any(folder.iterdir())


def _swap(scratch: Path, path: Path) -> None:
    if not path.exists():
        scratch.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    path.rename(old / path.name)
    try:
        scratch.rename(path)
    except BaseException:
        (old / path.name).rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _default_mode(folder: bool = False) -> int:
    umask = os.umask(0)
    os.umask(umask)
    return (0o777 if folder else 0o666) & ~umask


def describe(folder: Path) -> dict[str, dict[str, object]]:
    """Size and SHA-256 of every file below ``folder``: the ``files`` of its manifest."""
    return {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
