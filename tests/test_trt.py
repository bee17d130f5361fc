"""Target trt: its numbers, on onnxruntime's CPU provider, against the simulation of what it runs.

How closely is as in ``test_onnx``; the noise is that of the simulation in float16 against itself in
float64. What NVIDIA's compiler makes of the graphs is in ``test_trt_nvidia``.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from slmq_edge import checkpoint as checkpoints
from slmq_edge import models
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import Damaged, Unsupported, UsageError
from slmq_edge.export import check_scheme, check_target, export
from slmq_edge.exporters import Wanted, graph, limits
from slmq_edge.exporters.bundle import SESSION_OPTIONS
from slmq_edge.exporters.floats import FLOAT16, FLOAT32
from slmq_edge.exporters.trt import convert, decoder
from slmq_edge.golden import kl_divergence, measure_noise
from slmq_edge.runner import environment, manifest
from slmq_edge.runner.ort import Session
from slmq_edge.runner.trt import recipe as recipes
from slmq_edge.scheme import OPERANDS_8, SCHEMES, Grid, Scheme, in_words, scheme
from slmq_edge.simulation import Simulation
from tests.artifacts import artifact_logits_with_past, assert_close
from tests.decoders import DECODERS, random_qwen2, rounded, text_for
from tests.shared import shared
from tests.test_cli import assert_one_line, slmq
from tests.test_onnx import prepared_checkpoint

ON_TENSORRT, STATIC_ON_TENSORRT = Wanted("trt"), Wanted("trt", None, "static")
STANDARD = {
    *("Abs", "Add", "Cast", "Concat", "DequantizeLinear", "Div", "Equal", "Gather", "LessOrEqual"),
    *("MatMul", "Max", "Min", "Mul", "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Sub", "Transpose"),
    *("Unsqueeze", "Where"),
}


def running(model: ir.Model, folder: Path) -> Session:
    graph.save(model, folder / "model.onnx")
    return Session(folder / "model.onnx", 1, SESSION_OPTIONS)


def converted(
    name: str, method: str, variant: str, mode: str | None
) -> tuple[Checkpoint, torch.Tensor]:
    """What TensorRT would run, and text to see it on that its ranges were not found on."""
    checkpoint = prepared_checkpoint(name, method, variant)
    text = text_for(name, batch=24, length=48)
    mode = limits.activation_mode(checkpoint.scheme, mode)
    return convert.convert(checkpoint, mode, lambda: text[8:])[0], text[:8]


def assert_promised(
    checkpoint: Checkpoint, model: ir.Model, text: torch.Tensor, folder: Path
) -> None:
    session = running(model, folder)
    noise = measure_noise(checkpoint, Simulation(checkpoint, torch.float16), text)
    reference = Simulation(checkpoint).logits(text)
    whole = [torch.from_numpy(session.prefill(row[None].numpy())[0]) for row in text]
    assert_close(reference, torch.cat(whole), text, noise)
    past = [artifact_logits_with_past(session, row[None], first=24) for row in text]
    assert_close(reference[:, 23:], torch.cat(past), text[:, 23:], noise)


@pytest.mark.parametrize(
    ("name", "method", "variant", "mode"),
    [
        *(
            (name, "none", variant, None)
            for name in ("demo-llama", "demo-qwen2")
            for variant in ("fp32", "w8a8", "w4a8", "w8a8 int8 head", "w4a16-g32", "w8a16")
        ),
        ("demo-llama", "none", "w8a8 int8 head", "static"),
        ("demo-qwen2", "smoothquant", "w4a8", "static"),
        ("demo-llama", "spinquant", "w4a8 int8 head", None),
        ("random untied Llama", "none", "w4a8 int8 head", None),
        ("random Qwen3", "omniquant", "w8a8", None),
        ("stories260K", "spinquant", "w8a8", None),
    ],
)
def test_the_graph_computes_what_its_simulation_promised(
    name: str, method: str, variant: str, mode: str | None, tmp_path: Path
) -> None:
    checkpoint, text = converted(name, method, variant, mode)
    opset = 21 if variant.startswith("w4a16") else 19
    assert_promised(checkpoint, decoder.write(checkpoint, opset).model, text, tmp_path)


def test_in_float32_it_is_the_simulation_but_for_the_order_of_sums(tmp_path: Path) -> None:
    checkpoint, text = converted("demo-llama", "none", "w8a8", None)
    session = running(decoder.write(checkpoint, 19, FLOAT32).model, tmp_path)
    noise = measure_noise(checkpoint, Simulation(checkpoint), text)
    out = torch.cat([torch.from_numpy(session.prefill(row[None].numpy())[0]) for row in text])
    assert_close(Simulation(checkpoint).logits(text), out, text, noise)


def test_a_wrong_scale_is_seen(tmp_path: Path) -> None:
    checkpoint, text = converted("demo-qwen2", "none", "w8a8", None)
    wrong = dict(checkpoint.integers)
    down = wrong["model.layers.0.mlp.down_proj"]
    wrong["model.layers.0.mlp.down_proj"] = dataclasses.replace(down, scale=down.scale * 1.3)
    model = decoder.write(dataclasses.replace(checkpoint, integers=wrong), 19).model
    session = running(model, tmp_path)
    noise = measure_noise(checkpoint, Simulation(checkpoint, torch.float16), text)
    out = torch.cat([torch.from_numpy(session.prefill(row[None].numpy())[0]) for row in text])
    with pytest.raises(AssertionError):
        assert_close(Simulation(checkpoint).logits(text), out, text, noise)


@pytest.mark.parametrize("opset", [17, 19])
def test_older_tensorrt_reads_an_older_graph_of_the_same_numbers(
    opset: int, tmp_path: Path
) -> None:
    checkpoint, text = converted("demo-llama", "none", "w8a8", "static")
    model = decoder.write(checkpoint, opset).model
    assert model.opset_imports == {"": opset}
    assert model.ir_version == graph.IR_VERSIONS[opset] < 10
    assert {node.op_type for node in model.graph} <= STANDARD
    # Whose start and end TensorRT 8.4's parser leaves out of account.
    assert not any(node.attributes for node in model.graph if node.op_type == "Shape")
    out = running(model, tmp_path).prefill(text[:1].numpy())[0]
    (tmp_path / "newer").mkdir()
    newer = running(decoder.write(checkpoint, 21).model, tmp_path / "newer")
    assert np.array_equal(out, newer.prefill(text[:1].numpy())[0])


def test_rooms_may_be_larger_than_what_is_in_them_and_start_anywhere(tmp_path: Path) -> None:
    checkpoint, text = converted("demo-llama", "none", "fp32", None)
    session = running(decoder.write(checkpoint, 19, FLOAT32).model, tmp_path)
    prompt = text[:1].numpy()
    whole, _ = session.prefill(prompt)
    roomy, _ = session.prefill(prompt, room=30)
    pieces, _ = session.prefill(prompt, room=7, piece=5)
    assert np.abs(roomy - whole).max() < 2e-4
    assert np.abs(pieces - whole).max() < 2e-4


def test_products_that_share_an_input_read_one_dequantize_linear() -> None:
    checkpoint, _ = converted("demo-llama", "none", "w8a8", None)
    written = decoder.write(checkpoint, 19)
    nodes = {node.name: node for node in written.model.graph}
    for layer in range(checkpoint.anatomy.layers):
        for group in (
            [f"self_attn.{one}_proj" for one in "qkv"],
            ["mlp.gate_proj", "mlp.up_proj"],
        ):
            read = {nodes[f"model.layers.{layer}.{one}.matmul"].inputs[0] for one in group}
            (value,) = read
            assert value is not None
            producer = value.producer()
            assert producer is not None
            assert producer.op_type == "DequantizeLinear"
    assert set(written.int8) == {f"{one}.matmul" for one in checkpoint.anatomy.linears()}


def test_no_tensor_is_called_as_a_node_is() -> None:
    """An engine's layer would be called otherwise then, and could not be found again."""
    checkpoint, _ = converted("demo-qwen2", "none", "w8a8 int8 head", None)
    model = decoder.write(checkpoint, 19).model
    nodes = [str(node.name) for node in model.graph]
    tensors = [str(value.name) for node in model.graph for value in node.outputs]
    assert len(set(nodes)) == len(nodes)
    assert not set(nodes) & {*tensors, *model.graph.initializers}


