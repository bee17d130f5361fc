"""``--method distill`` as it is typed: how long, from what, interrupted and gone on with."""

from __future__ import annotations

import json
import re
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from slmq_edge import presets
from slmq_edge.cli import app
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantization import distill, teaching
from slmq_edge.quantization.lessons import Lessons
from slmq_edge.quantize import Request, plan
from slmq_edge.recipe import Recipe, over
from slmq_edge.reports.made import _method
from slmq_edge.reproduce import by_the_clock
from slmq_edge.scheme import SCHEMES
from slmq_edge.settings import OPTIONS, pairs, settings_of

COMMAND = ("quantize", "demo-llama", "-m", "distill", "-s", "w4a8")
SMALL = ("--windows", 16, "--length", 16, "--set", "batch=4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def slmq(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output or result.exception
    return result


def refused(result: Result, kind: type[SlmqError], *words: str) -> None:
    assert isinstance(result.exception, kind), result.exception
    for word in words:
        assert word in str(result.exception)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
    return found


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_so_many_epochs_come_out_again_and_minutes_go_over_them(here: Path) -> None:
    done(slmq(*COMMAND, *SMALL, "--epochs", 1, "--learn-from", "text", "-o", "first"))
    recipe = tomllib.loads((here / "first/recipe.toml").read_text())
    assert {name: recipe["settings"][name] for name in ("epochs", "minutes", "learn_from")} == {
        "epochs": 1, "minutes": "none", "learn_from": "text",
    }  # fmt: skip
    assert "deviations" not in recipe
    done(slmq("quantize", "--config", "first", "-o", "second"))
    assert weights(here / "first") == weights(here / "second")
    done(slmq("quantize", "--config", "first", "--minutes", 0.001, "-o", "third"))
    settings = manifest(here / "third")["settings"]
    assert (settings["minutes"], settings["learn_from"]) == (0.001, "text")


def test_how_long_is_said_once(here: Path) -> None:
    both = ("--epochs", 2, "--minutes", 1)
    refused(slmq(*COMMAND, *both), UsageError, "--epochs and --minutes", "leave one out")
    refused(slmq(*COMMAND, *both[:2], "--set", "minutes=1"), UsageError, "leave one out")
    assert pairs(["minutes=none"], {"epochs": "2"}) == {"epochs": "2", "minutes": "none"}
    by_the_clock_made = Recipe(method="distill", settings={"epochs": 9, "minutes": 2.0})
    found = over(Recipe(settings={"epochs": "3"}), by_the_clock_made)
    assert settings_of(distill.Settings, "distill", found.settings, {}).epochs == 3
    assert settings_of(distill.Settings, "distill", found.settings, {}).minutes is None
    still = over(Recipe(settings={"batch": "4"}), by_the_clock_made)
    assert still.settings == {"epochs": 9, "minutes": 2.0, "batch": "4"}


def test_what_learned_by_the_clock_is_not_expected_to_come_out_again() -> None:
    (line,) = by_the_clock(Recipe(settings={"minutes": 2.0, "epochs": 12}))
    assert "2.0 minutes" in line
    for settings in ({"minutes": "none"}, {"steps": 3}):
        assert not list(by_the_clock(Recipe(settings=settings)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--start", "gtpq"), ("--start takes", "clipped or gptq", "did you mean gptq?")),
        (("-s", "w4a16", "--start", "smoothquant"), ("--start smoothquant: ", "w4a16")),
        (("--learn-from", "me"), ("--learn-from takes text or own or both", "'me'")),
        (("--minutes", "0"), ("--minutes is a number above 0",)),
        (("--minutes", "soon"), ("--minutes takes none or a number, not 'soon'",)),
        (("--weight-rate", "-1"), ("--weight-rate is a number from 0, not -1",)),
        (("--set", "settlng=1"), ("did you mean settling?", "--weight-rate", "--set held_out")),
        (("--steps", 3), ("method distill has no setting --steps",)),
        (("-s", "fp32"), ("distill",)),
        (("-m", "distil"), ("did you mean distill?",)),
        (("--compile",), ("distill has no step that is compiled",)),
        (("--windows", 1), ("needs at least --windows 2",)),
    ],
)
def test_a_mistake_is_one_line(
    flags: tuple[object, ...], words: tuple[str, ...], here: Path
) -> None:
    refused(slmq(*COMMAND, "--length", 16, *flags, "-o", "c"), SlmqError, *words)
    assert list(here.iterdir()) == []


def test_too_few_windows_are_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="at least --windows 2"):
        plan("demo-llama", Request(SCHEMES["w4a8"], "distill", windows=1))


