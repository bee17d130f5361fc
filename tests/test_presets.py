"""Words make schemes and settings, presets fill in what is not said, and nonsense is one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from slmq_edge import quantization
from slmq_edge.deviations import Run, deviations
from slmq_edge.errors import Unsupported, UsageError
from slmq_edge.presets import (
    PRESETS,
    Preset,
    as_released,
    check_exportable,
    check_words,
    preset,
    scheme_for,
)
from slmq_edge.quantization import METHODS, distill, spinquant
from slmq_edge.quantize import Plan, Request, plan
from slmq_edge.scheme import SCHEMES, Grid, Scheme, in_words, scheme, words_of
from slmq_edge.settings import OPTIONS, pairs, settings_of
from tests import method_in_blocks
from tests.decoders import QWEN2
from tests.method_in_blocks import Settings


def test_words_name_every_part_of_a_scheme() -> None:
    found = in_words(
        {
            "name": "w4a8-g32",
            "weights": "asymmetric",
            "activations": "asymmetric",
            "activation_scale": "tensor",
            "range": "mse",
            "kv": 8,
            "lm_head": "int8",
            "embedding": "float",
        }
    )
    assert found.weights == Grid(4, "channel", symmetric=False, group=32)
    assert found.activations == Grid(8, "tensor", symmetric=False)
    assert found.kv == Grid(8, "token", symmetric=False)
    assert (found.range, found.head, found.embedding) == ("mse", Grid(8, "channel"), None)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_its_own_words(name: str) -> None:
    words = words_of(scheme(name))
    assert words is not None
    assert in_words(words) == scheme(name)
    assert in_words({"name": name}) == scheme(name)


@pytest.mark.parametrize(
    ("name", "group"), [("w4a8-b128", 128), ("w4a16-g32", 32), ("w4a16", None)]
)
def test_an_int4_head_has_the_groups_of_its_scheme(name: str, group: int | None) -> None:
    found = in_words({"name": name, "lm_head": "int4"})
    assert found.head == Grid(4, "channel", group=group)
    assert found.input_grid("lm_head") == found.activations
    words = words_of(found)
    assert words is not None
    assert (words["lm_head"], in_words(words)) == ("int4", found)


def test_a_scheme_that_no_words_describe_has_none() -> None:
    odd = dataclasses.replace(scheme("w8a8"), query=Grid(8, "token"))
    assert words_of(odd) is None
    assert words_of(Scheme("w3a8", Grid(3, "channel"), Grid(8, "token"))) is None
    assert words_of(dataclasses.replace(scheme("w4a8"), embedding=Grid(4, "channel"))) is None
    assert words_of(dataclasses.replace(scheme("w4a8"), head=Grid(4, "channel", group=8))) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "w8a9"}, "did you mean w8a8"),
        ({"name": "w8a8", "weights": "symetric"}, "did you mean symmetric"),
        ({"name": "w8a8", "kv": 9}, "unknown kv '9'.*known: 16, 8"),
        ({"name": "w8a8", "range": "mse"}, "needs --activation-scale tensor"),
        ({"name": "w4a16", "activations": "asymmetric"}, "leave --activations asymmetric out"),
        ({"name": "w4a16", "activation_scale": "tensor"}, "leaves activations in float"),
        ({"name": "fp", "weights": "asymmetric"}, "fp32 keeps everything in float"),
        ({"name": "fp32", "kv": 8}, "8-bit keys and values"),
        ({"name": "fp32", "lm_head": "int8"}, "has no int8 lm_head"),
        ({"name": "fp32", "lm_head": "int4"}, "has no int4 lm_head"),
        ({"name": "w4a8-b32", "embedding": "int4"}, "unknown embedding 'int4'"),
    ],
)
def test_words_that_make_no_sense_are_one_line(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        in_words(words)
    assert "\n" not in str(caught.value)


def test_presets_have_the_symmetry_of_their_source() -> None:
    def symmetry(name: str, method: str) -> tuple[str, str]:
        found = PRESETS[name][method]
        return found.weights, found.activations

    plain, mixed, skew = ("symmetric",) * 2, ("symmetric", "asymmetric"), ("asymmetric",) * 2
    upstream = {"smoothquant": plain, "gptq": mixed, "omniquant": skew, "spinquant": mixed}
    paper = {"smoothquant": plain, "omniquant": mixed[::-1], "spinquant": skew}
    for method, expected in upstream.items():
        assert symmetry("upstream", method) == symmetry("fast", method) == expected
    for method, expected in paper.items():
        assert symmetry("paper", method) == expected
    assert all(symmetry(name, "none") == plain for name in PRESETS)
    ours = {name: symmetry(name, "distill")[0] for name in PRESETS}
    assert ours == {**dict.fromkeys(PRESETS, "symmetric"), "best": "asymmetric"}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_preset_names_settings_that_there_are(name: str, method: str) -> None:
    """A setting without an option must be a field; one with an option may be another release's."""
    kind = quantization.method(method).Settings
    fields = {field.name for field in dataclasses.fields(kind)}
    others = {"lwc", "augmented", "clip_search", "clip"}
    assert set(preset(name, method).settings) <= fields | set(OPTIONS) | others
    settings_of(kind, method, {}, preset(name, method).values(8))


