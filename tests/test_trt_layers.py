"""TensorRT's layer information, in each of its forms, and what may be said of a product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import Damaged
from slmq_edge.runner.trt import layers

DATA = Path(__file__).parent / "data" / "trt"
Q, K, V, OUT = (f"model.layers.0.self_attn.{name}_proj.matmul" for name in "qkvo")
HEAD = "lm_head.matmul"


def _told(name: str, profiles: tuple[str, ...], *, whole: bool = False) -> Any:
    text = (DATA / name).read_text(encoding="utf-8")
    texts = {layers.ENGINE: text} if whole else dict.fromkeys(profiles, text)
    return layers.informations(texts, profiles)


def test_every_fixture_says_where_its_form_is_from() -> None:
    files = sorted(DATA.glob("*.json"))
    assert len(files) == 5
    for file in files:
        assert "form" in json.loads(file.read_text(encoding="utf-8"))["origin"]


def test_tensorrt_8_5() -> None:
    (found,) = _told("8.5.json", ("prefill",))
    assert found.layers == 5
    assert layers.types(found) == {"int8": 2, "float": 1, "untold": 1}
    verdict = layers.verify([found], (Q, K, V, OUT))
    assert verdict.int8 == (Q, K)
    assert verdict.missing[V] == (
        "prefill: CaskGemmMatrixMultiply takes Row major linear FP16 format"
    )
    assert "N/A due to dynamic shapes" in verdict.missing[OUT]


def test_inside_of_myelin_8_6_tells_nothing() -> None:
    found = _told("8.6-foreign.json", ("prefill", "decode"))
    verdict = layers.verify(found, (Q,))
    assert verdict.int8 == ()
    assert "does not tell what is inside of {ForeignNode[" in verdict.missing[Q]


def test_tensorrt_10_joins_names_and_keeps_them_in_metadata() -> None:
    (found,) = _told("10.10.json", ("prefill",))
    verdict = layers.verify([found], (Q, K, V, OUT, HEAD))
    assert verdict.int8 == (Q, K, V)
    assert (
        verdict.missing[OUT] == "prefill: gemm takes Half"
    )  # the kernel that scales is no product
    assert verdict.missing[HEAD] == "prefill: kgen takes weights of Half"


def test_names_are_enough_where_there_is_no_metadata() -> None:
    document = json.loads((DATA / "10.10.json").read_text(encoding="utf-8"))
    for layer in document["Layers"]:
        del layer["Metadata"]
    found = layers.informations({"prefill": json.dumps(document)}, ("prefill",))
    assert layers.verify(found, (Q, K, V, OUT)).int8 == (Q, K, V)


@pytest.mark.parametrize("whole", [True, False])
def test_two_profiles_are_told_apart(whole: bool) -> None:
    found = _told("11-two-profiles.json", ("prefill", "decode"), whole=whole)
    assert [one.layers for one in found] == [3, 3]
    assert [layers.types(one)["int8"] for one in found] == [1, 1]
    assert layers.verify(found, (Q,)) == ((Q,), {})


def test_int8_in_one_profile_alone_is_not_enough() -> None:
    document = json.loads((DATA / "11-two-profiles.json").read_text(encoding="utf-8"))
    (decode,) = (one for one in document["Layers"] if "matmul [profile 1]" in one["Name"])
    decode["Inputs"][0]["Datatype"] = "Half"
    found = layers.informations({layers.ENGINE: json.dumps(document)}, ("prefill", "decode"))
    assert layers.verify(found, (Q,)).missing == {Q: "decode: gemm takes Half"}


def test_an_engine_that_tells_of_its_first_profile_alone() -> None:
    document = json.loads((DATA / "11-two-profiles.json").read_text(encoding="utf-8"))
    document["Layers"] = document["Layers"][:3]
    text = json.dumps(document)
    whole = layers.informations({layers.ENGINE: text}, ("prefill", "decode"))
    assert layers.verify(whole, (Q,)).missing == {Q: "decode: no layer of that name multiplies"}
    each = layers.informations({"prefill": text, "decode": text}, ("prefill", "decode"))
    assert layers.verify(each, (Q,)).int8 == (Q,)  # a context was asked: they are its own


def test_names_alone_say_nothing_of_types() -> None:
    (found,) = _told("names-only.json", ("prefill",))
    verdict = layers.verify([found], (Q,))
    assert "does not tell" in verdict.missing[Q]


def test_without_information_nothing_is_int8() -> None:
    found = layers.informations({}, ("prefill", "decode"))
    assert layers.verify(found, (Q,)).missing == {Q: "no layer information"}
    assert layers.verify(found, ()) == ((), {})


@pytest.mark.parametrize("kind", ["UInt8", "uint8", "Half", "Float", "Int32", "Int4", ""])
def test_other_types_are_not_int8(kind: str) -> None:
    layer = {"Name": Q, "LayerType": "gemm", "Inputs": [{"Name": "x", "Datatype": kind}]}
    found = layers.informations({"prefill": json.dumps({"Layers": [layer]})}, ("prefill",))
    assert Q in layers.verify(found, (Q,)).missing


@pytest.mark.parametrize("name", [f"{Q}_2", f"x.{Q}", "q_proj.matmul"])
def test_a_name_is_a_whole_name(name: str) -> None:
    layer = {"Name": name, "LayerType": "gemm", "Inputs": [{"Name": "x", "Datatype": "Int8"}]}
    found = layers.informations({"prefill": json.dumps({"Layers": [layer]})}, ("prefill",))
    assert Q in layers.verify(found, (Q,)).missing


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}'])
def test_what_is_no_layer_information_is_refused(text: str) -> None:
    with pytest.raises(Damaged, match="layer information"):
        layers.read(text)


@pytest.mark.parametrize("layer", [3, None, {}, {"Inputs": 3}, {"Inputs": [3]}, {"Name": None}])
def test_odd_layers_do_no_harm(layer: Any) -> None:
    text = json.dumps({"Layers": [layer]})
    found = layers.informations({"prefill": text}, ("prefill",))
    assert Q in layers.verify(found, (Q,)).missing
