"""The lowering report row by row: what was asked, what is executed, and what it may be called."""

from __future__ import annotations

import json

import pytest

from slmq_edge import anatomy as names
from slmq_edge.exporters import onnx
from slmq_edge.exporters.lowering import scheme_ran
from slmq_edge.exporters.rows import Multiplication
from slmq_edge.scheme import WEIGHTS_8, scheme
from tests.decoders import random_llama, random_qwen2, rounded


def linear(name: str, macs: int, integer: bool = True) -> Multiplication:
    grid = WEIGHTS_8 if integer else None
    operator = "MatMulIntegerToFloat" if integer else "MatMul"
    return Multiplication(name, "linear", grid, integer, macs, operator)


@pytest.mark.parametrize(
    ("floats", "called"), [(0, "w8a8"), (50, "w8a8"), (51, "mixed"), (500, "mixed"), (1000, "fp32")]
)
def test_below_95_percent_of_integers_nothing_is_called_w8a8(floats: int, called: str) -> None:
    found = [linear("whole", 1000 - floats), linear("float", floats, integer=False)]
    assert scheme_ran(found) == called


def test_every_multiplication_is_a_row() -> None:
    checkpoint = rounded(random_llama(), scheme("w4a8", "int8"))
    _, report = onnx.write(checkpoint)
    shape = checkpoint.anatomy
    linears = [one for one in report.linears if one.part == "linear"]
    assert len(linears) == 4 * shape.layers
    assert sum(one.macs_per_token for one in linears) == shape.linear_macs_per_token
    first = report.linears[0]
    assert first.name == "model.layers.0.self_attn.q_k_v_proj"
    assert first.asked_weights == "int4 per channel, symmetric"
    assert first.asked_activations == "int8 per token, symmetric"
    assert (first.scheme, first.operator) == ("w4a8", "MatMulIntegerToFloat")
    assert (first.storage_bits, first.memory_bits) == (4, 8)
    assert first.activation_mode == "per token, dynamic, symmetric"
    assert first.exact is True
    (head,) = (one for one in report.linears if one.part == "head")
    assert (head.name, head.scheme, head.memory_bits) == (names.HEAD, "w8a8", 8)
    assert head.macs_per_token == shape.head_macs_per_token
    json.dumps(report.as_json())


@pytest.mark.parametrize(
    ("precision", "operator", "bits"),
    [("w4a16", "MatMulNBits", (4, 4)), ("w8a16", "MatMul", (8, 32))],
)
def test_weights_alone_multiply_no_integers(
    precision: str, operator: str, bits: tuple[int, int]
) -> None:
    _, report = onnx.write(rounded(random_qwen2(), scheme(precision)))
    linears = [one for one in report.linears if one.part == "linear"]
    assert {one.scheme for one in linears} == {precision}
    assert {(one.storage_bits, one.memory_bits) for one in linears} == {bits}
    assert {(one.operator, one.integer, one.exact) for one in linears} == {(operator, False, None)}
    assert {one.asked_activations for one in linears} == {"float32"}
    assert report.linears[-1].operator == "Gemm"


def test_blocks_are_said_and_stay_packed() -> None:
    _, report = onnx.write(rounded(random_llama(), scheme("w4a8-b32", "int8")))
    linears = [one for one in report.linears if one.part == "linear"]
    assert {(one.scheme, one.operator) for one in linears} == {("w4a8-b32", "MatMulNBits")}
    assert {(one.storage_bits, one.memory_bits) for one in linears} == {(4, 4)}
    modes = {one.activation_mode for one in linears}
    assert modes == {"per token and block of 32, dynamic, symmetric"}
    (head,) = (one for one in report.linears if one.part == "head")
    assert head.activation_mode == "per token, dynamic, symmetric"
    assert head.operator == "MatMulIntegerToFloat"


@pytest.mark.parametrize("embedding", ["float", "int8"])
@pytest.mark.parametrize("precision", ["w4a8-b32", "w4a16-g32"])
def test_a_head_in_blocks_is_a_row_as_the_linears_are(precision: str, embedding: str) -> None:
    for model in (random_qwen2(), random_llama()):
        _, report = onnx.write(rounded(model, scheme(precision, "int4", embedding)))
        (head,) = (one for one in report.linears if one.part == "head")
        first = report.linears[0]
        assert (head.name, head.asked_weights) == (names.HEAD, first.asked_weights)
        assert head.asked_weights == "int4 per channel and group of 32, symmetric"
        for column in ("asked_activations", "scheme", "operator", "integer", "activation_mode"):
            assert getattr(head, column) == getattr(first, column), column
        assert (head.storage_bits, head.memory_bits, head.operator) == (4, 4, "MatMulNBits")
        bits = {"int8": 8, "float": 4 if model.anatomy.tied else 32}[embedding]
        assert report.weight_storage_bits == {"linears": 4, "lm_head": 4, "embedding": bits}


@pytest.mark.parametrize("head", ["float", "int4"])
def test_operators_in_the_rows_are_those_of_the_graph(head: str) -> None:
    blocks = ("w4a8-b32", "w4a16")
    for precision in blocks if head == "int4" else ("w8a8", "w4a8-g32", *blocks, "fp32"):
        model, report = onnx.write(rounded(random_qwen2(), scheme(precision, head)))
        kinds = [node.op_type for node in model.graph]
        for operator in {one.operator for one in report.linears}:
            counted = sum(one.operator == operator for one in report.linears)
            assert kinds.count(operator) == counted, (precision, operator)
