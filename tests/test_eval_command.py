"""slmq-edge eval and gap as they are typed, on questions and models that need nothing shared."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs slmq-edge[eval]")

from typer.testing import CliRunner, Result

from slmq_edge.builtin import world
from slmq_edge.cli import app
from slmq_edge.errors import MissingExtra, NotFound, SlmqError, UsageError
from slmq_edge.remote.target import LOCAL, Target
from slmq_edge.reports.eval import terminal
from slmq_edge.runner import scoring
from slmq_edge.tracks.accuracy import results, scorers, tasks
from slmq_edge.tracks.accuracy.evaluation import Asked
from slmq_edge.tracks.accuracy.questions import Folder
from slmq_edge.tracks.accuracy.running import Where, evaluate_on

TASKS = "arc_easy,wikitext2"
HERE = Where(Target("local", LOCAL), 1.0, 60.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a bundle of the built-in model, and questions of its own world."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "data" / "arc_easy").mkdir(parents=True)
    rows = [
        {"id": f"w{index}", "question": one.question, "choices": one.choices, "answer": one.answer}
        for index, one in enumerate(world.questions()[:12])
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data" / "arc_easy" / "test.jsonl").write_text(lines)
    (folder / "data" / "wikitext2").mkdir()
    text = " \n".join(f" {document}" for document in world.calibration_text()[:60])
    raw = f" \n = First = \n \n{text[:4000]} \n = Second = \n \n{text[4000:6000]} \n"
    (folder / "data" / "wikitext2" / "wiki.test.raw").write_text(raw)
    flags = ("--method", "smoothquant", "--windows", "8", "--length", "64")
    for arguments in (
        ("quantize", "demo-llama", *flags, "-o", folder / "ckpt"),
        ("export", folder / "ckpt", "-o", folder / "bundle"),
    ):
        done = typed(*arguments)
        assert done.exit_code == 0, done.output
    return folder


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def evaluated(place: Path, what: str, *more: object) -> results.Evaluation:
    output = place / f"{Path(what).name}-eval.json"
    flags = ("--data-dir", place / "data", "-t", TASKS, "-o", output, "--force")
    done = typed("eval", what, *flags, *more)
    assert done.exit_code == 0, done.output
    assert not output.with_name(f"{output.stem}.journal").exists()
    return results.load(output)


def test_the_same_questions_on_three_runtimes(place: Path) -> None:
    """The model, its checkpoint simulated, its bundle run: and what is lost on the way."""
    found = [evaluated(place, what) for what in ("demo-llama", f"{place}/ckpt", f"{place}/bundle")]
    assert [one.identity["runtime"] for one in found] == ["torch", "simulated", "ort"]
    assert len({task.asked_sha256 for one in found for task in one.tasks}) == 3
    assert found[2].ran["report"]["positions_compared"] > 0
    files = [place / f"{name}-eval.json" for name in ("demo-llama", "ckpt", "bundle")]
    done = typed("gap", *files, "--json")
    assert done.exit_code == 0, done.output
    gaps = json.loads(done.stdout)["gaps"]
    rows = {row["metric"]: row for row in gaps[1]["rows"]}
    assert abs(rows["token_perplexity_512"]["difference"]) < 0.05
    assert 0 < rows["acc"]["kl"] < 0.05
    done = typed("gap", files[1], files[2], "--fail-on", "gap=0.5%", "--fail-on", "kl=0.001")
    assert done.exit_code == 0, done.output
    assert "against demo-llama smoothquant w8a8 (simulated)" in done.stdout
    done = typed("gap", files[0], files[2], "--fail-on", "kl=1e-9")
    assert isinstance(done.exception, SlmqError)
    assert "arc_easy has kl above kl=1e-9" in str(done.exception)
    assert "KL" in done.stdout  # the table comes first


def test_json_is_the_file_and_limits_are_in_it(place: Path) -> None:
    output = place / "limited.json"
    flags = ("--data-dir", place / "data", "-t", TASKS, "--limit", 1, "-o", output)
    done = typed("eval", "demo-llama", *flags, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(output.read_text())
    metrics = [metric for task in results.load(output).tasks for metric in task.metrics]
    assert {(metric.limit, metric.n) for metric in metrics} == {(1, 1)}
    done = typed("eval", "demo-llama", *flags)
    assert "will not overwrite" in str(done.exception)
    done = typed("gap", place / "demo-llama-eval.json", output)
    assert "not the same questions (12 of test.jsonl, limit none" in str(done.exception)


def test_an_interrupted_evaluation_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "FLUSH_SECONDS", 0.0)
    read: list[int] = []
    take = scoring.take

    def counted(requests: Any, done: int, logits: Any, log: Any, together: int) -> None:
        def counting(tokens: Any, keep: int) -> Any:
            read.append(len(tokens))
            return logits(tokens, keep)

        take(requests, done, counting, log, together)

    monkeypatch.setattr(scoring, "take", counted)
    asked = Asked(tasks.named(TASKS), Folder(place / "data"), None)
    output, whole = place / "gone-on.json", place / "whole.json"

    def go(path: Path, stop: float) -> results.Evaluation:
        def progress(share: float, text: str) -> None:
            if text == "scoring" and share > stop:
                raise KeyboardInterrupt

        model = scorers.Asked("demo-llama")
        return evaluate_on(HERE, model, None, asked, path, progress, lambda text: None)

    expected = go(whole, stop=2.0)
    all_of_it = len(read)
    read.clear()
    with pytest.raises(KeyboardInterrupt):
        go(output, stop=0.5)
    assert not output.exists()
    assert output.with_name("gone-on.journal").is_dir()
    first = len(read)
    found = go(output, stop=2.0)
    assert 0 < first < all_of_it
    assert len(read) == all_of_it  # nothing twice, nothing left out
    assert found.tasks == expected.tasks
    assert (expected.tokens_before, found.tokens) == (0, expected.tokens)
    assert 0 < found.tokens_before < found.tokens
    assert f"({found.tokens_before} of them before an interruption)" in terminal(found)
    assert "interruption" not in terminal(expected)
    assert not output.with_name("gone-on.journal").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("demo-llama", "-t", "helaswag"), UsageError, "did you mean hellaswag"),
        (("demo-lama", "--data-dir", "data", "-t", TASKS), NotFound, "did you mean demo-llama"),
        (("demo-llama", "--slices"), UsageError, "--data-dir"),
        (("demo-llama", "--data-dir", "date", "-t", TASKS), NotFound, "did you mean data"),
        (("demo-llama", "--data-dir", "data"), NotFound, "no questions of mmlu"),
        (("demo-llama", "--format", "mark"), UsageError, "unknown format"),
        (("demo-llama", "--json", "--format", "md"), UsageError, "contradict"),
        (("demo-llama", "--runtime", "orth"), UsageError, "did you mean ort"),
        (
            ("bundle", "--data-dir", "data", "-t", TASKS, "--runtime", "torch"),
            UsageError,
            "--runtime ort runs it",
        ),
        (
            ("bundle", "-t", "builtin", "-d", "ssh://me@board", "--engines", "engines"),
            UsageError,
            "the whole path there is needed",
        ),
        (
            ("demo-llama", "--data-dir", "data", "-t", TASKS, "-d", "ssh://nobody@nowhere:99999"),
            UsageError,
            "99999",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: tuple[str, ...],
    kind: type[SlmqError],
    words: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    before = set(place.iterdir())
    done = typed("eval", *arguments)
    assert isinstance(done.exception, kind), done.output
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)
    assert set(place.iterdir()) == before


def test_a_bundle_that_is_refused_leaves_nothing(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    file = tmp_path / "bundle" / "bundle.json"
    document = json.loads(file.read_text())
    document["golden"] |= {"kl_limit": 0.0, "perplexity_limit": 0.0}
    file.write_text(json.dumps(document))
    flags = ("--data-dir", place / "data", "-t", TASKS, "-o", tmp_path / "none.json")
    done = typed("eval", tmp_path / "bundle", *flags)
    assert isinstance(done.exception, SlmqError)
    assert "golden check failed" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_without_lm_eval_its_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name)
    )
    flags = ("--data-dir", place / "data", "-t", TASKS, "-o", place / "none.json")
    done = typed("eval", "demo-llama", *flags)
    assert isinstance(done.exception, MissingExtra)
    assert "slmq-edge[eval]" in str(done.exception)


def test_the_hub_out_of_reach_is_one_line_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(scorers, "open_scorer", load)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = typed("eval", "demo-llama", "--tasks", "piqa")
    assert isinstance(done.exception, NotFound), done.output
    assert "cannot fetch questions from the hub" in str(done.exception)
    assert not list(tmp_path.glob("*eval*"))


def test_a_gap_is_not_written_over_what_it_is_of(place: Path) -> None:
    found = results.Evaluation("", {}, {}, {}, 1.0, 0, 0, ())
    path = place / "some.json"
    results.save(dataclasses.replace(found), path)
    done = typed("gap", path, path, "-o", path, "--force")
    assert isinstance(done.exception, UsageError)
    assert "is one of the evaluations" in str(done.exception)
    done = typed("gap", path, place / "som.json")
    assert "did you mean some.json" in str(done.exception)
