"""For every rule of the lint, graphs that break it and their neighbours that do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from tests.trt_graphs import FLOAT, HALF, HIDDEN, INT64, Net, decoder, linear, recipe_of

F16 = np.float16


class Row(NamedTuple):
    """node: where ``bad`` is wrong. recipes: of both graphs. also: rules that it breaks too."""

    rule: int
    level: str
    node: str
    good: Callable[[], Any]
    bad: Callable[[], Any]
    target: str = "10.3"
    recipes: tuple[Any, Any] = (None, None)
    ranges: dict[str, float] | None = None
    also: tuple[int, ...] = ()


def made(build: Callable[[], Net]) -> Callable[[], Any]:
    return lambda: build().model()


def of(**options: Any) -> Callable[[], Any]:
    return lambda: linear(**options).model()


def changed(change: Callable[[Net], Any], **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        net = linear(**options)
        change(net)
        return net.model()

    return build


def constants(**values: Any) -> Callable[[], Any]:
    """A linear with other constants: ``x_scale`` stands for ``x.scale``."""
    return changed(
        lambda net: net.constants.update({k.replace("_", ".", 1): v for k, v in values.items()})
    )


def one_operator(
    kind: str, shapes: list[Any], dtype: int = HALF, opset: int = 19, **attributes: Any
) -> Callable[[], Any]:
    """One node called ``node``, of inputs and nothing else."""

    def build() -> Any:
        net = Net(opset)
        names = [net.input(f"x{i}", dtype, shape) for i, shape in enumerate(shapes)]
        net.output(net.op(kind, *names, name="node", **attributes), dtype)
        return net.model()

    return build


def slices(computed: bool) -> Net:
    net = Net(17)
    net.input("x", HALF, [4, 4])
    net.input("axis", INT64, [1])
    edges = [net.constant(name, np.array([value])) for name, value in (("a", 0), ("b", 2))]
    axis = "axis" if computed else net.constant("axes", np.array([1]))
    net.output(net.op("Slice", "x", *edges, axis, name="node"), HALF)
    return net


def lengths(opset: int, **part: int) -> Net:
    net = Net(opset)
    net.input("x", HALF, [4, 4])
    net.output(net.op("Shape", "x", name="node", **part), INT64)
    return net


def uint8_inside(to: int) -> Net:
    net = Net()
    net.cast(net.cast(net.input("x", HALF, [4]), to, "node"), HALF, "y")
    net.output("y", HALF)
    return net


def with_branch(branch: bool) -> Net:
    net = Net()
    net.input("x", HALF, [4])
    net.input("flag", TensorProto.BOOL, [])
    if branch:
        inner = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["t"])],
            "inner",
            [],
            [helper.make_tensor_value_info("t", HALF, [4])],
        )
        net.op("If", "flag", name="node", then_branch=inner, else_branch=inner)
    else:
        net.op("Neg", "x", name="node")
    net.output("node", HALF, [4])
    return net


def runtime_scale(computed: bool) -> Net:
    net = linear()
    if computed:
        reach = net.op("ReduceMax", net.op("Abs", net.nodes[0].output[0]), keepdims=0)
        for node in (net.node("x.quantize"), net.node("x.dequantize")):
            node.input[1] = reach
        net.nodes = [*net.nodes[:1], *net.nodes[-2:], *net.nodes[1:-2]]
    return net


def cast_scale() -> Net:
    net = linear()
    net.cast(net.constant("x.wide", np.float64(0.05)), FLOAT, "x.cast")
    for name in ("x.quantize", "x.dequantize"):
        net.node(name).input[1] = "x.cast"
    net.nodes.insert(0, net.nodes.pop())
    return net


def turned(axis: int) -> Net:
    """A weight stored as [out, in]."""
    net = linear()
    outputs, inputs = 48, HIDDEN
    size = (outputs, inputs)[axis]
    net.constants["fc.weight"] = np.ones((outputs, inputs), np.int8)
    net.constants["fc.weight_scale"] = np.ones(size, np.float32)
    net.constants["fc.weight_zeros"] = np.zeros(size, np.int8)
    node = net.node("fc.weight_dequantize")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", axis))
    net.op("Transpose", "fc.weight_dequantize", name="fc.turned", perm=[1, 0])
    net.node("fc.matmul").input[1] = "fc.turned"
    net.nodes.insert(-2, net.nodes.pop())
    return net


def table(dequantized: bool) -> Net:
    """Rows of an int8 table."""
    net = Net()
    net.input("tokens", INT64, [1, "new"])
    stored = net.weight("embed", 8, 16, axis=0, weight_scale=np.ones(8, np.float32),
                        weight_zeros=np.zeros(8, np.int8))  # fmt: skip
    rows = net.op("Gather", stored if dequantized else "embed.weight", "tokens", name="embed")
    net.output(net.cast(rows, FLOAT), FLOAT)
    if not dequantized:
        net.output(stored, FLOAT)
    return net


def one_sided(input_rounded: bool, weight_rounded: bool) -> Net:
    net = Net()
    x = net.input("x", FLOAT, [1, "new", HIDDEN])
    x = net.rounded(x) if input_rounded else x
    w = (
        net.weight("fc", HIDDEN, 48)
        if weight_rounded
        else net.constant("fc.weight", np.ones((HIDDEN, 48), np.float32))
    )
    net.output(net.op("MatMul", x, w, name="fc.matmul"), FLOAT)
    return net


def shared(kind: str) -> Net:
    """q and k of one input: by one Q/DQ, or not."""
    net = Net()
    x = net.input("x", HALF, [1, "new", HIDDEN])
    first = net.rounded(net.cast(x, FLOAT))
    second = first
    if kind == "two Q":
        second = net.rounded(net.cast(x, FLOAT), name="again")
    if kind == "two DQ":
        net.op("DequantizeLinear", *net.node("x.dequantize").input, name="again.dequantize")
        second = "again.dequantize"
    for name, rounded in (("q", first), ("k", second)):
        stored = net.weight(name, HIDDEN, 32)
        net.output(net.op("MatMul", rounded, stored, name=f"{name}.matmul"), FLOAT)
    if kind == "added":
        net.output(net.op("Relu", first, name="relu"), FLOAT)
    return net


def sum_of(other: int) -> Net:
    net = Net()
    x, y = net.input("x", HALF, [4]), net.input("y", other, [4])
    net.output(net.op("Add", x, y, name="node"), HALF)
    return net


def half_scales(cast: bool = False) -> Net:
    """A float16 scale of the weight, and of x too; or of the weight alone, behind a Cast."""
    net = linear()
    net.constants["fc.weight_scale"] = np.full(48, 0.01, F16)
    if cast:
        net.cast("fc.weight_dequantize", FLOAT, "fc.wide")
        net.node("fc.matmul").input[1] = "fc.wide"
        net.nodes.insert(-2, net.nodes.pop())
    else:
        net.constant("x.scale", F16(0.05))
        net.node("x.quantize").input[0] = "x"
    return net


def tiny_scales() -> Net:
    net = half_scales()
    net.constants["fc.weight_scale"] = np.full(48, 1e-5, F16)
    return net


def unknown_type(known: bool) -> Net:
    net = Net()
    x = net.input("x", HALF, [4])
    if known:
        hidden = net.op("Neg", x, name="hidden")
    else:
        hidden = net.op("Strange", x, name="hidden", domain="mine")
    net.output(net.op("Add", hidden, x, name="node"), HALF)
    return net


def shares(rounded: str) -> Net:
    """Softmax times values."""
    net = Net()
    scores = net.input("scores", FLOAT, [1, 2, "new", "room"])
    values = net.input("values", FLOAT, [1, 2, "room", 16])
    weights = net.op("Softmax", scores, name="shares", axis=-1)
    if rounded == "shares":
        weights = net.rounded(weights, 1 / 127, name="shares")
    if rounded == "cache":
        net.inputs.pop()
        past = net.input("past", TensorProto.INT8, [1, 2, "room", 16])
        step, zero = net.constant("s", np.float32(0.1)), net.constant("z", np.int8(0))
        values = net.op("DequantizeLinear", past, step, zero, name="past.dequantize")
    net.output(net.op("MatMul", weights, values, name="mixed"), FLOAT)
    return net


def scatter(kind: str = "") -> Net:
    """TensorScatter of new keys into a cache."""
    net = Net(24)
    room: Any = "room" if kind == "dynamic" else 128
    dtype = TensorProto.INT8 if kind == "int8" else HALF
    cache = net.input("past", dtype, [1, 2, room, 16])
    new = net.input("key", dtype, [1, 2, "new", 16])
    place = net.input("place", INT64, [1])
    if kind == "computed":
        cache = net.op("Neg", cache)
    axis = {"axis": 1} if kind == "axis" else {}
    present = net.op("TensorScatter", cache, new, place, name="node", **axis)
    net.output(net.op("Neg", present) if kind == "inner" else present, dtype, [1, 2, room, 16])
    return net


def attention(kind: str = "") -> Net:
    net = Net(24)
    q = net.input("q", HALF, [1, 2, "new", 16])
    length = "new" if kind == "square" else "room"
    k, v = (net.input(name, HALF, [1, 2, length, 16]) for name in "kv")
    mask = net.input("mask", HALF, ["new", length])
    more: list[str] = []
    if kind == "past":
        more = [net.input(name, HALF, [1, 2, "room", 16]) for name in ("past_k", "past_v")]
    if kind == "nonpad":
        more = ["", "", net.input("nonpad", INT64, [1])]
    causal = {"is_causal": 1} if kind in ("square", "causal") else {}
    out = 3 if kind == "outputs" else 1
    net.op("Attention", q, k, v, mask, *more, name="node", out=out, **causal)
    net.output("node", HALF)
    if out > 1:
        net.output("node:1", HALF)
    return net


def int4(
    inputs: int = HIDDEN,
    outputs: int = 48,
    block: int = 16,
    zero: int = 0,
    opset: int = 21,
    rounded: bool = False,
    signed: bool = True,
) -> Net:
    """A linear of 4-bit weights in blocks of inputs."""
    dtype = ml_dtypes.int4 if signed else ml_dtypes.uint4
    net = Net(opset)
    x = net.input("x", FLOAT, [1, "new", inputs])
    x = net.rounded(x) if rounded else x
    shape = (max(1, inputs // block), outputs)
    names = [
        net.constant("fc.weight", np.ones((inputs, outputs), dtype)),
        net.constant("fc.scale", np.ones(shape, np.float32)),
        net.constant("fc.zeros", np.full(shape, zero, dtype)),
    ]
    stored = net.op("DequantizeLinear", *names, name="fc.dq", axis=0, block_size=block)
    net.output(net.op("MatMul", x, stored, name="fc.matmul"), FLOAT)
    return net


def embedded(size: int) -> ir.Model:
    """A model that holds ``size`` bytes, none of which are there."""
    big = ir.tensor(np.broadcast_to(np.int8(1), (size,)), name="big")
    x = ir.val("x", ir.DataType.INT8, [1])
    held = ir.val("big", ir.DataType.INT8, [size], const_value=big)
    node = ir.node("Identity", [x], name="node")
    graph = ir.Graph(
        [x], [node.outputs[0]], nodes=[node], initializers=[held], opset_imports={"": 19}
    )
    return ir.Model(graph, ir_version=10)


def named(name: str) -> Callable[[], Any]:
    return changed(lambda net: setattr(net.node("fc.matmul"), "name", name))


def with_function(function: bool, opset: int = 19) -> Net:
    net = Net(opset)
    x = net.input("x", HALF, [4])
    net.output(net.op("Twice", x, name="node", domain="mine"), HALF, [4])
    if function:
        body = [helper.make_node("Add", ["a", "a"], ["b"])]
        imports = [helper.make_opsetid("", opset)]
        net.functions = [helper.make_function("mine", "Twice", ["a"], ["b"], body, imports)]
    return net


TINY = recipe_of(linear().model(), int8=("fc.matmul",))
WEIGHT_ONLY = TINY._replace(int8=(), weight_only=("fc.matmul",))
WHOLE = recipe_of(decoder())
VECTOR = np.full(HIDDEN, 0.05, np.float32)
E, W = "error", "warning"

ROWS = (
    Row(1, E, "", of(opset=17), of(opset=19), "8.6"),
    Row(1, W, "", of(opset=20), of(opset=21)),
    Row(1, E, "node", one_operator("Gelu", [[4]], opset=20), one_operator("Swish", [[4]]), "11.x"),
    Row(1, E, "node", made(lambda: slices(False)), made(lambda: slices(True)), "8.6"),
    Row(1, E, "node", made(lambda: lengths(17)), made(lambda: lengths(17, start=1, end=2)), "8.6"),
    Row(1, W, "node", made(lambda: lengths(19)), made(lambda: lengths(19, start=1)), "10.3"),
    Row(1, E, "x0", one_operator("Neg", [[4]], opset=17),
        one_operator("Neg", [[4]], 16, 17), "8.6"),
    Row(1, W, "x0", one_operator("Neg", [[4]]), one_operator("Neg", [[4]], 11)),
    Row(1, W, "node", made(lambda: with_branch(False)), made(lambda: with_branch(True))),
    Row(2, E, "node", of(), one_operator("MatMulInteger", [[4, 4]] * 2, TensorProto.INT8)),
    Row(2, E, "node", of(), one_operator("MatMulNBits", [[4, 4]] * 2, domain="com.microsoft")),
    Row(3, E, "x.quantize", of(), constants(x_zero=np.int8(3))),
    Row(3, E, "x.quantize", of(), constants(x_zero=np.uint8(128))),
    Row(3, E, "fc.weight_dequantize", of(), of(weight_zeros=np.eye(1, 48, 7, np.int8)[0])),
    Row(3, W, "x.quantize", of(), changed(lambda net: net.node("x.quantize").input.pop())),
    Row(3, E, "node", made(lambda: uint8_inside(FLOAT)), made(lambda: uint8_inside(2))),
    *(Row(4, E, "x.quantize", of(), of(scale=bad)) for bad in (0, -0.1, np.nan, np.inf)),
    Row(4, W, "fc.weight_dequantize", made(half_scales), made(tiny_scales)),
    Row(4, E, "x.quantize", of(), made(lambda: runtime_scale(True))),
    Row(4, W, "x.dequantize", of(), made(cast_scale)),
    Row(5, E, "x.quantize", of(scale=[0.05]), of(scale=VECTOR)),
    Row(6, E, "x.dequantize", of(back=0.05), of(back=0.06)),
    Row(7, E, "fc.weight_dequantize", of(),
        of(axis=0, weight_scale=VECTOR, weight_zeros=np.zeros(HIDDEN, np.int8))),
    Row(7, E, "fc.weight_dequantize", made(lambda: turned(0)), made(lambda: turned(1))),
    Row(7, E, "fc.weight_dequantize", of(weight_scale=np.float32(1), weight_zeros=np.int8(0)),
        of(weight_scale=np.ones(47, np.float32))),
    Row(8, E, "embed", made(lambda: table(True)), made(lambda: table(False))),
    Row(9, E, "fc.matmul", made(lambda: one_sided(True, True)),
        made(lambda: one_sided(True, False))),
    Row(9, W, "fc.matmul", made(lambda: one_sided(False, False)),
        made(lambda: one_sided(False, True))),
    Row(9, W, "fc.matmul", made(lambda: one_sided(False, True)),
        made(lambda: one_sided(False, True)), recipes=(WEIGHT_ONLY, TINY), also=(21,)),
    Row(9, E, "fc.matmul", of(), made(lambda: one_sided(False, False)),
        recipes=(TINY, TINY), also=(21,)),
    Row(10, W, "again.quantize", made(lambda: shared("")), made(lambda: shared("two Q"))),
    Row(10, W, "again.dequantize", made(lambda: shared("")), made(lambda: shared("two DQ"))),
    Row(10, W, "x.dequantize", made(lambda: shared("")), made(lambda: shared("added"))),
    Row(11, E, "fc.matmul", of(), made(lambda: half_scales(True))),
    Row(12, E, "node", made(lambda: sum_of(HALF)), made(lambda: sum_of(FLOAT))),
    Row(12, W, "node", made(lambda: unknown_type(True)), made(lambda: unknown_type(False)),
        also=(24,)),
    Row(13, E, "fc.weight_dequantize", of(), made(half_scales), "8.5", also=(1,)),
    Row(13, E, "x.quantize", of(opset=17),
        changed(lambda net: net.node("x.quantize").input.pop(), opset=17), "8.5"),
    Row(14, W, "x0", one_operator("Neg", [[4]], TensorProto.INT32),
        one_operator("Neg", [[4]], INT64, 17), "8.6"),
    Row(15, E, "mixed", made(lambda: shares("")), made(lambda: shares("shares"))),
    Row(15, W, "mixed", made(lambda: shares("")), made(lambda: shares("cache"))),
    *(Row(15, E, "node", made(scatter), made(partial(scatter, kind)), "10.16")
      for kind in ("inner", "computed", "dynamic", "axis", "int8")),
    *(Row(16, E, "node", made(lambda: attention("square")),
          made(partial(attention, kind)), "10.16")
      for kind in ("outputs", "past", "nonpad", "causal")),
    Row(17, W, "node", one_operator("ReduceMean", [[4]], FLOAT),
        one_operator("ReduceMean", [[4]], HALF)),
    Row(18, W, "x", of(scale=200), of(scale=300)),
    Row(18, W, "y", of(), of(), ranges={"y": 4e4}),
    Row(18, W, "fc.matmul", of(), made(half_scales)),
    Row(18, W, "fc.matmul", of(), made(half_scales), ranges={"fc.matmul.out": 700.0}),
    Row(19, E, "fc.dq", made(int4), made(lambda: int4(outputs=47))),
    Row(19, E, "fc.dq", made(int4), made(lambda: int4(block=24))),
    Row(19, E, "fc.dq", made(int4), made(lambda: int4(zero=1))),
    Row(19, E, "fc.dq", made(int4), made(lambda: int4(zero=1, signed=False)), also=(3,)),
    Row(19, E, "", made(int4), made(lambda: int4(opset=19))),
    Row(19, E, "fc.dq", of(opset=17), made(int4), "8.6", also=(1,)),
    Row(19, E, "fc.matmul", made(int4), made(lambda: int4(rounded=True))),
    Row(20, W, "fc.matmul", of(), of(outputs=8)),
    Row(20, W, "fc.matmul", of(), of(inputs=48)),
    Row(21, E, "x0", one_operator("Neg", [[1, "new"]]), one_operator("Neg", [["batch", "new"]])),
    Row(21, E, "x0", one_operator("Neg", [[1, "new"]]), one_operator("Neg", [[1, None]])),
    Row(21, E, "input_ids", decoder, decoder, recipes=(WHOLE, WHOLE._replace(
        inputs=(WHOLE.inputs[0]._replace(dtype="int32"), *WHOLE.inputs[1:])))),
    Row(21, E, "present.0.value", decoder, decoder,
        recipes=(WHOLE, WHOLE._replace(outputs=WHOLE.outputs[:-1]))),
    Row(21, W, "spare", of(), changed(lambda net: net.input("spare", HALF, [4]))),
    Row(22, W, "", lambda: embedded(2**31 - 1), lambda: embedded(2**31)),
    Row(23, W, "MatMul of fc.matmul.out", of(), named("")),
    Row(23, W, "x.quantize", of(), named("x.quantize")),
    Row(23, W, "x.zero", of(), named("x.zero")),
    Row(23, E, "gone", of(), of(), recipes=(TINY, TINY._replace(int8=("fc.matmul", "gone")))),
    Row(24, E, "node", of(), made(lambda: with_function(False))),
    Row(24, W, "node", of(), made(lambda: with_function(True))),
    Row(24, E, "node", of(), made(lambda: with_function(True, 17)), "8.6"),
)  # fmt: skip
