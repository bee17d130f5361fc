"""Products whose answer is known: the bytes are ONNX, and a wrong kernel is seen."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from slmq_edge.runner import onnx_bytes
from slmq_edge.runner.products import LENGTHS, MIXED, PRODUCTS, SIGNED, UNSIGNED
from slmq_edge.runner.trial import _tried

CPU = "CPUExecutionProvider"


def _by_onnx(graph: bytes) -> bytes:
    """The same model, told to the onnx package in its own words."""
    read = onnx.load_from_string(graph)
    (node,) = read.graph.node
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    made = helper.make_node(
        node.op_type, list(node.input), list(node.output), domain=node.domain or None, **attributes
    )
    constants = [
        helper.make_tensor(one.name, one.data_type, list(one.dims), one.raw_data, raw=True)
        for one in read.graph.initializer
    ]
    ports = [
        helper.make_tensor_value_info(
            port.name,
            port.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim],
        )
        for port in (read.graph.input[0], read.graph.output[0])
    ]
    whole = helper.make_graph([made], node.op_type, [ports[0]], [ports[1]], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(whole, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_bytes_are_those_that_onnx_writes(name: str) -> None:
    graph = PRODUCTS[name]().graph
    onnx.checker.check_model(onnx.load_from_string(graph))
    assert graph == _by_onnx(graph)


@pytest.mark.parametrize(("value", "length"), [(0, 1), (127, 1), (128, 2), (16383, 2), (16384, 3)])
def test_numbers_of_any_size_are_written(value: int, length: int) -> None:
    written = onnx_bytes._number(1, value)
    assert len(written) == 1 + length
    assert onnx.ModelProto.FromString(written).ir_version == value


@pytest.mark.parametrize("name", PRODUCTS)
def test_this_cpu_multiplies_right(name: str) -> None:
    found = _tried(PRODUCTS[name](), CPU)
    assert found["ran_on"] == [CPU], found
    if name not in (MIXED, SIGNED):  # which saturate on a CPU without VNNI, and are told of
        assert found["right"], found


@pytest.mark.parametrize("name", PRODUCTS)
def test_one_wrong_weight_is_seen(name: str) -> None:
    product = PRODUCTS[name]()
    weights = [list(row) for row in product.weights]
    weights[-1][-1] += 1 if product.dtype != "float32" else 3
    found = _tried(product._replace(weights=weights), CPU)
    assert not found["right"]
    assert found["largest_error"] > 0


@pytest.mark.parametrize("name", [UNSIGNED, MIXED, SIGNED])
def test_a_kernel_that_saturates_in_16_bits_would_be_seen(name: str) -> None:
    """Pairs of uint8 x int8 products beyond 2^15, as AVX2's kernel adds them up."""
    product = PRODUCTS[name]()
    a = np.array(product.activations(max(LENGTHS)), np.int64) - product.zero + 128
    w = np.array(product.weights, np.int64)
    pairs = a[:, 0::2, None] * w[None, 0::2] + a[:, 1::2, None] * w[None, 1::2]
    saturated = np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1) - 128 * w.sum(axis=0)
    assert not np.array_equal(saturated, product.answer(product.activations(max(LENGTHS))))


@pytest.mark.parametrize("name", PRODUCTS)
def test_answers_are_exact_in_every_arithmetic(name: str) -> None:
    """Small enough for float16 sums where floats are multiplied, and for int32 elsewhere."""
    product = PRODUCTS[name]()
    for tokens in LENGTHS:
        answer = np.array(product.answer(product.activations(tokens)))
        assert np.abs(answer).max() <= (2048 if product.dtype == "float32" else 2**31 - 1)
        assert np.abs(answer).max() > 50
        assert len(np.unique(answer)) > 3 or tokens == 1


def test_products_are_the_same_everywhere() -> None:
    """By no generator whose numbers could differ from release to release."""
    digest = hashlib.sha256()
    for make in PRODUCTS.values():
        product: Any = make()
        digest.update(product.graph + repr(product.activations(7)).encode())
    assert digest.hexdigest()[:16] == "058f604c683aedb3"


def test_numbers_of_types_are_onnxs() -> None:
    ours = (onnx_bytes.FLOAT, onnx_bytes.UINT8, onnx_bytes.INT8, onnx_bytes.INT32)
    assert ours == (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)
