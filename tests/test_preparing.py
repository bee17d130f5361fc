"""Track 3 on a target: engines that were built, sessions that were loaded, and no score of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from slmq_edge import results
from slmq_edge.commands import report as command
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from slmq_edge.reports.cost import EXPLANATION, PREPARED_NOTE, WRITERS, terminal
from slmq_edge.results import Run, Series
from slmq_edge.runner.trt import cache, outcome
from slmq_edge.tracks.cost import table
from slmq_edge.tracks.preparing import engines, of_run, read
from tests.test_compare import run
from tests.test_cost import cost, three, written
from tests.test_trt_trtexec import _build, bundle, program
from tests.trt_bench import Bench

__all__ = ["bundle"]  # a fixture
MB = 10**6


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def loaded(*seconds: float, **memory: int | None) -> Run:
    base = run("w8a8")
    return dataclasses.replace(
        base,
        series={**base.series, "load_seconds": Series("s", seconds)},
        memory={**base.memory, "load": memory},
    )


def saved(found: Run, path: Path) -> Path:
    results.save(found, path)
    return path


# --- sessions


def test_a_session_is_what_a_run_loaded(tmp_path: Path) -> None:
    path = saved(loaded(0.5, 0.1, 0.3, cpu_peak_rss=90 * MB, cpu_rss_anon=1), tmp_path / "r.json")
    found = read(path)
    assert (found.what, found.place, found.method) == ("session", "r.json", "smoothquant")
    assert (found.seconds, found.times) == (0.3, 3)
    assert (found.memory, found.memory_bytes) == ("cpu_peak_rss", 90 * MB)
    assert (found.device, found.runtime) == ("workbench", "onnxruntime 1.23.0")
    assert found.energy_joules is None


def test_what_a_machine_does_not_tell_is_not_guessed() -> None:
    found = of_run(loaded(0.5, cpu_peak_rss=None, cpu_rss_anon=7), "r")
    assert (found.memory, found.memory_bytes) == (None, None)


# --- engines


def test_an_engine_says_what_building_it_took(bench: Bench) -> None:
    engine = bench.build()
    peak = engine.sidecar["memory"]["cpu_peak_rss"]
    assert peak > 10 * MB  # of this very process, which imported torch
    (found,) = engines(bench.bundle)
    assert found == read(engine.plan.with_suffix(".json"))
    assert (found.what, found.seconds) == ("engine build", engine.sidecar["seconds"])
    assert found.memory_bytes == peak
    assert found.device == engine.sidecar["identity"]["gpu"]
    assert found.runtime == "tensorrt 10.3.0"
    assert found.scheme == engine.sidecar["scheme_ran"]
    assert "peak memory" in outcome.render(engine)


def test_trtexecs_memory_is_its_own(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, body="kept = b'x' * 300_000_000")
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = [read(_build(bundle).plan.with_suffix(".json"))]
    assert (found.memory_bytes or 0) > 300 * MB


def test_an_engine_is_of_the_bundle_that_it_was_built_of(bench: Bench, tmp_path: Path) -> None:
    path = bench.build().plan.with_suffix(".json")
    manifest = bench.bundle / "bundle.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "model": {"name": "m"}, "method": "gptq"}))
    assert (read(path).model, read(path).method) == ("m", "gptq")
    other = json.loads(manifest.read_text())
    for entry in other["files"].values():
        entry["sha256"] = "0" * 64
    manifest.write_text(json.dumps(other))
    assert read(path).model is None
    (tmp_path / "alone").mkdir()
    alone = path.rename(tmp_path / "alone" / path.name)
    assert read(alone).model is None


def test_an_engine_of_an_older_release_has_no_memory(bench: Bench) -> None:
    engine = bench.build()
    older = {name: part for name, part in engine.sidecar.items() if name != "memory"}
    cache.save(bench.home, older)
    (found,) = engines(bench.bundle)
    assert (found.memory, found.memory_bytes) == (None, None)
    assert "peak memory" not in outcome.render(engine._replace(sidecar=older))


# --- what is neither


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        ("{", Damaged, "is damaged"),
        ("[]", Unsupported, "no run.json and no engine's sidecar"),
        ('{"format": "slmq-edge-eval"}', Unsupported, "its format is 'slmq-edge-eval'"),
        ('{"format": "slmq-edge-run", "version": 1}', Damaged, "is missing"),
        ('{"format": "slmq-edge-trt-engine", "version": 1}', Damaged, "no engine's sidecar"),
    ],
)
def test_other_files_are_refused(
    content: str, kind: type[SlmqError], says: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(kind, match=says):
        read(tmp_path / "x.json")
    with pytest.raises(NotFound, match="no checkpoint at"):
        table([tmp_path / "y.json"])


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda sidecar: sidecar.pop(name)


@pytest.mark.parametrize(
    "spoil", [_without("seconds"), _without("scheme_ran"), lambda s: s.update(memory={"a": "b"})]
)
def test_a_sidecar_that_is_not_whole_is_refused(
    spoil: Callable[[dict[str, Any]], None], bench: Bench
) -> None:
    path = bench.build().plan.with_suffix(".json")
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(Damaged, match="does not say what its engine cost"):
        read(path)


# --- the table


def test_what_is_prepared_enters_no_score(tmp_path: Path) -> None:
    path = saved(loaded(900.0, cpu_peak_rss=9 * 10**9), tmp_path / "run.json")
    checkpoints = [
        written(tmp_path / "a", "x", cost(10, 100)),
        written(tmp_path / "b", "y", cost(20, 200)),
    ]
    found = table([checkpoints[0], path, checkpoints[1]])
    assert [row.score for row in found.rows] == [row.score for row in table(checkpoints).rows]
    assert [one.place for one in found.prepared] == ["run.json"]


def test_every_format_has_the_second_table(tmp_path: Path) -> None:
    plain = three(tmp_path)
    prepared = of_run(loaded(0.25, 0.25, cpu_peak_rss=90 * MB), "run.json")
    both = dataclasses.replace(plain, prepared=(prepared,))
    for name in ("terminal", "md"):
        assert WRITERS[name](both).startswith(WRITERS[name](plain))
    lines = terminal(both).splitlines()
    assert lines[-3].split("  ")[-1] == "not measured"
    assert "250 ms (of 2)" in lines[-3]
    assert lines[-1] == PREPARED_NOTE
    assert "| run.json | session | smoothquant | SmolLM-135M | w8a8 |" in WRITERS["md"](both)
    rows = list(csv.DictReader(io.StringIO(WRITERS["csv"](both))))
    assert [row["work"] for row in rows] == ["quantizing"] * 3 + ["session"]
    assert (rows[-1]["memory_bytes"], rows[-1]["slmq_quant"]) == (str(90 * MB), "")
    document = json.loads(WRITERS["json"](both))
    assert document["prepared"][0]["seconds"] == 0.25
    alone = terminal(dataclasses.replace(both, rows=(), notes=()))
    assert alone.startswith("Preparing on the target\n")
    assert EXPLANATION not in alone


def test_the_command_takes_files_and_folders(bench: Bench, tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(command.app, name="report")
    path = saved(loaded(0.25, cpu_peak_rss=90 * MB), tmp_path / "run.json")
    sidecar = bench.build().plan.with_suffix(".json")
    done = CliRunner().invoke(app, ["report", "cost", str(path), str(sidecar)])
    assert done.exception is None
    assert [line.split()[1] for line in done.stdout.splitlines()[2:4]] == ["session", "engine"]
