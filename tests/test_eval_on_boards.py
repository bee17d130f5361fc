"""slmq-edge eval --device: token ids go to a real sshd, and log-probabilities come home."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs slmq-edge[eval]")

from typer.testing import CliRunner, Result

from slmq_edge.cli import app
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.recipe import toml
from slmq_edge.remote import follow
from slmq_edge.tracks.accuracy import results
from slmq_edge.tracks.accuracy.gap import compare
from tests.sshd import Board

ASKED = ("-t", "builtin", "--limit", 6, "--threads", 1)


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far") / "bundle"
    flags = ("--method", "none", "--scheme", "w8a8", "-o", folder)
    done = typed("export", "demo-llama", *flags)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def device(sshd: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory of one board; its home is ``tmp_path / "there"``."""
    monkeypatch.setattr(follow, "WAITS", ())
    monkeypatch.setattr(follow, "LONGEST_WAIT", 0.1)
    monkeypatch.chdir(tmp_path)
    return inventory(tmp_path, sshd, sys.executable)


def inventory(folder: Path, sshd: Board, python: str) -> Path:
    said = {
        "name": "board",
        "device": "ssh://board",
        "python": python,
        "home": str(folder / "there"),
        "config": str(sshd.config),
    }
    file = folder / "boards.toml"
    file.write_text("[[board]]\n" + toml(said))
    return file


def test_a_board_over_ssh_scores_what_this_machine_does(
    bundle: Path, device: Path, tmp_path: Path
) -> None:
    here = typed("eval", bundle, *ASKED, "-o", "here.json")
    assert here.exit_code == 0, here.output
    done = typed("eval", bundle, *ASKED, "--device", device, "-o", "there.json")
    assert done.exit_code == 0, done.output
    one, other = (results.load(tmp_path / f"{name}.json") for name in ("here", "there"))
    assert other.tasks == one.tasks  # the same machine: every bit of every question
    assert other.identity["bundle_sha256"] == one.identity["bundle_sha256"]
    assert other.identity["versions"]["onnxruntime"] == one.identity["versions"]["onnxruntime"]
    assert other.ran["report"] == one.ran["report"]
    assert other.ran["environment"]["cpu_model"] == one.ran["environment"]["cpu_model"]
    assert not any(row.difference for row in compare(one, other).rows)
    # Nothing is left of it, here or there, but the bundle that was sent.
    assert not (tmp_path / "there.journal").exists()
    assert list((tmp_path / "there" / "runs").iterdir()) == []
    assert list((tmp_path / "there" / "bundles").iterdir()) != []
    again = typed("eval", bundle, *ASKED, "--device", device, "-o", "again.json", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["ran"]["report"] == one.ran["report"]


def test_what_a_board_refuses_is_one_line(
    bundle: Path, device: Path, sshd: Board, tmp_path: Path
) -> None:
    done = typed("eval", "demo-llama", *ASKED, "--device", device)
    assert isinstance(done.exception, UsageError)
    assert "--device is of bundles: torch runs here" in str(done.exception)
    lost = inventory(tmp_path, sshd, "python-that-is-not-there")
    done = typed("eval", bundle, *ASKED, "--device", lost)
    assert isinstance(done.exception, SlmqError)
    assert "python-that-is-not-there" in str(done.exception)
    assert "\n" not in str(done.exception)
    lost.write_text(lost.read_text() + lost.read_text().replace('"board"', '"other"', 1))
    done = typed("eval", bundle, *ASKED, "--device", lost)
    assert isinstance(done.exception, UsageError)
    assert not list(tmp_path.glob("*eval*"))
