"""slmq-edge analyze: the damage of every part, what stands out, and how it is told."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from slmq_edge import anatomy as names
from slmq_edge.analysis import protecting
from slmq_edge.analysis.damage import START, Case, Damage, attention_of, measure
from slmq_edge.analysis.outliers import of_inputs, of_weights, outliers
from slmq_edge.analysis.parts import Cases, Part
from slmq_edge.analysis.sensitivity import Analysis, analyze
from slmq_edge.calibration import Size
from slmq_edge.decoder import Decoder, block, embed, hidden_states, logits
from slmq_edge.errors import SlmqError, Unsupported, UsageError
from slmq_edge.golden import kl_divergence
from slmq_edge.quantization import Prepared, Task, smoothquant
from slmq_edge.quantize import Request
from slmq_edge.reports import analyze as reports
from slmq_edge.reports.analyze_plot import COLOURS, svg
from slmq_edge.reports.plots import STYLE, as_file
from slmq_edge.scheme import in_words
from slmq_edge.simulation import Simulation, token_log_probabilities
from tests.decoders import (
    DECODERS,
    checkpoint_of,
    copied,
    random_llama,
    random_qwen2,
    text_for,
    tokens_for,
)
from tests.test_methods import calibration_for, ignore
from tests.test_recipe import done, here, refused, slmq

__all__ = ["here"]

WORDS: dict[str, dict[str, object]] = {
    "w4a8": {"name": "w4a8"},
    "w4a16-g32": {"name": "w4a16-g32"},
    "w4a8-b32, int4 head": {"name": "w4a8-b32", "lm_head": "int4"},
    "w4a8, all": {"name": "w4a8", "activations": "asymmetric", "kv": 8, "lm_head": "int8"},
    "w8a8 static": {"name": "w8a8", "activation_scale": "tensor", "embedding": "int8"},
}


def analyzed(model: Decoder, form: str) -> tuple[Cases, dict[Case, Damage], torch.Tensor]:
    """All cases of a model that is rounded to nearest; static ranges are found on other tokens."""
    task = Task(in_words(WORDS[form]), smoothquant.Settings(), calibration_for(model))
    prepared = Prepared(model)
    cases = Cases(checkpoint_of(prepared, task, "none"))
    tokens = tokens_for(model, 4, 24, seed=3)
    _, found = measure(model, cases.checkpoint, tokens, cases.all(), ignore)
    return cases, found, tokens


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", WORDS)
@pytest.mark.parametrize("name", ["random Qwen2", "random untied Llama"])
def test_all_parts_together_are_the_simulation(name: str, form: str) -> None:
    """What is measured of the whole is what the artifact is held to."""
    model = DECODERS[name]()
    cases, found, tokens = analyzed(model, form)
    whole = cases.whole.part(found).damage["both"]
    reference, rounded = logits(model, tokens), Simulation(cases.checkpoint).logits(tokens)
    assert whole.kl == pytest.approx(kl_divergence(reference, rounded).mean().item(), rel=1e-6)
    change = [token_log_probabilities(x, tokens).mean() for x in (reference, rounded)]
    assert whole.perplexity_ratio == pytest.approx(math.exp(change[0] - change[1]), rel=1e-9)
    by_window = kl_divergence(reference, rounded).mean(1)
    assert whole.kl_error == pytest.approx(by_window.std().item() / len(tokens) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("form", ["w4a8", "w8a8 static", "w4a8-b32, int4 head"])
def test_one_part_alone_is_what_only_it_rounds(form: str) -> None:
    """Against a whole pass of its own, without anything that is shared."""
    model = random_qwen2()
    cases, found, tokens = analyzed(model, form)
    simulation, reference = Simulation(cases.checkpoint), logits(model, tokens)
    for linear in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        weight = simulation.checkpoint.integers[linear].dequantized

        def project(
            inputs: torch.Tensor, linears: tuple[str, ...], one: str = linear
        ) -> tuple[torch.Tensor, ...]:
            rounded = dict(zip(linears, simulation.project(inputs, linears), strict=True))
            floats = dict(zip(linears, model.project(inputs, linears), strict=True))
            return tuple(rounded[n] if n == one else floats[n] for n in linears)

        hidden = hidden_states(model, tokens, project)
        (both,) = model.project(hidden, (names.HEAD,))
        changed = dataclasses.replace(model, weights=dict(model.weights))
        changed.weights[f"{linear}.weight"] = weight
        (part,) = (one.part(found) for one in cases.single if one.name == linear)
        expected = {"both": both, "weights": logits(changed, tokens)}
        for kind, out in expected.items():
            kl = kl_divergence(reference, out).mean().item()
            assert part.damage[kind].kl == pytest.approx(kl, rel=1e-3)  # type: ignore[index]
        assert 0 < part.damage["activations"].kl < part.damage["both"].kl


def test_parts_are_all_that_the_scheme_rounds_and_no_more() -> None:
    def kinds(form: str) -> list[str]:
        return [one.kind for one in analyzed(random_qwen2(), form)[0].single]

    linears = list(names.LINEARS)
    assert kinds("w4a8") == linears * 2
    assert kinds("w4a8, all") == ["lookup table", *[*linears, "attention"] * 2, "lm_head"]
    assert kinds("w8a8 static") == ["lookup table", *linears * 2, "lm_head"]
    cases, found, _ = analyzed(random_qwen2(), "w4a8, all")
    parts = {one.name: one.part(found) for one in cases.single}
    assert set(parts[names.EMBED].damage) == {"both", "weights"}
    assert set(parts[attention_of(1)].damage) == {"both", "activations"}
    assert set(parts[names.HEAD].damage) == {"both", "weights", "activations"}
    assert parts[names.EMBED].damage["both"] == parts[names.EMBED].damage["weights"]
    assert all(part.kl > 0 for part in parts.values())
    weights_alone = analyzed(random_qwen2(), "w4a16-g32")[0].single[0]
    assert set(weights_alone.cases) == {"weights"}
    firsts = {one.name: next(iter(one.cases.values())).first for one in cases.single}
    assert (firsts[names.EMBED], firsts[names.HEAD]) == (START, 2)
    assert firsts["model.layers.1.mlp.up_proj"] == 1


def test_only_what_follows_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case of block k goes on from the float stream: layers - k blocks, and not all of them."""
    from slmq_edge.analysis import damage

    model = random_llama()
    checkpoint = protecting.plainly_rounded(model, in_words({"name": "w4a8"}))
    ran: list[int] = []

    def counted(which: Decoder, layer: int, *rest: object) -> torch.Tensor:
        ran.append(layer)
        return block(which, layer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(damage, "block", counted)
    cases = [
        Case(frozenset({model.anatomy.block(layer, names.DOWN)}), "weights", layer)
        for layer in range(2)
    ]
    shares: list[float] = []
    measure(model, checkpoint, tokens_for(model), cases, lambda share, what: shares.append(share))
    # The reference, the stream that is moved on, and the cases of the first and the second block.
    assert sorted(ran) == sorted([0, 1, 0, 1, 0, 1, 1])
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_windows_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from slmq_edge.analysis import damage

    together = analyzed(random_qwen2(), "w4a8")
    monkeypatch.setattr(damage, "HELD_LOGITS", 1)
    apart = analyzed(random_qwen2(), "w4a8")
    for case, one in together[1].items():
        assert apart[1][case].kl == pytest.approx(one.kl, rel=0.05)
        assert apart[1][case].perplexity_ratio == pytest.approx(one.perplexity_ratio, rel=1e-3)


def test_what_rounds_nothing_costs_nothing() -> None:
    model = random_qwen2()
    checkpoint = protecting.plainly_rounded(model, in_words({"name": "w4a8"}))
    nothing = Case(frozenset(), "both", 0)
    _, found = measure(model, checkpoint, tokens_for(model), [nothing], ignore)
    assert found[nothing] == Damage(0.0, pytest.approx(0.0, abs=1e-12), 1.0)  # type: ignore[arg-type]


# --- outliers -----------------------------------------------------------------------------------


def test_outliers_of_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 100, generator=generator)
    found = outliers(normal)
    assert found.kurtosis == pytest.approx(3.0, abs=0.05)
    assert 0.85 <= found.absmax_channels <= 0.9
    assert found.absmax_over_median == pytest.approx(
        normal.abs().max().item() / normal.abs().median().item()
    )
    loud = normal.clone()
    loud[:, 7] *= 50
    found = outliers(loud)
    assert found.kurtosis is not None
    assert found.kurtosis > 50
    assert found.absmax_channels == 0.01
    loud[:2000, 11] = 1000.0
    assert outliers(loud).absmax_channels == 0.02
    assert outliers(torch.zeros(3, 4)) == type(found)(None, None, 0.25)