def test_a_method_refuses_before_the_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    method_in_blocks.install(monkeypatch)
    request = Request(scheme("w8a8"), method_in_blocks.NAME, settings={"gqa": "never"})
    with pytest.raises(Unsupported, match="blocks cannot do w8a8 with"):
        plan("demo-llama", request)


def test_distill_has_its_own_defaults_where_nobody_released_any() -> None:
    def planned(name: str) -> Plan:
        return plan("demo-llama", Request(scheme("w4a8"), "distill", preset=name))

    for name in ("upstream", "upstream-exact", "paper"):
        found = planned(name)
        assert found.settings == distill.Settings()
        assert found.size == distill.CALIBRATION
        assert found.request.scheme == scheme("w4a8")
    fast, best = planned("fast"), planned("best")
    assert fast.settings.epochs < distill.Settings().epochs < best.settings.epochs
    assert fast.size.windows < distill.CALIBRATION.windows == best.size.windows
    check_exportable("upstream-exact", "distill")


def test_alpha_follows_the_weights() -> None:
    def alpha(precision: str) -> float:
        request = Request(scheme(precision), "smoothquant", preset="upstream")
        return float(plan("demo-llama", request).settings.alpha)

    assert (alpha("w8a8"), alpha("w4a8"), alpha("w4a8-g32")) == (0.85, 0.5, 0.5)


def test_what_is_said_goes_over_the_preset() -> None:
    request = Request(
        scheme("w8a8"), "spinquant", preset="fast", windows=9, settings={"steps": "7"}
    )
    planned = plan("demo-llama", request)
    assert planned.settings.steps == 7
    assert (planned.size.windows, planned.size.length) == (9, 512)
    words = {"name": "w8a8", "activations": "symmetric"}
    assert scheme_for(preset("upstream", "spinquant"), words) == scheme("w8a8")


def test_the_length_is_no_longer_than_the_model_allows() -> None:
    planned = plan("demo-llama", Request(scheme("w8a8"), "spinquant", preset="upstream"))
    assert planned.size.windows == 128
    assert planned.size.length == min(2048, planned.anatomy.max_positions)


def test_a_preset_leaves_out_what_a_scheme_lacks() -> None:
    chosen = Preset(weights="asymmetric", activations="asymmetric")
    found = scheme_for(chosen, {"name": "w4a16"})
    assert found.activations is None
    assert found.weights == Grid(4, "channel", symmetric=False)
    assert scheme_for(chosen, {"name": "fp32"}) == scheme("fp32")


