"""slmq-edge distributions: what is counted, what preparing changes, and how it is told."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge import anatomy as names
from slmq_edge.analysis.distributions import (
    PER_OCTAVE,
    Change,
    Distributions,
    Linear,
    Spread,
    load,
    to_json,
)
from slmq_edge.analysis.observing import observe, of_model
from slmq_edge.analysis.outliers import of_inputs, outliers
from slmq_edge.analysis.spread import Spreading, spread_of
from slmq_edge.decoder import Decoder
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported, UsageError
from slmq_edge.quantize import Request, plan, prepare, quantize
from slmq_edge.reports import distributions as reports
from slmq_edge.reports.analyze import short
from slmq_edge.reports.plots import distributions as plot
from slmq_edge.reports.plots.distributions import telling
from slmq_edge.reports.plots.svg import WIDTH
from slmq_edge.scheme import in_words
from tests.decoders import random_llama, random_qwen2, tokens_for
from tests.test_methods import ignore
from tests.test_plots import SVG, drawn, marks, of_class, titles
from tests.test_recipe import done, here, refused, slmq

__all__ = ["here"]

# Of values between the ends of a bin of quantiles.
NEAR = 2 ** (1 / 32) - 1
SMALL = ("--windows", 8, "--length", 64)


# --- one tensor -----------------------------------------------------------------------------------


def test_a_normal_distribution_as_it_is_known() -> None:
    normal = torch.randn(4000, 100, generator=torch.Generator().manual_seed(0))
    found = spread_of(normal)
    assert found.count == normal.numel() == found.below + sum(found.counts)
    assert (found.min, found.max) == (normal.min().item(), normal.max().item())
    assert found.kurtosis == pytest.approx(outliers(normal).kurtosis, rel=1e-9)
    assert found.mean == pytest.approx(normal.double().mean().item(), rel=1e-6)
    # Quantiles of |x|: 0.6745, 1.6449, 2.5758, 3.2905.
    known = {"0.5": 0.6745, "0.9": 1.6449, "0.99": 2.5758, "0.999": 3.2905}
    for share, value in known.items():
        assert found.quantiles[share] == pytest.approx(value, rel=0.02)
    absmax = normal.abs().amax(0).double()
    for share, value in found.channels.items():
        assert value == pytest.approx(absmax.quantile(float(share)).item())
    place = PER_OCTAVE * 0 - found.first
    between = ((normal.abs() >= 1) & (normal.abs() < 2 ** (1 / PER_OCTAVE))).sum().item()
    assert found.counts[place] == between


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=12, max_size=48),
    st.sampled_from([1, 2, 3, 4]),
)
def test_parts_come_to_the_same_as_the_whole(values: list[float], channels: int) -> None:
    whole = torch.tensor(values[: len(values) // 12 * 12]).view(-1, channels)
    adding = Spreading(channels)
    for part in whole.chunk(3):
        adding.add(part[None])
    together, apart = spread_of(whole), adding.spread()
    exact = ("count", "min", "max", "quantiles", "channels", "below", "first", "counts")
    assert [getattr(apart, x) for x in exact] == [getattr(together, x) for x in exact]
    assert apart.mean == pytest.approx(together.mean, rel=1e-9, abs=1e-9)
    magnitudes = sorted(abs(value) for value in whole.flatten().tolist())
    for share, found in together.quantiles.items():
        true = magnitudes[math.ceil(float(share) * len(magnitudes)) - 1]
        assert true < 2**-24 or found == pytest.approx(true, rel=NEAR + 1e-3)
    assert together.absmax == magnitudes[-1]


def test_zeros_and_constants_have_no_ratio() -> None:
    nothing = spread_of(torch.zeros(3, 4))
    assert (nothing.below, nothing.counts, nothing.kurtosis) == (12, (), None)
    assert nothing.absmax_over_median is None
    almost = torch.ones(4096, 4)  # of its variance, float64's sums of powers hold nothing
    almost[0, 0] += 2**-23
    assert spread_of(almost).kurtosis is None
    loud = torch.zeros(10, 4)
    loud[0, 0] = -3.0
    assert spread_of(loud).absmax == 3.0
    assert spread_of(loud).quantiles["0.5"] == 0.0
    with pytest.raises(SlmqError, match="not finite"):
        spread_of(torch.tensor([[1.0, math.nan]]))


# --- a model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [random_llama, random_qwen2])
def test_inputs_are_those_that_linears_read(make: Callable[[], Decoder]) -> None:
    model = make()
    tokens = tokens_for(model, 3, 16)
    found, reads = of_model(model, tokens)
    assert list(found) == list(model.anatomy.linears())
    for name, one in of_inputs(model, tokens).items():
        weights, inputs = found[name]
        assert inputs.kurtosis == pytest.approx(one.kurtosis, rel=1e-6)
        assert inputs.absmax_over_median == pytest.approx(one.absmax_over_median, rel=0.05)
        assert inputs.count == tokens.numel() * model.weights[f"{name}.weight"].shape[1]
        assert weights.count == model.weights[f"{name}.weight"].numel()
    q, k, v = model.anatomy.blocks(1, names.QKV)
    assert (reads[q], reads[k], reads[v]) == (q, q, q)
    assert found[q][1] == found[v][1]
    down = model.anatomy.block(1, names.DOWN)
    assert reads[down] == down


def smoothed(model: str = "demo-qwen2") -> Distributions:
    request = Request(in_words({"name": "w8a8"}), "smoothquant", windows=8, length=64)
    return observe(model, request, 4, ignore, lambda line: None)


@pytest.fixture(scope="module")
def found() -> Distributions:
    return smoothed()


def after(change: Change) -> Spread:
    assert change.after is not None
    return change.after


def test_smoothing_takes_from_inputs_what_it_gives_to_weights(found: Distributions) -> None:
    for linear in found.linears:
        inputs, weights = linear.inputs, linear.weights
        ratio = [s.absmax_over_median or math.inf for s in (inputs.before, after(inputs))]
        if linear.kind in (names.O, names.DOWN):
            assert after(weights) == weights.before
            assert ratio[1] == pytest.approx(ratio[0], rel=1e-3)
        else:
            assert ratio[0] > 3 * ratio[1]
            assert after(weights).absmax > weights.before.absmax


def test_rotating_takes_the_outliers_of_every_input() -> None:
    request = Request(in_words({"name": "w8a8"}), "spinquant", None, 8, 64, settings={"steps": 0})
    rotated = observe("demo-llama", request, 4, ignore, lambda line: None)
    downs = [linear for linear in rotated.linears if linear.kind == names.DOWN]
    for linear in downs:
        before, later = linear.inputs.before, after(linear.inputs)
        assert (before.absmax_over_median or 0) > 5 * (later.absmax_over_median or math.inf)


def test_what_is_measured_is_what_quantize_rounds() -> None:
    """The model that ``prepare`` makes is the one whose weights the checkpoint has."""
    request = Request(in_words({"name": "w8a8"}), "smoothquant", windows=8, length=64)
    planned = dataclasses.replace(plan("demo-llama", request), holds_out=True)
    shown: list[Decoder] = []
    quantize(planned, shown=shown.append)
    made = prepare(planned)
    assert made.anatomy == shown[0].anatomy
    assert made.weights.keys() == shown[0].weights.keys()
    for name, weight in made.weights.items():
        assert torch.equal(weight, shown[0].weights[name])


# --- the file -------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_written(found: Distributions, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(to_json(found))
    assert load(path) == found
    document = json.loads(path.read_text())
    assert (document["format"], document["version"]) == ("slmq-edge-distributions", 1)
    assert len(document["linears"]) == 35


def broken(found: Distributions, how: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(to_json(found))
    how(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        (lambda d: d.update(version=9), Unsupported, "version 9"),
        (lambda d: d.pop("version"), Unsupported, "version None"),
        (lambda d: d.update(format="slmq-edge-run"), Unsupported, "slmq-edge-run"),
        (lambda d: d.pop("method"), Damaged, "method is missing"),
        (lambda d: d["linears"][0].update(layer="0"), Damaged, "layer is str"),
        (lambda d: d["linears"][3]["inputs"]["before"].update(count=1), Damaged, "histogram"),
        (lambda d: d["linears"][3]["inputs"]["before"]["quantiles"].pop("0.99"), Damaged, "0.99"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(
    how: Callable[[dict[str, Any]], object],
    kind: type[SlmqError],
    words: str,
    found: Distributions,
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.json"
    path.write_text(broken(found, how))
    with pytest.raises(kind, match=words) as error:
        load(path)
    assert str(path) in str(error.value)


# --- reports --------------------------------------------------------------------------------------


def test_the_terminal_says_what_stands_out(found: Distributions) -> None:
    text = reports.terminal(found)
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("demo-qwen2, before -> after smoothquant (w8a8)\n")
    inputs, weights = text.split("\n\n")[1:]
    first = inputs.splitlines()[2].split()
    worst = max(
        (linear for linear in found.linears),
        key=lambda linear: linear.inputs.before.absmax_over_median or 0,
    )
    assert first[0] == short(worst.name)
    ratio = worst.inputs.before.absmax_over_median
    assert f"{ratio:.3g} -> {after(worst.inputs).absmax_over_median:.3g}" in inputs
    assert "self_attn.q_proj +2" in inputs
    assert len(weights.splitlines()) == 2 + reports.SHOWN
    released = dataclasses.replace(found, linears=tuple(map(unprepared, found.linears)))
    assert reports.terminal(released).startswith("demo-qwen2 as released\n")
    assert " -> " not in reports.terminal(released)


def unprepared(linear: Linear) -> Linear:
    weights, inputs = (Change(one.before, None) for one in (linear.weights, linear.inputs))
    return dataclasses.replace(linear, weights=weights, inputs=inputs)


def test_csv_and_markdown_have_every_figure(found: Distributions) -> None:
    rows = list(csv.DictReader(io.StringIO(reports.to_csv(found))))
    assert len(rows) == 35 * 4
    one = found.linears[6]
    (row,) = (
        r for r in rows if (r["linear"], r["what"], r["when"]) == (one.name, "inputs", "after")
    )
    assert float(row["kurtosis"]) == after(one.inputs).kurtosis
    assert float(row["quantile_0.99"]) == after(one.inputs).quantiles["0.99"]
    odd = dataclasses.replace(found, model="a|b<script>")
    text = reports.markdown(odd)
    assert "### a\\|b&lt;script>" in text
    assert text.count("| --- | ---: | ---: | ---: |") == 2


def test_the_plot_has_a_row_for_every_block(found: Distributions) -> None:
    root = drawn(plot(found))
    told = titles(root)
    assert telling(found) == (names.DOWN, names.Q)
    assert len(told) == 2 * 2 * found.layers
    assert told[0].startswith("block 0, inputs of mlp.down_proj: before largest ")
    one = found.linears[6].inputs.before
    assert f"largest {one.absmax:.4g}, 99.99 % below {one.quantiles['0.9999']:.4g}" in told[0]
    texts = [element.text for element in root.iter(f"{SVG}text")]
    # What smoothing leaves as it is, is said to be.
    assert {"inputs of mlp.down_proj, unchanged", "weights of self_attn.q_proj"} <= {*texts}
    assert "demo-qwen2: smoothquant, w8a8" in texts
    assert len(list(of_class(root, "plot-ridge"))) == 2 + 2 * len(told)


def test_curves_end_at_the_largest_value_and_stay_in_their_rows(found: Distributions) -> None:
    root = drawn(plot(found, kinds=[names.Q]))
    wide, high = (float(x) for x in str(root.get("viewBox")).split()[2:])
    for mark in marks(root):
        for outline, stroke in zip(
            mark.findall(f"{SVG}path"), mark.findall(f"{SVG}line"), strict=True
        ):
            at = [float(x) for x in re.findall(r"[ML]([\d.]+) ", str(outline.get("d")))]
            assert max(at) <= float(stroke.get("x1", "")) + 0.11 <= wide
            up = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", str(outline.get("d")))]
            assert float(stroke.get("y2", "")) - 0.11 <= min(up)
            assert max(up) <= high
    before, later = marks(root)[0].findall(f"{SVG}line")
    assert float(before.get("x1", "")) > float(later.get("x1", "")) + 50


def test_two_models_stand_side_by_side_on_one_axis(found: Distributions) -> None:
    other = dataclasses.replace(found, model="<other>")
    root = drawn(plot(found, other, kinds=[names.DOWN]))
    assert [float(x) for x in str(root.get("viewBox")).split()][2] == 2 * WIDTH
    assert "min-width" in str(root.get("style"))
    both = marks(root)
    assert len(both) == 4 * found.layers
    left, right = (both[place].find(f"{SVG}line") for place in (0, found.layers))
    assert left is not None
    assert right is not None
    assert float(right.get("x1", "")) - float(left.get("x1", "")) == pytest.approx(WIDTH, abs=0.11)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"demo-qwen2: smoothquant, w8a8", "<other>: smoothquant, w8a8"} <= {*texts}


def test_plots_of_odd_documents_are_drawn(found: Distributions) -> None:
    empty = dataclasses.replace(found, linears=())
    assert not marks(drawn(plot(empty)))
    zero = Change(spread_of(torch.zeros(3, 4)), None)
    silent = [dataclasses.replace(one, weights=zero, inputs=zero) for one in found.linears]
    assert not marks(drawn(plot(dataclasses.replace(found, linears=tuple(silent)))))
    released = dataclasses.replace(found, linears=tuple(map(unprepared, found.linears)))
    root = drawn(plot(released))
    assert "demo-qwen2: as released" in [element.text for element in root.iter(f"{SVG}text")]
    deep = [dataclasses.replace(found.linears[6], layer=n) for n in range(64)]
    assert len(marks(drawn(plot(dataclasses.replace(found, linears=tuple(deep)))))) == 128


# --- the verb -------------------------------------------------------------------------------------


def test_measured_once_and_drawn_again(here: Path) -> None:
    flags = ("--method", "smoothquant", *SMALL, "--held-out", 2)
    done(slmq("distributions", "demo-qwen2", *flags, "-o", "q.json", "--plot", "q.svg"))
    done(slmq("distributions", "demo-llama", *flags, "-o", "l.json"))
    assert load(here / "q.json").windows == 2
    assert len(marks(drawn((here / "q.svg").read_text()))) == 20
    done(slmq("distributions", "q.json", "--beside", "l.json", "-o", "both.svg"))
    assert len(marks(drawn((here / "both.svg").read_text()))) == 36
    told = done(slmq("distributions", "l.json"))
    assert told.stdout == reports.terminal(load(here / "l.json"))


def test_mistakes_are_one_line(here: Path) -> None:
    verb = ("distributions", "demo-llama")
    refused(slmq(*verb, "--format", "jsn"), UsageError, "unknown format 'jsn'", "json")
    refused(slmq(*verb, "--plot", "a.png"), UsageError, "--plot writes SVG", "a.svg")
    refused(slmq(*verb, "--plot", "a.svg", "-o", "a.svg"), UsageError, "two files")
    refused(slmq(*verb, "--beside", "b.json"), UsageError, "--beside is for drawings")
    refused(slmq(*verb, "--beside", "b.json", "--plot", "a.svg"), NotFound, "b.json")
    refused(slmq("distributions", "b.json"), NotFound, "no distributions at b.json")
    refused(slmq("distributions", "b.json", "-m", "none"), UsageError, "leave out --method")
    refused(slmq(*verb, "--method", "smoothqant"), UsageError, "did you mean smoothquant")
    (here / "a.json").write_text("mine")
    refused(slmq(*verb, "-o", "a.json"), SlmqError, "will not overwrite it without --force")
    assert slmq(*verb, "--held-out", 1).exit_code == 2
