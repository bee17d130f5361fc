"""Runs on the device: started once, whoever asks; followed by offset; stopped; forgotten.

A run is a folder of the agent's home, named by a digest of all that decides it, so that the same
command finds its run again. Every answer is JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Mapping

from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.runner import manifest
from slmq_edge.runner.agent import state, supervise

RUNS = "runs"
START_SECONDS = 60.0  # until a supervisor must have said that it is there
LOCK_SECONDS = 2.0  # who holds the lock writes his name into it a moment later
LONGEST_WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.25
MOST_BYTES = 4 << 20  # of a journal in one answer
PATHS = ("bundle", "engines", "requests")  # fields of a job; not every job has all

Answer = Dict[str, Any]


def start(home: Path, request: Mapping[str, Any], root: str = "/") -> Answer:
    """Start a run, or attach to it where it runs.

    One that is done is started too: its runner sees that nothing is missing, or that the machine
    has changed since and all of it is to be taken anew.

    Args:
        home: the agent's folder.
        request: id; job, the document of job.json; deadline_seconds; label, who asks.
        root: where /proc is.

    Returns:
        The fields of state.json, and ``attached``: whether it ran before; or, where another run
        has the device, ``state`` "busy" and ``holder``: run, label, since (Unix seconds).

    Raises:
        SlmqError: the disk is full, or the supervisor did not come up.
    """
    folder = _folder(home, request)
    lock, holder = _take(home / state.LOCK, folder, root)
    if lock is None:
        if _is_running(folder, root):
            return {**state.read(folder, root), "attached": True}
        return {"state": "busy", "holder": holder}
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, lock)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / state.JOB).write_text(json.dumps(_job(folder, request)), encoding="utf-8")
            with contextlib.suppress(FileNotFoundError):
                (folder / state.STOP).unlink()
            _name_holder(lock, folder, request)
        except OSError as error:
            raise SlmqError(f"cannot write {folder}: {error.strerror}") from error
        return {**_supervised(folder, float(request["deadline_seconds"]), lock), "attached": False}


def poll(home: Path, request: Mapping[str, Any], root: str = "/") -> Answer:
    """Say how a run is, and what its journal holds beyond what the asker has.

    Args:
        home: the agent's folder.
        request: id; offset, sha256: how much of the journal the asker has, and the digest of
            that; heard: how much of the runner's stdout; wait_seconds: at most so long, where it
            runs on.
        root: where /proc is.

    Returns:
        The fields of state.json, and boot_id: of now. journal: whole lines, from byte ``offset``
        on, which is 0 where the asker's part is none of this journal. size, sha256: of all whole
        lines. notes, heard: what else the runner has said.

    Raises:
        NotFound: there is no such run.
    """
    folder = _existing(home, request)
    until = time.monotonic() + min(float(request.get("wait_seconds", 0)), LONGEST_WAIT_SECONDS)
    while True:
        now = state.read(folder, root)  # before the journal: what is done has all of it
        if now["state"] != state.RUNNING or time.monotonic() >= until:
            break
        time.sleep(LOOK_SECONDS)
    return {
        **now,
        "boot_id": state.boot_id(root),
        **_journal(folder / state.JOURNAL, int(request["offset"]), str(request["sha256"])),
        **_notes(folder / state.ECHO, int(request.get("heard", 0))),
    }


def stop(home: Path, request: Mapping[str, Any], root: str = "/") -> Answer:
    """Ask a run to end; without ``id``, the one that holds the device. Does not wait for it.

    Raises:
        NotFound: there is no such run, or none runs.
    """
    if "id" not in request:
        holder = _holder(home / state.LOCK)
        if not holder or not _is_running(_folder(home, {"id": holder.get("run")}), root):
            raise NotFound("nothing runs there")
        request = {"id": holder["run"]}
    folder = _existing(home, request)
    now = state.read(folder, root)
    if now["state"] == state.RUNNING:
        (folder / state.STOP).touch()
        with contextlib.suppress(ProcessLookupError):
            os.kill(now["pid"], signal.SIGTERM)
    return {**now, "id": request["id"]}


def forget(home: Path, request: Mapping[str, Any], root: str = "/") -> Answer:
    """Remove a run that has ended; what it was of stays in the store.

    Raises:
        SlmqError: it is running.
    """
    folder = _folder(home, request)
    if _is_running(folder, root):
        raise SlmqError(f"{folder} is running: stop it first")
    existed = folder.exists()
    shutil.rmtree(str(folder), ignore_errors=True)
    return {"forgotten": existed}


def _folder(home: Path, request: Mapping[str, Any]) -> Path:
    name = request.get("id")
    if not isinstance(name, str) or not manifest.DIGEST.fullmatch(name):
        raise UsageError(f"a run's id is 64 hexadecimal digits, not {name!r}")
    return home.absolute() / RUNS / name


def _existing(home: Path, request: Mapping[str, Any]) -> Path:
    folder = _folder(home, request)
    if not folder.is_dir():
        raise NotFound(
            f"there is no run {request['id'][:12]} in {home}: has another command brought it home?"
        )
    return folder


def _is_running(folder: Path, root: str) -> bool:
    return bool(state.read(folder, root)["state"] == state.RUNNING)


def _take(path: Path, folder: Path, root: str) -> tuple[int | None, Answer]:
    """Take the device's lock: its descriptor; or None, and who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(str(path), os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock, {}
        except BlockingIOError:
            # A run that ends lets go a moment after it has said so; one that begins tells its
            # state a moment after it has the lock.
            if _is_running(folder, root) or time.monotonic() >= until:
                os.close(lock)
                return None, _holder(path)
        time.sleep(LOOK_SECONDS)