def test_upstream_exact_rounds_what_the_released_code_does() -> None:
    operands = Grid(8, "token", symmetric=False, zero=False)
    omni = as_released(scheme("w8a8"), "omniquant", QWEN2)
    assert (omni.query, omni.kv, omni.mixed) == (operands, operands, None)
    by_head = dataclasses.replace(operands, group=QWEN2.head_dim)
    asymmetric = in_words({"name": "w8a8", "activations": "asymmetric"})
    spin = as_released(asymmetric, "spinquant", QWEN2)
    assert (spin.query, spin.kv, spin.mixed) == (None, None, by_head)
    assert as_released(scheme("w4a16"), "omniquant", QWEN2) == scheme("w4a16")
    assert as_released(scheme("w8a8"), "smoothquant", QWEN2) == scheme("w8a8")
    request = Request(asymmetric, "spinquant", preset="upstream-exact")
    assert plan("demo-llama", request).request.scheme.mixed is not None


def test_upstream_exact_goes_over_no_word_that_was_said() -> None:
    with pytest.raises(UsageError, match="leave --kv 16 out"):
        check_words("upstream-exact", "omniquant", {"name": "w8a8", "kv": 16})
    static = {"name": "w8a8", "activation_scale": "tensor"}
    with pytest.raises(UsageError, match="leave --activation-scale tensor out"):
        check_words("upstream-exact", "spinquant", static)
    check_words("upstream", "spinquant", static)
    check_words("upstream-exact", "omniquant", {"name": "w4a16", "kv": 16})
    check_words("upstream-exact", "spinquant", {"name": "w8a8", "kv": 16})


