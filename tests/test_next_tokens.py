"""Next tokens of one model held against another's: the arithmetic, eval --against, the gap."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs slmq-edge[eval]")

import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from slmq_edge import builtin, checkpoint, models
from slmq_edge.cli import app
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.simulation import Simulation
from slmq_edge.tracks.accuracy import gap as gaps
from slmq_edge.tracks.accuracy import next_tokens, own, results, windows
from slmq_edge.tracks.accuracy.evaluation import Windows
from slmq_edge.tracks.accuracy.next_tokens import Reader
from slmq_edge.tracks.accuracy.results import NextTokens, Window, is_same_artifact
from slmq_edge.tracks.accuracy.sequences import Sequence
from tests.eval_scorers import model_of

LIMIT = 3  # windows
FILES = {"files": {"model.safetensors": "ab" * 32}}
Logits = NDArray[np.float32]


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def done(*arguments: object) -> Result:
    found = typed(*arguments)
    assert found.exit_code == 0, found.output
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a bundle, and evaluations of both and of the model, against each other."""
    folder = tmp_path_factory.mktemp("next")
    flags = ("--method", "smoothquant", "--windows", 8, "--length", 64)
    done("quantize", "demo-llama", *flags, "-o", folder / "ckpt")
    done("export", folder / "ckpt", "-o", folder / "bundle")
    asked = ("-t", "builtin_windows", "--limit", LIMIT)
    done("eval", "demo-llama", *asked, "-o", folder / "float.json")
    for what, base in (("ckpt", "demo-llama"), ("bundle", folder / "ckpt")):
        done("eval", folder / what, *asked, "--against", base, "-o", folder / f"{what}.json")
    return folder


# --- the arithmetic


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30))
def test_divergence_is_torchs(seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    base, other = (scale * draw.standard_normal((2, 5, 17))).astype(np.float32)
    found, differs = next_tokens.divergence(base, other)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (base, other))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-12)
    assert differs.tolist() == (log_p.argmax(-1) != log_q.argmax(-1)).tolist()
    shifted, _ = next_tokens.divergence(base.astype(np.float64), base.astype(np.float64) + 3)
    assert np.abs(shifted).max() < 1e-9


def reader(rows: Logits, cuts: list[int]) -> Reader:
    """One that has these logits, in such pieces, whatever is read."""

    def logits(tokens: Any, keep: int) -> Iterator[Any]:
        yield from np.split(rows[None, -keep:], cuts, axis=1)

    return Reader({"files": {}}, 1000, logits)


def of_windows(count: int, length: int) -> Windows:
    one = Sequence(tuple(range(length)), length - 1)
    return Windows(own.text(), (one,) * count, count)


@pytest.mark.parametrize("cuts", [[], [1], [64, 128], [63, 65, 199], [*range(1, 200, 7)]])
def test_pieces_change_no_bit(cuts: list[int]) -> None:
    draw = np.random.default_rng(3)
    base, other = draw.standard_normal((2, 200, 33)).astype(np.float32)
    whole = next_tokens.compare(reader(base, []), reader(other, []), of_windows(2, 201))
    found = next_tokens.compare(reader(base, cuts), reader(other, cuts[::2]), of_windows(2, 201))
    assert found == whole
    assert whole.positions == 400
    kl, differs = next_tokens.divergence(base, other)
    assert whole.kl == pytest.approx(kl.mean(), rel=1e-12)
    assert whole.changed == differs.mean()


def test_what_cannot_be_compared_is_refused() -> None:
    few, many = np.zeros((9, 5), np.float32), np.zeros((9, 6), np.float32)
    with pytest.raises(SlmqError, match="not the same vocabulary: 5 against 6"):
        next_tokens.compare(reader(few, []), reader(many, []), of_windows(1, 10))
    with pytest.raises(SlmqError, match="windows of 1200 tokens are longer than the context"):
        next_tokens.require_room(reader(few, []), [of_windows(1, 10), of_windows(1, 1200)])
    next_tokens.require_room(reader(few, []), [of_windows(1, 10)])
    broken = np.full((9, 5), np.nan, np.float32)
    with np.errstate(invalid="ignore"), pytest.raises(SlmqError, match="not finite"):
        next_tokens.compare(reader(few, []), reader(broken, []), of_windows(1, 10))
    other = Windows(own.text(), (Sequence((5, 6), 1),), 1)
    with pytest.raises(SlmqError, match="reads other tokens"):
        next_tokens.require_same_tokens([of_windows(1, 2)], [other])


def test_a_checkpoint_against_its_model_is_what_torch_says(place: Path) -> None:
    found = results.load(place / "ckpt.json")
    (one,) = found.next_tokens
    folder = builtin.folder("demo-llama")
    model, tokenizer = model_of(folder), models.read_tokenizer(folder)
    simulation = Simulation(checkpoint.load(place / "ckpt"))
    asked = windows.sequences(own.text(), tokenizer, 512)[:LIMIT]
    kl, changed = [], []
    for sequence in asked:
        tokens = torch.tensor([sequence.tokens[:-1]])
        with torch.inference_mode():
            sides = (model(tokens).logits[0], simulation.logits(tokens)[0])
        log_p, log_q = (torch.log_softmax(logits.double(), -1) for logits in sides)
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        changed.append(sides[0].argmax(-1) != sides[1].argmax(-1))
    assert one.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4)
    assert one.changed == pytest.approx(float(torch.cat(changed).double().mean()), abs=2e-3)
    assert one.positions == LIMIT * 511
    assert one.asked_sha256 == found.tasks[0].asked_sha256