def test_inputs_are_those_that_linears_read() -> None:
    model, tokens = random_llama(), tokens_for(random_llama(), 3, 16)
    found = of_inputs(model, tokens)
    assert list(found) == list(model.anatomy.linears()) == list(of_weights(model))
    q, k, v = (found[name] for name in model.anatomy.blocks(0, names.QKV))
    assert q == k == v
    normed = torch.nn.functional.rms_norm(
        embed(model, tokens),
        (model.anatomy.hidden,),
        model.weights["model.layers.0.input_layernorm.weight"],
        model.anatomy.norm_eps,
    )
    assert q == outliers(normed.flatten(0, 1))
    up = model.weights["model.layers.1.mlp.up_proj.weight"]
    assert of_weights(model)["model.layers.1.mlp.up_proj"] == outliers(up)


# --- the verb -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Analysis:
    request = Request(scheme=in_words({"name": "w4a8"}), method="none")
    of_8 = analyze("demo-llama", request, 8, ignore, lambda line: None)
    assert not of_8.is_choice, "that is made on 16 windows"
    return dataclasses.replace(of_8, is_choice=True)


def test_the_ranking_is_the_one_that_protect_takes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protecting, "MEASURED", Size(windows=8, length=64))
    done(slmq("analyze", "demo-llama", "--scheme", "w4a8", "--format", "json", "-o", "a.json"))
    document = json.loads((here / "a.json").read_text())
    flags = ("--method", "none", "--scheme", "w4a8", "--protect", 4, "-o", "kept")
    done(slmq("quantize", "demo-llama", *flags))
    manifest = json.loads((here / "kept/checkpoint.json").read_text())
    assert set(manifest["scheme"]["protected"]) == set(document["worst_by_weights"][:4])
    assert (document["windows"], document["length"]) == (8, 64)


