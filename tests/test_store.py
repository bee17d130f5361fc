"""The files of bundles on a device: nothing half, nothing wrong, nothing outside."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.remote import package
from slmq_edge.runner.agent import store

CONTENT = bytes(range(256)) * 100
SIZE = len(CONTENT)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DIGEST = digest_of(CONTENT)
FILES = {"files": {DIGEST: SIZE}}


def arrive(home: Path, content: bytes = CONTENT, digest: str = DIGEST) -> Path:
    """Leave bytes where an upload would."""
    path = home / store.INCOMING / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def keep(home: Path, content: bytes) -> str:
    """Store a file; return its digest."""
    digest = digest_of(content)
    arrive(home, content, digest)
    answer = store.place(home, {"files": {digest: len(content)}})
    assert answer == {"placed": [digest], "damaged": []}
    return digest


def manifest(home: Path, files: dict[str, bytes], **replaced: Any) -> str:
    """Store a bundle's files and its manifest; return the digest of that."""
    entries = {
        name: {"bytes": len(content), "sha256": keep(home, content)}
        for name, content in files.items()
    }
    document = {"format": "slmq-edge-bundle", "version": 1, "files": {**entries, **replaced}}
    return keep(home, json.dumps(document).encode())


# --- what is here


def test_of_a_file_nothing_some_or_all_is_here(tmp_path: Path) -> None:
    answer = store.have(tmp_path, FILES)
    assert answer["partial"] == {DIGEST: 0}
    assert answer["folder"] == str(tmp_path / "incoming")
    arrive(tmp_path, CONTENT[:77])
    assert store.have(tmp_path, FILES)["partial"] == {DIGEST: 77}
    arrive(tmp_path)
    assert store.have(tmp_path, FILES)["partial"] == {DIGEST: SIZE}
    store.place(tmp_path, FILES)
    answer = store.have(tmp_path, FILES)
    assert (answer["stored"], answer["partial"], answer["busy"]) == ([DIGEST], {}, {})


def test_more_than_there_is_of_a_file_is_removed(tmp_path: Path) -> None:
    path = arrive(tmp_path, CONTENT + b"x")
    assert store.have(tmp_path, FILES)["partial"] == {DIGEST: 0}
    assert not path.exists()


def test_a_file_is_placed_once_it_is_what_its_name_says(tmp_path: Path) -> None:
    path = arrive(tmp_path)
    assert store.place(tmp_path, FILES) == {"placed": [DIGEST], "damaged": []}
    stored = tmp_path / "store" / DIGEST
    assert stored.read_bytes() == CONTENT
    assert stat.S_IMODE(stored.stat().st_mode) == 0o444
    assert not path.exists()
    assert store.place(tmp_path, FILES) == {"placed": [DIGEST], "damaged": []}  # asked twice


@pytest.mark.parametrize("wrong", [CONTENT[:-1], b"x" + CONTENT[1:], CONTENT + b"x", b""])
def test_a_file_that_is_not_is_removed(tmp_path: Path, wrong: bytes) -> None:
    path = arrive(tmp_path, wrong)
    assert store.place(tmp_path, FILES) == {"placed": [], "damaged": [DIGEST]}
    assert not path.exists()
    assert not (tmp_path / "store" / DIGEST).exists()


def test_a_stored_file_that_was_written_since_is_noticed(tmp_path: Path) -> None:
    stored = tmp_path / "store" / keep(tmp_path, CONTENT)
    stored.chmod(0o600)
    stored.write_bytes(b"x" + CONTENT[1:])
    assert store.have(tmp_path, FILES)["stored"] == []
    assert not stored.exists()


def test_a_stored_file_whose_date_alone_was_changed_stays(tmp_path: Path) -> None:
    stored = tmp_path / "store" / keep(tmp_path, CONTENT)
    os.utime(stored)
    assert store.have(tmp_path, FILES)["stored"] == [DIGEST]
    assert stored.stat().st_mtime == store.VERIFIED


def test_a_disk_without_room_is_refused_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = {DIGEST: 5_000_000_000}
    monkeypatch.setattr(store, "free_bytes", lambda folder: 4_000_000_000)
    with pytest.raises(SlmqError, match=r"5000 MB more are needed.* 4000 MB are free"):
        store.have(tmp_path, {"files": big})
    arrive(tmp_path, b"").touch()
    os.truncate(tmp_path / store.INCOMING / DIGEST, 2_000_000_000)  # what is here needs no room
    assert store.have(tmp_path, {"files": big})["partial"] == {DIGEST: 2_000_000_000}
    monkeypatch.setattr(store, "free_bytes", lambda folder: 0)
    keep(tmp_path, CONTENT)
    assert store.have(tmp_path, FILES)["stored"] == [DIGEST]


# --- who sends it


