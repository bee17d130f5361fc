"""What a study is made of, what is joined, and what may be chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from slmq_edge.caveats import IMPLAUSIBLE, Caveat
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from slmq_edge.metrics import Scores, slmq_infer, slmq_perf
from slmq_edge.results import save as save_run
from slmq_edge.study import accuracy, paper
from slmq_edge.study.answer import (
    FASTEST,
    KEEPS,
    LOSES,
    ONE_RUN,
    SMALLEST,
    TRUEST,
    UNCLEAR,
    UNKNOWN,
    Answer,
    verdict,
)
from slmq_edge.study.collect import collect
from slmq_edge.study.document import Document, document
from slmq_edge.tracks.accuracy.gap import SCORED
from slmq_edge.tracks.accuracy.results import Evaluation, Window
from tests.studies import (
    BENCH,
    ORIN,
    digest,
    full,
    held_against,
    save,
    save_bench,
    save_engine,
    scored,
    timed,
    twice,
)
from tests.test_compare import with_series
from tests.test_eval_results import evaluation, half_wrong, questions_task, text_task


def study_of(folder: Path, **options: object) -> Document:
    return document(collect([folder]), **options)  # type: ignore[arg-type]


def only(found: Document) -> Answer:
    (answer,) = found.answers
    return answer


# --- what is found -----------------------------------------------------------------------


def test_documents_are_found_by_what_they_say_they_are(tmp_path: Path) -> None:
    found = collect([full(tmp_path)])
    assert (len(found.runs), len(found.evaluations), len(found.manifests)) == (12, 3, 2)
    assert {one.path for one in found.manifests} == {"made/w8a8", "made/w4a8"}
    assert [(one.value.id, one.value.state, one.value.error) for one in found.cells] == [
        ("profile-a", "failed", "out of memory"),
        ("profile-b", "waiting", None),
    ]


def test_what_is_given_twice_is_there_once(tmp_path: Path) -> None:
    folder = full(tmp_path / "a")
    inside = folder / "some" / "where"
    found = collect([folder, inside, inside / "00.json"])
    assert len(found.runs) == 12
    assert found.runs[0].path == "a/some/where/00.json"


def test_reports_and_files_of_others_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, timed("none", "fp32", 4.0))
    (tmp_path / "report.json").write_text('{"format": "slmq-edge-study", "version": 1}')
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "run.json").write_text('{"format": "slmq-edge-run"}')
    found = collect([tmp_path])
    assert len(found.runs) == 1
    assert not found.unread


def test_a_damaged_document_is_told_of_in_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, timed("none", "fp32", 4.0))
    torn = tmp_path / "torn.json"
    torn.write_text((tmp_path / "00.json").read_text()[:900])
    (unread,) = collect([tmp_path]).unread
    assert unread.path == "torn.json"
    assert "torn.json is damaged" in unread.reason
    assert str(tmp_path) not in unread.reason
    with pytest.raises(Damaged, match="torn"):
        collect([torn])


def test_what_is_no_result_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text("{}")
    with pytest.raises(Unsupported, match="no document of slmq-edge"):
        collect([other])
    other.write_text('{"format": "slmq-edge-gap"}')
    with pytest.raises(Unsupported, match="a study is of what was made and measured"):
        collect([other])
    with pytest.raises(NotFound, match="no result at"):
        collect([tmp_path / "nothing"])


def test_an_empty_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlmqError, match="no results in"):
        collect([tmp_path])


# --- what is joined ----------------------------------------------------------------------


def test_a_run_and_an_evaluation_are_joined_by_digest_alone(tmp_path: Path) -> None:
    save(tmp_path, timed("gptq", "w8a8", 2.0), scored("gptq", "w8a8"))
    (joined,) = study_of(tmp_path).subjects
    assert (len(joined.runs), len(joined.evaluations)) == (1, 1)
    other = scored("gptq", "w8a8", bundle_sha256=digest("made again"))
    save(tmp_path, other)
    apart = study_of(tmp_path).subjects
    assert [(len(one.runs), len(one.evaluations)) for one in apart] == [(1, 1), (0, 1)]
    assert len({one.name for one in apart}) == 2


def test_subjects_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    first = timed("gptq", "w8a8", 2.0)
    second = timed(
        "gptq", "w8a8", 2.0, bundle_sha256=digest("other"), lm_head="int8 per channel, symmetric"
    )
    save(tmp_path, first, second)
    names = {one.name for one in study_of(tmp_path).subjects}
    assert names == {"gptq w8a8 head float", "gptq w8a8 head int8 per channel, symmetric"}


# --- accuracy ----------------------------------------------------------------------------


def test_what_is_kept_of_the_papers_six_is_slmq_perf() -> None:
    base, other = scored("none", "fp32"), scored("gptq", "w4a8", wrong=20)
    kept = accuracy.kept(base, other)
    assert isinstance(kept, accuracy.Kept)
    sides = []
    for one in (other, base):
        values = {
            field: accuracy.headline(task).value
            for field, name in SCORED.items()
            if (task := one.task(name)) is not None
        }
        sides.append(Scores(**values))
    assert kept.value == pytest.approx(slmq_perf(*sides), rel=1e-12)
    assert kept.is_perf
    assert kept.low is not None
    assert kept.high is not None
    assert kept.low < kept.value < kept.high


def test_tasks_that_were_scored_one_by_one_are_one_evaluation(tmp_path: Path) -> None:
    whole = scored("gptq", "w4a8", wrong=20)
    parts = [dataclasses.replace(whole, tasks=(task,)) for task in whole.tasks]
    save(tmp_path, scored("none", "fp32"), *parts)
    base, row = study_of(tmp_path).accuracy.rows
    assert row.kept == accuracy.kept(base.evaluation, whole)
    assert len(row.place.split()) == len(parts)


def test_fewer_tasks_are_not_called_slmq_perf() -> None:
    base = evaluation(questions_task("piqa", half_wrong(100)))
    kept = accuracy.kept(base, base)
    assert isinstance(kept, accuracy.Kept)
    assert not kept.is_perf
    assert (kept.value, kept.low, kept.high) == (100.0, 100.0, 100.0)


def test_other_questions_and_scores_of_0_have_no_ratio() -> None:
    base = evaluation(questions_task("piqa", half_wrong(100)))
    fewer = evaluation(questions_task("piqa", half_wrong(50)))
    none = evaluation(questions_task("piqa", [False] * 100))
    assert accuracy.kept(base, fewer) == "it was not asked what full precision was"
    assert accuracy.kept(base, none) == "a score of 0 on piqa has no ratio"


def test_one_text_alone_tells_no_interval() -> None:
    base, other = (evaluation(text_task("wikitext2_windows", [value])) for value in (-300, -310))
    kept = accuracy.kept(base, other)
    assert isinstance(kept, accuracy.Kept)
    assert (kept.low, kept.high) == (None, None)
    assert verdict(kept, within=50.0) == UNCLEAR


def test_guessing_is_seen() -> None:
    guessing = evaluation(questions_task("piqa", half_wrong(100)))
    knowing = evaluation(questions_task("piqa", [index % 10 != 0 for index in range(100)]))
    assert accuracy.guessed(guessing) == ("piqa",)
    assert accuracy.guessed(knowing) == ()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(99.5, 100.2, KEEPS), (97.0, 98.5, LOSES), (98.0, 99.9, UNCLEAR), (None, None, UNCLEAR)],
)
def test_the_margin_is_held_against_the_interval(
    low: float | None, high: float | None, said: str
) -> None:
    assert verdict(accuracy.Kept(99.0, low, high, ("piqa",), False), within=1.0) == said


# --- inference ---------------------------------------------------------------------------


def test_slmq_infer_holds_size_against_a_float16_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    base, row = study_of(tmp_path).inference.rows
    size = 2 * row.run.artifact.counts.parameters / 140e6
    assert base.is_baseline
    assert row.score is not None
    assert row.score.value == pytest.approx(slmq_infer(1.0, 2.0, size), rel=1e-9)
    assert (row.baseline, row.precision) == ("none fp32", "float32")


def test_without_a_baseline_there_are_figures_and_a_reason(tmp_path: Path) -> None:
    save(tmp_path, timed("smoothquant", "w8a8", 2.0))
    (row,) = study_of(tmp_path).inference.rows
    assert row.decode == pytest.approx(32.0)
    assert row.faster is None
    assert "no float run" in str(row.reason)


def test_what_has_no_baseline_is_in_the_place_where_it_ran(tmp_path: Path) -> None:
    """A projection stands beside no measurement, and 15 W beside no 30 W."""
    modes = [
        dataclasses.replace(
            timed(method, "w8a8", seconds),
            environment={"cpu_model": "Example CPU", "power_mode": mode},
        )
        for method, seconds, mode in (("gptq", 2.0, "15W"), ("spinquant", 1.0, "30W"))
    ]
    projected = dataclasses.replace(timed("omniquant", "w8a8", 0.5), origin="projected")
    save(tmp_path, *modes, projected)
    found = study_of(tmp_path)
    assert {row.place.name for row in found.inference.rows} == {
        "workbench (ort) [power mode 15W]",
        "workbench (ort) [power mode 30W]",
        "workbench (ort, projected)",
    }
    assert all(one.pick(FASTEST) is None for one in found.answers)


def test_a_device_has_its_own_baseline(tmp_path: Path) -> None:
    folder = full(tmp_path)
    rows = study_of(folder).inference.rows
    ratios = {(row.place.name, row.subject.scheme): row.faster.ratio for row in rows if row.faster}
    assert ratios == {
        ("workbench (ort)", "w8a8"): pytest.approx(2.0),
        ("workbench (ort)", "w4a8"): pytest.approx(4 / 1.5),
        ("jetson-orin (ort)", "w8a8"): pytest.approx(2.0),
        ("jetson-orin (ort)", "w4a8"): pytest.approx(4 / 1.5),
    }


def test_a_baseline_that_nobody_measured_is_refused(tmp_path: Path) -> None:
    save(tmp_path, timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    assert study_of(tmp_path, baseline="fp32").inference.rows[1].faster is not None
    with pytest.raises(NotFound, match=r"no baseline of scheme fp16 .* here: fp32"):
        study_of(tmp_path, baseline="fp16")


# --- the answer --------------------------------------------------------------------------


def test_the_fastest_that_keeps_the_quality_is_taken(tmp_path: Path) -> None:
    here, there = study_of(full(tmp_path)).answers
    for answer in (here, there):
        said = {one.subject.name: one.verdict for one in answer.candidates}
        assert said == {"none fp32": KEEPS, "smoothquant w8a8": KEEPS, "gptq w4a8": LOSES}
        for what in (FASTEST, SMALLEST, TRUEST):
            pick = answer.pick(what)
            assert pick is not None
            assert pick.candidate.subject.name == "smoothquant w8a8"
            assert pick.is_clear, (what, pick.doubts)


def test_repetitions_that_overlap_are_inconclusive(tmp_path: Path) -> None:
    noisy = (1.0, 1.6, 0.7, 1.5, 0.6)
    save(
        tmp_path,
        *twice(
            timed("none", "fp32", 4.0),
            timed("smoothquant", "w8a8", 2.0, scatter=noisy),
            timed("gptq", "w8a8", 2.1, scatter=noisy),
        ),
        *(scored(*one) for one in (("none", "fp32"), ("smoothquant", "w8a8"), ("gptq", "w8a8"))),
    )
    answer = only(study_of(tmp_path))
    pick = answer.pick(FASTEST)
    assert pick is not None
    assert pick.doubts == ("the repetitions do not tell it from gptq w8a8",)
    truest = answer.pick(TRUEST)
    assert truest is not None
    assert "the questions do not tell it from" in truest.doubts[0]


def test_a_baseline_that_is_fastest_is_said_to_be(tmp_path: Path) -> None:
    save(
        tmp_path,
        *twice(timed("none", "fp32", 1.0), timed("smoothquant", "w8a8", 2.0)),
        scored("none", "fp32"),
        scored("smoothquant", "w8a8"),
    )
    pick = only(study_of(tmp_path)).pick(FASTEST)
    assert pick is not None
    assert pick.candidate.subject.is_float
    assert pick.is_clear


def test_a_speed_of_one_run_is_never_clear(tmp_path: Path) -> None:
    runs = (timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    save(tmp_path, *runs, scored("none", "fp32"), scored("smoothquant", "w8a8"))
    pick = only(study_of(tmp_path)).pick(FASTEST)
    assert pick is not None
    assert pick.doubts == (ONE_RUN,)


def test_unknown_accuracy_is_a_doubt(tmp_path: Path) -> None:
    save(tmp_path, *twice(timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0)))
    answer = only(study_of(tmp_path))
    assert [one.verdict for one in answer.candidates] == [KEEPS, UNKNOWN]
    pick = answer.pick(FASTEST)
    assert pick is not None
    assert pick.doubts == ("its accuracy is not known",)
    assert answer.pick(TRUEST) is None


def test_only_evaluations_make_an_answer_without_a_device(tmp_path: Path) -> None:
    save(tmp_path, scored("none", "fp32"), scored("gptq", "w4a8", wrong=120))
    answer = only(study_of(tmp_path))
    assert answer.place is None
    assert [pick.what for pick in answer.picks] == [TRUEST]


def test_an_implausible_run_is_not_chosen(tmp_path: Path) -> None:
    wrong = Caveat(IMPLAUSIBLE, "1000 tok/s are more than memory allows", {})
    fast = dataclasses.replace(timed("gptq", "w8a8", 0.1), caveats=(wrong,))
    save(tmp_path, timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0), fast)
    found = study_of(tmp_path)
    (row,) = [row for row in found.inference.rows if row.subject.method == "gptq"]
    assert row.reason == "implausible: 1000 tok/s are more than memory allows"
    (pick,) = [one.pick(FASTEST) for one in found.answers if one.pick(FASTEST)]
    assert pick is not None
    assert pick.candidate.subject.method == "smoothquant"


def test_simulated_and_deployed_are_a_step(tmp_path: Path) -> None:
    simulated = scored("gptq", "w8a8", runtime="simulated", bundle_sha256=None)
    simulated = dataclasses.replace(
        simulated, identity={**simulated.identity, "checkpoint_sha256": digest("checkpoint")}
    )
    save(tmp_path, scored("none", "fp32"), simulated, scored("gptq", "w8a8", wrong=3))
    steps = study_of(tmp_path).accuracy.steps
    told = [(one.kind, one.base.runtime, one.other.runtime) for one in steps]
    assert told == [
        ("loss", "ort", "ort"),
        ("deployment", "simulated", "ort"),
        ("loss", "ort", "simulated"),
    ]


def of_checkpoint(found: Evaluation, name: str) -> Evaluation:
    """The same of a simulation."""
    identity = {**found.identity, "runtime": "simulated", "checkpoint_sha256": digest(name)}
    del identity["bundle_sha256"]
    return dataclasses.replace(found, identity=identity)


def test_of_two_simulations_nobody_knows_which_was_deployed(tmp_path: Path) -> None:
    simulated = [of_checkpoint(scored("gptq", "w8a8", wrong), str(wrong)) for wrong in (1, 2)]
    save(tmp_path, scored("none", "fp32"), *simulated, scored("gptq", "w8a8", wrong=3))
    assert {one.kind for one in study_of(tmp_path).accuracy.steps} == {"loss"}


def test_what_was_deployed_otherwise_than_asked_is_held_against_what_was_asked(
    tmp_path: Path,
) -> None:
    made = timed("gptq", "w8a8", 2.0, scheme_requested="w4a8")
    save(tmp_path, made, scored("gptq", "w8a8"), of_checkpoint(scored("gptq", "w4a8"), "c"))
    (step,) = study_of(tmp_path).accuracy.steps
    assert (step.kind, step.base.scheme, step.other.scheme) == ("deployment", "w4a8", "w8a8")


def test_next_tokens_are_kept_of_what_was_scored_task_by_task(tmp_path: Path) -> None:
    base, whole = scored("none", "fp32"), scored("gptq", "w4a8", wrong=20)
    first, *others = (dataclasses.replace(whole, tasks=(task,)) for task in whole.tasks)
    told = held_against(others[-1], base, Window(100, 2.0, 1), Window(50, 4.0, 5))
    save(tmp_path, first, *others[:-1], told)
    (found,) = study_of(tmp_path).accuracy.tokens
    assert found.subject.method == "gptq"
    assert found.against == base.identity
    assert [found.row.kl, found.row.flips] == pytest.approx([6 / 150, 6 / 150])
    assert [*(found.row.kl_interval or ())] == pytest.approx([0.02, 0.08])


def test_tasks_are_drawn_independently() -> None:
    """Six tasks alike: what is kept of them is surer than of one by the root of six."""
    base, other = scored("none", "fp32"), scored("gptq", "w4a8", wrong=20)
    alike = [
        dataclasses.replace(
            one, tasks=tuple(dataclasses.replace(one.tasks[0], name=f"t{i}") for i in range(6))
        )
        for one in (base, other)
    ]
    single = [dataclasses.replace(one, tasks=one.tasks[:1]) for one in alike]
    widths = []
    for before, after in (alike, single):
        kept = accuracy.kept(before, after)
        assert isinstance(kept, accuracy.Kept)
        assert kept.high is not None
        assert kept.low is not None
        widths.append(kept.high - kept.low)
    assert widths[1] / widths[0] == pytest.approx(6**0.5, rel=0.15)


def test_models_of_one_name_are_two_where_their_files_are(tmp_path: Path) -> None:
    answers = [
        evaluation(questions_task("piqa", half_wrong(100)), files={"model.safetensors": one * 64})
        for one in "ab"
    ]
    answers.append(evaluation(questions_task("arc_easy", half_wrong(100)), **answers[0].identity))
    save(tmp_path, *answers)
    found = study_of(tmp_path).subjects
    assert sorted(len(one.evaluations[0].value.tasks) for one in found) == [1, 2]
    assert len({one.name for one in found}) == 2


def test_what_has_no_digest_is_of_its_method(tmp_path: Path) -> None:
    save(
        tmp_path,
        timed("gptq", "w8a8", 2.0, bundle_sha256=""),
        timed("smoothquant", "w8a8", 2.0, bundle_sha256=""),
    )
    assert [one.method for one in study_of(tmp_path).subjects] == ["gptq", "smoothquant"]


def test_exports_of_one_checkpoint_have_its_cost(tmp_path: Path) -> None:
    folder = full(tmp_path)
    copy = folder / "made" / "again"
    copy.mkdir()
    document_ = json.loads((folder / "made" / "w8a8" / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**document_, "files": {"another": {}}}))
    found = study_of(folder)
    assert len(found.cost.rows) == 2
    assert set(found.costs) == {"made/w8a8", "made/w4a8", "made/again"}
    assert found.costs["made/again"].score == found.costs["made/w8a8"].score


def test_engines_in_a_bundle_and_beside_it_are_found(tmp_path: Path) -> None:
    folder = full(tmp_path)
    path = save_engine(folder / "made" / "w8a8" / "engines")
    (built,) = study_of(folder).cost.prepared
    assert (built.seconds, built.memory_bytes, built.device) == (75.0, 640_000_000, "Orin")
    path.rename(folder / path.name)
    assert study_of(folder).cost.prepared == (built,)
    (folder / path.name).write_text('{"format": "slmq-edge-trt-engine"}')
    found = study_of(folder)
    assert [one.path for one in found.study.unread] == [path.name]
    assert found.cost.prepared == ()


def test_results_of_like_names_are_told_apart(tmp_path: Path) -> None:
    for where, device in (("gpu", ORIN), ("cpu", BENCH)):
        runs = (timed("none", "fp32", 4.0, device), timed("smoothquant", "w8a8", 2.0, device))
        save(tmp_path / where / "results", *runs)
    roots = [tmp_path / where / "results" for where in ("gpu", "cpu")]
    assert {one.path for one in collect(roots).runs} == {
        f"{where}/results/{name}" for where in ("gpu", "cpu") for name in ("00.json", "01.json")
    }
    files = [root / name for root in roots for name in ("00.json", "01.json")]
    assert len(document(collect(files)).inference.rows) == 4


def test_a_file_that_cannot_be_opened_is_told_of(tmp_path: Path) -> None:
    save(tmp_path, timed("none", "fp32", 4.0))
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere.json")
    (unread,) = collect([tmp_path]).unread
    assert unread.path == "gone.json"
    assert "cannot be read" in unread.reason


def test_costs_are_of_the_manifests(tmp_path: Path) -> None:
    found = study_of(full(tmp_path)).cost
    assert {row.place: row.seconds for row in found.rows} == {"made/w8a8": 10.0, "made/w4a8": 20.0}
    assert all(row.score is not None for row in found.rows)


# --- the paper ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("HuggingFaceTB/SmolLM-135M@1d461723eec654e65efdc40cf49301c89c0c92f4", "SmolLM-135M"),
        ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("/models/smollm-135m/", "SmolLM-135M"),
        ("SmolLM2-135M", None),
        ("demo-llama", None),
    ],
)
def test_the_papers_models_are_known_by_name(name: str, known: str | None) -> None:
    assert paper.model_of(name) == known


def test_printed_rows_are_the_papers_own() -> None:
    rows = paper.printed(1, "SmolLM-135M")
    assert len(rows) == 7
    spin = next(row for row in rows if (row.method, row.scheme) == ("spinquant", "w4a8"))
    assert spin.score == "91.45"
    (capped,) = [row for row in paper.printed(2, "Qwen2.5-0.5B") if row.score == "100.0"]
    assert capped.recomputed == "100.35"


def test_a_bench_whose_cells_are_torn_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = save_bench(tmp_path, "no space left")
    (folder / "cells" / "profile-a" / "status.json").write_text('{"state": "fai')
    document_ = json.loads((folder / "bench.json").read_text())
    document_["cells"].append("no cell")
    (folder / "bench.json").write_text(json.dumps(document_))
    states = [one.value.state for one in collect([folder]).cells]
    assert states == ["waiting", "waiting"]


def test_runs_of_one_artifact_count_as_one(tmp_path: Path) -> None:
    again = dataclasses.replace(timed("smoothquant", "w8a8", 2.2), created="2026-11-22T08:00:00")
    save_run(again, tmp_path / "again.json")
    save(tmp_path, timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    rows = study_of(tmp_path).inference.rows
    assert len(rows) == 2
    assert sorted(len(row.paths) for row in rows) == [1, 2]


def test_the_papers_passes_stand_beside_prefill_and_decoding(tmp_path: Path) -> None:
    plain = timed("none", "fp32", 4.0)
    passes = [with_series(one, forward_seconds=(0.5, 0.25, 0.5)) for one in twice(plain)]
    save(tmp_path / "with", *passes)
    (row,) = study_of(tmp_path / "with").inference.rows
    assert row.forward == plain.workload.prompt_tokens / 0.5
    save(tmp_path / "without", plain)
    (row,) = study_of(tmp_path / "without").inference.rows
    assert row.forward is None
