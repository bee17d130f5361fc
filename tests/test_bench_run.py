"""A bench as it runs: real verbs in real processes, killed, interrupted, resumed, left waiting."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.bench import child, engines, folder, present, run
from slmq_edge.bench.cells import Cell
from slmq_edge.bench.folder import Bench, Status
from slmq_edge.bench.run import carry_out
from slmq_edge.errors import Busy, Damaged, NotFound, SlmqError, Unsupported
from tests.sshd import Board
from tests.supervised import until
from tests.test_cli import assert_one_line, slmq

PLAN = """
[folders]
data = "questions"
[matrix]
models = ["demo-llama"]
methods = ["none"]
schemes = ["w8a8"]
[profile]
prompt_tokens = 8
new_tokens = 2
repetitions = 1
warmups = 0
power_seconds = 0
"""
NAMES = [
    f"{kind}-demo-llama-none-{scheme}{rest}"
    for scheme in ("fp32", "w8a8")
    for kind, rest in (("quantize", ""), ("export", "-ort"), ("profile", "-ort-local"))
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plan.toml, and the bench of it in ``out``."""
    home = tmp_path_factory.mktemp("bench")
    (home / "plan.toml").write_text(PLAN)
    ran = slmq("bench", "run", "plan.toml", "-o", "out", "-j", 2, cwd=home)
    assert ran.returncode == 0, ran.stderr
    assert "6 cells: 6 done" in ran.stdout
    return home


