"""slmq-edge profile before any machine is reached: what contradicts itself, or cannot end well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from slmq_edge import results
from slmq_edge.commands import profile as command
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.remote import run as remote
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks import inference
from tests import toy_graph

APP = typer.Typer()
APP.command()(command.profile)
BOARDS = '[[board]]\nname = "here"\ndevice = "local"\n[[board]]\nname = "a"\ndevice = "ssh://a"\n'


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boards.toml").write_text(BOARDS)
    (tmp_path / "one.toml").write_text(_last(BOARDS))
    return toy_graph.write_bundle(tmp_path / "bundle")


def _last(text: str) -> str:
    return "[[board]]" + text.rpartition("[[board]]")[2]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a machine was reached")

    monkeypatch.setattr(remote, "connect", never)


def _without_counts(bundle: Path) -> None:
    document = json.loads((bundle / "bundle.json").read_text())
    document["anatomy"] = {"vocab": "many", "tied": False}
    (bundle / "bundle.json").write_text(json.dumps(document))


@pytest.mark.parametrize("device", ["ssh://a", "one.toml"])
@pytest.mark.parametrize(
    ("spoil", "options", "kind", "says"),
    [
        (lambda bundle: (bundle / "bundle.json").unlink(), (), NotFound, "is not a bundle"),
        (_without_counts, (), Damaged, "no card can be made of it"),
        (lambda bundle: None, ("-p", 600), UsageError, "the context holds 512"),
        (lambda bundle: None, ("--runtime", "trt"), UsageError, "trt"),
    ],
)
def test_a_bundle_is_looked_at_before_a_machine_is_reached(
    spoil: Callable[[Path], object],
    options: tuple[object, ...],
    kind: type[SlmqError],
    says: str,
    device: str,
    bundle: Path,
    offline: None,
) -> None:
    spoil(bundle)
    shown = _call(bundle, "--device", device, *options)
    assert isinstance(shown.exception, kind), shown.exception
    assert says in str(shown.exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "boards.toml", "-o", "x.json"), "-o is of one machine"),
        (("--device", "boards.toml", "--engines", "there"), "the whole path there"),
        (("--device", "local", "--power-source", "sysfs"), "--power-source is of a Jetson"),
        (("--device", "boards.toml", "--stop"), "--stop is of boards"),
        (("--power-seconds", "inf"), None),
        (("--cool-down", "inf"), None),
        (("--deadline", "inf"), None),
    ],
)
def test_what_contradicts_itself_is_refused(
    options: tuple[str, ...], says: str | None, bundle: Path, offline: None
) -> None:
    shown = _call(bundle, *options)
    assert shown.exit_code == 2 or isinstance(shown.exception, UsageError), shown.exception
    assert says is None or says in str(shown.exception)


def test_a_bundle_is_asked_for_unless_something_is_to_be_ended(bundle: Path) -> None:
    assert "name a bundle" in str(_call("-p", 4).exception)


def test_the_only_board_of_an_inventory_has_the_file_that_is_asked_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Path] = []

    def unreachable(target: object, asked: object, output: Path, show: object) -> None:
        said.append(output)
        raise SlmqError("switched off")

    monkeypatch.setattr("slmq_edge.tracks.measuring.measure_on", unreachable)
    assert _call(bundle, "--device", "one.toml", "-o", "x.json").exit_code == 1
    assert _call(bundle, "--device", "one.toml").exit_code == 1
    assert said == [Path("x.json"), Path("bundle-a-run.json")]


def test_every_board_is_told_to_stop(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = _last(BOARDS) + _last(BOARDS).replace('"a"', '"b"').replace("//a", "//b")
    Path("boards.toml").write_text(two)

    def stop(machine: remote.Remote) -> str:
        if machine._target.name == "a":
            raise NotFound("a: nothing runs there")
        return "123"

    monkeypatch.setattr(remote.Remote, "stop", stop)
    shown = _call("--stop", "--device", "boards.toml")
    assert shown.exit_code == 0
    assert shown.stderr.splitlines() == ["a: nothing runs there", "b: job 123 is told to end"]


def test_several_boards_are_one_document(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures and caveats on stdout, failures on stderr, with --json all of it in one document."""
    two = _last(BOARDS) + _last(BOARDS).replace('"a"', '"b"').replace("//a", "//b")
    Path("boards.toml").write_text(two)
    work = Workload(4, 4, 1, 0, 1)
    run = inference.profile(bundle, work, tmp_path / "r.json", lambda event: None)

    def measure_on(target: Any, *_: object) -> results.Run:
        if target.name == "b":
            raise SlmqError("b: switched off")
        return run

    monkeypatch.setattr("slmq_edge.tracks.measuring.measure_on", measure_on)
    shown = _call(bundle, "--device", "boards.toml")
    assert shown.exit_code == 1
    assert shown.stdout.startswith("a  prefill ")
    assert "! 1 repetitions say little about the spread" in shown.stdout
    assert "error: b: switched off" in shown.stderr
    document = json.loads(_call(bundle, "--device", "boards.toml", "--json").stdout)
    assert results.from_document(document["runs"]["a"], "a") == run
    assert document["failed"] == {"b": "b: switched off"}


def test_power_is_read_elsewhere_on_a_jetson_alone(bundle: Path, tmp_path: Path) -> None:
    work = Workload(4, 4, 1, 0, 1)
    options = inference.Options(power_source="sysfs")
    with pytest.raises(UsageError, match=r"is of a Jetson, and generic-.* is none"):
        inference.profile(bundle, work, tmp_path / "run.json", lambda event: None, options)
    assert not (tmp_path / "run.journal.jsonl").exists()