REFUSED: dict[str, tuple[Scheme, str]] = {
    "groups": (SCHEMES["w4a8-g32"], "groups of weights beside rounded activations.*use w4a8, or"),
    "blocks": (SCHEMES["w4a8-b32"], "groups of weights beside rounded activations"),
    "int4 by channel": (SCHEMES["w4a16"], "int4 weights without blocks.*w4a16-g32"),
    "int8 in groups": (
        Scheme("w8a16-g32", Grid(8, "channel", group=32), None),
        "int8 weights in groups.*use w8a16",
    ),
    "int4 with zero points": (
        in_words({"name": "w4a16-g64", "weights": "asymmetric"}),
        "--weights symmetric",
    ),
    "int4 head": (in_words({"name": "w4a16-g32", "lm_head": "int4"}), "use --lm-head int8"),
    "keys": (dataclasses.replace(SCHEMES["w8a8"], kv=OPERANDS_8), "use --kv 16"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_it_cannot_express_is_refused_before_work(form: str) -> None:
    wanted, message = REFUSED[form]
    with pytest.raises(Unsupported, match=f"target trt cannot express.*{message}"):
        check_scheme(wanted, ON_TENSORRT)


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w4a16-g32", "w4a16-g128", "w8a16", "fp32"])
def test_what_it_can_is_not(name: str) -> None:
    check_scheme(SCHEMES[name], ON_TENSORRT)


def test_blocks_that_do_not_divide_a_row_are_refused() -> None:
    shape = models.read_anatomy(shared("configs/SmolLM-135M"))
    limits.check_widths(SCHEMES["w4a16-g64"], shape, "trt")
    limits.check_widths(SCHEMES["w4a16-g128"], shape, "ort")
    message = "rows of 576 inputs into whole blocks of 128.*use w4a16-g32, w4a16-g64$"
    with pytest.raises(Unsupported, match=message):
        limits.check_widths(SCHEMES["w4a16-g128"], shape, "trt")


def test_modes_and_runtimes_that_say_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean static"):
        check_scheme(SCHEMES["w8a8"], Wanted("trt", None, "statik"))
    with pytest.raises(UsageError, match="did you mean static"):
        check_target(Wanted("trt", None, "statik"))
    with pytest.raises(UsageError, match="leaves activations in float"):
        check_scheme(SCHEMES["w8a16"], Wanted("trt", None, "static"))
    with pytest.raises(UsageError, match="--activation-mode is how --target trt"):
        check_scheme(SCHEMES["w8a8"], Wanted("ort", None, "static"))
    with pytest.raises(UsageError, match="unknown runtime 'portable'"):
        check_scheme(SCHEMES["w8a8"], Wanted("trt", "portable"))
    with pytest.raises(Unsupported, match=r"TensorRT knows from 10\.0 on"):
        check_scheme(SCHEMES["w4a16-g32"], Wanted("trt", "8.5"))


def test_an_export_with_an_error_in_the_lint_is_refused(
    tmp_path: Path,
) -> None:
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    name = "model.layers.1.mlp.up_proj"
    checkpoint.integers[name].scale[:] = 0
    with pytest.raises(Unsupported, match=r"TensorRT 10\.3: rule 4, scales:.*up_proj"):
        export(checkpoint, tmp_path / "bundle", ON_TENSORRT)
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_is_too_large_for_float16_is_said_to_be(tmp_path: Path) -> None:
    checkpoint = rounded(random_qwen2(), scheme("w8a8"))
    checkpoint.integers["model.layers.1.mlp.down_proj"].scale[:] *= 1e5
    with pytest.raises(Unsupported, match=r"infinite or NaN in float16.*leave --target out"):
        export(checkpoint, tmp_path / "bundle", ON_TENSORRT)
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trt") / "bundle"
    wanted = in_words({"name": "w4a8", "lm_head": "int8"})
    prompts = text_for("demo-qwen2", batch=24, length=64)
    checkpoint = dataclasses.replace(rounded(DECODERS["demo-qwen2"](), wanted), prompts=prompts)
    export(checkpoint, folder, STATIC_ON_TENSORRT)
    return folder


def test_a_bundle_says_what_is_in_it(bundle: Path) -> None:
    document = manifest.read_bundle(bundle)
    manifest.verify(bundle, document["files"])
    assert manifest.graph_of(document) == "trt/model.onnx"
    assert document["runtime"] == {
        "kind": "trt",
        "profile": "10.3",
        "minimum_version": "10.3",
        "activation_mode": "static",
    }
    lowering = document["lowering"]
    assert lowering["scheme_ran"] == "w4a8"
    assert lowering["weight_storage_bits"] == {"linears": 8, "lm_head": 8, "embedding": 8}
    assert {row["storage_bits"] for row in lowering["linears"]} == {8}
    (change,) = lowering["changes"]
    assert change["text"] == "built-in world, held-out sentences"
    assert change["mean_kl"] > 0
    assert document["verified"]["graphs"] == ["trt/model.onnx"]
    assert not (bundle / "ort").exists()
    title = (bundle / "MODEL_CARD.md").read_text().splitlines()[0]
    assert title.endswith(", w4a8 (4-bit numerics, 8-bit storage) by none")
    assert "trt/build.sh" in document["files"]
    done = subprocess.run(["sh", "-n", bundle / "trt" / "build.sh"], check=False)
    assert done.returncode == 0


def test_a_warning_of_the_lint_is_a_note(tmp_path: Path) -> None:
    checkpoint = rounded(DECODERS["demo-qwen2"](), scheme("w4a16-g32"))
    found = export(checkpoint, tmp_path / "bundle", ON_TENSORRT)
    (note,) = found["notes"]
    assert note.startswith("TensorRT 10.3, lint rule 1: opset 21")


def test_its_recipe_is_read_back_as_it_was_written(bundle: Path) -> None:
    recipe = recipes.read(bundle)
    session = Session(bundle / manifest.TRT_GRAPH, 1, SESSION_OPTIONS)
    assert recipe.activations == "static"
    assert recipe.kv_bytes_per_token == session.kv_bytes_per_token
    assert len(recipe.int8) == 5 * 7 + 1
    assert recipes.find(recipe.outputs, "logits") == recipes.Port(
        "logits", "float32", (1, "kept", recipe.vocab)
    )
    past = recipes.find(recipe.inputs, "past_key_values.4.value")
    assert past is not None
    assert past.dtype == FLOAT16.name
    assert recipes.find(recipe.inputs, "attention_mask") is None
    written = json.loads((bundle / manifest.TRT_RECIPE).read_text())
    assert recipe.as_json() == {
        **written,
        **{name: tuple(written[name]) for name in ("int8", "weight_only")},
        **{
            kind: [{**port, "shape": tuple(port["shape"])} for port in written[kind]]
            for kind in ("inputs", "outputs")
        },
    }


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 9}, Unsupported),
        ({"format": "x"}, Unsupported),
        ({"opset": "19"}, Damaged),
        ({"layers": 0}, Damaged),
        ({"floats": "bfloat16"}, Damaged),
        ({"int8": "all"}, Damaged),
        ({"more": 1}, Damaged),
        ({"inputs": [{"name": "x", "dtype": "int64", "shape": ["batch"]}]}, Damaged),
    ],
)
def test_a_damaged_recipe_is_refused_by_name(
    bundle: Path, tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    document = json.loads((bundle / manifest.TRT_RECIPE).read_text())
    (tmp_path / "trt").mkdir()
    (tmp_path / manifest.TRT_RECIPE).write_text(json.dumps({**document, **change}))
    with pytest.raises(error, match=r"recipe\.json"):
        recipes.read(tmp_path)


@pytest.mark.skipif(
    any("vnni" in flag for flag in environment.capture()["cpu_flags"] or ()),
    reason="this CPU's int8 kernels do not saturate",
)
def test_without_our_session_options_it_is_another_model(bundle: Path) -> None:
    """On a CPU without VNNI the runtime's fused int8 kernels saturate (ONNXRUNTIME 8)."""
    text = text_for("demo-qwen2", batch=2, length=48).numpy()
    file = bundle / manifest.TRT_GRAPH
    ours, theirs = (
        torch.from_numpy(Session(file, 1, options).prefill(text[:1])[0])
        for options in (SESSION_OPTIONS, {})
    )
    assert kl_divergence(ours, theirs).mean() > 1e-3


def test_a_checkpoint_is_refused_by_its_manifest_before_its_weights_are_read(
    tmp_path: Path,
) -> None:
    checkpoints.save(rounded(random_qwen2(), SCHEMES["w4a16"]), tmp_path / "made")
    (tmp_path / "made" / checkpoints.WEIGHTS).write_bytes(b"of no use")
    done = slmq("export", "made", "--target", "trt", "-o", "b", cwd=tmp_path)
    assert_one_line(done, 1, "int4 weights without blocks")
    done = slmq("export", "made", "--target", "trt", "--activation-mode", "x", cwd=tmp_path)
    assert_one_line(done, 2, "unknown activation mode 'x'")


@pytest.mark.slow
def test_the_command_line_makes_one_of_a_checkpoint(tmp_path: Path) -> None:
    made = slmq("quantize", "demo-llama", "-m", "none", "-s", "w8a8", "-o", "made", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    arguments = ("export", "made", "--target", "trt", "--activation-mode", "static", "-o", "b")
    done = slmq(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "activations static, symmetric, range by mse: mean KL" in done.stdout
    card = (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert "TensorRT 10.3 or later (`trt`)" in card
    assert "--target trt --runtime 10.3 --activation-mode static" in card
    shown = slmq("inspect", "b", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "MatMul (Q/DQ)" in shown.stdout
    ran = slmq("inspect", "b", "--run", cwd=tmp_path)
    assert_one_line(ran, 1, "b is for TensorRT")
