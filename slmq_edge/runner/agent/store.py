"""The files of bundles on a device, by their digests: each is sent once, and resumed if cut off.

    HOME/incoming/<sha256>         as much as has arrived; .owner beside it: who is sending it
    HOME/store/<sha256>            verified, read-only
    HOME/bundles/<sha256>/...      hard links to it (copies where there are none), under the names
                                   of the bundle.json of that digest

Never symbolic links: ONNX Runtime refuses weights that one leads to. What is made is written beside
its place, flushed and renamed, so that a power cut leaves nothing half.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Mapping

import slmq_edge
from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.runner.agent.probe import free_bytes
from slmq_edge.runner.manifest import BUNDLE_FILE, DIGEST, entries, sha256

INCOMING, STORE, BUNDLES, RUNNERS, LOCK = "incoming", "store", "bundles", "runners", "store.lock"
OWNER = ".owner"
READ_ONLY = 0o444
# When a stored file was verified is of no interest; that it has not been written since, is.
VERIFIED = 1_000_000_000
# An upload that has not grown for so long has lost its sender, who would know after 15 s.
LEASE_SECONDS = 20.0
SPARE_BYTES = 16 << 20  # what a job's own files may need
DAY_SECONDS = 86400.0
# A file system without hard links, or with enough of this file.
NO_LINKS = (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def have(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Say what is here of some files. What is here and is not theirs is removed.

    Request: ``files``, digest -> bytes; ``owner``, who is going to send those that nobody else is
    sending: without it, nothing is claimed.
    Answer: ``stored``, digests; ``partial`` and ``busy`` (somebody else is sending it), digest ->
    bytes; ``folder``, where to send to.

    Raises:
        SlmqError: the disk has no room for them.
    """
    files, owner = _files(request), request.get("owner")
    incoming = home / INCOMING
    answer: dict[str, Any] = {"stored": [], "partial": {}, "busy": {}, "folder": str(incoming)}
    with locked(home):
        incoming.mkdir(exist_ok=True)
        for digest, size in files.items():
            if _stored(home, digest, size):
                answer["stored"].append(digest)
                continue
            there = _arrived(incoming / digest, size)
            busy = _is_busy(incoming / digest, owner)
            answer["busy" if busy else "partial"][digest] = there
            if owner is not None and not busy:
                (incoming / (digest + OWNER)).write_text(str(owner), encoding="utf-8")
    lacking = sum(files.values()) - sum(files[digest] for digest in answer["stored"])
    needed = lacking - sum(answer["partial"].values()) - sum(answer["busy"].values())
    free = free_bytes(home)
    if needed and free < needed + SPARE_BYTES:
        raise SlmqError(
            f"not enough disk space in {home}: {needed / 1e6:.0f} MB more are needed, and "
            f"{SPARE_BYTES / 1e6:.0f} MB to spare; {free / 1e6:.0f} MB are free"
        )
    return answer