def test_upstream_exact_is_not_exported() -> None:
    with pytest.raises(Unsupported, match="--preset upstream"):
        check_exportable("upstream-exact", "spinquant")
    check_exportable("upstream-exact", "smoothquant")
    check_exportable("upstream", "spinquant")


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("upstrem", "none", "did you mean upstream"),
        ("fast", "omniquand", "unknown method 'omniquand'"),
    ],
)
def test_unknown_presets_and_methods(name: str, method: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset(name, method)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "12", 12),
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("careful", "yes", True),
        ("careful", False, False),
        ("gqa", "skip", "skip"),
        ("alpha", "auto", "auto"),
        ("alpha", "0.4", 0.4),
        ("alpha", "none", None),
        ("learn_weights", "16", 16),
        ("learn_weights", "target", "target"),
        ("online", "auto", "auto"),
        ("online", "off", False),
        ("online", True, True),
    ],
)
def test_settings_are_read_by_the_types_of_their_fields(name: str, text: Any, value: Any) -> None:
    found = getattr(settings_of(Settings, "blocks", {name: text}, {}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("steps", "1.5", "--steps takes a whole number, not '1.5'"),
        ("steps", True, "--steps takes a whole number"),
        ("steps", "-1", "--steps cannot be -1"),
        ("careful", "maybe", "--set careful takes true or false"),
        ("learn_weights", "8", "--learn-weights takes 16 or target, not '8'"),
        ("alpha", "much", "--alpha takes auto or none or a number"),
        ("setps", "1", r"no setting --set setps \(did you mean steps\?\)"),
        ("epochs", "1", "no setting --epochs; its settings: --steps, --rate, --set careful"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(name: str, text: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(Settings, "blocks", {name: text}, {})


def test_defaults_that_a_method_does_not_know_do_not_apply() -> None:
    found = settings_of(Settings, "blocks", {"rate": 1}, {"rate": 9.0, "steps": 5, "gone": 1})
    assert (found.rate, found.steps) == (1.0, 5)


def test_pairs_of_names_and_values() -> None:
    assert pairs(["clip=0.5", "let-rate = 1"], {"steps": "2"}) == {
        "clip": "0.5",
        "let_rate": "1",
        "steps": "2",
    }
    for given in (["clip"], ["=1"], ["steps=3"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match=r"NAME=VALUE|twice"):
            pairs(given, {"steps": "2"})


def test_deviations_say_what_the_released_code_does_otherwise() -> None:
    settings = dataclasses.asdict(spinquant.Settings(steps=5))
    asymmetric = in_words({"name": "w8a8", "activations": "asymmetric"})
    run = Run("spinquant", asymmetric, settings, "WikiText-2 train", 128, 2048)
    lines = deviations(run)
    assert "steps 5; released: 100" in lines
    assert any(line.startswith("o_proj's input has one scale a token") for line in lines)
    assert not any("WikiText-2" in line or "symmetry" in line for line in lines)
    changed = deviations(
        dataclasses.replace(run, scheme=scheme("w8a8"), text="diary.txt", windows=32)
    )
    assert "calibrated on diary.txt; released: WikiText-2 train" in changed
    assert "windows 32; released: 128" in changed
    assert "symmetry of activations symmetric; released: asymmetric" in changed
    exact = dataclasses.replace(run, scheme=as_released(asymmetric, "spinquant", QWEN2))
    assert not any("o_proj" in line for line in deviations(exact))
    assert deviations(Run("none", scheme("w8a8"), {}, None, None, None)) == ()


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_of_distill_deviates_from_a_release_that_there_is_none_of(name: str) -> None:
    kind = distill.Settings
    settings = settings_of(kind, "distill", {"minutes": 2}, preset(name, "distill").values(4))
    words = {"name": "w4a8-g32", "weights": "asymmetric", "kv": 8, "lm_head": "int8"}
    run = Run("distill", in_words(words), dataclasses.asdict(settings), "diary.txt", 9, 32)
    assert deviations(run) == ()


def lines_of(method: str, chosen: Scheme, **changes: Any) -> str:
    kind = quantization.method(method).Settings
    bits = chosen.weights.bits if chosen.weights else 8
    settings = settings_of(kind, method, changes, preset("upstream", method).values(bits))
    run = Run(method, chosen, dataclasses.asdict(settings), "a text", 128, 2048)
    return "\n".join(deviations(run))


@pytest.mark.parametrize(
    ("method", "words", "changes", "absent", "on"),
    [
        ("omniquant", {"name": "w4a16"}, {}, ("attention", "shared", "folded"), {"name": "w4a8"}),
        ("omniquant", {"name": "w8a8"}, {"let": False}, ("shared", "folded"), {"name": "w8a8"}),
        ("omniquant", {"name": "w8a8", "kv": 8}, {}, ("operands", "kv 8"), {"name": "w8a8"}),
        ("spinquant", {"name": "w8a8"}, {"rounding": "nearest", "polish": 2}, ("polish",), None),
        ("smoothquant", {"name": "w4a8"}, {"alpha": 0.7}, ("released: 0.5",), None),
        ("spinquant", {"name": "w8a8"}, {"steps": 0}, ("retraction",), {"name": "w8a8"}),
    ],
)
def test_deviations_say_nothing_of_a_part_that_is_off(
    method: str,
    words: dict[str, Any],
    changes: dict[str, Any],
    absent: tuple[str, ...],
    on: dict[str, Any] | None,
) -> None:
    text = lines_of(method, in_words(words), **changes)
    assert not any(part in text for part in absent)
    if on is not None:
        with_it = lines_of(method, in_words(on))
        assert any(part in with_it for part in absent)


def test_deviations_of_a_part_that_is_on() -> None:
    assert "polish 2; released: 0" in lines_of("spinquant", scheme("w8a8"), polish=2)
    assert "alpha 0.7; released: 0.85" in lines_of("smoothquant", scheme("w8a8"), alpha=0.7)
    assert "shared by a group" in lines_of("omniquant", scheme("w4a16"), let=True)
    assert "queries stay float" in lines_of("omniquant", in_words({"name": "w8a8", "kv": 8}))


def test_a_preset_says_nothing_of_a_method_without_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    method_in_blocks.install(monkeypatch)
    planned = plan("demo-llama", Request(scheme("w8a8"), method_in_blocks.NAME, preset="fast"))
    assert planned.settings == Settings()
    assert (planned.size.windows, planned.size.length) == (8, 64)