def test_help_says_the_defaults() -> None:
    said = {name: text for name, (_, text) in OPTIONS.items()}
    defaults = distill.Settings()
    for name in ("upstream", "fast", "best"):
        values = presets.PRESETS[name]["distill"].values(4)
        told = said["epochs"].partition("distill: ")[2]
        assert f"{name}: {values.get('epochs', defaults.epochs)}" in told
    assert f"({defaults.weight_rate})" in said["weight_rate"]
    begun = [defaults.begins(SCHEMES[name]) for name in ("w4a8", "w4a16")]
    assert said["start"].endswith(f"({begun[0]}; {begun[1]} where activations stay float).")


def test_what_minutes_go_over_is_not_shown() -> None:
    settings = {"epochs": 12, "minutes": 0.5, "batch": 4}
    found = {"method": "distill", "settings": settings}
    assert _method(found) == "distill (minutes 0.5, batch 4)"
    assert _method(found | {"settings": settings | {"minutes": None}}).count("epochs 12") == 1


@pytest.mark.parametrize("verb", ["quantize", "export", "analyze", "distributions"])
def test_help_names_the_method_and_its_options(verb: str) -> None:
    text = " ".join(done(slmq(verb, "--help")).stdout.split())
    assert "omniquant, spinquant, distill" in re.sub(r"[│|] *", "", text)
    for option in ("--minutes", "--learn-from", "--start", "--weight-rate", "--epochs"):
        assert option in text


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Have Ctrl-C be pressed before a step; the state is kept after every step, or nearly."""
    monkeypatch.setattr(teaching, "SECONDS", 0.0)
    monkeypatch.setattr(teaching, "SHARE", 1.0)
    plain, wanted = Lessons.at, {"step": -1}

    def at(lessons: Lessons, step: int) -> Any:
        if step == wanted["step"]:
            signal.raise_signal(signal.SIGINT)
        return plain(lessons, step)

    monkeypatch.setattr(Lessons, "at", at)
    return lambda step: wanted.update(step=-1 if step is None else step)


@pytest.mark.parametrize(
    ("start", "kept"),
    [
        ("clipped", "with the student"),
        pytest.param("gptq", "behind block 4 and with the student", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    start: str, kept: str, here: Path, stop_at: Callable[[int | None], None]
) -> None:
    command = (*COMMAND, *SMALL, "--epochs", 1, "--start", start)
    done(slmq(*command, "-o", "whole"))
    stop_at(5)
    broken = slmq(*command, "-o", "again")
    assert broken.exit_code != 0
    assert f"interrupted: the same command goes on {kept}" in broken.stderr
    assert not (here / "again").exists()
    stop_at(None)
    result = done(slmq(*command, "-o", "again"))
    assert f"going on {kept} of a run that was interrupted (--fresh" in result.stderr
    assert weights(here / "whole") == weights(here / "again")
    assert not list(here.glob(".*"))
    found = manifest(here / "again")
    assert found["cost"]["resumed_with"] == ["student"]
    assert found["notes"] == manifest(here / "whole")["notes"]
    report = done(slmq("report", "cost", "whole", "again")).stdout
    assert f"it went on {kept} of an interrupted run" in " ".join(report.split())


def test_a_fresh_run_goes_on_with_nothing(
    here: Path, stop_at: Callable[[int | None], None]
) -> None:
    command = (*COMMAND, *SMALL, "--epochs", 1, "-o", "c")
    stop_at(2)
    assert slmq(*command).exit_code != 0
    assert list(here.glob(".c.unfinished"))
    stop_at(None)
    assert "going on" not in done(slmq(*command, "--fresh")).stderr
    assert manifest(here / "c")["cost"]["resumed_with"] == []
