"""The comparison with other runtimes: everything but the other runtimes themselves."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks.cpu_w8a8 import slmq
from benchmarks.peers import __main__ as command
from benchmarks.peers import contestants, figures, gguf_file, models, process, rounds, table
from benchmarks.peers.worker import repetition
from slmq_edge import builtin
from slmq_edge.anatomy import Anatomy
from slmq_edge.runner import manifest, ort
from tests.peers_fake import Counting
from tests.shared import shared

FAKE = "tests.peers_fake"
HERE = Path(sys.executable)
PLAN = rounds.Plan(prompt=8, new=4, depths=(0, 16), threads=(1,), rounds=2, repetitions=1)


def entry(name: str = "ours-fp32", label: str | None = None) -> contestants.Entry:
    return contestants.Entry(label or name, contestants.CONTESTANTS[name], HERE, {})


# --- one repetition


@pytest.mark.parametrize(
    ("file", "depth", "calls", "appended"),
    [
        ("appends", 0, [("reset", 0), ("feed", 6)], 1.0),
        ("appends", 4, [("reset", 0), ("feed", 4), ("feed", 2)], 1.0),
        ("whole", 0, [("reset", 0), ("feed", 6)], 2.0),
        ("whole", 4, [("reset", 0), ("feed", 6)], None),
    ],
)
def test_what_is_timed(
    file: str, depth: int, calls: list[tuple[str, int]], appended: float | None
) -> None:
    runtime = Counting(Path(file), 1, 16)
    ticks = itertools.count()
    found = repetition(runtime, range(6), depth, 3, lambda: float(next(ticks)))
    assert runtime.calls == calls
    assert found["tokens"] == [6, 7, 8, 9]
    appends_now = bool(depth) and runtime.appends
    assert found["whole_seconds"] == (2.0 if appends_now else 1.0)
    assert found["appended_seconds"] == (None if appended is None else 1.0)
    assert found["decode_seconds"] == 1.0


# --- the worker, in a process of its own


def test_a_worker_answers_until_its_input_ends() -> None:
    with process.Process(HERE, FAKE) as worker:
        load = worker.ask("load", runtime="fake", path="any", threads=1, context=16)
        assert load["appends"]
        assert load["seconds"] >= 0
        found = worker.ask("repeat", tokens=[5, 5, 5], depth=0, new=2)
        assert found["tokens"] == [3, 4, 5]
        assert worker.ask("logits", tokens=[5, 5]) == {"logits": [2.0]}
        memory = worker.ask("memory")
        assert memory["VmHWM"] >= memory["VmRSS"] >= memory["RssAnon"] > 1e6
    assert worker.returncode == 0


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("damaged", "RuntimeError: the file is damaged"),
        ("dies", "out of luck"),
        ("hangs", "no answer to repeat within 1 s"),
    ],
)
def test_a_worker_that_fails_says_why(file: str, message: str) -> None:
    def tried() -> None:
        with process.Process(HERE, FAKE, patience=1 if file == "hangs" else 60) as worker:
            worker.ask("load", runtime="fake", path=file, threads=1, context=16)
            worker.ask("repeat", tokens=[1], depth=0, new=1)

    with pytest.raises(process.Failed, match=f"^{re.escape(message)}$"):
        tried()


def test_workers_wait_as_their_runtimes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("KEPT", "yes")
    found = process.environment()
    assert "OMP_WAIT_POLICY" not in found
    assert found["KEPT"] == "yes"


def test_the_last_words_of_a_process() -> None:
    assert process.reason(-9, b"") == "killed by signal 9: out of memory?"
    assert process.reason(1, b"Traceback\nValueError: no\n\n") == "ValueError: no"
    assert process.reason(2, b"") == "exit code 2"


# --- our own bundle, through the whole of it


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "bundle"
    slmq("export", "demo-llama", "--method", "none", "--scheme", "fp32", "-o", folder)
    return folder


@pytest.mark.slow
def test_rounds_measure_a_bundle_and_keep_who_fails(bundle: Path, tmp_path: Path) -> None:
    ours, broken = entry(), entry("ours-w8a8")
    rows: dict[str, dict[str, Any]] = {
        e.label: {"shape": "demo", "label": e.label, "contestant": e.label, "versions": {}}
        | {"bits": e.contestant.bits, "bytes": 1000}
        for e in (ours, broken)
    }
    running = {"ours-fp32": (ours, bundle), "ours-w8a8": (broken, tmp_path / "nothing")}
    lines: list[str] = []
    rounds.measure(rows, running, PLAN, vocab=512, saved=lines.append)
    assert "bundle.json cannot be read" in rows["ours-w8a8"]["error"]
    assert "samples" not in rows["ours-w8a8"]
    row = rows["ours-fp32"]
    assert [(s["round"], s["depth"]) for s in row["samples"]] == [(0, 0), (0, 16), (1, 0), (1, 16)]
    assert [s["appended_seconds"] is None for s in row["samples"]] == [False, True] * 2
    assert all(s["decode_seconds"] > 0 for s in row["samples"])
    assert len(row["loads"]) == PLAN.rounds
    assert row["memory"]["steady"]["VmRSS"] > row["memory"]["imported"]["VmRSS"]
    session = ort.open_bundle(bundle, manifest.read_bundle(bundle), 1)
    logits, _ = session.prefill(np.array([rounds.tokens(24, 512)[:8]]), 1)
    assert row["memory"]["logits"] == logits[0, -1, ::2].tolist()
    assert len(lines) == 2 + PLAN.rounds
    document = {"environment": {"cpu_model": "a", "cores": 2, "cpu_flags": ["avx2"]}}
    document["environment"]["load_average"] = 0.1
    text = table.markdown({**document, "plan": vars(PLAN), "rows": list(rows.values())})
    assert "did not run: NotFound" in text


def test_everyone_takes_the_first_turn() -> None:
    entries = [entry(label="a"), entry(label="b"), entry(label="c")]
    order = [(r, e.label) for r, _, e in rounds.turns(entries, PLAN)]
    assert order == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]


# --- who competes


def test_an_interpreter_makes_a_row_of_ours_each() -> None:
    older, newer = {"onnxruntime": "1.23.2"}, {"onnxruntime": "1.31.1", "numpy": "2.4"}
    peers = (Path("peers"), newer)
    ours = ((Path("old"), older), (Path("new"), newer))
    names = ("ours-w8a8", "llama.cpp-Q8_0", "optimum-fp32")
    made = contestants.entries(names, ours, (Path("old"), older), peers)
    assert [(e.label, str(e.python)) for e in made] == [
        ("ours-w8a8 (onnxruntime 1.23.2)", "old"),
        ("ours-w8a8 (onnxruntime 1.31.1)", "new"),
        ("llama.cpp-Q8_0", "peers"),
        ("optimum-fp32", "old"),
    ]
    reasons = [contestants.missing(e.contestant, e.versions) for e in made]
    assert reasons[0] == "not installed: numpy"
    assert reasons[1] is None
    assert reasons[2] == "not installed: llama-cpp-python"
    with pytest.raises(ValueError, match=r"the same row: ours-w8a8 \(onnxruntime 1.31.1\)"):
        contestants.entries(names, (peers, ours[1]), peers, peers)


def test_each_reference_is_a_contestant_of_its_bits() -> None:
    for bits, label in contestants.REFERENCES.items():
        assert contestants.CONTESTANTS[label].bits == bits
    assert {c.bits for c in contestants.CONTESTANTS.values()} == set(contestants.REFERENCES)


@pytest.mark.parametrize(
    ("given", "meant"),
    [({"shape": ["SmolLM-136M"]}, "SmolLM-135M"), ({"contestant": ["ours-w8a9"]}, "ours-w8a8")],
)
def test_an_unknown_name_is_guessed(given: dict[str, Any], meant: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"did you mean {meant}"):
        command.main(**given)


# --- what is made


def test_things_are_made_once_and_ours_again_when_our_code_changes(tmp_path: Path) -> None:
    made: list[str] = []

    def make(target: Path) -> None:
        made.append(target.name)
        target.mkdir()

    for stamp in ("one", "one", "two"):
        assert models._made(tmp_path / "thing", stamp, make) == tmp_path / "thing"
    assert made == ["thing.partial"] * 2

    def fail(target: Path) -> None:
        target.mkdir()
        raise process.Failed("no")

    with pytest.raises(process.Failed):
        models._made(tmp_path / "thing", "three", fail)
    assert not (tmp_path / "thing").exists(), "what is left of an attempt does not look made"


def test_the_size_of_a_folder_leaves_its_tokenizer_out(bundle: Path, tmp_path: Path) -> None:
    weights = sum(p.stat().st_size for p in (bundle / "ort").glob("model.onnx*"))
    assert weights <= models.size(bundle) < 1.01 * weights
    for name, length in (("model.onnx", 5), ("model.onnx.data", 7), ("tokenizer.json", 100)):
        (tmp_path / name).write_bytes(b"x" * length)
    assert models.size(tmp_path) == 12
    assert models.size(tmp_path / "model.onnx") == 5


def test_rearranged_rows_turn_as_llama_cpp_turns_them() -> None:
    """Rotating neighbours of what is stored gives the rotated halves of what was given."""
    anatomy = Anatomy.from_config(json.loads((builtin_folder() / "config.json").read_text()))
    half = anatomy.head_dim // 2
    values = np.random.default_rng(0).normal(size=(anatomy.query_width, 3))
    stored = gguf_file.arranged("model.layers.0.self_attn.q_proj.weight", values, anatomy)
    turn = np.exp(1j * np.arange(1, half + 1))
    heads = values.reshape(anatomy.heads, 2, half, 3)
    wanted = (heads[:, 0] + 1j * heads[:, 1]) * turn[None, :, None]
    pairs = stored.reshape(anatomy.heads, half, 2, 3)
    np.testing.assert_allclose((pairs[:, :, 0] + 1j * pairs[:, :, 1]) * turn[None, :, None], wanted)
    same = gguf_file.arranged("model.layers.0.self_attn.v_proj.weight", values, anatomy)
    assert same is values


@pytest.mark.parametrize("kind", gguf_file.KINDS)
def test_a_gguf_file_reads_back(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: see benchmarks/peers")
    model = builtin_folder()
    gguf_file.write(model, tmp_path / "model.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    anatomy = Anatomy.from_config(json.loads((model / "config.json").read_text()))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {gguf_file.translated(name) for name in anatomy.tensors()}
    gate = tensors["blk.0.ffn_gate.weight"]
    assert gate.tensor_type.name == kind
    assert list(gate.shape) == [anatomy.hidden, anatomy.ffn]
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert reader.get_field("llama.attention.head_count_kv").contents() == anatomy.kv_heads
    assert reader.get_field("llama.vocab_size").contents() == anatomy.vocab


def builtin_folder() -> Path:
    return Path(builtin.__file__).parent / "demo-llama"


# --- figures and tables


def sample(round: int, decode: float, whole: float = 1.0, depth: int = 0) -> dict[str, Any]:
    appended = whole if depth == 0 else None
    times = {"decode_seconds": decode, "whole_seconds": whole, "appended_seconds": appended}
    times["cpu_seconds"] = 0.9 * (decode + whole)
    return {"round": round, "threads": 1, "depth": depth, **times}


def test_rates_are_medians_with_their_range_over_rounds() -> None:
    row = {"samples": [sample(0, 1.0), sample(0, 2.0), sample(0, 4.0), sample(1, 8.0)]}
    found = figures.rate(row, "decode", threads=1, depth=0, count=64)
    assert found == figures.Rate(64 / 3.0, 8.0, 32.0, {0: 32.0, 1: 8.0})
    assert figures.rate(row, "decode", threads=2, depth=0, count=64) is None
    assert figures.rate({"samples": [sample(0, 1.0, depth=9)]}, "appended", 1, 9, 8) is None


def test_ratios_pair_what_ran_in_the_same_round() -> None:
    one = figures.Rate(10.0, 8.0, 12.0, {0: 8.0, 1: 12.0, 2: 10.0})
    two = figures.Rate(5.0, 4.0, 6.0, {0: 4.0, 1: 4.0})
    assert figures.ratio(one, two) == figures.Ratio(2.0, 2.0, 3.0)
    assert figures.ratio(one, None) is None


def test_distances_are_relative_to_the_first_float_row() -> None:
    def row(label: str, bits: int, *logits: float) -> dict[str, Any]:
        return {"label": label, "bits": bits, "memory": {"logits": logits}}

    rows = [row("a", 8, 3.0, 3.0), row("b", 32, 3.0, 4.0), row("c", 32, 0.0, 8.0)]
    rows.append({"label": "d", "bits": 32, "error": "no"})
    assert figures.distances(rows) == {"a": 0.2, "b": 0.0, "c": 1.0}
    assert figures.distances(rows[:1]) == {}


def test_the_table() -> None:
    memory = {"VmHWM": 3e8, "VmRSS": 2e8, "RssAnon": 1e8, "RssFile": 1e8}
    rest: dict[str, Any] = {
        "shape": "S",
        "versions": {"onnxruntime": "1.31.1"},
        "bits": 8,
        "bytes": 142e6,
    }
    rest["memory"] = {"imported": memory, "loaded": memory, "steady": memory}
    rest["memory"]["logits"] = [1.0]
    load = {"threads": 1, "seconds": 0.25, "warm_up": {"whole_seconds": 0.5}}
    ours = {**rest, "label": "ours-w8a8 (onnxruntime 1.31.1)", "contestant": "ours-w8a8"}
    theirs = {**rest, "label": "llama.cpp-Q8_0", "contestant": "llama.cpp-Q8_0"}
    ours |= {"samples": [sample(0, 0.5), sample(1, 0.4), sample(0, 0.8, 2.0, 512)]}
    theirs |= {"samples": [sample(0, 1.0, 2.0), sample(1, 1.0, 2.0)]}
    failed = {**rest, "label": "genai-int4", "contestant": "genai-int4", "error": "no | package"}
    rows = [{**row, "loads": [load]} for row in (ours, theirs)] + [failed]
    plan = {"prompt": 128, "new": 64, "depths": [0, 512], "threads": [1], "rounds": 2}
    plan["repetitions"] = 1
    found = {"cpu_model": "C", "cores": 2, "cpu_flags": ["avx2"], "load_average": 0.1}
    text = table.markdown({"environment": found, "plan": plan, "rows": rows})
    assert (
        "ours-w8a8 (onnxruntime 1.31.1) | 142 (128-160) | 2.22 (2.00-2.50) "
        "| 128 (128-128) | 2.00 (2.00-2.00)\n"
    ) in text
    assert "llama.cpp-Q8_0 | 64.0 (64.0-64.0) | 1.00 (1.00-1.00) | 64.0 (64.0-64.0)" in text
    assert "decode at 640 | x | prompt of 640 | x | 128 onto 512 | x\n" in text
    assert (
        "ours-w8a8 (onnxruntime 1.31.1) | 80.0 (80.0-80.0) | - | 320 (320-320) | - | - | -" in text
    )
    assert "142 MB | 250 ms | 500 ms | 200 MB | 300 MB | 200 MB | 100 MB" in text
    assert text.count(r"genai-int4 | did not run: no \| package") == 3
    assert "- genai-int4: its builder's int4" in text
    assert "a CPU for 90 % of the time (90 % at the least); **the machine was busy" in text


def test_the_shapes_have_configs_and_tokenizers() -> None:
    for shape, tokenizer in models.SHAPES.items():
        assert (shared("configs") / shape / "config.json").is_file()
        assert (shared("tokenizers") / tokenizer / "tokenizer.json").is_file()