def _name_holder(lock: int, folder: Path, request: Mapping[str, Any]) -> None:
    holder = {
        "run": folder.name,
        "label": str(request.get("label", "")),
        "since": time.time(),
    }
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(holder).encode("utf-8"), 0)


def _holder(path: Path) -> Answer:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _job(folder: Path, request: Mapping[str, Any]) -> Answer:
    """The job, with paths of this device; they may come relative to the login's home."""
    job = dict(request["job"])
    paths = {name: os.path.abspath(job[name]) for name in PATHS if job.get(name)}
    return {**job, **paths, "journal": str(folder / state.JOURNAL)}


def _supervised(folder: Path, deadline_seconds: float, lock: int) -> Answer:
    """Start a supervisor that outlives us, and wait until it has said that it is there."""
    command = [sys.executable, "-m", "slmq_edge.runner", "supervise"]
    words = folder / state.WORDS
    with words.open("ab") as log:
        said = log.tell()
        child = subprocess.Popen(
            [*command, str(folder), repr(deadline_seconds), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=str(folder),
            env=supervise.variables(),
            pass_fds=[lock],
            start_new_session=True,
        )
    name = child.pid, state.ticks(child.pid)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        ended = child.poll() is not None  # before the state: what is said is said by then
        now = state.read(folder)
        if (now.get("pid"), now.get("pid_ticks")) == name:
            child.returncode = 0  # it is to outlive us: nobody here waits for it
            return now
        if ended:
            break
        time.sleep(0.02)
    child.kill()
    child.wait()
    last = words.read_bytes()[said:].decode("utf-8", "replace").strip().splitlines()[-1:]
    raise SlmqError(f"the supervisor did not come up: {last[0] if last else 'it said nothing'}")


def _journal(path: Path, offset: int, digest: str) -> Answer:
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if offset > len(whole) or hashlib.sha256(whole[:offset]).hexdigest() != digest:
        offset = 0  # it was started anew
    end = len(whole)
    if end - offset > MOST_BYTES:
        end = whole.find(b"\n", offset + MOST_BYTES - 1) + 1
    return {
        "journal": whole[offset:end].decode("utf-8", "surrogateescape"),
        "offset": offset,
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }


def _notes(path: Path, heard: int) -> Answer:
    """What a runner says that is no event of its journal."""
    content = path.read_bytes()[heard:] if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    notes = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            document = json.loads(line.decode("utf-8"))
            if isinstance(document, dict) and document.get("event") == "note":
                notes.append(document)
    return {"notes": notes, "heard": heard + len(whole)}
