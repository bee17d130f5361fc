"""Track 3: seconds by stage, peaks, energy; and the table of what methods cost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import checkpoint as checkpoints
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.cost import ENERGY_SECONDS, Meter
from slmq_edge.errors import Damaged, NotFound
from slmq_edge.files import CHECKPOINT_FORMAT, CHECKPOINT_VERSION
from slmq_edge.profiles.fake import Fake, FakeClock
from slmq_edge.reports import made
from slmq_edge.reports.cost import EXPLANATION, WRITERS, markdown, terminal
from slmq_edge.scheme import Grid, in_words, scheme
from slmq_edge.tracks.cost import Row, Table, read, scored, table
from tests.decoders import random_qwen2, rounded


def ignore(share: float, what: str) -> None:
    """No progress bar."""


def test_seconds_belong_to_the_stage_that_was_reported_last() -> None:
    clock = FakeClock()
    meter = Meter("cpu", "starting", Fake(memory=[{"cpu_peak_rss": 7}]), clock)
    heard: list[tuple[float, str]] = []
    progress = meter.watched(lambda share, what: heard.append((share, what)))
    clock.advance(1)
    for what, seconds in (("learning, loss 3", 2), ("learning, loss 2", 3), ("rounding", 4)):
        progress(0.5, what)
        clock.advance(seconds)
    progress(1.0, "learning, again")
    clock.advance(5)
    found = meter.read()
    assert found["stages"] == {"starting": 1, "learning": 10, "rounding": 4}
    assert found["seconds"] == 15 == sum(found["stages"].values())
    assert found["memory"] == {"cpu_peak_rss": 7}
    assert heard[0] == (0.5, "learning, loss 3")


def test_energy_is_read_while_work_goes_on() -> None:
    """A counter runs over within minutes: two readings a run would be too few."""
    clock, fake = FakeClock(), Fake(energy=[0.0, 10.0, 25.0])
    meter = Meter("cpu", "starting", fake, clock)
    progress = meter.watched(ignore)
    clock.advance(ENERGY_SECONDS / 2)
    progress(0.1, "working")
    clock.advance(ENERGY_SECONDS / 2)
    progress(0.2, "working")
    found = meter.read()
    assert found["energy_joules"] == 25.0
    assert found["energy_reason"] is None
    silent = Meter("cpu", "starting", Fake(), clock).read()
    assert silent["energy_joules"] is None
    assert silent["energy_reason"] == "a fake has none"


def cost(seconds: float, memory: int | None, **more: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "memory": {"cpu_peak_rss": memory},
        "device": "cpu",
        "device_name": "Some CPU",
        "threads": 2,
        **more,
    }


def written(folder: Path, method: str, spent: dict[str, Any], model: str = "m") -> Path:
    folder.mkdir()
    document = {
        "format": CHECKPOINT_FORMAT,
        "version": CHECKPOINT_VERSION,
        "method": method,
        "scheme": {"name": "w8a8"},
        "source": {"name": model, "origin": "local", "revision": None},
        "cost": spent,
    }
    (folder / "checkpoint.json").write_text(json.dumps(document))
    return folder


def three(folder: Path) -> Table:
    """By hand: 100 sqrt((5^2 + 8^2) / 2), 100 sqrt((1 + 2^2) / 2), 100 sqrt((1.6^2 + 1) / 2)."""
    spent = {"smooth": (100, 400e6), "omni": (400, 2e9), "spin": (800, 1.25e9)}
    return table(
        [
            written(folder / name, name, cost(seconds, int(memory)))
            for name, (seconds, memory) in spent.items()
        ]
    )


def test_the_table_has_the_columns_of_table_4(tmp_path: Path) -> None:
    found = three(tmp_path)
    assert found.notes == ()
    assert terminal(found).splitlines() == [
        "checkpoint  method  model  scheme  peak memory   time  SLMQ_quant",
        "smooth      smooth  m      w8a8         400 MB  100 s       667.1",
        "omni        omni    m      w8a8        2.00 GB  400 s       158.1",
        "spin        spin    m      w8a8        1.25 GB  800 s       133.4",
        "",
        "m: quantized on cpu (Some CPU), cpu_peak_rss",
        EXPLANATION,
    ]


def test_every_format_holds_every_row(tmp_path: Path) -> None:
    found = three(tmp_path)
    lines = markdown(found).splitlines()
    assert (
        lines[0] == "| checkpoint | method | model | scheme | peak memory | time | SLMQ\\_quant |"
    )
    assert lines[3] == "| omni | omni | m | w8a8 | 2.00 GB | 400 s | 158.1 |"
    document = json.loads(WRITERS["json"](found))
    assert document["rows"][1]["score"] == pytest.approx(100 * 2.5**0.5)
    head, first, *_ = WRITERS["csv"](found).splitlines()
    assert dict(zip(head.split(","), first.split(","), strict=True))["memory_bytes"] == "400000000"


def test_maxima_are_each_models_own(tmp_path: Path) -> None:
    found = table(
        [
            written(tmp_path / "a", "x", cost(10, 100)),
            written(tmp_path / "b", "y", cost(20, 200)),
            written(tmp_path / "c", "x", cost(1000, 1000), model="other"),
        ]
    )
    assert [row.score for row in found.rows] == [200.0, 100.0, 100.0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"device_name": "Other CPU"}, ("not compared", "Some CPU", "Other CPU")),
        (
            {"device": "cuda:0", "memory": {"cpu_peak_rss": 9, "torch_peak_allocated": 5}},
            ("not compared", "torch_peak_allocated"),
        ),
    ],
)
def test_only_like_is_compared_with_like(
    changed: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    others = {**cost(20, 200), **changed}
    found = table(
        [written(tmp_path / "a", "x", cost(10, 100)), written(tmp_path / "b", "y", others)]
    )
    assert [row.score for row in found.rows] == [100.0, 100.0]
    assert all(word in found.notes[0] for word in words)


@pytest.mark.parametrize(
    ("spent", "reason"),
    [
        (cost(10, 100, resumed_behind_block=7), "went on behind block 7"),
        (cost(10, 100, resumed_with=["rotations"]), "went on with the rotations of an interrup"),
        (
            cost(10, 100, resumed_behind_block=4, resumed_with=["student"]),
            "went on behind block 4 and with the student of an interrup",
        ),
        (cost(10, None), "has no score: its cpu_peak_rss was not measured"),
        (cost(10, 0), "cpu_peak_rss was not measured"),
        (cost(0, 100), "time was not measured"),
    ],
)
def test_a_cost_that_is_not_whole_has_no_score(
    spent: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = table(
        [written(tmp_path / "a", "x", spent), written(tmp_path / "b", "y", cost(20, 200))]
    )
    assert [row.score for row in found.rows] == [None, 100.0]
    assert found.notes[0].startswith("a has no score: it")
    assert reason in found.notes[0]
    assert "n/a" in terminal(found)


def test_threads_that_differ_are_said(tmp_path: Path) -> None:
    first = read(written(tmp_path / "a", "x", cost(10, 100)))
    assert (
        "threads differ (2, 8)" in scored([first, dataclasses.replace(first, threads=8)]).notes[0]
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"calibration_tokens": 9}, "calibration tokens differ (None, 9)"),
        ({"scheme": "w4a8"}, "schemes differ (w4a8, w8a8)"),
    ],
)
def test_what_makes_costs_unlike_is_said(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    first = read(written(tmp_path / "a", "x", cost(10, 100)))
    assert words in scored([first, dataclasses.replace(first, **changed)]).notes[0]


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="empty is neither a bundle nor a checkpoint"):
        read(tmp_path / "empty")
    with pytest.raises(NotFound, match="no checkpoint at"):
        read(tmp_path / "nothing")
    with pytest.raises(Damaged, match=r"a/checkpoint\.json does not say what it cost"):
        read(written(tmp_path / "a", "x", {"seconds": 1}))


def test_a_checkpoint_of_ours_has_a_cost(tmp_path: Path) -> None:
    found = dataclasses.replace(rounded(random_qwen2(), scheme("w4a8")), cost=cost(3, 10**6))
    checkpoints.save(found, tmp_path / "c")
    row: Row = read(tmp_path / "c")
    assert (row.scheme, row.seconds, row.memory_bytes) == ("w4a8", 3.0, 10**6)
    assert row.group.model == "test"


def test_a_bundles_cost_is_its_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    (folder / "ort").mkdir(parents=True)
    (folder / "ort" / "model.onnx").write_bytes(b"graph")
    document = {
        "format": "slmq-edge-bundle",
        "version": 1,
        "method": "none",
        "scheme_requested": "w8a8",
        "model": {"name": "m", "origin": "hub", "revision": "0123456789abcdef"},
        "cost": cost(2, 50),
        "files": {"ort/model.onnx": {"bytes": 5, "sha256": "0" * 64}},
    }
    (folder / "bundle.json").write_text(json.dumps(document))
    row = read(folder)
    assert (row.method, row.scheme, row.group.revision) == ("none", "w8a8", "0123456789abcdef")


def told(made_: Checkpoint, folder: Path) -> dict[str, str]:
    text = made.checkpoint_table(checkpoints.save(made_, folder))
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    return {name: value.strip() for name, value in rows.items()}


def test_a_tied_table_is_head_and_embedding(tmp_path: Path) -> None:
    spent = cost(10, 10**6)
    for word in ("lm_head", "embedding"):
        found = rounded(random_qwen2(), in_words({"name": "w8a8", word: "int8"}))
        assert found.anatomy.tied
        rows = told(dataclasses.replace(found, cost=spent), tmp_path / word)
        assert rows["lm_head"] == rows["embedding"] == "int8 per channel, symmetric"


def test_grids_in_words() -> None:
    free = Grid(8, "token", symmetric=False, zero=False)
    assert str(free) == "int8 per token, asymmetric, range need not hold 0"
    assert free.described(by_head=True).startswith("int8 per token and head, ")
    words = {"name": "w8a8", "activation_scale": "tensor", "range": "mse"}
    grids = made.grids(in_words(words), tied=False)
    assert grids["activations"] == "int8 per tensor, symmetric, static by mse"


def test_what_was_made_is_told_in_full(tmp_path: Path) -> None:
    words = {"name": "w4a8-g32", "activations": "asymmetric", "kv": 8}
    spent = cost(10, 10**6, stages={"learning": 9.0, "rounding": 1.0, "blink": 0.001})
    spent |= {"energy_joules": 123.4, "resumed_behind_block": 3}
    found = dataclasses.replace(
        rounded(random_qwen2(), in_words(words)), cost=spent, notes=("alpha by block: 0.5",)
    )
    rows = told(found, tmp_path / "c")
    assert rows["weights"] == "int4 per channel and group of 32, symmetric"
    assert rows["activations"] == "int8 per token, asymmetric"
    assert rows["keys, values"] == "int8 per token and head, asymmetric"
    assert rows["lm_head"] == "float"
    assert rows["stages"] == "learning 9.00 s, rounding 1.00 s"
    assert rows["note"] == "alpha by block: 0.5"
    assert rows["cost"] == (
        "10.0 s on cpu (without the 3 blocks of a run that was interrupted), "
        "cpu_peak_rss 1.00 MB, 123 J (all processors)"
    )
    assert "online" not in rows
