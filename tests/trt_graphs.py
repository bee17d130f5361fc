"""Small graphs in the form that TensorRT takes, and the means to break them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from slmq_edge.runner.trt.recipe import Port, Recipe

VOCAB, HIDDEN, HEADS, WIDTH = 64, 64, 2, 32
HALF, FLOAT, INT64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64


class Net:
    """Nodes and constants by name; ``op`` gives back the name of what a node makes."""

    def __init__(self, opset: int = 19) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.domains: dict[str, int] = {}
        self.functions: list[Any] = []

    def input(self, name: str, dtype: int, shape: Any) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Any = None) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def op(
        self, kind: str, *inputs: str, name: str | None = None, out: int = 1, **attributes: Any
    ) -> str:
        """A node called ``name``, which makes ``name``, or ``name:1`` and so on.

        What a MatMul makes is called otherwise, as rule 23 has it.
        """
        called = name or f"{kind}.{len(self.nodes)}"
        made = f"{called}.out" if kind == "MatMul" else called
        outputs = [made, *(f"{made}:{index}" for index in range(1, out))]
        self.domains.setdefault(attributes.get("domain", ""), 1)
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=called, **attributes))
        return made

    def node(self, name: str) -> Any:
        return next(node for node in self.nodes if node.name == name)

    def cast(self, x: str, to: int, name: str | None = None) -> str:
        return self.op("Cast", x, name=name, to=to)

    def rounded(self, x: str, scale: Any = 0.05, name: str = "x", back: Any = None) -> str:
        """Q and DQ of float32, by one scale for all of it."""
        zero = self.constant(f"{name}.zero", np.int8(0))
        step = self.constant(f"{name}.scale", np.float32(scale))
        again = step if back is None else self.constant(f"{name}.back", np.float32(back))
        integers = self.op("QuantizeLinear", x, step, zero, name=f"{name}.quantize")
        return self.op("DequantizeLinear", integers, again, zero, name=f"{name}.dequantize")

    def weight(self, name: str, inputs: int, outputs: int, **changes: Any) -> str:
        """int8 [in, out] by output channel, as float32; ``changes``: other constants, or axis."""
        axis = changes.pop("axis", 1)
        generator = np.random.default_rng(0)
        constants = {
            "weight": generator.integers(-127, 128, (inputs, outputs)).astype(np.int8),
            "weight_scale": np.full(outputs, 0.01, np.float32),
            "weight_zeros": np.zeros(outputs, np.int8),
            **changes,
        }
        names = [self.constant(f"{name}.{key}", value) for key, value in constants.items()]
        return self.op("DequantizeLinear", *names, name=f"{name}.weight_dequantize", axis=axis)

    def model(self) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        versions = {**self.domains, "": self.opset}
        return helper.make_model(
            graph,
            ir_version=10,
            functions=self.functions,
            opset_imports=[helper.make_opsetid(*one) for one in versions.items()],
        )


def linear(
    opset: int = 19,
    inputs: int = HIDDEN,
    outputs: int = 48,
    scale: Any = 0.05,
    back: Any = None,
    **weight: Any,
) -> Net:
    """x float16 [1, new, in], rounded by one scale, times int8 [in, out]: y float16."""
    net = Net(opset)
    wide = net.cast(net.input("x", HALF, [1, "new", inputs]), FLOAT)
    rounded = net.rounded(wide, scale, back=back)
    stored = net.weight("fc", inputs, outputs, **weight)
    net.cast(net.op("MatMul", rounded, stored, name="fc.matmul"), HALF, "y")
    net.output("y", HALF, [1, "new", outputs])
    return net


def decoder(opset: int = 19, mode: str = "static") -> Any:
    """One block of attention with a room for its cache, an embedding and a head."""
    net = Net(opset)
    tokens = net.input("input_ids", INT64, [1, "new"])
    positions = net.input("position_ids", INT64, [1, "new"])
    net.input("logits_positions", INT64, ["kept"])
    cache = [1, HEADS, "room", WIDTH // HEADS]
    past = {kind: net.input(f"past_key_values.0.{kind}", HALF, cache) for kind in ("key", "value")}
    table = net.constant("embed.weight", np.ones((VOCAB, HIDDEN), np.float16))
    stream = net.op("Gather", table, tokens, name="embed", axis=0)
    normed = _norm(net, net.cast(stream, FLOAT), "norm")
    x, factor = _input(net, normed, mode, "attention.input")
    q, k, v = (_project(net, x, factor, f"self_attn.{kind}_proj", WIDTH) for kind in "qkv")
    mixed = _attention(net, q, k, v, past, positions)
    x, factor = _input(net, net.cast(mixed, FLOAT), mode, "o.input")
    update = _project(net, x, factor, "self_attn.o_proj", HIDDEN)
    stream = net.op("Add", stream, update, name="stream")
    kept = net.op("Gather", stream, "logits_positions", name="logits.kept", axis=1)
    head = net.op("Transpose", table, name="lm_head.turned", perm=[1, 0])
    net.cast(net.op("MatMul", kept, head, name="lm_head.matmul"), FLOAT, "logits")
    net.output("logits", FLOAT, [1, "kept", VOCAB])
    for kind in ("key", "value"):
        net.output(f"present.0.{kind}", HALF, cache)
    model = net.model()
    onnx.checker.check_model(model, full_check=True)
    return model


def _reduce(net: Net, kind: str, x: str, name: str) -> str:
    if net.opset < 18:
        return net.op(kind, x, name=name, axes=[-1], keepdims=1)
    return net.op(kind, x, net.constant("last", np.array([-1])), name=name, keepdims=1)


def _norm(net: Net, x: str, name: str) -> str:
    squares = net.op("Mul", x, x, name=f"{name}.squares")
    mean = _reduce(net, "ReduceMean", squares, f"{name}.mean")
    shifted = net.op("Add", mean, net.constant("epsilon", np.float32(1e-5)), name=f"{name}.shift")
    return net.op("Div", x, net.op("Sqrt", shifted, name=f"{name}.root"), name=f"{name}.normed")


def _input(net: Net, x: str, mode: str, name: str) -> tuple[str, str | None]:
    if mode == "static":
        return net.rounded(x, name=name), None
    reach = _reduce(net, "ReduceMax", net.op("Abs", x, name=f"{name}.abs"), f"{name}.max")
    floor = net.constant("floor", np.float32(1e-5))
    factor = net.op("Max", reach, floor, name=f"{name}.factor")
    return net.rounded(net.op("Div", x, factor, name=f"{name}.ratio"), 1 / 127, name), factor


def _project(net: Net, x: str, factor: str | None, name: str, outputs: int) -> str:
    inputs = WIDTH if name.endswith("o_proj") else HIDDEN
    product = net.op("MatMul", x, net.weight(name, inputs, outputs), name=f"{name}.matmul")
    if factor is not None:
        product = net.op("Mul", product, factor, name=f"{name}.scaled")
    return net.cast(product, HALF, name)


def _attention(net: Net, q: str, k: str, v: str, past: dict[str, str], positions: str) -> str:
    """Of rows turned by their positions, or as good as that."""
    shape = net.constant("heads", np.array([1, -1, HEADS, WIDTH // HEADS]))

    def heads(x: str, name: str) -> str:
        split = net.op("Reshape", x, shape, name=f"{name}.split")
        return net.op("Transpose", split, name=name, perm=[0, 2, 1, 3])

    is_new = net.constant("is_new", np.ones((1, 1, 1, 1), bool))
    first = net.constant("first", np.array([0]))
    placed = {}
    for kind, x in (("key", k), ("value", v)):
        row = net.op("Gather", heads(x, f"{kind}.heads"), first, name=f"{kind}.row", axis=2)
        placed[kind] = net.op("Where", is_new, row, past[kind], name=f"present.0.{kind}")
    turned = net.op("Transpose", placed["key"], name="keys", perm=[0, 1, 3, 2])
    angles = net.op("Cos", net.cast(positions, FLOAT), name="angles")
    column = net.constant("column", np.array([1, 3]))
    angles = net.cast(net.op("Unsqueeze", angles, column, name="angles.column"), HALF)
    query = net.op("Mul", heads(q, "query"), angles, name="query.turned")
    scores = net.cast(net.op("MatMul", query, turned, name="scores"), FLOAT)
    shares = net.cast(net.op("Softmax", scores, name="shares", axis=-1), HALF)
    mixed = net.op("MatMul", shares, placed["value"], name="mixed")
    back = net.op("Transpose", mixed, name="mixed.turned", perm=[0, 2, 1, 3])
    flat = net.constant("flat", np.array([1, -1, WIDTH]))
    return net.op("Reshape", back, flat, name="mixed.flat")


DTYPES = {HALF: "float16", FLOAT: "float32", INT64: "int64"}


def recipe_of(model: Any, **changes: Any) -> Recipe:
    """What export would write beside a decoder."""

    def port(info: Any) -> Port:
        dims = info.type.tensor_type.shape.dim
        shape = tuple(dim.dim_param or dim.dim_value for dim in dims)
        return Port(info.name, DTYPES[info.type.tensor_type.elem_type], shape)

    int8 = tuple(f"self_attn.{kind}_proj.matmul" for kind in "qkvo")
    fields = {
        "opset": model.opset_import[0].version,
        "tensorrt": "10.3",
        "floats": "float16",
        "activations": "static",
        "layers": 1,
        "kv_heads": HEADS,
        "head_dim": WIDTH // HEADS,
        "vocab": VOCAB,
        "context_length": 256,
        "inputs": tuple(map(port, model.graph.input)),
        "outputs": tuple(map(port, model.graph.output)),
        "int8": int8,
        "weight_only": (),
        "weight_bytes": 4096,
    }
    return Recipe(**{**fields, **changes})
