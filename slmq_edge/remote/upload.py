"""A bundle's way to a device, by digests: what is there is not sent, the rest is sent on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.files import existing_bundle
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.transport import LinkLost, Transport
from slmq_edge.runner.agent.store import STORE
from slmq_edge.runner.manifest import BUNDLE_FILE, entries, sha256, verify

BATCH_BYTES = 1 << 20  # small files go together; a claim on them does not last long
ATTEMPTS = 3  # at a file that arrives damaged
BUSY_SECONDS = 1.0

Progress = Callable[[int, int], None]


class File(NamedTuple):
    path: Path
    bytes: int


def push(agent: Agent, transport: Transport, bundle: Path, progress: Progress) -> str:
    """Bring a bundle to a device; return its folder there.

    It is verified here first: what the device has of the same manifest may be whole where this is
    not, and its figures would be those of another file.

    Args:
        agent: whom to ask there.
        transport: the way there.
        bundle: a folder that was exported.
        progress: told how many bytes are there, and how many there are.

    Raises:
        SlmqError: the bundle is damaged, the disk there is full, or the link stays away; what has
            arrived is kept there, and the next push goes on from it.
    """
    verify(bundle, existing_bundle(bundle)["files"])
    _bring(agent, transport, _files_of(bundle), progress)
    folder = agent.ask("assemble", manifest=sha256(bundle / BUNDLE_FILE))["folder"]
    return str(folder)


def send(
    agent: Agent, transport: Transport, files: Mapping[str, Path], progress: Progress
) -> dict[str, str]:
    """Bring single files to a device; return the path of each there, under the name given.

    They stay in its store until nobody has used them for long. Raises what `push` does.
    """
    digests = {name: sha256(path) for name, path in files.items()}
    found = {digests[name]: File(path, path.stat().st_size) for name, path in files.items()}
    if found:
        _bring(agent, transport, found, progress)
    return {name: f"{agent.home}/{STORE}/{digest}" for name, digest in digests.items()}


def _bring(
    agent: Agent, transport: Transport, files: Mapping[str, File], progress: Progress
) -> None:
    upload = _Upload(agent, transport, files, progress)
    for batch in _batches(upload.missing(), files):
        upload.bring(batch)


class _Upload:
    def __init__(
        self, agent: Agent, transport: Transport, files: Mapping[str, File], progress: Progress
    ) -> None:
        self._agent, self._transport, self._files = agent, transport, files
        self._total = sum(file.bytes for file in files.values())
        self._there = dict.fromkeys(files, 0)
        self._progress = progress
        self._owner = secrets.token_hex(8)

    def missing(self) -> list[str]:
        """Return the digests of what is not stored there yet."""
        return list(self._have(list(self._files), owner=None)[0])

    def bring(self, batch: list[str]) -> None:
        """Send files and have them stored; one that arrives damaged is sent anew.

        Raises:
            Damaged: the file here is not what its manifest says, or it never arrives whole.
        """
        for _ in range(ATTEMPTS):
            self._send(batch)
            sizes = {digest: self._files[digest].bytes for digest in batch}
            answer = self._agent.ask("place", files=sizes)
            batch = list(answer["damaged"])
            self._there.update({digest: sizes[digest] for digest in answer["placed"]})
            self._there.update(dict.fromkeys(batch, 0))
            self._tell(sum(self._there.values()))
            if not batch:
                return
            for digest in batch:
                self._check(digest)
        raise Damaged(f"{self._files[batch[0]].path.name} arrived damaged {ATTEMPTS} times")

    def _send(self, batch: list[str]) -> None:
        """Send what is missing of these files, or wait until others have, however often cut off."""
        patience = self._agent.patience()
        before = -1
        while True:
            mine, busy, folder = self._have(batch, self._owner)
            there = sum(self._there[digest] for digest in batch)
            if there > before:  # a link that drops, and moves on each time, is put up with
                patience.reset()
            before = there
            if not mine and not busy:
                return
            if not mine:
                time.sleep(BUSY_SECONDS)
                continue
            sent = {digest: self._files[digest].path for digest in mine}
            others = sum(self._there.values()) - sum(self._there[digest] for digest in mine)
            try:
                self._transport.put(sent, folder, lambda done: self._tell(others + done))  # noqa: B023
            except LinkLost as error:
                patience.again(error)
                continue
            except SlmqError:
                self._have(mine, self._owner)  # where the disk is full, it says so with numbers
                raise
            if not busy:
                return

    def _have(self, digests: list[str], owner: str | None) -> tuple[list[str], list[str], str]:
        """Return what is to be sent, what somebody else is sending, and where to."""
        sizes = {digest: self._files[digest].bytes for digest in digests}
        answer = self._agent.ask("have", files=sizes, owner=owner)
        self._there.update(answer["partial"], **answer["busy"])
        self._there.update({digest: sizes[digest] for digest in answer["stored"]})
        self._tell(sum(self._there.values()))
        busy = [] if owner is None else list(answer["busy"])
        mine = [digest for digest in digests if digest not in {*answer["stored"], *busy}]
        return mine, busy, str(answer["folder"])

    def _tell(self, done: int) -> None:
        self._progress(min(done, self._total), self._total)

    def _check(self, digest: str) -> None:
        path = self._files[digest].path
        if sha256(path) != digest:
            raise Damaged(f"{path} has changed since it was written")


def _files_of(bundle: Path) -> dict[str, File]:
    """Return a bundle's files by their digests, its manifest among them.

    Raises:
        NotFound: no bundle. Damaged: a file is not there, or is not as long as it was.
    """
    document = existing_bundle(bundle)
    manifest = bundle / BUNDLE_FILE
    files = {sha256(manifest): File(manifest, manifest.stat().st_size)}
    for name, path, size, digest in entries(bundle, document.get("files", {})):
        if not path.is_file() or path.stat().st_size != size:
            raise Damaged(f"{bundle}: {name} is missing, or has changed since it was written")
        files[digest] = File(path, size)
    return files


def _batches(digests: list[str], files: Mapping[str, File]) -> Iterator[list[str]]:
    """Yield small files together, and large ones each alone."""
    batch: list[str] = []
    held = 0
    for digest in sorted(digests, key=lambda digest: files[digest].bytes):
        if batch and held + files[digest].bytes > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(digest)
        held += files[digest].bytes
    if batch:
        yield batch