@pytest.fixture
def home(done: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may spoil."""
    return Path(shutil.copytree(done, tmp_path / "bench"))


def statuses(out: Path) -> dict[str, Status]:
    found = {cell.id: folder.status(out, cell) for cell in folder.load(out).cells}
    return {name: one for name, one in found.items() if one is not None}


def test_a_plan_becomes_artifacts_runs_and_a_record_of_how(done: Path) -> None:
    out = done / "out"
    document = json.loads((out / "bench.json").read_text())
    assert document["plan"] == PLAN
    assert [cell["id"] for cell in document["cells"]] == NAMES
    run = json.loads((out / "runs" / "demo-llama-none-w8a8-ort-local.json").read_text())
    assert run["artifact"]["scheme_ran"] == "w8a8"
    for name, status in statuses(out).items():
        assert (status.state, status.exit_code, status.attempts) == ("done", 0, 1), name
        assert status.seconds is not None
        assert (out / "cells" / name / "log.txt").stat().st_size > 0


def test_a_cells_command_can_be_pasted(home: Path) -> None:
    out = home / "out"
    name = "demo-llama-none-w8a8-ort-local"
    (out / "runs" / f"{name}.json").unlink()
    # The file says where it ran; this copy lies elsewhere.
    command = (out / "cells" / f"profile-{name}" / "command.txt").read_text()
    words = command.partition("&& ")[2]
    subprocess.run(words, shell=True, cwd=out, check=True, capture_output=True)
    assert (out / "runs" / f"{name}.json").is_file()


def test_a_bench_that_is_done_does_nothing_and_can_be_moved(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "out" / "runs").iterdir()}
    again = slmq("bench", "run", "plan.toml", "-o", "out", cwd=home)
    assert (again.returncode, again.stderr) == (0, "")
    resumed = slmq("bench", "resume", "out", cwd=home)
    assert (resumed.returncode, resumed.stdout) == (0, "6 cells: 6 done\n")
    assert {path: path.stat().st_mtime_ns for path in (home / "out" / "runs").iterdir()} == before


def test_what_is_damaged_or_missing_is_made_again_and_nothing_else(home: Path) -> None:
    out = home / "out"
    run = out / "runs" / "demo-llama-none-w8a8-ort-local.json"
    run.write_text(run.read_text()[:100])
    weights = out / "checkpoints" / "demo-llama-none-fp32" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert slmq("bench", "resume", "out", cwd=home).returncode == 0
    again = {name for name, status in statuses(out).items() if status.attempts == 2}
    assert again == {
        "profile-demo-llama-none-w8a8-ort-local", "quantize-demo-llama-none-fp32",
    }  # fmt: skip
    json.loads(run.read_text())


def test_a_changed_plan_keeps_what_is_the_same_and_replaces_nothing_unasked(home: Path) -> None:
    changed = PLAN.replace('["w8a8"]', '["w8a8", "w4a8"]').replace(
        "new_tokens = 2", "new_tokens = 3"
    )
    (home / "plan.toml").write_text(changed)
    only = ("--only", "profile-*-fp32-*")
    refused = slmq("bench", "run", "plan.toml", "-o", "out", *only, cwd=home)
    assert_one_line(refused, 1, "made by another command", "--force", "and 1 more")
    forced = slmq("bench", "run", "plan.toml", "-o", "out", "--force", *only, cwd=home)
    assert forced.returncode == 0, forced.stderr
    assert "4 cells are as they were, 2 have another command" in forced.stderr
    assert "3 are new (quantize-demo-llama-none-w4a8)" in forced.stderr
    found = statuses(home / "out")
    assert found["profile-demo-llama-none-fp32-ort-local"].attempts == 2
    assert found["export-demo-llama-none-fp32-ort"].attempts == 1


def test_a_dry_run_prints_commands_and_writes_nothing(done: Path, tmp_path: Path) -> None:
    shutil.copy(done / "plan.toml", tmp_path)
    dry = slmq("bench", "run", "plan.toml", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == NAMES
    assert "slmq-edge profile bundles/demo-llama-none-w8a8-ort --prompt-tokens 8" in lines[5]
    assert "6 cells to do" in lines[-1]
    assert "estimate" in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]
    rest = slmq("bench", "run", "plan.toml", "-o", "out", "--dry-run", cwd=done)
    assert "0 cells to do" in rest.stdout


def test_check_says_what_cannot_be_and_what_would_wait(tmp_path: Path) -> None:
    text = PLAN.replace('"none"', '"none", "smoothquant"').replace('"w8a8"', '"w8a8", "w8a16"')
    text += "[[set]]\nscheme = 'fp32'\nprofile = { prompt_tokens = 100000 }\n[eval]\n"
    text = text.replace("[profile]", 'devices = ["local", "ssh://nobody@127.0.0.1:1"]\n[profile]')
    (tmp_path / "plan.toml").write_text(text + "data_dir = '{data}'\n")
    checked = slmq("bench", "check", "plan.toml", cwd=tmp_path)
    assert checked.returncode == 1, checked.stderr
    said = checked.stdout
    assert "refused: quantize-demo-llama-smoothquant-w8a16: method smoothquant is about" in said
    assert "refused: profile-demo-llama-none-fp32-ort-local: 100000 prompt tokens" in said
    assert "refused: eval-demo-llama-none-w8a8-ort-local: no folder of questions" in said
    assert "would wait: " in said
    assert "does not answer" in said
    assert "refused: export" not in said
    run = slmq("bench", "run", "plan.toml", cwd=tmp_path)
    assert_one_line(run, 2, "more cells are refused: slmq-edge bench check", "[[except]]")
    assert not (tmp_path / "plan-bench").exists()


def test_a_board_that_is_not_there_leaves_its_cells_waiting(home: Path) -> None:
    text = PLAN.replace("[profile]", 'devices = ["local", "ssh://nobody@127.0.0.1:1"]\n[profile]')
    (home / "plan.toml").write_text(text)
    ran = slmq("bench", "run", "plan.toml", "-o", "out", cwd=home)
    assert ran.returncode == 3, ran.stderr
    assert "8 cells: 2 waiting, 6 done" in ran.stdout
    waiting = statuses(home / "out")["profile-demo-llama-none-w8a8-ort-127.0.0.1"]
    assert "does not answer" in str(waiting.error)
    assert waiting.attempts == 0


def test_a_board_is_measured_beside_this_machine(home: Path, sshd: Board) -> None:
    text = PLAN.replace(
        "[profile]",
        f'devices = ["local", {{ name = "board", device = "ssh://board", config = "{sshd.config}", '
        f'python = "{sys.executable}" }}]\n[profile]',
    )
    (home / "plan.toml").write_text(text)
    only = ("--only", "profile-*-w8a8-ort-board")
    ran = slmq("bench", "run", "plan.toml", "-o", "out", *only, cwd=home)
    assert ran.returncode == 0, ran.stderr
    run = json.loads((home / "out" / "runs" / "demo-llama-none-w8a8-ort-board.json").read_text())
    assert run["artifact"]["scheme_ran"] == "w8a8"
    assert run["environment"]["board"] is not None


def handmade(out: Path, cells: Sequence[Cell]) -> Bench:
    bench = Bench("by hand", "", folder.now(), tuple(cells), {})
    out.mkdir(parents=True, exist_ok=True)
    folder.save(out, bench)
    return bench


def cell(name: str, *command: str, output: str = "", **fields: Any) -> Cell:
    outputs = (output,) if output else ()
    return Cell(name, "analyze", command, fields.pop("needs", ()), outputs, {}, **fields)


def carried_out(out: Path, bench: Bench, **options: Any) -> Mapping[str, Status]:
    chosen = frozenset(one.id for one in bench.cells)
    options = {"jobs": 1, "retry_failed": False, "tell": lambda news: None, **options}
    with folder.locked(out) as mark:
        found = folder.look(out, bench)
        engine = engines.Here(out, mark)
        return carry_out(out, bench, engine, chosen, found, **options)


def test_one_that_fails_stops_only_those_that_need_it(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint = str(done / "out" / "checkpoints" / "demo-llama-none-w8a8")
    cost = ("report", "cost", checkpoint, "--format", "json", "-o")
    cells = [
        cell("bad", "report", "cost", "nowhere", "--format", "json", "-o", "bad.json",
             output="bad.json"),
        cell("above", *cost, "above.json", output="above.json", needs=("bad",)),
        cell("top", *cost, "top.json", output="top.json", needs=("above",)),
        cell("other", *cost, "other.json", output="other.json"),
        cell("liar", "devices", "list", output="nothing.json"),
    ]  # fmt: skip
    bench = handmade(out, cells)
    found = carried_out(out, bench)
    assert {name: one.state for name, one in found.items()} == {
        "bad": "failed", "above": "skipped", "top": "skipped", "other": "done", "liar": "failed",
    }  # fmt: skip
    assert found["bad"].error is not None
    assert "nowhere" in found["bad"].error
    assert found["above"].error == "needs bad, which failed"
    assert found["liar"].error == "it ended well, and nothing.json is not there or not whole"
    again = carried_out(out, bench)
    assert (again["bad"].attempts, again["other"].attempts) == (1, 1)
    assert carried_out(out, bench, retry_failed=True)["bad"].attempts == 2
    assert len((out / "cells" / "bad" / "log.txt").read_text().split("--- ")) == 3
    # What it needed is there by now: those above it follow.
    repaired = [dataclasses.replace(cells[0], command=(*cost, "bad.json")), *cells[1:]]
    found = carried_out(out, handmade(out, repaired))
    assert [found[name].state for name in ("bad", "above", "top")] == ["done"] * 3


def test_what_needs_a_gpu_waits_for_one(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    checkpoint = str(done / "out" / "checkpoints" / "demo-llama-none-w8a8")
    words = ("report", "cost", checkpoint, "--format", "json", "-o", "a.json")
    first = cell("first", *words, output="a.json", gpu=True)
    bench = handmade(out, [first, cell("second", "devices", "list", needs=("first",))])
    monkeypatch.setattr(present, "no_gpu", lambda: "no GPU here")
    found = carried_out(out, bench)
    assert (found["first"].state, found["first"].error) == ("waiting", "no GPU here")
    assert found["second"].error == "needs first, which waits"
    monkeypatch.setattr(present, "no_gpu", lambda: None)
    found = carried_out(out, bench)
    assert [one.state for one in found.values()] == ["done", "done"]


@pytest.mark.parametrize("stays", [True, False])
def test_a_board_that_goes_away_makes_no_failure(
    stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def missing(out: Path, cell: Cell) -> str | None:
        asked.append(cell.id)
        return None if stays or len(asked) == 1 else "orin does not answer: timed out"

    monkeypatch.setattr(present, "missing", missing)
    out = tmp_path / "out"
    orin = {"device": "orin", "address": "ssh://orin"}
    words = ("report", "cost", "nowhere", "--format", "json", "-o")
    cells = [cell(name, *words, f"{name}.json", output=f"{name}.json", **orin) for name in "ab"]
    found = carried_out(out, handmade(out, cells))
    states = [found[name].state for name in "ab"]
    assert states == ["failed" if stays else "waiting"] * 2
    if not stays:
        assert str(found["a"].error).startswith("orin does not answer: timed out; it ended with: ")
        assert "nowhere" in str(found["a"].error)
        assert (found["a"].attempts, found["b"].attempts) == (1, 0)
        assert asked == ["a", "a"]  # it is let be for a while


def test_a_board_that_is_busy_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(present, "missing", lambda out, cell: None)
    monkeypatch.setattr(child, "ended_by", lambda one: one.process.wait() and Busy.exit_code)
    out = tmp_path / "out"
    words = ("report", "cost", "nowhere")
    board = cell("board", *words, output="a.json", device="orin", address="ssh://orin")
    here = cell("here", *words, output="b.json")
    found = carried_out(out, handmade(out, [board, here]))
    assert {name: one.state for name, one in found.items()} == {
        "board": "waiting",
        "here": "failed",
    }


def test_a_closed_terminal_interrupts_a_bench_unless_it_was_told_not_to_hear() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), run._terminated_as_interrupted():
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with run._terminated_as_interrupted():
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt), run._terminated_as_interrupted():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LONG = ("quantize", "demo-llama", "--method", "spinquant", "--preset", "fast", "-o", "long")


def marked(out: Path) -> list[int]:
    about = (out / ".lock").stat()
    return child._marked(f"{about.st_dev}:{about.st_ino}")


def begun(out: Path, *, background: bool = False) -> subprocess.Popen[bytes]:
    """A bench whose only cell takes long, in a process of its own, behind the cell's start."""
    command = [sys.executable, "-m", "slmq_edge", "bench", "resume", str(out)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = (out / "said").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
    log.close()
    until(lambda: (out / ".long.unfinished").exists() or process.poll() is not None, "work begins")
    assert process.poll() is None, (out / "said").read_text()
    return process


@pytest.mark.parametrize("how", ["kill", "interrupt", "kill the cell"])
def test_killed_at_any_point_it_ends_its_cells_and_goes_on(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    short = (*LONG[:4], "--windows", "8", "--length", "64", "--steps", "60", *LONG[4:])
    (one,) = (cell("long", *short, output="long"),)
    bench = handmade(out, [one])
    process = begun(out)
    (pid, *_) = marked(out)
    if how == "kill the cell":
        os.kill(pid, signal.SIGKILL)
        assert process.wait(60) == 1
        status = folder.status(out, one)
        assert status is not None
        assert (status.state, status.exit_code) == ("failed", 137)
        assert "SIGKILL (out of memory?)" in str(status.error)
    else:
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        code = process.wait(60)
        assert code == (-9 if how == "kill" else 130)
        until(lambda: not marked(out), "the cell ends with its bench")
        status = folder.status(out, one)
        assert status is not None
        assert status.state == ("running" if how == "kill" else "waiting")
    assert not (out / "long").exists()
    found = folder.look(out, bench)
    assert not found.done
    assert found.attempts == {"long": 1}
    if how == "kill":
        assert carried_out(out, bench)["long"] == dataclasses.replace(
            statuses(out)["long"], state="done", attempts=2
        )
        assert (out / "long" / "checkpoint.json").is_file()


def test_strays_of_a_killed_bench_are_ended_and_their_rests_removed(done: Path, home: Path) -> None:
    out = home / "out"
    about = (out / ".lock").stat()
    mark = f"{about.st_dev}:{about.st_ino}"
    program = "import time; time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, child.MARK: mark},
        start_new_session=True,
    ) as stray:
        rest = out / "bundles" / ".demo-llama-none-w8a8-ort.abcdefgh"
        rest.mkdir()
        (out / "runs" / ".half.json.x").write_text("{")
        kept = out / "checkpoints" / ".demo-llama-none-w8a8.unfinished"
        kept.mkdir()
        resumed = slmq("bench", "resume", "out", cwd=home)
        assert resumed.returncode == 0
        assert "ended what a killed bench had left: 1 process" in resumed.stderr
        assert stray.wait(10) == -signal.SIGKILL
    assert kept.exists()
    assert not rest.exists()
    assert not (out / "runs" / ".half.json.x").exists()


def test_two_at_once_are_refused(home: Path) -> None:
    with folder.locked(home / "out"):
        refused = slmq("bench", "resume", "out", cwd=home)
    assert_one_line(refused, 1, "is being worked in by process", str(os.getpid()))


def test_a_result_that_was_written_just_before_the_kill_is_kept(home: Path) -> None:
    out = home / "out"
    name = "profile-demo-llama-none-w8a8-ort-local"
    bench = folder.load(out)
    one = next(cell for cell in bench.cells if cell.id == name)
    was = folder.status(out, one)
    assert was is not None
    folder.put(out, one, dataclasses.replace(was, state="running", seconds=None, exit_code=None))
    assert slmq("bench", "resume", "out", cwd=home).returncode == 0
    now = folder.status(out, one)
    assert now is not None
    assert (now.state, now.attempts) == ("done", 1)


def test_only_some_with_what_they_need(tmp_path: Path, done: Path) -> None:
    shutil.copy(done / "plan.toml", tmp_path)
    flags = ("--dry-run", "--only", "profile-*w8a8*")
    dry = slmq("bench", "run", "plan.toml", *flags, cwd=tmp_path)
    assert [line.split()[0] for line in dry.stdout.splitlines()[:3]] == NAMES[3:]
    wrong = slmq("bench", "run", "plan.toml", "--dry-run", "--only", "profil-x", cwd=tmp_path)
    assert_one_line(wrong, 2, "no cell is called so", "--dry-run")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", Damaged),
        ("[]", Unsupported),
        ('{"format": "slmq-edge-run"}', Unsupported),
        ('{"format": "slmq-edge-bench", "version": 2}', Unsupported),
        ('{"format": "slmq-edge-bench", "version": 1}', Damaged),
        ('{"format": "slmq-edge-bench", "version": 1, "title": "", "plan": "", "created": "",'
         ' "cells": [{"id": "x"}]}', Damaged),
    ],
)  # fmt: skip
def test_a_damaged_bench_is_refused_by_name(
    tmp_path: Path, text: str, kind: type[SlmqError]
) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(kind, match=r"bench\.json"):
        folder.load(tmp_path)