@pytest.mark.slow
def test_a_method_is_measured_on_text_that_it_did_not_see(here: Path) -> None:
    small = ("--method", "smoothquant", "--windows", 8, "--length", 64, "--scheme", "w4a8")
    flags = ("--protect", 2, "--kv", 8, "--held-out", 4, "--format", "json", "-o", "a.json")
    told = done(slmq("analyze", "demo-qwen2", *small, *flags))
    assert "note: 8-bit weights in 2 of 35 linears" in told.stderr
    document = json.loads((here / "a.json").read_text())
    assert document["scheme"] == "w4a8-p2"
    assert document["windows"] == 4
    kept = [one["name"] for one in document["parts"] if one["bits"] == 8]
    assert len(kept) == 2
    assert not set(kept) & set(document["worst_by_weights"])
    assert len(document["worst_by_weights"]) == 33
    assert [one["kind"] for one in document["parts"]].count("attention") == 5


def test_smoothing_takes_the_outliers_of_inputs() -> None:
    """What SmoothQuant is for, seen in demo-qwen2, whose norms have loud channels."""
    model = DECODERS["demo-qwen2"]()
    tokens = text_for("demo-qwen2", 8, 64)
    settings = smoothquant.Settings(alpha=0.5)
    task = Task(in_words({"name": "w8a8"}), settings, calibration_for(model, 8))
    smooth = smoothquant.prepare(copied(model), task).model
    before, after = of_inputs(model, tokens), of_inputs(smooth, tokens)
    fed = [name for name in before if not name.endswith((names.O, names.DOWN))]
    assert all(_ratio(before[name]) > 1.5 * _ratio(after[name]) for name in fed)


def _ratio(found: object) -> float:
    ratio = getattr(found, "absmax_over_median")  # noqa: B009  None is not expected here
    assert isinstance(ratio, float)
    return ratio


def test_mistakes_are_one_line(here: Path) -> None:
    w4a8 = ("analyze", "demo-llama", "--scheme", "w4a8")
    refused(slmq("analyze", "demo-llama", "--scheme", "fp32"), Unsupported, "no damage to analyze")
    refused(slmq(*w4a8, "--format", "jsn"), UsageError, "unknown format 'jsn'", "json")
    refused(slmq(*w4a8, "--plot", "a.png"), UsageError, "--plot writes SVG", "a.svg")
    refused(slmq(*w4a8, "--plot", "a.svg", "-o", "a.svg"), UsageError, "two files")
    (here / "a.svg").write_text("mine")
    refused(slmq(*w4a8, "--plot", "a.svg"), SlmqError, "will not overwrite it without --force")
    (here / "short.txt").write_text("The ant is small. " * 100)
    told = slmq(*w4a8, "--calib", "short.txt")
    refused(told, SlmqError, "'short.txt' is too short to measure on")
    assert slmq(*w4a8, "--held-out", 1).exit_code == 2


# --- reports ------------------------------------------------------------------------------------


