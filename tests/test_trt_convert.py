"""What TensorRT must run in place of what was asked, and what the report says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.export import export
from slmq_edge.exporters import Wanted
from slmq_edge.exporters.trt import convert
from slmq_edge.quantization import ranges
from slmq_edge.quantization.rounding import Steps, quantize
from slmq_edge.scheme import Grid, Scheme, in_words, scheme
from slmq_edge.simulation import Simulation
from tests.decoders import DECODERS, random_llama, random_qwen2, rounded, text_for

ON_TENSORRT, STATIC_ON_TENSORRT = Wanted("trt"), Wanted("trt", None, "static")


def ranges_of(wanted: Scheme) -> dict[str, Steps]:
    """Static ranges of a random model, as calibration finds them."""
    text = text_for("random Qwen2", batch=4, length=32)
    return ranges.find(random_qwen2(), text, wanted, lambda share, what: None)


def test_zero_points_that_fit_int8_change_nothing() -> None:
    wanted = in_words({"name": "w4a8", "weights": "asymmetric"})
    checkpoint = rounded(DECODERS["demo-llama"](), wanted)
    text = text_for("demo-llama", batch=12, length=32)
    found, changes = convert.convert(checkpoint, "pertoken", lambda: text)
    assert changes == ()
    assert all(weight.zero is None for weight in found.integers.values())
    same = Simulation(found).logits(text[:2]), Simulation(checkpoint).logits(text[:2])
    assert torch.equal(*same)


def test_what_must_change_is_measured_on_other_text_than_it_was_found_on() -> None:
    wanted = in_words({"name": "w8a8", "weights": "asymmetric", "activations": "asymmetric"})
    checkpoint = rounded(random_llama(), wanted)
    for linear in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"):
        checkpoint.integers[linear].zero[:] = 100  # type: ignore[index]
    text = text_for("random untied Llama", batch=20, length=32)
    found, changes = convert.convert(checkpoint, "static", lambda: text)
    assert [change.what for change in changes] == [
        "weights symmetric",
        "activations static, symmetric, range by mse",
    ]
    assert found.scheme.activations == Grid(8, "tensor", lowest=True)
    weights, both = changes
    assert 0 < weights.mean_kl < both.mean_kl
    assert weights.tokens == convert.MEASURED * 32
    again = convert.measure(checkpoint, found, text[: convert.MEASURED], "all")
    assert again.mean_kl == pytest.approx(both.mean_kl, rel=1e-6)
    # Ranges are of the text behind it: other text there, other ranges; other text before, the same.
    other, _ = convert.convert(checkpoint, "static", lambda: torch.cat([text[8:16], text[8:]]))
    assert all(
        torch.equal(one.scale, found.inputs[name].scale) for name, one in other.inputs.items()
    )


@settings(max_examples=25, deadline=None)
@given(bits=st.sampled_from([4, 8]), offset=st.floats(-3, 3), seed=st.integers(0, 99))
def test_a_weight_that_fits_is_kept_and_one_that_does_not_is_near(
    bits: int, offset: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 24, generator=generator) + offset
    grid = Grid(bits, "channel", symmetric=False)
    weight = IntegerWeight.of(quantize(values, grid), grid)
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    one = dataclasses.replace(checkpoint, integers={"x": weight})
    changed = convert._symmetric_weights(one, None)
    fits = bool((weight.centred.abs() <= 127).all())
    assert fits or bits == 8
    assert (changed is None) == fits
    stored = convert._as_stored(one if changed is None else changed[0]).integers["x"]
    assert stored.zero is None
    step = stored.scale.max()
    assert (
        (stored.dequantized - weight.dequantized).abs() <= (0 if fits else step / 2 + 1e-6)
    ).all()


@pytest.mark.parametrize("windows", [2, 8])
def test_a_short_text_is_parted_between_finding_and_measuring(windows: int) -> None:
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    text = text_for("random Qwen2", batch=windows, length=32)
    found, (change,) = convert.convert(checkpoint, "static", lambda: text)
    assert change.tokens == windows // 2 * 32
    assert len(found.inputs) == 4 * checkpoint.anatomy.layers


def test_ranges_are_not_found_on_nothing(tmp_path: Path) -> None:
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    with pytest.raises(SlmqError, match=r"makes 1 windows.*a longer text"):
        convert.convert(checkpoint, "static", lambda: text_for("random Qwen2", 1, 32))
    with pytest.raises(Unsupported, match=r"neither calibration text nor.*pertoken"):
        export(checkpoint, tmp_path / "bundle", STATIC_ON_TENSORRT)
    assert not (tmp_path / "bundle").exists()


def test_a_scheme_of_static_ranges_run_per_token_is_called_so() -> None:
    wanted = in_words({"name": "w8a8", "activation_scale": "tensor"})
    checkpoint = dataclasses.replace(
        rounded(random_qwen2(), scheme("w8a8")), scheme=wanted, inputs=ranges_of(wanted)
    )
    text = text_for("random Qwen2", batch=4, length=32)
    found, (change,) = convert.convert(checkpoint, "pertoken", lambda: text)
    assert change.what == "activations per token, symmetric"
    assert found.scheme.activations == Grid(8, "token")
    assert not found.inputs


def test_weights_that_stay_are_not_held_twice() -> None:
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    found, _ = convert.convert(checkpoint, "pertoken", lambda: text_for("random Qwen2", 4, 32))
    for name, weight in checkpoint.integers.items():
        assert found.integers[name].integers.data_ptr() == weight.integers.data_ptr()


def test_the_report_tells_what_was_asked_and_not_what_became_of_it(tmp_path: Path) -> None:
    wanted = in_words({"name": "w8a8", "weights": "asymmetric", "activations": "asymmetric"})
    checkpoint = rounded(random_llama(), wanted)
    checkpoint.integers["model.layers.0.mlp.up_proj"].zero[:] = 100  # type: ignore[index]
    found = export(checkpoint, tmp_path / "bundle", ON_TENSORRT)["lowering"]
    assert len(found["changes"]) == 2
    for row in found["linears"][:-1]:
        assert row["asked_weights"] == "int8 per channel, asymmetric"
        assert row["asked_activations"] == "int8 per token, asymmetric"
        assert row["activation_mode"] == "per token, dynamic, symmetric"
