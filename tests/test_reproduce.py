"""slmq-edge reproduce: the same to the bit, or what drifted, from run.json alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from slmq_edge import builtin, quantize, record, results
from slmq_edge import reproduce as reproducing
from slmq_edge.builtin import world
from slmq_edge.caveats import Caveat
from slmq_edge.cli import app
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.remote.transport import LinkLost
from slmq_edge.reproduce import DRIFTED, INCONCLUSIVE, MATCH, judge
from slmq_edge.runner import manifest
from slmq_edge.tracks import measuring

SMALL = ("--scheme", "w8a8", "--windows", 8, "--length", 64)
BRIEF = ("-p", 8, "-n", 4, "-r", 2, "--warmups", 1, "--power-seconds", 0, "--once")


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def done(*arguments: object) -> Result:
    found = typed(*arguments)
    assert found.exit_code == 0, found.output
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of demo-llama and its run."""
    folder = tmp_path_factory.mktemp("reproduce")
    done("export", "demo-llama", "--method", "smoothquant", *SMALL, "-o", folder / "bundle")
    done("profile", folder / "bundle", *BRIEF, "-o", folder / "run.json")
    return folder


def changed(place: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The run with something else in it."""
    document = json.loads((place / "run.json").read_text())
    change(document)
    target.write_text(json.dumps(document))
    return target


def of_bundle(place: Path, bundle: Path, target: Path) -> Path:
    """A run that says it is of another bundle."""
    made = record.of_bundle(manifest.read_bundle(bundle))
    return changed(place, target, lambda run: run["artifact"].update(recipe=made))


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "reproduction.json").read_text())
    return found


# --- the same again


def test_a_run_comes_out_again_to_the_last_bit(place: Path, tmp_path: Path) -> None:
    found = typed("reproduce", place / "run.json", "-o", tmp_path / "again", "--tolerance", "99%")
    document = report(tmp_path / "again")
    # Two repetitions on a busy machine may drift; the artifact does not.
    drifted = [figure for figure in document["figures"] if figure["verdict"] == DRIFTED]
    assert (found.exit_code, document["verdict"]) == ((1, DRIFTED) if drifted else (0, MATCH))
    names = {file["name"] for file in document["files"]}
    assert {"ort/model.onnx", "ort/model.onnx.data", "golden.npz", "tokenizer.json"} <= names
    assert all(file["then"] == file["now"] for file in document["files"])
    assert [figure["name"] for figure in document["figures"]][:2] == ["prefill", "decode"]
    assert document["drift"] == []
    assert f"{len(names)} of {len(names)} files are the same" in found.stdout
    then, now = (
        results.load(file) for file in (place / "run.json", tmp_path / "again" / "run.json")
    )
    assert now.workload == then.workload
    assert now.options == then.options == {
        "allow_inexact": False,
        "power_seconds": 0.0,
        "cool_down_seconds": 0.0,
        "power_source": None,
        "again": False,
    }  # fmt: skip
    assert now.golden == then.golden
    # Its own record makes it once more.
    again = now.artifact.recipe
    assert again is not None
    assert again["files"] == (then.artifact.recipe or {})["files"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "none", "--scheme", "fp32"),
        pytest.param(
            ("--method", "gptq", "--scheme", "w4a8-b32", "--protect", 1, "--lm-head", "int8"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--method", "smoothquant", "--target", "trt", "--activation-mode", "static"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_bundle_says_how_it_was_made(
    flags: tuple[object, ...], place: Path, tmp_path: Path
) -> None:
    small = () if "none" in flags else ("--windows", 8, "--length", 64)
    done("export", "demo-qwen2", *flags, *small, "-o", tmp_path / "bundle")
    run = of_bundle(place, tmp_path / "bundle", tmp_path / "run.json")
    found = done("reproduce", run, "-o", tmp_path / "again", "--no-measure", "--json")
    document = json.loads(found.stdout)
    assert (document["verdict"], document["unmeasured"]) == (MATCH, "--no-measure")
    assert document == report(tmp_path / "again")


def test_a_bundle_of_a_checkpoint(place: Path, tmp_path: Path) -> None:
    done("quantize", "demo-llama", "--method", "smoothquant", *SMALL, "-o", tmp_path / "ckpt")
    done("export", tmp_path / "ckpt", "-o", tmp_path / "bundle")
    run = of_bundle(place, tmp_path / "bundle", tmp_path / "run.json")
    done("reproduce", run, "-o", tmp_path / "again", "--no-measure")
    # By way of a file or not, the same.
    then = (results.load(place / "run.json").artifact.recipe or {})["files"]
    assert {file["name"]: file["now"] for file in report(tmp_path / "again")["files"]} == then


@pytest.mark.slow
def test_a_model_and_a_text_that_moved(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(builtin.folder("demo-llama"), tmp_path / "mine")
    rows = "".join(json.dumps({"text": one}) + "\n" for one in world.calibration_text()[:200])
    Path("text.jsonl").write_text(rows)
    done(
        "export", "mine", "--method", "smoothquant", *SMALL, "--calib", "text.jsonl", "-o", "bundle"
    )
    run = of_bundle(place, Path("bundle"), Path("run.json"))
    Path("mine").rename("yours")
    Path("text.jsonl").rename("other.jsonl")
    lost = typed("reproduce", run, "--no-measure")
    assert isinstance(lost.exception, NotFound)
    assert "--model FOLDER says where the run's model is now" in str(lost.exception)
    lost = typed("reproduce", run, "--no-measure", "--model", "yours")
    assert "text.jsonl" in str(lost.exception)
    done("reproduce", run, "--no-measure", "--model", "yours", "--calib", "other.jsonl")
    assert report(Path("run-reproduced"))["verdict"] == MATCH
    # What has moved is held to what it was.
    Path("other.jsonl").write_text(rows + json.dumps({"text": "more"}) + "\n")
    flags = ("--no-measure", "--calib", "other.jsonl", "-o", "third")
    lost = typed("reproduce", run, *flags, "--model", "yours")
    assert "calibration text 'other.jsonl' is not the one of the recipe" in str(lost.exception)
    config = Path("yours/config.json")
    config.write_text(config.read_text() + " ")
    lost = typed("reproduce", run, *flags, "--model", "yours")
    assert "drifted: yours is not the model that was measured: config.json differs" in str(
        lost.exception
    )
    assert not Path("third").exists()


@pytest.mark.slow
def test_the_papers_protocol_and_a_text_of_ones_own(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(" ".join(world.calibration_text()[:40]))
    run = tmp_path / "run.json"
    flags = ("--protocol", "paper", "-n", 2, "-r", 2, "--warmups", 0, "--power-seconds", 0)
    done("profile", place / "bundle", *flags, "--once", "--text", text, "-o", run)
    text.rename(tmp_path / "yours.txt")
    lost = typed("reproduce", run, "-o", tmp_path / "again")
    assert isinstance(lost.exception, NotFound)
    assert "the prompt was cut from 'mine.txt': --text FILE says where" in str(lost.exception)
    assert not (tmp_path / "again").exists()
    typed("reproduce", run, "-o", tmp_path / "again", "--text", tmp_path / "yours.txt")
    document = report(tmp_path / "again")
    assert document["unmeasured"] is None
    assert "forward passes" in [figure["name"] for figure in document["figures"]]
    then, now = (results.load(file) for file in (run, tmp_path / "again" / "run.json"))
    assert dataclasses.replace(then.workload, text=None) == dataclasses.replace(
        now.workload, text=None
    )
    assert then.workload.text is not None
    assert now.workload.text is not None
    assert now.workload.text.sha256 == then.workload.text.sha256
    (tmp_path / "yours.txt").write_text("something else " * 200)
    lost = typed("reproduce", run, "-o", tmp_path / "third", "--text", tmp_path / "yours.txt")
    assert "text 'yours.txt' is not the one that was read" in str(lost.exception)


# --- what drifted


def test_another_setting_is_named_by_file_and_by_tensor(place: Path, tmp_path: Path) -> None:
    def tamper(run: dict[str, Any]) -> None:
        run["artifact"]["recipe"]["recipe"]["settings"]["alpha"] = 0.4

    run = changed(place, tmp_path / "run.json", tamper)
    found = typed(
        "reproduce", run, "-o", tmp_path / "again", "--no-measure", "--against", place / "bundle"
    )
    assert (found.exit_code, type(found.exception)) == (1, SlmqError)
    assert "ort/model.onnx.data" in str(found.exception)
    document = report(tmp_path / "again")
    assert document["verdict"] == DRIFTED
    differing = {file["name"] for file in document["files"] if file["then"] != file["now"]}
    assert "tokenizer.json" not in differing
    assert any("q_k_v_proj.weight" in name for name in document["tensors"])
    assert "golden.npz: top_logprobs" in document["tensors"]
    assert "golden.npz: tokens" not in document["tensors"]
    assert document["tensors"][0].startswith("ort/model.onnx: ")
    assert f"  {document['tensors'][0]} differs\n" in found.stdout
    assert "tensors more" in found.stdout


def test_other_versions_are_named_where_nothing_else_drifted(place: Path, tmp_path: Path) -> None:
    def tamper(run: dict[str, Any]) -> None:
        made_with = run["artifact"]["recipe"]["made_with"]
        made_with["quantize"]["torch"] = "2.5.0"
        made_with["export"]["onnx-ir"] = None
        made_with["quantize"]["cpu"] = "Another"

    run = changed(place, tmp_path / "run.json", tamper)
    found = done("reproduce", run, "-o", tmp_path / "again", "--no-measure")
    here = record.here()
    assert report(tmp_path / "again")["drift"] == [
        f"quantize: torch 2.5.0 then, {here['torch']} now",
        f"quantize: cpu Another then, {here['cpu']} now",
        f"export: onnx-ir none then, {here['onnx-ir']} now",
    ]
    assert "! quantize: torch 2.5.0 then" in found.stdout


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("model", "files", "model.safetensors"), "not the model that was measured: model.safeten"),
        (("recipe", "calibration", "sha256"), "calibration text 'built-in world' is not the one"),
    ],
)
def test_another_model_or_text_is_refused_before_anything_is_made(
    path: tuple[str, ...], words: str, place: Path, tmp_path: Path
) -> None:
    def tamper(run: dict[str, Any]) -> None:
        at = run["artifact"]["recipe"]
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = "0" * 64

    run = changed(place, tmp_path / "run.json", tamper)
    found = typed("reproduce", run, "-o", tmp_path / "again")
    assert isinstance(found.exception, SlmqError)
    assert words in str(found.exception)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (None, "it lacks sha256 of the model's files, the words that made its checkpoint"),
        ("export", "it lacks the options of export (older"),
        ("recipe", "it lacks the words that made its checkpoint (older"),
    ],
)
def test_a_run_that_does_not_say_how_it_was_made(
    lost: str | None, words: str, place: Path, tmp_path: Path
) -> None:
    def tamper(run: dict[str, Any]) -> None:
        if lost is None:
            del run["artifact"]["recipe"], run["options"]
        else:
            del run["artifact"]["recipe"][lost]

    run = changed(place, tmp_path / "run.json", tamper)
    assert results.load(run).artifact.scheme_ran == "w8a8"  # older files are read all the same
    found = typed("reproduce", run, "-o", tmp_path / "again")
    assert isinstance(found.exception, Unsupported)
    assert words in str(found.exception)
    assert "\n" not in str(found.exception)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda run: run["artifact"]["recipe"].update(export={"targets": "ort"}), "recipe"),
        (lambda run: run["artifact"]["recipe"]["model"].pop("files"), "recipe"),
        (lambda run: run["options"].update(hurry=True), "options"),
    ],
)
def test_a_damaged_record_is_one_line(
    change: Callable[[dict[str, Any]], object], part: str, place: Path, tmp_path: Path
) -> None:
    run = changed(place, tmp_path / "run.json", change)
    found = typed("reproduce", run, "-o", tmp_path / "again")
    assert isinstance(found.exception, Damaged)
    assert f"{run} is damaged: " in str(found.exception)
    assert part in str(found.exception)
    assert not (tmp_path / "again").exists()


def test_an_artifact_that_fails_its_check_has_drifted(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise SlmqError("golden check failed: mean KL is 1, the limit is 0.1")

    monkeypatch.setattr(measuring, "measure_on", fails)
    found = typed("reproduce", place / "run.json", "-o", tmp_path / "again")
    assert found.exit_code == 1
    assert "it could not be measured again" in str(found.exception)
    assert "not measured: golden check failed" in found.stdout
    assert report(tmp_path / "again")["verdict"] == DRIFTED


def test_a_board_out_of_reach_is_no_drift(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("reproduce", place / "run.json", "-o", tmp_path / "again")

    def lost(*_: object) -> None:
        raise LinkLost("orin: the link is lost")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_on", lost)
        found = typed(*arguments)
    assert isinstance(found.exception, LinkLost)
    assert not (tmp_path / "again" / "reproduction.json").exists()
    monkeypatch.setattr(reproducing, "compared", lambda *_: ())
    monkeypatch.setattr(quantize, "quantize", lost)  # the bundle is there
    done(*arguments)
    assert report(tmp_path / "again")["verdict"] == MATCH


# --- another machine, an interruption, mistakes


def test_on_another_machine_the_artifact_alone_is_compared(place: Path, tmp_path: Path) -> None:
    def tamper(run: dict[str, Any]) -> None:
        run["device"] = {"name": "jetson-orin-nano-8gb", "kind": "jetson", "facts": {}}

    run = changed(place, tmp_path / "run.json", tamper)
    found = done("reproduce", run, "-o", tmp_path / "again")
    assert "figures are not comparable" in found.stdout
    assert "no figures were compared" in found.stdout
    document = report(tmp_path / "again")
    assert (document["verdict"], document["figures"]) == (MATCH, [])
    assert document["unmeasured"].startswith("it was measured on jetson-orin-nano-8gb (jetson)")
    assert not list((tmp_path / "again").glob("run*"))


def test_another_cpu_is_another_machine(place: Path) -> None:
    run = results.load(place / "run.json")
    name, kind, cpu = run.device.name, run.device.kind, run.environment["cpu_model"]
    assert reproducing.elsewhere(run, name, kind, cpu) is None
    assert reproducing.elsewhere(run, name, kind, None) is None
    assert "this is Pentium" in (reproducing.elsewhere(run, name, kind, "Pentium") or "")


def test_an_interrupted_reproduction_goes_on_with_its_bundle(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("reproduce", place / "run.json", "-o", tmp_path / "again")
    monkeypatch.setattr(reproducing, "compared", lambda *_: ())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_on", stop)
        assert typed(*arguments).exit_code == 130
    assert not (tmp_path / "again" / "reproduction.json").exists()
    monkeypatch.setattr(quantize, "quantize", stop)
    done(*arguments)
    assert report(tmp_path / "again")["verdict"] == MATCH
    again = typed(*arguments)
    assert "will not overwrite it without --force" in str(again.exception)


@pytest.mark.parametrize("text", ["5", "-1%", "100%", "five", ""])
def test_a_tolerance_is_a_share(text: str, place: Path) -> None:
    found = typed("reproduce", place / "run.json", "--tolerance", text)
    assert isinstance(found.exception, UsageError)
    assert "--tolerance" in str(found.exception)


def test_another_bundle_is_no_original(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    file = tmp_path / "bundle" / "bundle.json"
    file.write_text(file.read_text() + "\n")
    flags = ("-o", tmp_path / "again", "--against", tmp_path / "bundle")
    found = typed("reproduce", place / "run.json", *flags)
    assert "is not the bundle that was measured" in str(found.exception)


def test_threads_are_those_of_the_record(place: Path, tmp_path: Path) -> None:
    then = (results.load(place / "run.json").artifact.recipe or {})["made_with"]["quantize"]
    before = torch.get_num_threads()
    torch.set_num_threads(1 if then["threads"] > 1 else 2)
    other = torch.get_num_threads()
    try:
        done("reproduce", place / "run.json", "-o", tmp_path / "again", "--no-measure")
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)
    assert report(tmp_path / "again")["drift"] == []


# --- figures


VALUES = [100.0, 101.0, 99.0, 100.5, 99.5, 100.2]


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ([one * 1.02 for one in VALUES], MATCH),
        ([one * 1.10 for one in VALUES], DRIFTED),
        ([one * 0.90 for one in VALUES], DRIFTED),
        ([one * 1.05 for one in VALUES], INCONCLUSIVE),
        ([80.0, 125.0, 99.0, 104.0, 92.0, 101.0], INCONCLUSIVE),
    ],
)
def test_verdicts(now: list[float], verdict: str) -> None:
    found = judge("decode", "tokens/s", VALUES, now, 0.05)
    assert found.verdict == verdict
    assert found.low <= found.change <= found.high
    assert (found.why is None) == (verdict != INCONCLUSIVE)
    assert judge("decode", "tokens/s", VALUES, now, 0.05) == found  # the same draws


def test_a_machine_not_at_rest_shows_no_drift_of_time(place: Path) -> None:
    def like(times: int) -> results.Run:
        return dataclasses.replace(
            run,
            caveats=(),
            series={**run.series, "decode_seconds": results.Series("s", (times, times * 1.01))},
            memory={"decode": {"cpu_peak_rss": 1000 * times}},
        )

    run = results.load(place / "run.json")
    then, slower = like(1), like(3)
    found = {one.name: one for one in reproducing.compared(then, slower, 0.05)}
    assert found["decode"].verdict == found["decode: cpu_peak_rss"].verdict == DRIFTED
    busy = dataclasses.replace(slower, caveats=(Caveat("background-load", "", {}),))
    found = {one.name: one for one in reproducing.compared(then, busy, 0.05)}
    assert found["decode"].verdict == INCONCLUSIVE
    assert "background-load" in (found["decode"].why or "")
    assert found["decode: cpu_peak_rss"].verdict == DRIFTED  # bytes do not depend on it
    broken = dataclasses.replace(slower, caveats=(Caveat("implausible", "", {}),))
    with pytest.raises(SlmqError, match="beyond what the device can do"):
        reproducing.compared(then, broken, 0.05)


def positive() -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8)


@given(positive(), positive(), st.floats(0.001, 0.9))
def test_an_interval_decides(then: list[float], now: list[float], tolerance: float) -> None:
    found = judge("decode", "s", then, now, tolerance)
    inside = 1 - tolerance <= found.low and found.high <= 1 + tolerance
    outside = found.high < 1 - tolerance or found.low > 1 + tolerance
    assert (found.verdict == MATCH, found.verdict == DRIFTED) == (inside, outside)
    same = judge("decode", "s", then[:1], then[:1], tolerance)
    assert (same.verdict, same.change) == (MATCH, 1.0)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