def test_csv_has_a_row_for_everything(found: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(reports.to_csv(found))))
    assert [row["level"] for row in rows] == ["model", *["block"] * 4, *["part"] * 28]
    assert float(rows[0]["both_kl"]) == found.whole.kl
    worst = max(rows[5:], key=lambda row: float(row["weights_kl"]))
    assert worst["name"] == found.worst[0]
    assert float(worst["weight_kurtosis"]) > 3
    assert float(worst["input_absmax_channels"]) < 0.2
    assert rows[0]["weight_kurtosis"] == rows[1]["input_kurtosis"] == ""


def test_json_is_all_of_it(found: Analysis) -> None:
    document = json.loads(reports.to_json(found))
    assert (document["format"], document["version"]) == ("slmq-edge-analysis", 1)
    assert document["sum_kl"] == pytest.approx(
        sum(p["damage"]["both"]["kl"] for p in document["parts"])
    )
    assert document["sum_kl"] == pytest.approx(sum(document["by_kind"].values()))
    assert document["worst_by_weights"] == list(found.worst)
    assert len(found.worst) == 28


def test_the_terminal_says_where_the_loss_comes_from(found: Analysis) -> None:
    text = reports.terminal(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "demo-llama, w4a8 by none\n" in text
    assert f"single parts summed: KL {found.sum:.1e}" in text
    assert "the 20 worst of 28" in text
    first = text.split("by weights\n")[1].splitlines()[0].split()
    worst = max(found.parts, key=lambda part: part.kl)
    assert first[:2] == [reports.short(worst.name), "4"]
    kept = f"--protect 3 keeps 8-bit weights in {reports.short(found.worst[0])}"
    assert kept in text
    assert kept not in reports.terminal(dataclasses.replace(found, is_choice=False))


def part(kl: float, name: str = "model.layers.0.mlp.up_proj", layer: int | None = 0) -> Part:
    one = Damage(kl, kl / 10, 1 + kl)
    return Part(name, "mlp.up_proj", layer, 4, 10, {"both": one, "weights": one})


def small(*kls: float, model: str = "m") -> Analysis:
    blocks = tuple(
        dataclasses.replace(part(kl, f"model.layers.{n}", n), kind="block")
        for n, kl in enumerate(kls)
    )
    parts = tuple(part(kl, f"model.layers.{n}.mlp.up_proj", n) for n, kl in enumerate(kls))
    whole = part(sum(kls), "model", None)
    return Analysis(model, "none", "w4a16", "text", "0", 2, 8, 5.0, whole, blocks, parts)


SVG = "{http://www.w3.org/2000/svg}"


def test_the_plot_has_a_mark_for_everything(found: Analysis) -> None:
    root = ET.fromstring(svg(found))
    assert root.tag == f"{SVG}svg"
    cells = [box for box in root.iter(f"{SVG}rect") if box.get("class") == "plot-cell plot-s2"]
    assert len(cells) == 28 + 4, "the parts, and the scale"
    shades = [float(cell.get("fill-opacity", "")) for cell in cells]
    assert max(shades) == 1.0
    assert min(shades) >= 0.06
    bars = {
        kind: [box for box in root.iter(f"{SVG}rect") if COLOURS[kind] in box.get("class", "")]
        for kind in ("weights", "activations")
    }
    assert {kind: len(found) for kind, found in bars.items()} == {
        "weights": 4 + 1, "activations": 4 + 1,
    }  # fmt: skip
    titles = [str(title.text) for title in root.iter(f"{SVG}title")]
    assert any(title.startswith("0.self_attn.k_proj: KL ") for title in titles)
    wide, high = (float(x) for x in root.get("viewBox", "").split()[2:])
    for box in root.iter(f"{SVG}rect"):
        assert 0 <= float(box.get("x", 0)) <= wide - float(box.get("width", 0)) + 0.2
        assert 0 <= float(box.get("y", 0)) <= high - float(box.get("height", 0)) + 0.2


def test_the_plot_is_whole_and_needs_nothing_else() -> None:
    """No script, nothing fetched, all text escaped, colours of its own for a dark page."""
    text = as_file(svg(small(1e-3, 2e-3, model="<b>&\"'")))
    ET.fromstring(text)
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") == 1
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert STYLE in text


@pytest.mark.parametrize("kls", [(0.0, 0.0), (1e-9, 3.0), (1e-4,) * 64, (9.999999,)])
def test_reports_of_any_size_are_drawn(kls: tuple[float, ...]) -> None:
    one = small(*kls)
    for text in (svg(one), *(write(one) for write in reports.WRITERS.values())):
        assert "nan" not in text.lower()
    ET.fromstring(svg(one))