@pytest.mark.parametrize(
    "spoilt",
    [{"id": "../x"}, {"outputs": ["/etc/passwd"]}, {"outputs": ["a/../../b"]},
     {"command": ["rm", "-rf"]}, {"needs": ["nobody"]}],
)  # fmt: skip
def test_a_bench_from_elsewhere_cannot_reach_out_of_its_folder(
    tmp_path: Path, spoilt: dict[str, Any]
) -> None:
    handmade(tmp_path, [cell("x", "devices", "list", output="a.json")])
    document = json.loads((tmp_path / "bench.json").read_text())
    document["cells"][0].update(spoilt)
    (tmp_path / "bench.json").write_text(json.dumps(document))
    with pytest.raises(Damaged):
        folder.load(tmp_path)


def test_folders_that_are_no_benches(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no bench"):
        folder.load(tmp_path)
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(SlmqError, match="not empty"):
        folder.check(tmp_path)
    assert folder.check(tmp_path / "new") is None


def test_the_report_of_a_bench_is_that_of_a_study(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from slmq_edge.bench import verbs
    from slmq_edge.cli import app

    asked: list[Any] = []

    class Study:
        def main(self, words: list[str], name: str, *, standalone_mode: bool) -> None:
            asked.append((words, name, standalone_mode))

    def command(*words: str) -> Study:
        asked.append(words)
        return Study()

    monkeypatch.setattr(verbs, "command", command)
    words = ["bench", "report", str(done / "out"), "--format", "html", "-o", "x.html"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert asked == [
        ("report", "study"),
        ([str(done / "out"), "--format", "html", "--output", "x.html"],
         "slmq-edge report study", False),
    ]  # fmt: skip
