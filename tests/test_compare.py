"""What may be compared, and whether the arithmetic of the comparison is right."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from slmq_edge.caveats import Caveat
from slmq_edge.commands.compare import compare as verb
from slmq_edge.compare import Value, compare
from slmq_edge.energy import Window
from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.quantities import SIZE, scored_memory
from slmq_edge.results import Artifact, Counts, Device, Run, Series, Workload, load, save
from slmq_edge.sides import Side, side

# METHODS 5.2: linears of the blocks and head, multiply-adds per token.
SMOLLM = Counts(134_515_008, 106_168_320, 49_152 * 576)
QWEN = Counts(494_032_768, 357_826_560, 151_936 * 896)

PEAKS: dict[str, dict[str, int | None]] = {
    "prefill": {"cpu_peak_rss": 800_000_000, "cpu_rss_anon": 200_000_000},
    "decode": {"cpu_peak_rss": 700_000_000, "cpu_rss_anon": 200_000_000},
}


def artifact(scheme: str = "fp32", **changes: Any) -> Artifact:
    integer = scheme != "fp32"
    found = Artifact(
        model="SmolLM-135M",
        method="smoothquant" if integer else "none",
        scheme_requested=scheme,
        scheme_ran=scheme,
        int8_gemm_share=0.789 if integer else 0.0,
        weight_storage_bits={"linears": 8 if integer else 32, "lm_head": 32, "embedding": 32},
        activation_mode="per token, dynamic, symmetric" if integer else "float32",
        lm_head="float",
        runtime={"kind": "ort"},
        bundle_sha256=("b" if integer else "a") * 64,
        bundle_bytes=225_000_000 if integer else 540_000_000,
        weights_bytes=220_000_000 if integer else 538_000_000,
        kv_bytes_per_token=46_080,
        counts=SMOLLM,
        context_length=2048,
        weights="int8 per channel, symmetric" if integer else "float32",
        kv_cache="float32",
    )
    return dataclasses.replace(found, **changes)


def run(scheme: str = "fp32", **changes: Any) -> Run:
    """A run of 128 + 64 tokens: prefill 2 s and decode 4 s, or half of that in integers."""
    factor = 1.0 if scheme == "fp32" else 0.5
    seconds = {
        "load_seconds": (0.5,),
        "prefill_seconds": (2.0 * factor,) * 3,
        "decode_seconds": (4.0 * factor,) * 3,
    }
    found = Run(
        created="2026-11-21T08:00:00+00:00",
        artifact=artifact(scheme),
        device=Device("workbench", "cpu", {}),
        environment={"cpu_model": "Example CPU", "onnxruntime": "1.23.0", "cores": 2},
        workload=Workload(128, 64, repetitions=3, warmups=1, threads=2),
        golden={"mean_kl": 1.5e-6},
        probe=None,
        series={name: Series("s", values) for name, values in seconds.items()},
        memory=PEAKS,
        origin="measured",
        caveats=(),
    )
    return dataclasses.replace(found, **changes)


def with_series(base: Run, **values: tuple[float, ...]) -> Run:
    series = {**base.series, **{name: Series("s", v) for name, v in values.items()}}
    return dataclasses.replace(base, series=series)


def with_artifact(base: Run, **changes: Any) -> Run:
    return dataclasses.replace(base, artifact=dataclasses.replace(base.artifact, **changes))


def test_identical_runs_score_as_their_baseline() -> None:
    compared = compare(run(), run())
    assert {row.ratio for row in compared.rows if row.key != SIZE} == {1.0}
    assert compared.score.value == compared.score.reference
    in_float16 = with_artifact(run(), weights_bytes=2 * SMOLLM.parameters)
    assert compare(in_float16, in_float16).score.value == 100.0


def test_size_is_held_against_float16_whatever_the_baseline_stores() -> None:
    half = with_artifact(run(), weights_bytes=2 * SMOLLM.parameters)
    candidate = run("w8a8")
    found = [compare(base, candidate) for base in (run(), half)]
    ratio = 2 * SMOLLM.parameters / candidate.artifact.weights_bytes
    assert [one.row(SIZE).ratio for one in found] == [ratio, ratio]
    assert found[0].score.value == found[1].score.value
    own = 2 * SMOLLM.parameters / 538_000_000
    expected = 100 * math.sqrt((1 + 1 + own**2) / 3)
    assert found[0].score.reference == pytest.approx(expected)
    assert found[1].score.reference == 100.0


def test_without_a_count_of_parameters_there_is_no_score() -> None:
    uncounted = with_artifact(run("w8a8"), counts=Counts(0, 0, 0))
    compared = compare(run(), uncounted)
    assert compared.row(SIZE).ratio is None
    assert compared.score.value is None
    assert compare(uncounted, run()).score.reference is None
    assert compare(uncounted, run()).score.verdict is None


def test_every_ratio_is_times_better() -> None:
    compared = compare(run(), run("w8a8"))
    assert compared.row("bundle_bytes").ratio == 540 / 225
    assert compared.row("ttft_seconds").ratio == 2.0
    assert compared.row("decode_rate").ratio == 2.0
    assert compared.row("decode_rate").baseline == Value(16.0, 0.0)
    assert compared.row("decode_rate").candidate == Value(32.0, 0.0)
    assert {row.better for row in compared.rows if row.unit == "tokens/s"} == {"higher"}
    assert {row.better for row in compared.rows if row.unit in ("B", "s")} == {"lower"}


def test_score_takes_weights_decode_rate_and_the_larger_peak() -> None:
    smaller = {
        "prefill": {"cpu_peak_rss": 100_000_000},
        "decode": {"cpu_peak_rss": 400_000_000},
    }
    compared = compare(run(), run("w8a8", memory=smaller))
    assert compared.score.parts == (SIZE, "decode_rate", "peak_memory")
    assert compared.score.memory == "largest cpu_peak_rss over prefill and decode"
    assert compared.row("peak_memory").ratio == 800 / 400
    expected = 100 * math.sqrt(((269.030016 / 220) ** 2 + 2**2 + 2**2) / 3)
    assert compared.score.value == pytest.approx(expected, rel=1e-12)


NOISE = (2.00, 2.03, 1.98, 2.01, 2.02, 1.99)


def test_repeated_quantities_have_an_interval_and_a_verdict() -> None:
    usual, faster = (
        with_series(run(), decode_seconds=tuple(factor * x for x in NOISE)) for factor in (1, 0.8)
    )
    row = compare(usual, faster).row("decode_rate")
    assert row.ratio == pytest.approx(1.25)
    assert row.low is not None
    assert row.high is not None
    assert 1.2 < row.low < 1.25 < row.high < 1.3
    assert row.verdict == "better"
    assert compare(faster, usual).row("decode_rate").verdict == "worse"
    assert compare(usual, usual).row("decode_rate").verdict == "inconclusive"


def test_few_repetitions_have_an_interval_and_no_verdict() -> None:
    few = with_series(run("w8a8"), decode_seconds=NOISE[:4])
    row = compare(with_series(run(), decode_seconds=tuple(4 * x for x in NOISE)), few)
    assert row.row("decode_rate").low is not None
    assert row.row("decode_rate").verdict == "inconclusive"
    assert row.score.verdict == "inconclusive"


def test_what_was_read_once_has_no_interval_and_what_was_counted_needs_none() -> None:
    compared = compare(run(), run("w8a8"))
    for key in ("load_seconds", "peak_memory", "memory.decode.cpu_peak_rss"):
        row = compared.row(key)
        assert (row.low, row.high, row.verdict, row.exact) == (None, None, None, False)
    sizes = {key: compared.row(key) for key in ("bundle_bytes", "weights_bytes", SIZE)}
    assert {row.verdict for row in sizes.values()} == {"better"}
    assert {row.exact for row in sizes.values()} == {True}
    assert compare(run(), run()).row("bundle_bytes").verdict == "same"
    once = with_series(run("w8a8"), decode_seconds=(2.0,))
    assert compare(run(), once).score.low is None


def test_the_scores_interval_is_of_the_same_draws() -> None:
    usual, faster = (
        with_series(run(), decode_seconds=tuple(factor * x for x in NOISE)) for factor in (1, 0.8)
    )
    compared = compare(usual, faster)
    row, score = compared.row("decode_rate"), compared.score
    size = compared.row(SIZE).ratio or 0
    for rate, end in ((row.low, score.low), (row.high, score.high)):
        assert rate is not None
        # Nothing else was repeated: where the rate's draws end, the score's do.
        assert end == pytest.approx(100 * math.sqrt((size**2 + 1 + rate**2) / 3), rel=1e-4)
    assert score.verdict == "better"


# --- several runs of one artifact


def slower(base: Run, factor: float) -> Run:
    return with_series(base, decode_seconds=tuple(factor * x for x in NOISE))


def test_runs_that_disagree_widen_the_interval() -> None:
    usual = slower(run(), 1.0)
    once = compare(usual, slower(run("w8a8"), 0.9)).row("decode_rate")
    twice = compare(usual, side(slower(run("w8a8"), 0.9), slower(run("w8a8"), 1.1)))
    row = twice.row("decode_rate")
    assert once.verdict == "better"
    assert row.verdict == "inconclusive"
    assert row.candidate is not None
    assert row.candidate.between == pytest.approx(32 / 0.9 - 32 / 1.1, rel=0.02)
    assert once.candidate is not None
    assert once.candidate.between is None
    # Read once a run, and in two runs: the median, and what lies between.
    assert twice.row("peak_memory").candidate == Value(800_000_000, None, 0)


def test_only_runs_of_one_artifact_and_machine_count_as_one_side() -> None:
    for other in (
        run("w4a8"),
        run(device=Device("Jetson Orin Nano", "jetson", {})),
        run(environment={**run().environment, "onnxruntime": "1.19.2"}),
        run(workload=dataclasses.replace(run().workload, threads=1)),
        run(origin="projected"),
    ):
        with pytest.raises(UsageError, match="must be of one artifact, machine and workload"):
            side(run(), other)
    assert side(run(), run(created="later")) == Side((run(), run(created="later")))


def test_unlike_kinds_of_memory_are_never_compared() -> None:
    graphics = {
        "prefill": {"gpu_process_peak": 500, "cpu_peak_rss": None},
        "decode": {"gpu_process_peak": 600},
    }
    compared = compare(run(), run("w8a8", memory=graphics))
    memory = [row for row in compared.rows if row.key.startswith("memory.")]
    assert len(memory) == 6
    for row in memory:
        assert (row.baseline is None) != (row.candidate is None)
        assert row.ratio is None
        assert row.low is None
        assert row.reason
    assert compared.row("peak_memory").ratio is None
    assert "baseline: cpu_peak_rss; candidate: gpu_process_peak" in compared.refusals[-1]
    assert compared.score.value is None
    assert compared.score.reason == "no ratio of: peak memory"


def test_a_peak_in_unlike_phases_is_not_shared() -> None:
    first = run(memory={"prefill": {"cpu_peak_rss": 5}})
    second = run(memory={"decode": {"cpu_peak_rss": 5}})
    assert scored_memory(side(first), side(second)) == (None, ())


@pytest.mark.parametrize(
    ("kinds", "scored"),
    [
        (("cpu_peak_rss", "gpu_process_peak"), "gpu_process_peak"),
        (("cpu_peak_rss", "system_delta_peak"), "system_delta_peak"),
        (("cpu_peak_rss", "cpu_rss_anon"), "cpu_peak_rss"),
        (("cpu_rss_anon", "cpu_rss_file"), None),
    ],
)
def test_scored_kind_is_a_peak_and_the_accelerators_first(
    kinds: tuple[str, ...], scored: str | None
) -> None:
    measured = run(memory={p: dict.fromkeys(kinds, 7) for p in ("prefill", "decode")})
    assert scored_memory(side(measured), side(measured))[0] == scored


def test_zero_bytes_make_no_ratio() -> None:
    nothing = run(memory={"decode": {"cpu_rss_file": 0, "cpu_peak_rss": 1}})
    row = compare(nothing, nothing).row("memory.decode.cpu_rss_file")
    assert (row.ratio, row.reason) == (None, "the baseline has 0")


@pytest.mark.parametrize(
    ("counts", "exact", "printed"), [(SMOLLM, 4.75, 4.73), (QWEN, 3.6284, 3.63)]
)
def test_paper_convention_gives_the_papers_macs(
    counts: Counts, exact: float, printed: float
) -> None:
    full, quantized = (with_artifact(run(scheme), counts=counts) for scheme in ("fp32", "w8a8"))
    compared = compare(full, quantized, "paper")
    macs = compared.row("macs").ratio
    assert macs == pytest.approx(exact, abs=1e-4)
    # The paper prints 3.64 G for SmolLM's head, which is 3.62 G: half a percent.
    assert macs == pytest.approx(printed, rel=5e-3)
    assert compared.row("parameters").ratio == 1.0
    assert compared.score.parts == ("parameters", "macs", "peak_memory")


def test_paper_convention_ignores_the_measured_speed() -> None:
    slower = with_series(run("w8a8"), decode_seconds=(400.0,))
    scores = [compare(run(), r, "paper").score.value for r in (slower, run("w8a8"))]
    assert scores[0] == scores[1]
    assert compare(run("w8a8"), run("w4a8"), "paper").row("macs").ratio == 1.0


def test_paper_convention_without_counts_has_no_score() -> None:
    uncounted = with_artifact(run("w8a8"), counts=Counts(134_515_008, 0, 0))
    compared = compare(run(), uncounted, "paper")
    assert compared.row("macs").reason == "the candidate has 0"
    assert compared.score.value is None


@pytest.mark.parametrize("changed", [{"prompt_tokens": 512}, {"new_tokens": 65}])
def test_another_workload_is_refused(changed: dict[str, Any]) -> None:
    other = run("w8a8", workload=dataclasses.replace(run().workload, **changed))
    with pytest.raises(SlmqError, match=r"not the same workload: .* profile both") as caught:
        compare(run(), other)
    assert "\n" not in str(caught.value)


def test_unknown_convention_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean paper"):
        compare(run(), run(), "papre")  # type: ignore[arg-type]


def test_notes_say_what_differs_and_nothing_else() -> None:
    assert compare(run(), run()).notes == ("both runs are of the same bundle",)
    environment = {"cpu_model": "Example CPU", "onnxruntime": "1.19.2", "cores": 2}
    other = with_artifact(
        run(
            "w8a8",
            environment={**environment, "load_average": 1.7, "frequency_hz": 3},
            workload=dataclasses.replace(run().workload, threads=1),
            origin="projected",
        ),
        model="Qwen2.5-0.5B",
    )
    assert compare(run(), other).notes == (
        "different models: SmolLM-135M against Qwen2.5-0.5B",
        "the candidate is projected, not measured",
        "the baseline stores float32: against float16 its bytes would be about half",
        "threads: 2 against 1",
        "load_average: unknown against 1.7",
        "onnxruntime: 1.23.0 against 1.19.2",
    )


@pytest.mark.parametrize(("load_average", "noted"), [(0.9, False), (1.0, False), (1.2, True)])
def test_a_little_load_is_no_difference(load_average: float, noted: bool) -> None:
    quiet, other = (run(environment={"load_average": v}) for v in (0.5, load_average))
    notes = compare(quiet, other).notes
    assert any(note.startswith("load_average") for note in notes) is noted


def test_other_devices_are_labelled_wherever_the_machine_counts() -> None:
    board = run("w8a8", device=Device("Jetson Orin Nano", "jetson", {}))
    compared = compare(run(), board)
    label = "workbench (cpu) against Jetson Orin Nano (jetson)"
    assert compared.score.across == label
    assert compared.notes[0].startswith(f"different devices, {label}")
    labels = {row.key: row.across for row in compared.rows}
    assert labels.pop("bundle_bytes") is None
    assert labels.pop("weights_bytes") is None
    assert labels.pop(SIZE) is None
    assert set(labels.values()) == {label}


counts = st.integers(min_value=1, max_value=10**12)
times = st.floats(min_value=1e-6, max_value=1e6)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    base = run(draw(st.sampled_from(["fp32", "w8a8"])))
    count = draw(st.sampled_from([1, 3, 5]))  # odd: the median of rates is exact
    series = {
        name: tuple(draw(st.lists(times, min_size=count, max_size=count)))
        for name in ("load_seconds", "prefill_seconds", "decode_seconds")
    }
    peaks = {p: {"cpu_peak_rss": draw(counts)} for p in ("prefill", "decode")}
    sized = with_artifact(base, bundle_bytes=draw(counts), weights_bytes=draw(counts))
    return dataclasses.replace(with_series(sized, **series), memory=peaks)


@given(runs(), st.sampled_from(["measured", "paper"]))
def test_a_run_is_as_good_as_itself(base: Run, convention: Any) -> None:
    compared = compare(base, base, convention)
    assert compared.score.value == pytest.approx(compared.score.reference, rel=1e-12)
    assert all(row.ratio == 1.0 for row in compared.rows if row.key != SIZE)


@given(runs(), runs(), st.sampled_from(["measured", "paper"]))
def test_swapping_the_sides_inverts_every_ratio(first: Run, second: Run, convention: Any) -> None:
    forth, back = compare(first, second, convention), compare(second, first, convention)
    for there, here in zip(forth.rows, back.rows, strict=True):
        assert there.key == here.key
        assert there.ratio is not None
        assert here.ratio is not None
        if there.key == SIZE:  # of each side's own model
            continue
        assert there.ratio * here.ratio == pytest.approx(1.0, rel=1e-9)
        if there.low is not None:
            assert there.low * (here.high or 0) == pytest.approx(1.0, rel=1e-9)


# The verb, alone on a small app.

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(verb)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    doubt = Caveat("few-repetitions", "3 repetitions say little", {"repetitions": 3})
    paths = tmp_path / "fp32-run.json", tmp_path / "w8a8-run.json"
    save(run(), paths[0])
    save(run("w8a8", caveats=(doubt,)), paths[1])
    return paths


def test_cli_prints_the_comparison_on_stdout(files: tuple[Path, Path]) -> None:
    result = invoke("-b", files[0], "-c", files[1])
    assert result.exit_code == 0
    assert "SLMQ_infer" in result.stdout
    assert "3 repetitions say little" in result.stdout
    assert result.stderr == ""


def test_cli_json_has_one_line_for_every_candidate(files: tuple[Path, Path]) -> None:
    result = invoke("-b", files[0], "-c", files[1], "-c", files[0], "--json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [d["candidate"]["artifact"]["scheme_ran"] for d in documents] == ["w8a8", "fp32"]
    scores = documents[1]["slmq_infer"]
    assert scores["value"] == scores["reference"]


def test_cli_writes_a_file_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    arguments = ("-b", files[0], "-c", files[1], "--format", "md", "-o", target)
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"written: {target}\n"
    assert target.read_text(encoding="utf-8").startswith("### SmolLM-135M")
    again = invoke(*arguments)
    assert isinstance(again.exception, SlmqError)
    assert "--force" in str(again.exception)
    assert invoke(*arguments, "--force").exit_code == 0


def test_cli_never_overwrites_a_run(files: tuple[Path, Path]) -> None:
    result = invoke("-b", files[0], "-c", files[1], "-o", files[1], "--force")
    assert isinstance(result.exception, UsageError)
    assert load(files[1]).artifact.scheme_ran == "w8a8"


def test_cli_guesses_a_misspelt_file(files: tuple[Path, Path]) -> None:
    result = invoke("-b", files[0], "-c", files[1].with_name("w8a-run.json"))
    assert isinstance(result.exception, NotFound)
    assert "did you mean w8a8-run.json?" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--convention", "papers"), "unknown convention 'papers' (did you mean paper?)"),
        (("--format", "mdd"), "unknown format 'mdd' (did you mean md?)"),
        (("--json", "--format", "md"), "contradict each other"),
    ],
)
def test_cli_refuses_a_request_before_it_reads(arguments: tuple[str, ...], message: str) -> None:
    result = invoke("-b", "missing.json", "-c", "missing.json", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


# --- energy, and figures that cannot be


def _watched(watts: float, rail: str = "VDD_IN") -> dict[str, Window]:
    stamps = (0.0, 0.5, 1.0, 1.5, 2.0)
    window = Window(2.0, 1, 180, stamps, {rail: (watts,) * 5}, None, (rail,))
    return {"decode": window}


def test_tokens_per_joule_are_compared_on_the_same_rail_alone() -> None:
    base = run(power=_watched(9.0))
    row = compare(base, run("w8a8", power=_watched(4.5))).row("energy.decode")
    assert (row.baseline, row.candidate) == (Value(10.0), Value(20.0))
    assert (row.ratio, row.better) == (2.0, "higher")
    other = compare(base, run("w8a8", power=_watched(4.5, "VDD_CPU_GPU_CV"))).row("energy.decode")
    assert other.ratio is None
    assert "VDD_IN against VDD_CPU_GPU_CV" in str(other.reason)
    gpu, cpu = (
        run(environment={"profile": {"energy_of": of}}, power=_watched(9.0))
        for of in ("the GPU board", "the processor packages")
    )
    other = compare(gpu, cpu).row("energy.decode")
    assert other.ratio is None
    assert "the GPU board: VDD_IN against the processor packages: VDD_IN" in str(other.reason)
    lacking = compare(base, run("w8a8")).row("energy.decode")
    assert "the candidate does not have it" in str(lacking.reason)
    keys = [found.key for found in compare(run(), run("w8a8")).rows]
    assert "energy.decode" not in keys


@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_nothing_is_compared_with_a_figure_that_cannot_be(role: str) -> None:
    wrong = (Caveat("implausible", "decode is above what the memory can deliver", {}),)
    sides = {"baseline": run(), "candidate": run("w8a8")}
    sides[role] = dataclasses.replace(sides[role], caveats=wrong)
    with pytest.raises(SlmqError, match=f"an implausible {role}: decode is above"):
        compare(sides["baseline"], sides["candidate"])


def test_an_inconclusive_run_is_named_above_the_ratios() -> None:
    doubt = (Caveat("inconclusive", "measure again", {}),)
    found = compare(run(), run("w8a8", caveats=doubt))
    assert "the candidate is inconclusive: its repetitions were not steady" in found.notes