def test_what_somebody_sends_nobody_else_does(tmp_path: Path) -> None:
    first, second = {**FILES, "owner": "a"}, {**FILES, "owner": "b"}
    assert store.have(tmp_path, first)["partial"] == {DIGEST: 0}
    assert store.have(tmp_path, second)["busy"] == {DIGEST: 0}
    arrive(tmp_path, CONTENT[:9])
    assert store.have(tmp_path, second)["busy"] == {DIGEST: 9}
    assert store.have(tmp_path, first)["partial"] == {DIGEST: 9}  # a link that came back
    arrive(tmp_path)
    store.place(tmp_path, FILES)
    assert store.have(tmp_path, second)["stored"] == [DIGEST]
    assert not list((tmp_path / store.INCOMING).iterdir())


@pytest.mark.parametrize("ago", [store.LEASE_SECONDS + 1, -3600])
def test_who_sends_no_more_is_taken_over_from(tmp_path: Path, ago: float) -> None:
    """Or a clock that was set back makes it look so."""
    store.have(tmp_path, {**FILES, "owner": "a"})
    arrive(tmp_path, CONTENT[:9])
    for path in (tmp_path / store.INCOMING).iterdir():
        os.utime(path, (time.time() - ago, time.time() - ago))
    assert store.have(tmp_path, {**FILES, "owner": "b"})["partial"] == {DIGEST: 9}
    assert store.have(tmp_path, {**FILES, "owner": "a"})["busy"] == {DIGEST: 9}


def test_a_question_claims_nothing(tmp_path: Path) -> None:
    store.have(tmp_path, {**FILES, "owner": None})
    assert store.have(tmp_path, {**FILES, "owner": "b"})["busy"] == {}


# --- bundles

NAMES = {
    "ort/model.onnx": b"graph",
    "ort/weights with blanks": b"weights",
    'it\'s "quoted" $(touch x) `y`;': b"1",
    "ünï/cödé 模型": b"2",
    "-rf": b"3",
    "deep/er/and/deep/er": b"4",
    "same": b"graph",
    "new\nline": b"5",
}


def test_a_bundle_is_assembled_under_its_names(tmp_path: Path) -> None:
    digest = manifest(tmp_path, NAMES)
    folder = Path(store.assemble(tmp_path, {"manifest": digest})["folder"])
    assert folder == tmp_path / "bundles" / digest
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*NAMES, "bundle.json"}
    for name, content in NAMES.items():
        path = folder / name
        assert path.read_bytes() == content
        assert not path.is_symlink()
        assert path.samefile(tmp_path / "store" / digest_of(content))
    assert [path.name for path in folder.parent.iterdir()] == [digest]
    assert store.assemble(tmp_path, {"manifest": digest})["folder"] == str(folder)


