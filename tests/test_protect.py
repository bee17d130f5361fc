"""--protect: what keeps 8 bits, in every method and every exporter, and that it is worth it."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge import checkpoint as checkpoints
from slmq_edge import estimate, quantization, quantize
from slmq_edge.analysis import protecting
from slmq_edge.calibration import Size, Text, split
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.decoder import Decoder, logits
from slmq_edge.errors import SlmqError, Unsupported, UsageError
from slmq_edge.export import check_scheme
from slmq_edge.exporters import Wanted, graph, onnx, probe
from slmq_edge.exporters.flavours import ORT, ORT_CUDA, ORT_SIGNED, Flavour
from slmq_edge.exporters.limits import needed_runtime
from slmq_edge.exporters.trt import convert, decoder
from slmq_edge.golden import kl_divergence, measure_noise
from slmq_edge.quantization import METHODS, Task, gptq
from slmq_edge.quantization.finished import Finished
from slmq_edge.recipe import Recipe, over
from slmq_edge.runner import probe as running_probe
from slmq_edge.scheme import Scheme, in_words, words_of
from slmq_edge.simulation import Simulation
from tests.artifacts import artifact_logits, artifact_logits_with_past, assert_close, session
from tests.decoders import (
    DECODERS,
    checkpoint_of,
    copied,
    random_llama,
    random_qwen2,
    text_for,
)
from tests.test_methods import FEW_STEPS, calibration_for, ignore
from tests.test_recipe import done, here, refused, slmq

__all__ = ["here"]

# Of what shares an input: one of three in the middle, one of two, and both that stand alone.
SOME = (
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.down_proj",
)


def protected(names: int | tuple[str, ...], **words: object) -> Scheme:
    return dataclasses.replace(in_words({"name": "w4a8", **words}), protected=names)


def made(name: str, method: str, wanted: Scheme) -> Checkpoint:
    """Prepared for the scheme as it is named, and rounded with what it protects."""
    model, chosen = DECODERS[name](), quantization.method(method)
    settings = chosen.Settings(**FEW_STEPS.get(method, {}))
    plain = dataclasses.replace(wanted, protected=())
    task = Task(plain, settings, calibration_for(model))
    prepared = chosen.prepare(copied(model), task)
    return checkpoint_of(prepared, dataclasses.replace(task, scheme=wanted), method)


# --- what is chosen -----------------------------------------------------------------------------


@lru_cache
def damage_of(name: str) -> dict[str, float]:
    tokens = text_for(name, 8, 64)
    return protecting.weight_damage(DECODERS[name](), in_words({"name": "w4a8"}), tokens, ignore)


@pytest.mark.parametrize("name", ["stories260K", "demo-llama", "demo-qwen2"])
def test_protecting_the_worst_wins_back_more_than_protecting_others(name: str) -> None:
    """In KL, on text that the choice was not made on."""
    tokens = text_for(name, 24, 64)[8:]
    model, damage = DECODERS[name](), damage_of(name)
    reference = logits(model, tokens)

    def kl(names: tuple[str, ...]) -> float:
        found = Simulation(protecting.plainly_rounded(model, protected(names)))
        return kl_divergence(reference, found.logits(tokens)).mean().item()

    count = 5
    worst = protecting.worst(damage, count)
    least = tuple(sorted(damage, key=lambda linear: damage[linear])[:count])
    assert kl(worst) < 0.85 * kl(())
    assert kl(worst) < 0.9 * kl(least)


def test_the_worst_are_named_in_the_order_in_which_they_run() -> None:
    damage = {"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.2}
    assert protecting.worst(damage, 3) == ("b", "c", "d")
    assert protecting.worst(damage, 2) == ("b", "c")
    assert protecting.in_words(damage, ("a", "b")) == (
        "8-bit weights in 2 of 4 linears: b (3.0e-01 nats), a (1.0e-01 nats)"
    )


def test_what_an_interrupted_run_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = random_qwen2(), calibration_for(random_qwen2()).tokens
    finished = Finished(tmp_path / "kept", {})
    task = Task(in_words({"name": "w4a8"}), None, finished=finished)
    first = protecting._damage(model, task, tokens)
    assert finished.count == 0, "it is no block"
    monkeypatch.setattr(protecting, "weight_damage", None)
    assert protecting._damage(model, task, tokens) == first


def test_a_run_that_is_interrupted_behind_the_choice_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = quantize.Request(in_words({"name": "w4a8", "protect": 2}), "none", windows=8)
    told: list[str] = []

    def run() -> Checkpoint:
        planned = quantize.plan("demo-llama", request, output=tmp_path / "made")
        return quantize.quantize(planned, note=told.append)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("slmq_edge.checkpoint.round_rest", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert told[-1] == "interrupted: the same command goes on with the ranking"
    monkeypatch.setattr(protecting, "weight_damage", None)
    found = run()
    assert found.scheme.protects == 2
    assert found.cost["resumed_with"] == ["ranking"]  # its seconds are not all of them


# --- rounding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["random Qwen2", "random untied Llama"])
def test_every_method_keeps_8_bits_where_it_is_told(name: str, method: str) -> None:
    checkpoint = made(name, method, protected(SOME))
    plain = made(name, method, protected(()))
    for linear in checkpoint.anatomy.linears():
        weight, other = checkpoint.integers[linear], plain.integers[linear]
        assert weight.grid.bits == (8 if linear in SOME else 4)
        assert (int(weight.integers.abs().max()) > 8) == (linear in SOME)
        if method not in ("gptq", "spinquant", "distill"):
            # GPTQ goes on from what comes out of what is before, distill learns all together.
            assert torch.equal(weight.integers, other.integers) == (linear not in SOME)
    reference = relative_steps(plain, SOME)
    assert relative_steps(checkpoint, SOME) < 0.05 * reference


def relative_steps(checkpoint: Checkpoint, linears: tuple[str, ...]) -> float:
    """The mean square of the steps of some linears, relative to that of their weights."""
    weights = [checkpoint.integers[linear] for linear in linears]
    return sum((w.scale.square().mean() / w.dequantized.square().mean()).item() for w in weights)


def test_omniquant_leaves_8_bit_ranges_whole() -> None:
    """Factors learned at 4 bits would cut off steps of them."""
    whole = made("random Qwen2", "none", protected(SOME)).integers
    learned = made("random Qwen2", "omniquant", protected(SOME)).integers
    for linear in SOME:
        row = learned[linear].integers.abs().amax(1)
        assert (row == whole[linear].grid.top).all()


# --- graphs -------------------------------------------------------------------------------------

FORMS: dict[str, Scheme] = {
    "w4a8": protected(SOME),
    "w4a8 asymmetric": protected(SOME, weights="asymmetric", activations="asymmetric"),
    "w4a8 static, int8 head": protected(SOME, activation_scale="tensor", lm_head="int8"),
    "w4a8-g32": protected(SOME, name="w4a8-g32"),
    "w4a8-b32": protected(SOME, name="w4a8-b32"),
    "w4a8-b32 asymmetric, int4 head": protected(
        SOME, name="w4a8-b32", weights="asymmetric", lm_head="int4"
    ),
    "w4a16": protected(SOME, name="w4a16"),
    "w4a16-g32": protected(SOME, name="w4a16-g32"),
}
ON_A_GPU = ("w4a8", "w4a16", "w4a16-g32")


@pytest.mark.parametrize(
    ("name", "form", "flavour"),
    [
        *((name, form, ORT) for name in ("random Qwen2", "random untied Llama") for form in FORMS),
        *(("demo-qwen2", form, ORT) for form in ("w4a8", "w4a8-b32")),
        ("stories260K", "w4a8", ORT),
        ("random Qwen2", "w4a8", ORT_SIGNED),
        *(("random untied Llama", form, ORT_CUDA) for form in ON_A_GPU),
    ],
)
def test_the_artifact_computes_what_the_simulation_promised(
    name: str, form: str, flavour: Flavour, tmp_path: Path
) -> None:
    checkpoint = made(name, "none", FORMS[form])
    running = session(onnx.write(checkpoint, flavour)[0], tmp_path)
    floats = getattr(torch, flavour.floats.name)
    windows = text_for(name, batch=128 if name.startswith("random") else 16, length=96)
    noise = measure_noise(checkpoint, Simulation(checkpoint, floats), windows)
    tokens = windows[:16]
    reference = Simulation(checkpoint).logits(tokens)
    assert_close(reference, artifact_logits(running, tokens), tokens, noise)
    past = artifact_logits_with_past(running, tokens, first=48)
    assert_close(reference[:, 47:], past, tokens[:, 47:], noise)


def test_a_graph_without_what_is_protected_is_seen(tmp_path: Path) -> None:
    """The comparison can fail."""
    checkpoint = made("demo-qwen2", "none", FORMS["w4a8"])
    tokens = text_for("demo-qwen2", batch=8, length=64)
    noise = measure_noise(checkpoint, Simulation(checkpoint), tokens)
    reference = Simulation(checkpoint).logits(tokens)
    plain = made("demo-qwen2", "none", protected(()))
    running = session(onnx.write(plain)[0], tmp_path)
    with pytest.raises(AssertionError):
        assert_close(reference, artifact_logits(running, tokens), tokens, noise)


@pytest.mark.parametrize("weights", ["symmetric", "asymmetric"])
def test_the_graph_for_tensorrt_computes_it_too(weights: str, tmp_path: Path) -> None:
    asked = made("demo-llama", "none", protected(SOME, weights=weights))
    text = text_for("demo-llama", batch=24, length=48)
    checkpoint, changes = convert.convert(asked, "pertoken", lambda: text[8:])
    assert [change.what for change in changes] == (
        ["weights symmetric"] if weights == "asymmetric" else []
    )
    written = decoder.write(checkpoint, 19)
    running = session(written.model, tmp_path)
    noise = measure_noise(checkpoint, Simulation(checkpoint, torch.float16), text)
    rows = [torch.from_numpy(running.prefill(row[None].numpy())[0]) for row in text[:8]]
    assert_close(Simulation(checkpoint).logits(text[:8]), torch.cat(rows), text[:8], noise)
    found = {one.name: one.scheme for one in written.multiplications if one.part == "linear"}
    assert {name for name, ran in found.items() if ran == "w8a8"} == set(SOME)


def test_the_report_names_them_and_is_called_mixed_where_they_are_many() -> None:
    """Decision 0016: a scheme gives its name from 95 % of the multiply-adds on."""
    checkpoint = made("random untied Llama", "none", FORMS["w4a8"])
    _, report = onnx.write(checkpoint)
    assert report.protected == SOME
    assert report.scheme_ran == "mixed"
    assert report.weights == ("int4 per channel, symmetric; 4 linears int8 per channel, symmetric")
    assert report.weight_storage_bits["linears"] == 4
    assert report.int8_gemm_share < 1.0 == report.linears[0].exact
    rows = {row.name.removeprefix("model.layers."): row for row in report.linears}
    assert [name for name in rows if name.startswith("0.")] == [
        "0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj", "0.self_attn.o_proj",
        "0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj",
    ]  # fmt: skip
    assert "1.self_attn.q_k_v_proj" in rows
    kept = rows["1.mlp.down_proj"]
    assert kept.asked_weights == "int8 per channel, symmetric"
    assert (kept.scheme, kept.storage_bits) == ("w8a8", 8)
    assert rows["0.mlp.down_proj"].asked_weights == "int4 per channel, symmetric"
    shape = checkpoint.anatomy
    linears = [row for row in report.linears if row.part == "linear"]
    assert sum(row.macs_per_token for row in linears) == shape.linear_macs_per_token
    few = made("demo-llama", "none", protected(("model.layers.2.self_attn.k_proj",)))
    assert onnx.write(few)[1].scheme_ran == "w4a8"


def test_both_widths_of_blocks_are_probed(tmp_path: Path) -> None:
    _, report = onnx.write(made("random Qwen2", "none", FORMS["w4a8-b32"]))
    assert report.integer_gemm is not None
    assert report.integer_gemm["bits"] == "4 and 8"
    model = probe.write_probe(report.integer_gemm)
    bits = [n.attributes["bits"].as_int() for n in model.graph if n.op_type == "MatMulNBits"]
    assert bits == [4, 8]
    graph.save(model, tmp_path / "probe.onnx")
    assert running_probe.largest_error(tmp_path / "probe.onnx", 1, {}) == 0
    assert running_probe.rounds_input(tmp_path / "probe.onnx", 1, {})


def test_what_cannot_be_mixed_is_refused_before_work() -> None:
    with pytest.raises(Unsupported, match=r"8-bit weights in groups of 32.*leave --protect out"):
        check_scheme(protected(3, name="w4a16-g32"), Wanted("trt"))
    blocks = protected(3, name="w4a8-b32")
    assert needed_runtime(blocks) == "modern"
    assert needed_runtime(in_words({"name": "w4a8-b32"})) == "portable"
    assert needed_runtime(protected(3, name="w4a16-g32")) == "portable"
    message = "w4a8-b32-p3 multiplies 8-bit blocks.*leave --protect out"
    with pytest.raises(Unsupported, match=message):
        check_scheme(blocks, Wanted("ort", "portable"))
    for target in ("ort", "ort-cuda", "trt"):
        check_scheme(protected(3), Wanted(target))


# --- words --------------------------------------------------------------------------------------


def test_words_and_schemes_are_each_others() -> None:
    for value in (3, list(SOME)):
        found = in_words({"name": "w4a8", "protect": value})
        assert found.protects == len(SOME[:3] if value == 3 else SOME)
        assert found.is_open == (value == 3)
        words = words_of(found)
        assert words is not None
        assert words["protect"] == value
        assert in_words(words) == found
        assert Scheme.from_json(json.loads(json.dumps(found.as_json()))) == found
    assert in_words({"name": "w8a8", "protect": 0}) == in_words({"name": "w8a8"})
    assert "protected" not in in_words({"name": "w4a8"}).as_json()
    assert protected(SOME).label == "w4a8-p4"
    assert in_words({"name": "w4a8", "protect": [*SOME, SOME[0]]}) == protected(SOME)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "w8a8", "protect": 2}, "8-bit weights everywhere: leave --protect 2 out"),
        ({"name": "fp32", "protect": 2}, "keeps everything in float: leave --protect 2 out"),
        ({"name": "w4a8", "protect": -1}, "cannot be -1"),
    ],
)
def test_protecting_nothing_is_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        in_words(words)


def test_a_recipe_with_names_keeps_them_until_what_they_were_chosen_for_changes() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    below = Recipe(
        model="a",
        method="gptq",
        scheme={"name": "w4a8", "weights": "symmetric", "protect": names},
        settings={"damping": 0.01},
    )

    def protect(**said: object) -> object:
        return over(Recipe(**said), below).scheme.get("protect")  # type: ignore[arg-type]

    assert protect() == names
    assert protect(scheme={"lm_head": "int8"}) == names
    assert protect(settings={"damping": 0.01}) == names
    for other in (
        {"model": "b"},
        {"method": "none"},
        {"calibration": {"file": "x.txt"}},
        {"calibration": {"windows": 4}},
        {"settings": {"damping": 0.1}},
        {"scheme": {"weights": "asymmetric"}},
        {"scheme": {"name": "w4a8-g32"}},
    ):
        assert protect(**other) == 2
    assert protect(scheme={"protect": 5}) == 5
    assert protect(scheme={"name": "w8a8"}) is None


def test_what_it_needs_is_estimated() -> None:
    shape = random_llama().anatomy
    plain, kept = in_words({"name": "w4a8"}), protected(3)
    more = estimate.written(shape, kept) - estimate.written(shape, plain)
    assert more == 3 * shape.hidden * shape.ffn // 2
    size = Size(4, 32)
    least = estimate.quantizing(shape, plain, "none", size, {})
    assert estimate.quantizing(shape, kept, "none", size, {}) > least + 44 * 2**22
    assert estimate.quantizing(shape, protected(SOME), "none", size, {}) == least


# --- the whole way ------------------------------------------------------------------------------


def test_from_the_command_line_to_the_bundle_and_back_by_the_recipe(here: Path) -> None:
    choices = ("--method", "none", "--scheme", "w4a8", "--protect", 3)
    done(slmq("quantize", "demo-llama", *choices))
    folder = here / "demo-llama-none-w4a8-p3-checkpoint"
    manifest = json.loads((folder / "checkpoint.json").read_text())
    names = manifest["scheme"]["protected"]
    assert len(names) == 3
    bits = {name: one["grid"]["bits"] for name, one in manifest["integers"].items()}
    assert {name for name, count in bits.items() if count == 8} == set(names)
    assert manifest["notes"][-1].startswith("8-bit weights in 3 of 28 linears: ")
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    assert recipe["scheme"]["protect"] == names
    again = done(slmq("quantize", "--config", folder / "recipe.toml", "-o", "again"))
    assert "8-bit weights in" not in again.stderr, "the names are in the recipe"
    assert (here / "again/weights.safetensors").read_bytes() == (
        folder / "weights.safetensors"
    ).read_bytes()
    loaded = checkpoints.load(folder)
    assert loaded.scheme.protected == tuple(names)
    done(slmq("export", folder, "-o", "bundle"))
    bundle = json.loads((here / "bundle/bundle.json").read_text())
    assert bundle["scheme_requested"] == "w4a8-p3"
    assert bundle["lowering"]["protected"] == names
    assert bundle["verified"] is not None
    told = done(slmq("inspect", "bundle", "--run")).stdout
    assert f"protected      {', '.join(n.removeprefix('model.layers.') for n in names)}" in told
    assert "as counted" in told
    told = done(slmq("inspect", folder)).stdout
    assert "w4a8-p3" in told
    assert names[0].removeprefix("model.layers.") in told


@pytest.mark.slow
def test_methods_choose_by_the_model_that_they_have_prepared(here: Path) -> None:
    """SmoothQuant mends what is worst in demo-llama: other linears are left to protect."""
    small = ("--windows", 8, "--length", 64, "--scheme", "w4a8", "--protect", 4)
    done(slmq("quantize", "demo-llama", "-m", "smoothquant", *small, "-o", "smooth"))
    done(slmq("quantize", "demo-llama", "-m", "gptq", *small, "-o", "gptq"))
    done(slmq("quantize", "demo-llama", "-m", "none", *small[4:], "-o", "plain"))
    chosen = {name: checkpoints.load(here / name).scheme.protected for name in ("smooth", "gptq")}
    plain = checkpoints.load(here / "plain").scheme.protected
    assert chosen["gptq"] == plain
    assert chosen["smooth"] != plain


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_choosing_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--windows", 8, "--length", 64, "--scheme", "w4a8", "--protect", 4)
    flags = ("quantize", "demo-llama", "-m", "gptq", *small, "-o")
    done(slmq(*flags, "whole"))
    plain, rounded = gptq.round_block, list[int]()

    def killed(model: Decoder, layer: int, *rest: Any) -> dict[str, IntegerWeight]:
        if layer == 2:
            raise KeyboardInterrupt
        rounded.append(layer)
        return plain(model, layer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(gptq, "round_block", killed)
        slmq(*flags, "resumed")
    assert rounded == [0, 1]
    monkeypatch.setattr(protecting, "weight_damage", None)
    told = done(slmq(*flags, "resumed")).stderr
    assert "going on behind block 2" in told
    assert "8-bit weights in 4 of 28 linears" in told
    for file in ("weights.safetensors", "recipe.toml"):
        assert (here / "resumed" / file).read_bytes() == (here / "whole" / file).read_bytes()


def test_mistakes_are_one_line_before_any_work(here: Path) -> None:
    w4a8 = ("quantize", "demo-llama", "--method", "none", "--scheme", "w4a8", "--protect")
    refused(slmq(*w4a8, 29), UsageError, "--protect 29", "28 linears")
    refused(slmq(*w4a8, -1), UsageError, "cannot be -1")
    recipe = here / "r.toml"
    recipe.write_text('[scheme]\nname = "w4a8"\nprotect = ["model.layers.0.mlp.up_prj"]\n')
    told = slmq("quantize", "demo-llama", "-m", "none", "--config", recipe, "-o", "x")
    refused(told, UsageError, "no linear 'model.layers.0.mlp.up_prj'", "mlp.up_proj?")
    recipe.write_text('[scheme]\nname = "w4a8"\nprotect = "all"\n')
    told = slmq("quantize", "demo-llama", "--config", recipe, "-o", "x")
    refused(told, UsageError, "scheme.protect must be a whole number or a list of strings")
    trt = ("export", "demo-llama", "-m", "none", "--target", "trt", "--scheme", "w4a16-g32")
    refused(slmq(*trt, "--protect", 1), Unsupported, "leave --protect out")
    (here / "short.txt").write_text("The ant is small. " * 300)
    told = slmq(*w4a8, 1, "--calib", "short.txt", "-o", "x")
    refused(told, SlmqError, "'short.txt' is too short to measure on", "--calib")


def test_text_is_split_by_documents_or_at_a_blank() -> None:
    many = Text("many", tuple(f"document {n}" for n in range(100)))
    kept, held = split(many)
    assert len(held.documents) == 20
    assert sorted(kept.documents + held.documents) == sorted(many.documents)
    one = Text("one", ("a few words " * 50,))
    kept, held = split(one)
    assert kept.documents[0] + held.documents[0] == one.documents[0]
    assert kept.documents[0].endswith(" ")
    assert 0.15 < len(held.documents[0]) / len(one.documents[0]) < 0.25
    assert split(Text("x", ("unbroken" * 10,)))[1].documents[0] == ("unbroken" * 10)[64:]


def test_what_is_looked_at_keeps_its_weights() -> None:
    model = random_llama()
    found = protecting.plainly_rounded(model, protected(SOME))
    assert {n for n, weight in found.integers.items() if weight.grid.bits == 8} == set(SOME)
    before = random_llama().weights
    assert model.weights.keys() == before.keys()
    assert all(torch.equal(model.weights[name], before[name]) for name in before)
