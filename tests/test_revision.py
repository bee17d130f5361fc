"""A hub model's commit is pinned: recorded wherever the model is, and what a recipe asks for."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from slmq_edge import builtin
from tests.test_cli import assert_one_line, slmq

FIRST, SECOND = "1" * 40, "2" * 40
MODEL = "someone/tiny"
FLAGS = ("--method", "none", "--scheme", "w8a8")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder with a hub cache of two commits, of unlike weights; main is the second."""
    place = tmp_path / "hub" / "hub" / "models--someone--tiny"
    for commit, source in ((FIRST, "demo-llama"), (SECOND, "demo-qwen2")):
        shutil.copytree(builtin.folder(source), place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(SECOND)
    (place / "refs" / "v1").write_text(FIRST)
    return tmp_path


def made(here: Path, *arguments: object) -> None:
    done = slmq(*arguments, cwd=here)
    assert done.returncode == 0, done.stderr


def test_a_branch_is_recorded_as_its_commit(hub: Path) -> None:
    made(hub, "quantize", MODEL, "--revision", "v1", *FLAGS, "-o", "first")
    recipe = tomllib.loads((hub / "first/recipe.toml").read_text())
    assert (recipe["model"], recipe["revision"]) == (MODEL, FIRST)
    source = json.loads((hub / "first/checkpoint.json").read_text())["source"]
    assert {"config.json", "model.safetensors"} <= source["files"].keys()
    assert {name: of for name, of in source.items() if name != "files"} == {
        "name": MODEL, "origin": "hub", "revision": FIRST, "license": "apache-2.0",
    }  # fmt: skip
    made(hub, "export", "first", "-o", "bundle")
    assert json.loads((hub / "bundle/bundle.json").read_text())["model"] == source
    assert f"`{MODEL}` at revision {FIRST}" in (hub / "bundle/MODEL_CARD.md").read_text()
    inspected = slmq("inspect", "bundle", cwd=hub)
    assert f"{MODEL} (hub, {FIRST})" in inspected.stdout


def test_a_recipe_gets_the_same_weights_when_the_branch_has_moved(hub: Path) -> None:
    made(hub, "quantize", MODEL, *FLAGS, "-o", "first")
    assert tomllib.loads((hub / "first/recipe.toml").read_text())["revision"] == SECOND
    main = hub / "hub/hub/models--someone--tiny/refs/main"
    main.write_text(FIRST)
    made(hub, "quantize", "--config", "first/recipe.toml", "-o", "again")
    weights = [(hub / name / "weights.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]
    made(hub, "quantize", MODEL, *FLAGS, "-o", "moved")
    assert (hub / "moved/weights.safetensors").read_bytes() != weights[0]


def test_a_revision_that_is_not_there_is_one_line(hub: Path) -> None:
    done = slmq("quantize", MODEL, "--revision", "v9", *FLAGS, "-o", "x", cwd=hub)
    assert_one_line(done, 1, "cannot fetch", MODEL)