@pytest.mark.parametrize(
    "name",
    ["../out", "/etc/out", "a/../../out", "..", "", ".", "c:out", "a\\b", "x\0y", "a/../b"],
)
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    entry = {"bytes": SIZE, "sha256": keep(home, CONTENT)}
    digest = manifest(home, {"a": b"a"}, **{name: entry})
    with pytest.raises(Damaged):
        store.assemble(home, {"manifest": digest})
    assert list((home / "bundles").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@given(name=st.lists(st.sampled_from(["..", ".", "/", "a", "b", "", "\\", "\0", ":"])).map("".join))
def test_whatever_the_name_nothing_is_made_outside(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    top = tmp_path_factory.mktemp("top")
    home = top / "home"
    home.mkdir()
    digest = manifest(home, {}, **{name: {"bytes": SIZE, "sha256": keep(home, CONTENT)}})
    try:
        folder = Path(store.assemble(home, {"manifest": digest})["folder"])
    except Damaged:
        assert list((home / "bundles").iterdir()) == []
    else:
        assert (folder / name).resolve().parent.is_relative_to(folder)
    assert [path.name for path in top.iterdir()] == ["home"]
    assert {path.name for path in home.iterdir()} <= {"bundles", "store", "incoming", store.LOCK}


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a", "./a"), ("bundle.json", "b"), ("a/b", "a"), ("a/b", "a//b")]
)
def test_names_that_cannot_be_files_together_are_refused(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    digest = manifest(tmp_path, dict.fromkeys(names, b"x"))
    with pytest.raises(Damaged):
        store.assemble(tmp_path, {"manifest": digest})
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b"{}", b'{"files": []}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Damaged):
        store.assemble(tmp_path, {"manifest": keep(tmp_path, content)})


def test_a_file_that_is_not_stored_is_named(tmp_path: Path) -> None:
    digest = manifest(tmp_path, {"a": CONTENT})
    (tmp_path / "store" / DIGEST).unlink()
    with pytest.raises(NotFound, match=DIGEST):
        store.assemble(tmp_path, {"manifest": digest})
    with pytest.raises(NotFound):
        store.assemble(tmp_path, {"manifest": "0" * 64})


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_where_there_are_no_hard_links_there_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    digest = manifest(tmp_path, {"a": CONTENT})
    folder = Path(store.assemble(tmp_path, {"manifest": digest})["folder"])
    assert (folder / "a").read_bytes() == CONTENT
    assert not (folder / "a").samefile(tmp_path / "store" / DIGEST)
    before = (folder / "a").stat().st_ino
    store.assemble(tmp_path, {"manifest": digest})
    assert (folder / "a").stat().st_ino == before


def test_another_fault_of_the_disk_is_no_reason_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    digest = manifest(tmp_path, {"a": CONTENT})
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="broken"):
        store.assemble(tmp_path, {"manifest": digest})
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize("harm", ["written", "removed", "emptied"])
def test_a_bundle_that_was_harmed_is_made_anew(tmp_path: Path, harm: str) -> None:
    digest = manifest(tmp_path, {"a": CONTENT, "b": b"b"})
    folder = Path(store.assemble(tmp_path, {"manifest": digest})["folder"])
    path = folder / "a"
    if harm == "removed":
        path.unlink()
    elif harm == "emptied":
        (folder / "bundle.json").unlink()
    else:
        path.chmod(0o600)
        path.write_bytes(b"x" + CONTENT[1:])
        assert store.have(tmp_path, FILES)["stored"] == []  # it was the stored file too
        keep(tmp_path, CONTENT)
    store.assemble(tmp_path, {"manifest": digest})
    assert path.read_bytes() == CONTENT
    assert (folder / "b").read_bytes() == b"b"


# --- what nobody needs


def test_what_nobody_has_used_for_long_goes(tmp_path: Path) -> None:
    old, new = manifest(tmp_path, {"a": b"old"}), manifest(tmp_path, {"a": b"new", "b": b"both"})
    both = manifest(tmp_path, {"a": b"alone", "b": b"both"})
    for digest in (old, new, both):
        store.assemble(tmp_path, {"manifest": digest})
    partial = arrive(tmp_path, b"part")
    runner = tmp_path / "runners" / "old.pyz"
    runner.parent.mkdir()
    runner.touch()
    long_ago = time.time() - 30 * store.DAY_SECONDS
    for path in (partial, runner, *(tmp_path / "bundles" / digest for digest in (old, both))):
        os.utime(path, (long_ago, long_ago))
    for path in (tmp_path / "store").iterdir():
        os.utime(path, (long_ago, store.VERIFIED))
    assert store.gc(tmp_path, {"days": 31})["freed_bytes"] == 0
    assert runner.exists()
    gone = sum(
        path.stat().st_size
        for path in (tmp_path / "store").iterdir()
        if path.name in {old, both, digest_of(b"old"), digest_of(b"alone")}
    )
    assert store.gc(tmp_path, {"days": 7})["freed_bytes"] == gone + len(b"part")
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [new]
    kept = {path.read_bytes() for path in (tmp_path / "store").iterdir()}
    assert {b"new", b"both"} <= kept
    assert not {b"old", b"alone"} & kept
    assert not partial.exists()
    assert not runner.exists()


def test_the_runner_that_removes_stays(tmp_path: Path) -> None:
    folder = tmp_path / "runners"
    folder.mkdir()
    archive = package.runner_zipapp(folder)
    os.utime(archive, (0, 0))
    request = json.dumps({"do": "gc", "home": str(tmp_path), "days": 1})
    command = [sys.executable, "-I", str(archive), "agent"]
    subprocess.run(command, input=request.encode(), check=True, stdout=subprocess.DEVNULL)
    assert archive.is_file()


def test_nothing_to_remove_is_no_error(tmp_path: Path) -> None:
    assert store.gc(tmp_path / "new", {"days": 0}) == {"freed_bytes": 0}


# --- at once


def test_many_at_once_agree(tmp_path: Path) -> None:
    """Claims, places and assemblies of processes of their own; the kernel's lock orders them."""
    digest = manifest(tmp_path, {"a": b"a"})
    arrive(tmp_path)
    archive = package.runner_zipapp(tmp_path)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps({**request, "home": str(tmp_path)})
        command = [sys.executable, "-I", str(archive), "agent"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
        answer: dict[str, Any] = json.loads(done.stdout.decode().split("slmq-edge: ")[1])
        return answer

    requests = [{"do": "place", **FILES}, {"do": "assemble", "manifest": digest}] * 3
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, requests))
    assert answers[0::2] == 3 * [{"placed": [DIGEST], "damaged": []}]
    assert answers[1::2] == 3 * [{"folder": str(tmp_path / "bundles" / digest)}]
    claims = [{"do": "have", "files": {digest_of(b"z"): 1}, "owner": str(n)} for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, claims))
    assert sum(bool(answer["partial"]) for answer in answers) == 1
