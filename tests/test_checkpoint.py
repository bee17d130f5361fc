"""Checkpoints and bundles on disk: round trips, and refusals by name."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge import checkpoint as checkpoints
from slmq_edge import files
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.decoder import Decoder
from slmq_edge.errors import Damaged, SlmqError, Unsupported
from slmq_edge.export import export
from slmq_edge.runner import manifest
from slmq_edge.scheme import SCHEMES, scheme
from slmq_edge.simulation import Simulation
from tests.decoders import random_llama, random_qwen2, rounded, tokens_for


def saved(folder: Path, precision: str = "w4a8", head: str = "float") -> Checkpoint:
    checkpoint = rounded(random_qwen2(), scheme(precision, head))
    checkpoint.extras["config.json"] = b'{"model_type": "qwen2"}'
    checkpoints.save(checkpoint, folder)
    return checkpoint


@pytest.mark.parametrize("precision", SCHEMES)
@pytest.mark.parametrize("make", [random_qwen2, random_llama])
def test_a_checkpoint_round_trips_exactly(
    precision: str, make: Callable[[], Decoder], tmp_path: Path
) -> None:
    before = rounded(make(), scheme(precision))
    checkpoints.save(before, tmp_path / "c")
    after = checkpoints.load(tmp_path / "c")
    assert after.anatomy == before.anatomy
    assert after.scheme == before.scheme
    tokens = tokens_for(Simulation(before).model)
    assert torch.equal(Simulation(before).logits(tokens), Simulation(after).logits(tokens))


def test_four_bit_weights_take_half_a_byte(tmp_path: Path) -> None:
    saved(tmp_path / "w8", "w8a8")
    saved(tmp_path / "w4", "w4a8")
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("w8", "w4")]
    linears = random_qwen2().anatomy.linear_macs_per_token
    assert abs((sizes[0] - sizes[1]) - linears / 2) < 0.02 * linears


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_checkpoint_is_refused_by_name(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    saved(folder)
    damage(folder / name)
    with pytest.raises(Damaged, match=name.replace(".", r"\.")):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("format", "something else"), ("version", 99), ("version", None)]
)
def test_an_unknown_format_is_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    saved(folder)
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text())
    document[key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(Unsupported, match=r"checkpoint\.json"):
        checkpoints.load(folder)


def test_a_manifest_without_a_field_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    saved(folder)
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text())
    del document["anatomy"]
    path.write_text(json.dumps(document))
    with pytest.raises(Damaged, match="anatomy"):
        checkpoints.load(folder)


@pytest.mark.parametrize("head", ["float", "int8"])
def test_a_bundle_holds_what_its_manifest_says(head: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "c", "w8a8", head)
    export(checkpoint, tmp_path / "b")
    document = manifest.read_bundle(tmp_path / "b")
    manifest.verify(tmp_path / "b", document["files"])
    on_disk = {p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*.*")}
    assert on_disk == {"bundle.json", *document["files"]}
    assert document["scheme_requested"] == document["lowering"]["scheme_ran"] == "w8a8"
    assert document["verified"]["mean_kl"] <= document["golden"]["kl_limit"]
    share = document["lowering"]["int8_gemm_share"]
    assert share == 1.0 if head == "int8" else 0.8 < share < 1.0


def test_a_graph_that_computes_something_else_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmq_edge.exporters import onnx

    checkpoint = saved(tmp_path / "c", "w8a8")
    other = rounded(random_qwen2(), scheme("w4a8"))
    written = onnx.write(other)
    monkeypatch.setattr(onnx, "write", lambda _, flavour=None: written)
    with pytest.raises(SlmqError, match="does not compute what its simulation computes"):
        export(checkpoint, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "c")
    with pytest.raises(SlmqError, match="without --force"):
        checkpoints.save(checkpoint, tmp_path / "c")
    (tmp_path / "c" / "stale").touch()
    checkpoints.save(checkpoint, tmp_path / "c", force=True)
    assert not (tmp_path / "c" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_an_interrupted_write_leaves_the_old_folder_whole(
    error: BaseException, tmp_path: Path
) -> None:
    saved(tmp_path / "c")
    before = (tmp_path / "c" / "checkpoint.json").read_bytes()

    def write() -> None:
        with files.new_folder(tmp_path / "c", force=True) as folder:
            (folder / "half").write_text("half")
            raise error

    expected = SlmqError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c" / "checkpoint.json").read_bytes() == before


def test_a_full_disk_is_foreseen(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(SlmqError, match="not enough disk space"):
        files.check_space(tmp_path / "new", free * 2)


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "report.md"
    files.write_text_atomically(path, "one")
    with pytest.raises(SlmqError, match="without --force"):
        files.write_text_atomically(path, "two")
    files.write_text_atomically(path, "two", force=True)
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["report.md"]


@pytest.mark.parametrize("kind", ["another folder", "the source", "above the source"])
def test_force_deletes_nothing_that_we_did_not_write(kind: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(SlmqError, match="did not write"):
        saved_with_force(mine)
    assert (mine / "thesis.txt").read_text() == "years of work"
    source = tmp_path / "inner" / "model"
    target = {"another folder": tmp_path / "x", "the source": source}.get(kind, source.parent)
    if kind == "another folder":
        files.check_not_input(target, source)
    else:
        with pytest.raises(SlmqError, match="holds what is read"):
            files.check_not_input(target, source)


def saved_with_force(folder: Path) -> None:
    checkpoints.save(rounded(random_qwen2(), scheme("w8a8")), folder, force=True)


def test_a_file_and_a_folder_never_take_each_others_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SlmqError, match="is a file"):
        saved_with_force(tmp_path / "file")
    with pytest.raises(SlmqError, match="is a folder"):
        files.write_text_atomically(tmp_path / "folder", "text", force=True)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("files"),
        lambda d: d.pop("integers"),
        lambda d: d.update(integers=[]),
        lambda d: d["integers"].popitem(),
        lambda d: d["integers"].update({"model.norm": {"bits": 8, "shape": [48, 1]}}),
        lambda d: d.update(cost=None),
        lambda d: d.update(scheme={}),
        lambda d: d["files"].pop("weights.safetensors"),
        lambda d: d["anatomy"].update(hidden=49),
    ],
)
def test_a_manifest_that_describes_something_else_is_one_line(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    saved(tmp_path / "c")
    changed(tmp_path / "c", change)
    with pytest.raises(SlmqError):
        checkpoints.load(tmp_path / "c")


def test_a_bundle_whose_manifest_leaves_the_graph_out_is_refused(tmp_path: Path) -> None:
    export(saved(tmp_path / "c", "w8a8"), tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    whole = json.loads(path.read_text())
    for name in ("ort/model.onnx", "ort/model.onnx.data", "ort/probe.onnx"):
        document = whole | {"files": {k: v for k, v in whole["files"].items() if k != name}}
        path.write_text(json.dumps(document))
        with pytest.raises(Damaged, match=f"does not list {name}"):
            manifest.read_bundle(tmp_path / "b")
