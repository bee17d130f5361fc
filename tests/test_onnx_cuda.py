"""Target ort-cuda: its numbers, on the CPU provider, which has all of its kernels.

What is compared, and how closely, is as in ``test_onnx``; the noise is that of the simulation in
float16 against itself in float64. What a GPU does with the graph is not seen here.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge import export as exports
from slmq_edge.anatomy import Anatomy
from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.errors import Unsupported
from slmq_edge.exporters import Wanted, cuda, limits, onnx, probe, weights
from slmq_edge.exporters.flavours import ORT, ORT_CUDA
from slmq_edge.exporters.floats import FLOAT16
from slmq_edge.exporters.graph import Builder
from slmq_edge.golden import measure_noise
from slmq_edge.quantization.rounding import quantize
from slmq_edge.runner import asked, job, journal, manifest, measure, ort, profiled, runtimes
from slmq_edge.runner.golden import load
from slmq_edge.runner.probe import activations as extreme_inputs
from slmq_edge.runner.probe import product as product_of_probe
from slmq_edge.scheme import OPERANDS_8, Grid, Scheme, in_words, scheme
from slmq_edge.simulation import Simulation
from tests.artifacts import (
    artifact_logits,
    artifact_logits_with_past,
    assert_close,
    greedy,
    session,
)
from tests.decoders import DECODERS, random_llama, random_qwen2, rounded, text_for, tokens_for
from tests.test_onnx import prepared_checkpoint
from tests.test_onnx_linears import SIZES, draw, run

ON_A_CUDA_DEVICE = Wanted("ort-cuda")
# Operators with a CUDA kernel for what this graph gives them (onnxruntime's OperatorKernels.md),
# and those of shapes and lengths, a few numbers each, that its provider leaves to the CPU.
ON_A_GPU = {
    *("Abs", "Add", "And", "Cast", "Concat", "Div", "Gather", "Gemm", "GroupQueryAttention"),
    *("LessOrEqual", "MatMul", "MatMulInteger", "MatMulNBits", "Max", "Mul", "QuickGelu"),
    *("ReduceMax", "ReduceSum", "Reshape", "RotaryEmbedding", "Round", "Slice", "Softmax", "Split"),
    *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Sub", "Tile"),
    *("Transpose", "Unsqueeze", "Where"),
}
OF_SHAPES = {"Shape", "Squeeze", "Neg", "Range"}
# Constant: taken once, at load, by the runtime itself.
AT_LOAD = {"BitwiseAnd", "BitShift"}


@pytest.mark.parametrize(
    ("name", "method", "variant"),
    [
        *(
            (name, "none", variant)
            for name in ("demo-llama", "demo-qwen2")
            for variant in ("fp32", "w8a8", "w4a8", "w8a8 int8 head", "w4a16-g32", "w8a16")
        ),
        ("random untied Llama", "none", "w4a8 int8 head"),
        ("random Qwen3", "none", "fp32"),
        ("demo-llama", "smoothquant", "w8a8"),
        ("demo-llama", "spinquant", "w8a8 int8 head"),
    ],
)
def test_the_artifact_computes_what_the_simulation_promised(
    name: str, method: str, variant: str, tmp_path: Path
) -> None:
    checkpoint = prepared_checkpoint(name, method, variant)
    model, _ = onnx.write(checkpoint, ORT_CUDA)
    running = session(model, tmp_path)
    tokens = text_for(name, batch=16, length=64)
    noise = measure_noise(checkpoint, Simulation(checkpoint, torch.float16), tokens)
    reference = Simulation(checkpoint).logits(tokens)
    assert_close(reference, artifact_logits(running, tokens), tokens, noise)
    past = artifact_logits_with_past(running, tokens, first=32)
    assert_close(reference[:, 31:], past, tokens[:, 31:], noise)


def test_a_wrong_scale_is_seen(tmp_path: Path) -> None:
    checkpoint = prepared_checkpoint("demo-qwen2", "none", "w8a8")
    tokens = text_for("demo-qwen2", batch=8, length=64)
    noise = measure_noise(checkpoint, Simulation(checkpoint, torch.float16), tokens)
    reference = Simulation(checkpoint).logits(tokens)
    checkpoint.integers["model.layers.0.mlp.down_proj"].scale[:] *= 1.2
    running = session(onnx.write(checkpoint, ORT_CUDA)[0], tmp_path)
    with pytest.raises(AssertionError):
        assert_close(reference, artifact_logits(running, tokens), tokens, noise)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([4, 8]), lowest=st.booleans(), **SIZES)
def test_one_linear_is_equal_to_the_last_bit(
    bits: int,
    lowest: bool,
    tokens: int,
    width: int,
    outputs: int,
    spread: float,
    offset: float,
    seed: int,
) -> None:
    x = draw(tokens, width, spread, offset, seed).clamp(-6e4, 6e4).half()
    grid = Grid(bits, "channel", lowest=lowest)
    weight = IntegerWeight.of(quantize(draw(outputs, width, 0.0, offset, seed + 1), grid), grid)
    x_q = quantize(x.float(), Grid(8, "token"))
    stored, sums, y = run(linear_graph(weight), x[None].numpy())
    assert np.array_equal(stored[0], x_q.integers.to(torch.int8).numpy())
    assert np.array_equal(sums[0], (x_q.integers.double() @ weight.integers.double().mT).numpy())
    expected = Simulation(rounded(random_llama(), scheme("w8a8")))._multiply(x_q, weight)
    assert np.array_equal(y[0], expected.numpy())


def linear_graph(weight: IntegerWeight) -> ir.Model:
    """x float16 -> its integers, the integer sums, and y float32."""
    build, width = Builder(FLOAT16), weight.integers.shape[1]
    x = ir.val("x", ir.DataType.FLOAT16, ["batch", "new", width])
    integers = cuda.Int8(build, rounded(random_llama(), scheme("w8a8")))
    quantized = integers.quantize(x, "linear", width, "input", True)
    stored = integers.store(weight, "linear")
    y = integers.multiply(quantized, stored, weight, None, "linear")
    kinds = {"linear.matmul": ir.DataType.INT32, "input.integers": ir.DataType.INT8}
    model = build.model([x], [y])
    found = {value.name: value for node in model.graph for value in node.outputs}
    for name, kind in kinds.items():
        found[name].type = ir.TensorType(kind)
    y.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs[:] = [found["input.integers"], found["linear.matmul"], y]
    return model


@pytest.mark.parametrize(
    ("precision", "head"),
    [
        ("fp32", "float"),
        *itertools.product(["w8a8", "w4a8", "w4a16-g32", "w8a16"], ["float", "int8"]),
    ],
)
@pytest.mark.parametrize("name", ["demo-qwen2", "random untied Llama"])
def test_the_graph_is_of_kernels_that_a_gpu_has(name: str, precision: str, head: str) -> None:
    checkpoint = rounded(DECODERS[name](), scheme(precision, head))
    model, report = onnx.write(checkpoint, ORT_CUDA)
    nodes = list(model.graph)
    assert {node.op_type for node in nodes} <= ON_A_GPU | OF_SHAPES | AT_LOAD
    products = [node for node in nodes if node.op_type == cuda.OPERATOR]
    assert all(len(node.inputs) == 2 for node in products)  # no zero points: nothing to shift
    shape = checkpoint.anatomy
    integers = shape.linear_macs_per_token if precision.endswith("a8") else 0
    integers += shape.head_macs_per_token if integers and head == "int8" else 0
    total = shape.linear_macs_per_token + shape.head_macs_per_token
    assert len(products) == (4 * shape.layers + (head == "int8") if integers else 0)
    assert report.int8_gemm_share == integers / total
    gemm = {"operator": "MatMulInteger", "activation": "int8", "weight": "int8"}
    assert report.integer_gemm == (gemm if integers else None)
    assert report.scheme_ran == ("fp16" if precision == "fp32" else precision)
    assert report.kv_cache == "float16"
    ran = {row.operator for row in report.linears if row.integer}
    assert ran == ({cuda.OPERATOR} if integers else set())
    assert all(row.memory_bits in (4, 8, 16) for row in report.linears)
    assert report.weight_storage_bits["lm_head"] == (8 if head == "int8" else 16)


def test_floats_are_float16_and_logits_float32(tmp_path: Path) -> None:
    model, _ = onnx.write(rounded(random_qwen2(), scheme("fp32")), ORT_CUDA)
    running = session(model, tmp_path)
    types = {node.name: node.type for node in running._session.get_inputs()}
    assert types["past_key_values.0.key"] == "tensor(float16)"
    assert running._session.get_outputs()[0].type == "tensor(float)"
    wide = [
        value.name
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    ]
    assert wide == []
    as_float32, _ = onnx.write(rounded(random_qwen2(), scheme("fp32")), ORT)
    halves = sum(weights_bytes(as_float32)) / 2
    assert sum(weights_bytes(model)) == pytest.approx(halves, rel=0.02)


def weights_bytes(model: ir.Model) -> list[int]:
    values = model.graph.initializers.values()
    return [value.const_value.nbytes for value in values if value.const_value is not None]


REFUSED: dict[str, tuple[Scheme, str]] = {
    "asymmetric activations": (
        in_words({"name": "w8a8", "activations": "asymmetric"}),
        "activations of int8 per token, asymmetric.*use --activations symmetric",
    ),
    "asymmetric weights": (
        in_words({"name": "w8a8", "weights": "asymmetric"}),
        "weights of int8 per channel, asymmetric.*use --weights symmetric",
    ),
    "static": (
        in_words({"name": "w8a8", "activation_scale": "tensor"}),
        "per tensor.*static.*use --activation-scale token",
    ),
    "groups": (scheme("w4a8-g32"), "group of 32.*use scheme w8a8 or w4a8.*w4a16-g32"),
    "blocks": (scheme("w8a8-b32"), "group of 32"),
    "keys and values": (replace(scheme("w8a8"), kv=OPERANDS_8), "rounded keys and values"),
    "int4 head": (scheme("w4a16-g32", "int4"), "an int4 lm_head.*use --lm-head int8"),
    "queries": (replace(scheme("w8a8"), query=OPERANDS_8), "rounded queries"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_a_gpu_cannot_multiply_is_refused(form: str) -> None:
    wanted, message = REFUSED[form]
    with pytest.raises(Unsupported, match=f"target ort-cuda cannot express.*{message}"):
        exports.check_scheme(wanted, ON_A_CUDA_DEVICE)


def test_and_before_anything_is_quantized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from slmq_edge import quantize as quantizing
    from slmq_edge.commands.export import export_model

    def never(*_: object) -> None:
        raise AssertionError("quantized in vain")

    monkeypatch.setattr(quantizing, "quantize", never)
    request = quantizing.Request(scheme("w4a8-g32"), "none")
    with pytest.raises(Unsupported, match="target ort-cuda"):
        export_model("demo-llama", request, tmp_path / "bundle", ON_A_CUDA_DEVICE, False)


@pytest.mark.parametrize("form", ["w8a8", "w4a8", "w4a16", "w4a16-g128", "w8a16", "fp32"])
def test_what_it_can_is_not(form: str) -> None:
    limits.check(scheme(form, "float"), target="ort-cuda")


def test_weights_beyond_float16_are_named() -> None:
    checkpoint = rounded(random_qwen2(), scheme("fp32"))
    checkpoint.tensors["model.norm.weight"][3] = 7e4
    with pytest.raises(Unsupported, match=r"model\.norm\.weight holds 7e\+04, too large"):
        onnx.write(checkpoint, ORT_CUDA)
    onnx.write(checkpoint, ORT)


def test_the_probe_returns_the_exact_product() -> None:
    model = probe.write_probe({"operator": cuda.OPERATOR})
    (product,) = [node for node in model.graph if node.op_type == cuda.OPERATOR]
    assert product.domain == ""
    for a in extreme_inputs((7, probe.DEPTH)):
        y, stored = run(model, a)
        assert np.array_equal(y, product_of_probe(a, stored))


def test_four_bits_are_two_a_byte() -> None:
    weight = rounded(random_qwen2(), scheme("w4a8")).integers["model.layers.0.mlp.down_proj"]
    build = Builder(FLOAT16)
    integers = cuda.Int8(build, rounded(random_qwen2(), scheme("w4a8")))
    stored = integers.store(weight, "linear")
    x = ir.val("x", ir.DataType.INT8, ["tokens", weight.integers.shape[1]])
    y = build.op(cuda.OPERATOR, x, stored.integers, name="y")
    y.type = ir.TensorType(ir.DataType.INT32)
    model = build.model([x], [y])
    assert max(weights_bytes(model)) == -(-weight.integers.numel() // 2)
    (found,) = run(model, np.eye(weight.integers.shape[1], dtype=np.int8))
    assert np.array_equal(found, weights.laid_out(weight))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "bundle"
    exports.export(rounded(DECODERS["demo-qwen2"](), scheme("w8a8")), folder, ON_A_CUDA_DEVICE)
    return folder


def test_a_bundle_is_checked_on_the_cpu_and_says_so(bundle: Path) -> None:
    document = manifest.read_bundle(bundle)
    manifest.verify(bundle, document["files"])
    assert document["runtime"]["kind"] == "ort-cuda"
    assert asked.provider_of(document) == asked.ON_CUDA
    assert manifest.SIGNED_GRAPH not in document["files"]
    verified = document["verified"]
    assert verified["provider"] == "CPUExecutionProvider"
    assert verified["mean_kl"] < document["golden"]["kl_limit"]
    assert load(bundle / "golden.npz")["tokens"].shape[0] == 4


def test_what_ran_is_what_the_report_says(bundle: Path) -> None:
    """By onnxruntime's own record, of the CPU provider; on a GPU it names what ran where."""
    document = manifest.read_bundle(bundle)
    here = {**document["runtime"], "provider": asked.ON_CPU.name, "provider_options": {}}
    steps = profiled.run(bundle, {**document, "runtime": here}, threads=1)
    shape = Anatomy.from_json(document["anatomy"])
    for step, tokens in ((steps["prefill"], 16), (steps["decode"], 1)):
        found = {one.name: one for one in step.operators if one.macs}
        assert found["MatMulInteger"].calls == 4 * shape.layers
        assert found["MatMulInteger"].macs == tokens * shape.linear_macs_per_token
        assert {one.provider for one in step.operators} == {asked.ON_CPU.name}
    assert steps["decode"].integer_share == pytest.approx(document["lowering"]["int8_gemm_share"])