# --- the gap


def test_the_gap_has_next_tokens_of_what_was_held_against_its_base(place: Path) -> None:
    files = [place / f"{name}.json" for name in ("float", "ckpt", "bundle")]
    first, second = (
        gaps.compare(results.load(base), results.load(other))
        for base, other in itertools.pairwise(files)
    )
    ((one,), (two,)) = first.tokens, second.tokens
    # Rounding costs more than leaving the simulation.
    assert 1e-6 < one.kl < 0.1
    assert two.kl < one.kl / 3
    for row in (one, two):
        assert row.kl_interval is not None
        assert row.flips_interval is not None
        assert row.kl_interval[0] <= row.kl <= row.kl_interval[1]
        assert row.flips_interval[0] <= row.flips <= row.flips_interval[1]
        assert (row.task, row.windows, row.positions) == ("builtin_windows", LIMIT, LIMIT * 511)
    table = done("gap", *files[:2])
    assert "next tokens of" in table.stdout
    assert f"{one.kl:.3g}" in table.stdout
    assert "Next tokens: KL over the whole vocabulary" in " ".join(table.stdout.split())
    document = json.loads(done("gap", *files[:2], "--json").stdout)
    assert document["gaps"][0]["tokens"][0]["kl"] == one.kl
    lines = list(csv.DictReader(io.StringIO(done("gap", *files[:2], "--format", "csv").stdout)))
    assert [line["metric"] for line in lines[-2:]] == ["token_kl", "token_flips"]
    assert float(lines[-2]["other"]) == one.kl
    assert "| next tokens of | KL |" in done("gap", *files[:2], "--format", "md").stdout
    # Against anything else than their base, they are left out, and that is said.
    other = gaps.compare(results.load(files[0]), results.load(files[2]))
    assert other.tokens == ()
    assert "compared with another artifact than the base" in " ".join(other.notes)


def test_limits_of_next_tokens(place: Path) -> None:
    base, ckpt, bundle = (place / f"{name}.json" for name in ("float", "ckpt", "bundle"))
    done("gap", base, ckpt, "--fail-on", "token-kl=0.5", "--fail-on", "token-flips=50%")
    found = typed("gap", base, ckpt, "--fail-on", "token-kl=1e-9")
    assert isinstance(found.exception, SlmqError)
    assert "builtin_windows has token-kl above token-kl=1e-9" in str(found.exception)
    found = typed("gap", base, bundle, "--fail-on", "token-kl=1")
    assert "no next tokens were compared: evaluate the other with --against" in str(found.exception)
    found = typed("gap", base, ckpt, "--fail-on", "token-kj=1")
    assert isinstance(found.exception, UsageError)
    assert "did you mean token-kl" in str(found.exception)


def test_one_window_has_no_interval() -> None:
    row = NextTokens("t", {"bundle_sha256": "a"}, "", (Window(10, 1.0, 2),))
    found = gaps.of_tokens(row, 100)
    assert (found.kl, found.flips) == (0.1, 0.2)
    assert found.kl_interval is found.flips_interval is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({**FILES, "dtype": "float32"}, {**FILES, "dtype": "float32"}, True),
        ({**FILES, "dtype": "float32"}, {**FILES, "dtype": "float16"}, False),
        ({"bundle_sha256": "a", "threads": 1}, {"bundle_sha256": "a", "threads": 2}, True),
        ({"bundle_sha256": "a"}, {"checkpoint_sha256": "a"}, False),
        ({"model": {"name": "m"}}, {"model": {"name": "m"}}, False),
    ],
)  # fmt: skip
def test_an_artifact_is_known_by_its_digest(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    assert is_same_artifact(one, other) == is_same_artifact(other, one) == same


def test_a_model_against_itself_is_nowhere_apart(place: Path, tmp_path: Path) -> None:
    flags = ("-t", "builtin_windows", "--limit", 1, "-o", tmp_path / "self.json", "--json")
    done("eval", place / "bundle", *flags, "--against", place / "bundle")
    (one,) = results.load(tmp_path / "self.json").next_tokens
    assert (one.kl, one.changed) == (0.0, 0.0)


def test_older_files_have_none_and_empty_ones_are_damaged(place: Path, tmp_path: Path) -> None:
    document = json.loads((place / "ckpt.json").read_text())
    without = {name: value for name, value in document.items() if name != "next_tokens"}
    (tmp_path / "old.json").write_text(json.dumps(without))
    assert results.load(tmp_path / "old.json").next_tokens == ()
    document["next_tokens"][0]["windows"] = []
    (tmp_path / "empty.json").write_text(json.dumps(document))
    with pytest.raises(Damaged, match="next tokens of builtin_windows have no positions"):
        results.load(tmp_path / "empty.json")


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("-t", "builtin_questions", "--against", "demo-llama"), UsageError, "of texts: add one"),
        (
            ("-t", "builtin", "--against", "demo-llama", "-d", "ssh://me@nowhere"),
            UsageError,
            "leave --device out",
        ),
        (("-t", "builtin", "--against", "demo-lama"), NotFound, "did you mean demo-llama"),
    ],
)
def test_mistakes_are_found_before_anything_is_scored(
    arguments: tuple[str, ...],
    kind: type[SlmqError],
    words: str,
    place: Path,
    tmp_path: Path,
) -> None:
    found = typed("eval", place / "ckpt", *arguments, "-o", tmp_path / "none.json")
    assert isinstance(found.exception, kind), found.output
    assert words in str(found.exception)
    assert list(tmp_path.iterdir()) == []
