"""The whole way, in real child processes: check, measure, be killed, resume, print."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from slmq_edge import results
from slmq_edge.commands import profile as command
from slmq_edge.errors import Damaged, MissingExtra, NotFound, SlmqError, UsageError, as_raised
from slmq_edge.runner import journal
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks import inference
from tests import toy_graph

WORK = Workload(prompt_tokens=6, new_tokens=5, repetitions=3, warmups=1, threads=1)
SLOW = WORK._replace(new_tokens=400, repetitions=40)
ONCE = inference.Options(again=False)  # a busy machine is not steady


class Listener:
    """Remembers events, and may do something at one of them."""

    def __init__(self, at: int | None = None, act: Any = None) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._at, self._act = at, act

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "device":  # before anything runs; no event of the journal
            return
        self.events.append(event)
        if self.count("repetition") == self._at and event["event"] == "repetition":
            self._act(self.events)

    def count(self, name: str) -> int:
        return sum(event["event"] == name for event in self.events)

    def notes(self) -> str:
        return " ".join(event["text"] for event in self.events if event["event"] == "note")


def _kill(events: list[Mapping[str, Any]]) -> None:
    os.kill(events[0]["pid"], signal.SIGKILL)


def _interrupt(events: list[Mapping[str, Any]]) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_a_bundle_is_measured(bundle: Path, tmp_path: Path) -> None:
    listener, output = Listener(), tmp_path / "new" / "run.json"
    run = inference.profile(bundle, WORK, output, listener)
    assert results.load(output) == run
    assert [event["event"] for event in listener.events] == (
        ["begin", "probe", "golden", "load", "warmup"] + ["repetition"] * 3 + ["end"]
    )
    assert {name: len(series.values) for name, series in run.series.items()} == {
        "load_seconds": 1,
        "prefill_seconds": 3,
        "decode_seconds": 3,
        "decode_step_seconds": 15,
        "warmup_prefill_seconds": 1,
        "warmup_decode_seconds": 1,
    }
    for index, total in enumerate(run.series["decode_seconds"].values):
        steps = run.series["decode_step_seconds"].values[5 * index : 5 * index + 5]
        assert sum(steps) == pytest.approx(total)
    assert list(run.memory) == ["start", "load", "prefill", "decode"]
    assert run.probe == {
        "operator": "MatMulInteger",
        "exact": True,
        "largest_error": 0,
        "graph": "ort/model.onnx",
    }
    assert run.golden["positions_compared"] == 20
    assert [path.name for path in output.parent.iterdir()] == ["run.json"]  # no journal left


@pytest.mark.parametrize(("act", "error"), [(_kill, SlmqError), (_interrupt, KeyboardInterrupt)])
def test_an_interrupted_run_is_resumed(
    bundle: Path, tmp_path: Path, act: Any, error: type[BaseException]
) -> None:
    output = tmp_path / "run.json"
    log = tmp_path / "run.journal.jsonl"
    with pytest.raises(error) as caught:
        inference.profile(bundle, SLOW, output, Listener(at=3, act=act), ONCE)
    if act is _kill:
        assert "ended by SIGKILL (out of memory?)" in str(caught.value)
        assert "the same command resumes" in str(caught.value)
    assert not output.exists()
    kept = [e for e in journal.read(log) if e["event"] == "repetition"]
    assert 3 <= len(kept) < SLOW.repetitions
    with log.open("ab") as stream:
        stream.write(b'{"event": "repeti')  # torn

    listener = Listener()
    run = inference.profile(bundle, SLOW, output, listener, ONCE)
    assert f"resuming: {len(kept)} of 40" in listener.notes()
    assert listener.count("repetition") == SLOW.repetitions - len(kept)
    series = run.series["prefill_seconds"].values
    assert len(series) == SLOW.repetitions
    assert series[: len(kept)] == tuple(event["prefill_seconds"] for event in kept)
    assert "resumed" in [caveat.code for caveat in run.caveats]
    assert not log.exists()


def _leave_journal(bundle: Path, output: Path, work: Workload) -> Path:
    """Run to the end, then put the journal back as if run.json had never been written."""
    listener = Listener()
    inference.profile(bundle, work, output, listener)
    output.unlink()
    log = output.with_name(f"{output.stem}.journal.jsonl")
    log.write_text("".join(json.dumps(event) + "\n" for event in listener.events))
    return log


def test_a_complete_journal_is_only_read(bundle: Path, tmp_path: Path) -> None:
    _leave_journal(bundle, tmp_path / "run.json", WORK)
    listener = Listener()
    run = inference.profile(bundle, WORK, tmp_path / "run.json", listener)
    assert [event["event"] for event in listener.events] == ["note"]
    assert len(run.series["decode_seconds"].values) == WORK.repetitions


@pytest.mark.parametrize("wanted", [1, WORK.repetitions + 2])
def test_more_or_fewer_repetitions_keep_those_that_were_taken(
    wanted: int, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run.json"
    log = _leave_journal(bundle, output, WORK)
    taken = [e["prefill_seconds"] for e in journal.read(log) if e["event"] == "repetition"]
    listener = Listener()
    run = inference.profile(bundle, WORK._replace(repetitions=wanted), output, listener)
    values = run.series["prefill_seconds"].values
    assert run.workload.repetitions == len(values) == wanted
    assert values[: len(taken)] == tuple(taken[:wanted])
    assert listener.count("repetition") == max(0, wanted - len(taken))


def test_a_journal_of_something_else_is_started_anew(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "run.json"
    log = _leave_journal(bundle, output, WORK)
    kept = log.read_bytes()

    def reason(work: Workload = WORK) -> str:
        log.write_bytes(kept)
        listener = Listener()
        run = inference.profile(bundle, work, output, listener, force=True)
        assert len(run.series["decode_seconds"].values) == work.repetitions
        assert listener.count("repetition") == work.repetitions
        assert (tmp_path / "run.journal.jsonl.old").read_bytes() == kept
        return listener.notes()

    assert "another workload" in reason(WORK._replace(new_tokens=6))
    (bundle / "extra").write_text("x")
    toy_graph.seal(bundle)
    assert "another bundle" in reason()
    (bundle / "extra").unlink()
    toy_graph.seal(bundle)
    kept = kept.replace(b'"kernel": "', b'"kernel": "other ')
    assert "the environment has changed (kernel)" in reason()


def test_a_damaged_journal_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.journal.jsonl"
    log.write_bytes(b'garbage\n{"event": "end", "load_average": null}\n')
    with pytest.raises(Damaged, match=r"run\.journal\.jsonl is damaged in line 1"):
        inference.profile(bundle, WORK, tmp_path / "run.json", Listener())
    assert log.exists()


def _refused(bundle: Path, error: type[SlmqError], message: str) -> Listener:
    """Profile a bundle that must be refused: nothing timed, nothing left behind."""
    listener, output = Listener(), bundle.parent / "run.json"
    with pytest.raises(error, match=message):
        inference.profile(bundle, WORK, output, listener)
    assert listener.count("load") == listener.count("repetition") == 0
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    return listener


def test_a_truncated_file_is_refused_by_name(bundle: Path) -> None:
    graph = bundle / "ort" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    _refused(bundle, Damaged, r"ort/model\.onnx is truncated")


def test_no_speed_of_wrong_numbers(tmp_path: Path) -> None:
    bundle = toy_graph.write_bundle(tmp_path / "bundle", simulated=1)
    listener = _refused(bundle, SlmqError, "golden check failed: mean KL")
    assert listener.count("probe") == 1


def test_an_inexact_kernel_is_refused_unless_allowed(tmp_path: Path) -> None:
    bundle = toy_graph.write_bundle(tmp_path / "bundle", zero_point=127)
    _refused(bundle, SlmqError, "MatMulInteger is not exact on this CPU")
    output = tmp_path / "run.json"
    run = inference.profile(bundle, WORK, output, Listener(), inference.Options(allow_inexact=True))
    assert run.caveats[0].code == "inexact-integers"


def test_what_run_json_would_lack_is_refused_first(bundle: Path) -> None:
    document = json.loads((bundle / "bundle.json").read_text())
    del document["lowering"]["lm_head"]
    (bundle / "bundle.json").write_text(json.dumps(document))
    assert _refused(bundle, Damaged, "lm_head is missing").events == []


def test_errors_keep_their_class_across_processes() -> None:
    error = as_raised("MissingExtra", "x is not installed")
    assert type(error) is MissingExtra
    assert str(error) == "x is not installed"
    assert type(as_raised("os", "")) is SlmqError


# --- the command

APP = typer.Typer()
APP.command()(command.profile)


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_or_json(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("-p", 6, "-n", 5, "-r", 2, "--warmups", 0, "--threads", 1)
    shown = _call(bundle, *small)
    assert shown.exit_code == 0, shown.output
    assert "time to first token" in shown.stdout
    run = results.load(tmp_path / "bundle-run.json")
    assert run.workload == results.Workload(6, 5, 2, 0, 1)
    shown = _call("bundle/", *small, "--json", "--force")
    assert shown.exit_code == 0, shown.output
    assert results.from_document(json.loads(shown.stdout), "stdout").workload == run.workload
    assert "written: bundle-run.json" in shown.stderr


def test_second_zero(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(inference, "profile", never)
    (tmp_path / "run.json").write_text("mine")
    shown = _call(bundle, "-o", tmp_path / "run.json")
    assert isinstance(shown.exception, SlmqError)
    assert "--force" in str(shown.exception)
    shown = _call(tmp_path / "bundel", "-o", tmp_path / "new.json")
    assert isinstance(shown.exception, NotFound)
    assert "did you mean bundle?" in str(shown.exception)
    for option in ("-p", "-n", "-r", "--threads"):
        assert _call(bundle, option, 0).exit_code == 2
    assert _call(bundle, "--warmups", -1).exit_code == 2


def test_a_prompt_too_long_is_a_usage_error(bundle: Path, tmp_path: Path) -> None:
    shown = _call(bundle, "-p", 500, "-n", 64, "-o", tmp_path / "run.json")
    assert isinstance(shown.exception, UsageError)
    assert "564: the context holds 512" in str(shown.exception)
