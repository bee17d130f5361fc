"""Methods on devices: who is held against whom, and what is never set beside each other."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.across import Across, Matrix, across
from slmq_edge.caveats import Caveat
from slmq_edge.compare import compare
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.quantities import DEVICE, MEMORY, SIZE
from slmq_edge.reports.across import WRITERS, terminal
from slmq_edge.reports.tables import WIDTH
from slmq_edge.results import Device, Run, save
from tests.test_compare import SMOLLM, artifact, invoke, run, with_series

METHODS = ("none", "smoothquant", "omniquant", "spinquant", "gptq")
GPU = {"engine": 300_000_000, "kv": 20_000_000}
NOISE = (0.99, 1.0, 1.01, 1.0, 0.995, 1.005)


def on(board: str, method: str, factor: float, scheme: str = "w8a8", **environment: Any) -> Run:
    """A run on a GPU, where full precision is float16, or on a CPU; decode takes ``factor``."""
    is_gpu = board == "gpu"
    stored = 16 if is_gpu else 32
    is_full = scheme == "fp32"
    made = artifact(
        "w8a8",
        method=method,
        scheme_requested=scheme,
        scheme_ran=scheme,
        runtime={"kind": "trt" if is_gpu else "ort"},
        bundle_sha256=f"{board}-{method}-{scheme}".ljust(64, "-"),
        weight_storage_bits={"linears": stored if is_full else 8, "lm_head": stored},
        weights_bytes=SMOLLM.parameters * (stored // 8 if is_full else 1),
    )
    series = {name: tuple(factor * x for x in NOISE) for name in ("prefill", "decode")}
    found = with_series(
        run("w8a8", artifact=made, device=Device(board, "cuda" if is_gpu else "jetson", {})),
        **{f"{name}_seconds": values for name, values in series.items()},
    )
    return dataclasses.replace(
        found,
        device_memory={"engine": int(GPU["engine"] * factor), "kv": GPU["kv"]} if is_gpu else None,
        environment={**found.environment, **environment},
    )


def board(name: str, order: tuple[str, ...] = METHODS) -> list[Run]:
    """Full precision, and each method a tenth faster than the one before."""
    made = [on(name, method, 0.9 ** (1 + place)) for place, method in enumerate(order)]
    return [on(name, "none", 1.0, "fp32"), *made]


def only(found: Across) -> Matrix:
    (matrix,) = found.matrices
    return matrix


def test_every_device_has_its_own_baseline_and_every_row_says_its_precision() -> None:
    matrix = only(across([*board("gpu"), *board("orin")], mixed=True))
    assert [place.name for place in matrix.places] == ["gpu (trt)", "orin (ort)"]
    assert [place.precision for place in matrix.places] == ["float16", "float32"]
    assert [place.memory for place in matrix.places] == [
        (f"largest {DEVICE}, all parts that both tell of",),
        ("largest cpu_peak_rss over prefill and decode",),
    ]
    cells = matrix.cells()
    assert [cell.place for cell in cells] == ["gpu (trt)", "orin (ort)"] * len(METHODS)
    for cell in cells:
        base = cell.comparison.baseline.run
        assert base.device == cell.comparison.candidate.run.device
        assert base.artifact.scheme_ran == "fp32"
        assert cell.precision == ("float16" if cell.place.startswith("gpu") else "float32")


def test_size_is_of_float16_on_every_device() -> None:
    matrix = only(across([*board("gpu"), *board("orin")], mixed=True))
    assert {cell.size.ratio for cell in matrix.cells()} == {2.0}
    assert matrix.places[0].reference == 100.0
    assert matrix.places[1].reference == pytest.approx(86.6, abs=0.01)


def test_a_cell_is_the_comparison_of_the_pair() -> None:
    runs = board("orin")
    cell = only(across(runs)).cells()[0]
    assert cell.comparison == compare(runs[0], runs[1])
    assert cell.decode.ratio == pytest.approx(1 / 0.9)
    assert cell.decode.verdict == "better"


def test_unequal_baselines_are_refused_unless_they_are_labelled() -> None:
    runs = [*board("gpu"), *board("orin")]
    with pytest.raises(SlmqError, match=r"float16 on gpu \(trt\), float32 on orin .*--mixed-base"):
        across(runs)
    found = across(runs, mixed=True)
    label = only(found).mixed
    assert label is not None
    for write in WRITERS.values():
        assert label.replace("\n", " ") in " ".join(write(found).replace("\\", "").split())
    assert only(across([*board("pi"), *board("orin")])).mixed is None


def test_the_precision_that_all_devices_have_is_the_baselines() -> None:
    half = on("pi", "none", 0.8, "fp32")
    bits = {"linears": 16, "lm_head": 16}
    sized = dataclasses.replace(half.artifact, weight_storage_bits=bits, bundle_sha256="h" * 64)
    half = dataclasses.replace(half, artifact=sized)
    both = [*board("pi"), half]
    assert only(across(both)).places[0].precision == "float16"
    matrix = only(across([*both, *board("orin")]))
    assert [place.precision for place in matrix.places] == ["float32", "float32"]
    # What was not chosen is a row like others.
    assert len(matrix.places[0].cells) == len(METHODS) + 1
    assert len(set(matrix.methods)) == len(matrix.methods)


def test_raw_memory_is_never_printed() -> None:
    found = across([*board("gpu"), *board("orin")], mixed=True)
    raw = {str(count) for phase in run().memory.values() for count in phase.values()}
    raw |= {str(GPU["engine"])}
    for name, write in WRITERS.items():
        text = write(found)
        assert " MB" not in text, name
        assert not [count for count in raw if count in text], name


def test_memory_of_unlike_kinds_has_no_ratio_and_no_ranking() -> None:
    runs = board("orin")
    elsewhere = dataclasses.replace(runs[1], memory={"decode": {"gpu_process_used": 7}})
    found = across([*runs[:1], elsewhere, *runs[2:], *board("pi")])
    matrix = only(found)
    cell = next(cell for cell in matrix.cells() if cell.place == "orin (ort)")
    assert cell.memory.ratio is None
    assert cell.comparison.score.value is None
    assert "no kind of peak that both runs have" in " ".join(terminal(found).split())
    of_memory = next(one for one in matrix.transfers if one.by == MEMORY)
    assert len(of_memory.orders[0]) == len(METHODS)  # the baseline, and the methods that have it


def test_the_ranking_transfers_or_not() -> None:
    same = only(across([*board("pi"), *board("orin")]))
    said = {one.by: one.said for one in same.transfers}
    assert said["decode_rate"] == said["prefill_rate"] == said["slmq_infer"] == "transfers"
    assert said[MEMORY] is None  # all are equal
    assert same.transfers[0].orders[0][0] == "gptq w8a8"
    turned = only(across([*board("pi"), *board("orin", METHODS[::-1])]))
    decode = next(one for one in turned.transfers if one.by == "decode_rate")
    assert decode.tau == pytest.approx((5 - 10) / 15)  # full precision is last on both
    assert decode.said == "inconclusive"


def test_runs_of_one_artifact_are_one_row() -> None:
    runs = board("orin")
    again = [dataclasses.replace(one, created="later") for one in runs]
    once, twice = (only(across(listed)) for listed in (runs, [*runs, *again]))
    assert len(twice.cells()) == len(once.cells()) == len(METHODS)
    assert {len(cell.comparison.candidate.runs) for cell in twice.cells()} == {2}
    assert "none w8a8 2" in " ".join(terminal(across([*runs, *again])).split())


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"power_mode": "15W"}, "[power mode 15W]"),
        ({"cpu_model": "Another CPU"}, "[cpu Another CPU]"),
        ({"cores": 64}, "[cores 64]"),
    ],
)
def test_a_device_set_otherwise_is_another_place(environment: dict[str, Any], named: str) -> None:
    other = [
        dataclasses.replace(one, environment={**one.environment, **environment})
        for one in board("orin")
    ]
    matrix = only(across([*board("orin"), *other]))
    assert len(matrix.places) == 2
    assert matrix.places[1].name == f"orin (ort) {named}"


def test_models_and_workloads_are_tables_of_their_own() -> None:
    runs = board("orin")
    other = [
        dataclasses.replace(one, artifact=dataclasses.replace(one.artifact, model="Qwen"))
        for one in runs
    ]
    longer = [
        dataclasses.replace(one, workload=dataclasses.replace(one.workload, prompt_tokens=512))
        for one in runs
    ]
    found = across([*runs, *other, *longer])
    assert [(m.model, m.work["prompt_tokens"]) for m in found.matrices] == [
        ("SmolLM-135M", 128),
        ("Qwen", 128),
        ("SmolLM-135M", 512),
    ]


def test_what_cannot_be_compared_is_put_aside_and_said() -> None:
    wrong = (Caveat("implausible", "decode is above what the memory can deliver", {}),)
    lonely = board("pi")[1:]
    impossible = dataclasses.replace(on("orin", "awq", 0.5), caveats=wrong)
    projected = dataclasses.replace(on("orin", "quip", 0.5), origin="projected")
    found = across([*board("orin"), *lonely, impossible, projected, *board("nano")[:1]])
    assert [place.name for place in only(found).places] == ["orin (ort)"]
    told = "; ".join(found.aside)
    assert "awq w8a8 on orin (ort): implausible: decode is above" in told
    assert "pi (ort): no run in full precision to hold none w8a8, smoothquant" in told
    assert "orin (ort, projected): no run in full precision to hold quip w8a8" in told
    assert "nano (ort): nothing but none fp32" in told
    for write in (WRITERS["terminal"], WRITERS["md"], WRITERS["json"]):
        assert "nothing but none fp32" in " ".join(write(found).split())
    with pytest.raises(SlmqError, match="nothing can be compared: on no device"):
        across(lonely)


def test_differences_of_environments_say_where() -> None:
    old = dataclasses.replace(
        on("orin", "awq", 0.5), environment={**run().environment, "onnxruntime": "1.19.2"}
    )
    pi = [
        dataclasses.replace(one, environment={**one.environment, "kernel": "6.6"})
        for one in board("pi")
    ]
    lines = only(across([*board("orin"), old, *pi])).differences
    assert lines[0].startswith("onnxruntime: 1.23.0 (none fp32, none w8a8,")
    assert lines[0].endswith("1.19.2 (awq w8a8) on orin (ort); 1.23.0 on pi (ort)")
    assert lines[1:] == ("kernel: unknown on orin (ort); 6.6 on pi (ort)",)
    assert only(across([*board("orin"), *board("pi")])).differences == ()


def test_every_format_carries_every_row_and_the_terminal_keeps_its_width() -> None:
    doubt = (Caveat("few-repetitions", "6 repetitions | say *little*", {}),)
    runs = [dataclasses.replace(one, caveats=doubt) for one in board("jetson-orin-nano-8gb")]
    found = across([*runs, *board("pi")])
    text = terminal(found)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "all on jetson-orin-nano-8gb (ort): 6 repetitions | say *little*" in " ".join(
        text.split()
    )
    assert "6 repetitions \\| say \\*little\\*" in WRITERS["md"](found)
    document = json.loads(WRITERS["json"](found))
    assert (document["format"], document["version"]) == ("slmq-edge-across", 1)
    (matrix,) = document["matrices"]
    assert len(matrix["rows"]) == 2 * len(METHODS)
    assert matrix["doubts"][0]["code"] == "few-repetitions"
    lines = list(csv.DictReader(io.StringIO(WRITERS["csv"](found))))
    assert len(lines) == 2 * len(METHODS)
    assert {line["precision"] for line in lines} == {"float32"}
    cells = only(found).cells()
    assert [float(line["slmq_infer_value"]) for line in lines] == [
        cell.comparison.score.value for cell in cells
    ]
    assert [row["decode"]["ratio"] for row in matrix["rows"]] == [
        cell.decode.ratio for cell in cells
    ]


def test_rows_of_one_method_and_scheme_are_told_apart() -> None:
    runs = board("orin")
    head = dataclasses.replace(runs[2].artifact, lm_head="int8", bundle_sha256="d" * 64)
    matrix = only(across([*runs, dataclasses.replace(runs[2], artifact=head)]))
    named = [name for name in matrix.methods if name.startswith("smoothquant")]
    assert named == ["smoothquant w8a8 [lm_head float]", "smoothquant w8a8 [lm_head int8]"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for index, one in enumerate([*board("gpu"), *board("orin")]):
        paths.append(tmp_path / f"{index}-run.json")
        save(one, paths[-1])
    return paths


def test_cli_compares_many_runs(files: list[Path]) -> None:
    refused = invoke(*files)
    assert isinstance(refused.exception, SlmqError)
    assert "--mixed-baselines" in str(refused.exception)
    done = invoke(*files, "--mixed-baselines", "--fail-on", "decode=5%")
    assert done.exit_code == 0, done.exception
    assert "the baselines differ in precision" in done.stdout
    slow = on("orin", "slow", 1.5)
    save(slow, files[0].with_name("slow.json"))
    failed = invoke(*files[6:], files[0].with_name("slow.json"), "--fail-on", "decode=5%")
    assert "slow w8a8 on orin: decode tokens/s -33.3 %" in str(failed.exception)
    assert len(invoke(*files, "--mixed-baselines", "--format", "csv").stdout.splitlines()) == 11


def test_what_was_not_compared_passes_no_limit(files: list[Path]) -> None:
    alone = files[0].with_name("alone.json")
    save(on("pi", "smoothquant", 0.5), alone)
    assert invoke(*files[6:], alone).exit_code == 0
    failed = invoke(*files[6:], alone, "--fail-on", "decode=5%")
    assert isinstance(failed.exception, SlmqError)
    assert "not compared: SmolLM-135M on pi (ort): no run in full precision" in str(
        failed.exception
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.json", "-c", "b.json"), "a.json has no -b or -c before it"),
        ((), "give a baseline by -b"),
        (("-b", "a.json"), "give a baseline by -b"),
        (("a.json", "--convention", "paper"), "is of two sides"),
        (("-b", "a.json", "-c", "b.json", "--mixed-baselines"), "for runs of several devices"),
    ],
)
def test_cli_refuses_what_makes_no_sense(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_the_sizes_row_is_not_the_baselines_file() -> None:
    baseline, candidate = board("orin")[:2]
    row = compare(baseline, candidate).row(SIZE)
    assert row.baseline is not None
    assert row.baseline.median == 2 * SMOLLM.parameters
    assert "float16" in str(row.note)