def place(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Verify files that have arrived, and store them.

    Request: ``files`` as in `have`. Answer: ``placed``, digests; ``damaged``, those whose bytes
    were others: they are removed.
    """
    answer: dict[str, Any] = {"placed": [], "damaged": []}
    for digest, size in _files(request).items():
        partial = home / INCOMING / digest
        # Reading takes its time, so nobody else is kept waiting meanwhile.
        right = _size(partial) == size and sha256(partial) == digest
        with locked(home):
            if _stored(home, digest, size):
                partial.unlink(missing_ok=True)
                right = True
            elif right and _size(partial) == size:
                _flush(partial)
                _seal(partial)
                (home / STORE).mkdir(exist_ok=True)
                partial.replace(home / STORE / digest)
                _flush(home / STORE)
            else:
                partial.unlink(missing_ok=True)
                right = False
            (home / INCOMING / (digest + OWNER)).unlink(missing_ok=True)
        answer["placed" if right else "damaged"].append(digest)
    return answer


def assemble(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Make a bundle's folder of stored files.

    Request: ``manifest``, the digest of its bundle.json, which is stored too.
    Answer: ``folder``.

    Raises:
        NotFound: a file of it is not stored. Damaged: the manifest names what it must not.
    """
    digest = _digest(request.get("manifest"))
    folder = home / BUNDLES / digest
    with locked(home):
        if not _is_whole(folder):
            folder.parent.mkdir(exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=str(folder.parent), prefix="."))
            try:
                _fill(scratch, home / STORE, digest)
                shutil.rmtree(folder, ignore_errors=True)
                scratch.replace(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            _flush(folder.parent)
        os.utime(folder)  # used now: `gc` looks at that
    return {"folder": str(folder)}


def gc(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what nobody has used for ``days``: bundles, then files of no bundle, and remains.

    Answer: ``freed_bytes``.
    """
    days = request.get("days")
    if not isinstance(days, (int, float)) or not days >= 0:
        raise Damaged(f"days is {days!r}")
    before = time.time() - days * DAY_SECONDS
    archive = Path(slmq_edge.__file__).parent.parent  # which is running
    freed = 0
    with locked(home):
        for folder in (home / BUNDLES).glob("*"):
            if folder.lstat().st_mtime < before:
                freed += sum(_last_link(path) for path in folder.rglob("*"))
                shutil.rmtree(folder)
        for path in (home / STORE).glob("*"):
            if path.lstat().st_nlink == 1 and path.lstat().st_atime < before:
                freed += _last_link(path)
                path.unlink()
        for name in (INCOMING, RUNNERS):
            for path in (home / name).glob("*"):
                if path.lstat().st_mtime < before and path != archive:
                    freed += _last_link(path)
                    path.unlink()
    return {"freed_bytes": freed}


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """One at a time; the kernel lets go when a process ends, however it does."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _files(request: Mapping[str, Any]) -> dict[str, int]:
    files = request.get("files")
    if not isinstance(files, dict) or not all(type(size) is int for size in files.values()):
        raise Damaged(f"files are {files!r}")
    return {_digest(name): size for name, size in files.items()}


def _digest(name: object) -> str:
    if not (isinstance(name, str) and DIGEST.fullmatch(name)):
        raise Damaged(f"{name!r} is not a SHA-256 digest")
    return name


def _size(path: Path) -> int | None:
    """A file's bytes; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def _stored(home: Path, digest: str, size: int) -> bool:
    """Whether a file is stored; one that was written since it was verified is verified anew."""
    path = home / STORE / digest
    if not path.is_file():
        return False
    if not _untouched(path, size) and sha256(path) != digest:
        path.unlink()
        return False
    _seal(path)
    return True


def _last_link(path: Path) -> int:
    """The bytes that go with a file's name; 0 where it has another."""
    found = path.lstat()
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0


def _untouched(path: Path, size: int) -> bool:
    return _size(path) == size and path.stat().st_mtime == VERIFIED


def _seal(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # a file system without such rights
        path.chmod(READ_ONLY)
    os.utime(path, (time.time(), VERIFIED))


def _arrived(partial: Path, size: int) -> int:
    """Return how much of a file has arrived; more than there is of it is not the file."""
    there = _size(partial) or 0
    if there > size:
        partial.unlink()
        return 0
    return there


def _is_busy(partial: Path, owner: object) -> bool:
    """Whether somebody else has claimed a file, or has sent some of it, of late."""
    note = partial.with_name(partial.name + OWNER)
    try:
        if note.read_text(encoding="utf-8") == str(owner):
            return False
        times = [path.stat().st_mtime for path in (note, partial) if path.exists()]
    except OSError:
        return False
    # A clock that was set back has left times that are still to come.
    now = time.time()
    return any(0 <= now - moment < LEASE_SECONDS for moment in times)


def _is_whole(folder: Path) -> bool:
    """Whether every file of an assembled bundle is there, unwritten since it was verified."""
    try:
        files = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))["files"]
        listed = entries(folder, files)
        return all(_untouched(path, size) for _, path, size, _ in listed)
    except (OSError, ValueError, TypeError, KeyError, Damaged):
        return False


def _fill(folder: Path, store: Path, digest: str) -> None:
    """Link a bundle's files into an empty folder."""
    _link(store / digest, folder / BUNDLE_FILE)
    try:
        document = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
        for _, path, _, of_file in entries(folder, document["files"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(store / of_file, path)
    except (ValueError, TypeError, KeyError, FileExistsError, NotADirectoryError) as error:
        raise Damaged(f"the manifest {digest} is damaged: {error}") from error


def _link(stored: Path, path: Path) -> None:
    try:
        os.link(stored, path)
    except FileNotFoundError as error:
        raise NotFound(f"{stored} is not there: send it again") from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(stored, path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