@pytest.mark.skipif(
    asked.ON_CUDA.name in ort.load_onnxruntime().get_available_providers(),
    reason="this onnxruntime has the CUDA provider",
)
def test_without_the_provider_the_runner_refuses_before_any_work(
    bundle: Path, tmp_path: Path
) -> None:
    workload = measure.Workload(8, 4, 1, 0, 1)
    asked = job.Job(bundle, tmp_path / "journal.jsonl", workload, "cpu", False)
    with pytest.raises(Unsupported, match=r"runs on CUDAExecutionProvider.*slmq-edge\[gpu\]"):
        job.check(asked, print)
    assert not (tmp_path / "journal.jsonl").exists()


class FellBack:
    """A session that was asked for a GPU and came up on the CPU, as onnxruntime's do."""

    def __init__(self, *_: Any, providers: list[tuple[str, dict[str, str]]], **__: Any) -> None:
        self.asked = providers

    def get_providers(self) -> list[str]:
        return [asked.ON_CPU.name]


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ort.load_onnxruntime()
    names = [asked.ON_CUDA.name, asked.ON_CPU.name]
    fake = SimpleNamespace(
        __version__=real.__version__,
        SessionOptions=real.SessionOptions,
        InferenceSession=FellBack,
        get_available_providers=lambda: names,
    )
    monkeypatch.setattr(ort, "load_onnxruntime", lambda: fake)
    with pytest.raises(Unsupported, match="cannot start CUDAExecutionProvider here"):
        ort.open_session(bundle / manifest.GRAPH, 1, {}, provider=asked.ON_CUDA)
    assert ort.open_session(bundle / manifest.GRAPH, 1, {}).asked == [(asked.ON_CPU.name, {})]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that says CUDA and runs everything on the CPU."""
    real = ort.load_onnxruntime()

    base: Any = real.InferenceSession

    class OnCpu(base):
        def __init__(self, *given: Any, providers: Any, **more: Any) -> None:
            super().__init__(*given, providers=[asked.ON_CPU.name], **more)

        def get_providers(self) -> list[str]:
            return [asked.ON_CUDA.name, asked.ON_CPU.name]

    told = {"InferenceSession": OnCpu, "get_available_providers": lambda: [asked.ON_CUDA.name]}
    fake = SimpleNamespace(**{**vars(real), **told})
    monkeypatch.setattr(ort, "load_onnxruntime", lambda: fake)
    monkeypatch.setattr(runtimes, "_gpu", lambda: {"gpu": "A GPU", "driver": None})
    monkeypatch.setitem(asked.MEMORY, asked.ON_CUDA.name, "cpu")


def _job(bundle: Path, folder: Path) -> job.Job:
    return job.Job(bundle, folder / "journal.jsonl", measure.Workload(8, 4, 1, 0, 1), "cpu", False)


@pytest.mark.usefixtures("pretended")
def test_products_that_fell_back_to_the_cpu_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"0 % of its multiply-adds.*MatMulInteger on CPU"):
        job.check(_job(bundle, tmp_path), lambda line: None)
    names = [event["event"] for event in journal.read(tmp_path / "journal.jsonl")]
    assert names == ["begin", "probe", "golden"]


@pytest.mark.usefixtures("pretended")
def test_products_on_the_gpu_are_recorded(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = profiled.read

    def read(file: Path) -> list[Any]:
        """The record of a GPU that leaves gathering to the CPU."""
        events = [dict(event) for event in real(file)]
        for event in events:
            name = event.get("args", {}).get("op_name")
            if name is not None and name != "Gather":
                event["args"] = {**event["args"], "provider": asked.ON_CUDA.name}
        return events

    monkeypatch.setattr(profiled, "read", read)
    assert job.check(_job(bundle, tmp_path), lambda line: None)
    *_, last = journal.read(tmp_path / "journal.jsonl")
    assert last["event"] == "placed"
    for phase in ("prefill", "decode"):
        assert last["steps"][phase]["macs"] == 1.0
        assert 0 < last["steps"][phase]["seconds"] < 1
        assert set(last["steps"][phase]["elsewhere"]) == {"Gather"}


def test_a_provider_that_nobody_knows_is_refused() -> None:
    with pytest.raises(Unsupported, match="'QNNExecutionProvider'"):
        asked.provider_of({"runtime": {"provider": "QNNExecutionProvider"}})


def test_optimum_runs_the_graph(tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    from tests.decoders import write_folder

    model = random_qwen2()
    write_folder(model, tmp_path)
    running = session(onnx.write(rounded(model, scheme("w8a8")), ORT_CUDA)[0], tmp_path)
    tokens = tokens_for(model, 1, 12)
    generated = ORTModelForCausalLM.from_pretrained(tmp_path).generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert generated[0, 12:].tolist() == greedy(running, tokens.numpy(), 6)
