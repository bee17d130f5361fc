"""Target torch: what is written is the checkpoint, what is said of it is what the modules hold."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmq_edge import checkpoint as checkpoints
from slmq_edge import golden as goldens
from slmq_edge import inspection, macs, parts
from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import Damaged, SlmqError, Unsupported, UsageError
from slmq_edge.export import check_target, export
from slmq_edge.exporters import Wanted
from slmq_edge.exporters.floats import FLOAT16
from slmq_edge.exporters.trt.lint.bundle import lint_all
from slmq_edge.runner import manifest, profiled
from slmq_edge.scheme import Scheme, in_words, scheme
from slmq_edge.torch_runtime import files
from slmq_edge.torch_runtime.model import IntegerModel
from tests.decoders import random_llama, random_qwen3, rounded

TORCH = Wanted("torch")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Noise from fewer tokens: how far a bundle may be off is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goldens, "MOST_NOISE_TOKENS", 2048)
        yield


def exported(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint's bundle, as it is read again."""
    export(checkpoint, folder, TORCH)
    return manifest.read_bundle(folder)


@pytest.mark.parametrize(
    ("words", "ran", "integers", "bits"),
    [
        ({"name": "w8a8"}, "w8a8", ("linear",), (8, 16, 16)),
        ({"name": "w4a8", "lm_head": "int8"}, "w4a8", ("linear", "head"), (4, 8, 8)),
        ({"name": "w4a16-g32"}, "w4a16-g32", (), (4, 16, 16)),
        ({"name": "fp32"}, "fp16", (), (16, 16, 16)),
    ],
)
def test_a_bundle_says_what_its_modules_do(
    words: dict[str, str],
    ran: str,
    integers: tuple[str, ...],
    bits: tuple[int, ...],
    tmp_path: Path,
) -> None:
    checkpoint = rounded(random_qwen3(), in_words(words))
    document = exported(checkpoint, tmp_path / "bundle")
    lowering, shape = document["lowering"], checkpoint.anatomy
    assert (lowering["scheme_ran"], lowering["kv_cache"]) == (ran, "float16")
    work = {"linear": shape.linear_macs_per_token, "head": shape.head_macs_per_token}
    share = sum(work[part] for part in integers) / sum(work.values())
    assert lowering["int8_gemm_share"] == pytest.approx(share)
    assert tuple(lowering["weight_storage_bits"].values()) == bits
    assert document["runtime"]["kind"] == manifest.kind_of(document) == "torch"
    assert document["verified"]["device"] == "cpu"
    assert document["verified"]["mean_kl"] < document["golden"]["kl_limit"]
    file = tmp_path / "bundle" / manifest.TORCH_WEIGHTS
    assert document["weight_bytes"] == parts.sizes(parts.of_safetensors(file))
    manifest.verify(tmp_path / "bundle", document["files"])
    assert "torch 2.5 or later" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    "asked",
    [
        in_words({"name": "w4a8", "protect": ("model.layers.0.self_attn.k_proj",)}),
        in_words({"name": "w4a8-b32", "lm_head": "int4", "kv": "8"}),
        in_words({"name": "w8a8", "weights": "asymmetric", "activations": "asymmetric"}),
    ],
)
def test_rows_count_the_bytes_that_lie_in_memory(asked: Scheme, tmp_path: Path) -> None:
    """Each row's bits times its weights are what the modules' integers take, padding aside."""
    checkpoint = rounded(random_llama(), asked)
    document = exported(checkpoint, tmp_path / "bundle")
    rows = [row for row in document["lowering"]["linears"] if row["part"] != "rotation"]
    counts = document["counts"]
    total = counts["linear_macs_per_token"] + counts["head_macs_per_token"]
    assert sum(row["macs_per_token"] for row in rows) == total
    running = IntegerModel.of(checkpoint, torch.float16)
    held = sum(
        buffer.nbytes
        for name, buffer in running.named_buffers()
        if name.endswith((".integers", ".values")) and not name.startswith("table_of_tokens")
    )
    said = sum(row["macs_per_token"] * row["memory_bits"] for row in rows)
    assert held == pytest.approx(said / 8, rel=0.03)
    kept = "int8 with their steps" if asked.kv else "float16"
    assert document["lowering"]["kv_cache"].endswith(kept)


def test_the_payload_is_the_checkpoints_integers(tmp_path: Path) -> None:
    checkpoint = rounded(random_llama(), scheme("w4a8", "int8"))
    document = exported(checkpoint, tmp_path / "bundle")
    stored = load_file(tmp_path / "bundle" / manifest.TORCH_WEIGHTS)
    for name, tensor in checkpoints.stored(checkpoint).items():
        if name in checkpoint.tensors:
            assert torch.equal(stored.pop(name), tensor.half())
        elif name != checkpoints.PROMPTS:
            assert torch.equal(stored.pop(name), tensor)
    assert not stored
    found, floats = files.read(tmp_path / "bundle", document)
    assert floats == FLOAT16
    assert (found.anatomy, found.scheme) == (checkpoint.anatomy, checkpoint.scheme)
    for name, weight in checkpoint.integers.items():
        assert torch.equal(found.integers[name].integers, weight.integers)


def test_no_onnx_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith(("slmq_edge.exporters", "slmq_edge.export")):
            monkeypatch.delitem(sys.modules, name)
    for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    from slmq_edge import export as verb

    verb.check_target(Wanted("torch"))
    checkpoint = rounded(random_llama(), scheme("w8a8"))
    assert verb.export(checkpoint, tmp_path / "bundle", Wanted("torch"))["verified"]["torch"]


def test_a_weight_too_large_for_float16_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    checkpoint = rounded(random_llama(), scheme("w8a8"))
    checkpoint.tensors["model.norm.weight"][3] = 1e5
    with pytest.raises(Unsupported, match=r"model\.norm\.weight holds 1e\+05, too large"):
        export(checkpoint, tmp_path / "bundle", TORCH)
    assert not (tmp_path / "bundle").exists()


def test_modules_that_compute_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = rounded(random_qwen3(), scheme("w8a8"))
    real = files.read

    def read(*given: Any) -> Any:
        found, floats = real(*given)
        found.integers["model.layers.0.mlp.down_proj"].scale.mul_(1.3)
        return found, floats

    monkeypatch.setattr(files, "read", read)
    with pytest.raises(SlmqError, match="the modules do not compute what the simulation computes"):
        export(checkpoint, tmp_path / "bundle", TORCH)
    assert not (tmp_path / "bundle").exists()


def test_other_words_of_export_are_refused() -> None:
    with pytest.raises(UsageError, match="target torch is of one kind"):
        check_target(Wanted("torch", "modern"))
    with pytest.raises(UsageError, match="--activation-mode is how --target trt"):
        check_target(Wanted("torch", None, "static"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch") / "bundle"
    exported(rounded(random_llama(), scheme("w4a8", "int8")), folder)
    return folder


def _changed(made: Path, folder: Path, **fields: Any) -> Path:
    copy = Path(shutil.copytree(made, folder / "changed"))
    document = json.loads((copy / manifest.TORCH_MODEL).read_text())
    (copy / manifest.TORCH_MODEL).write_text(json.dumps({**document, **fields}))
    return copy


def test_a_payload_that_is_not_whole_is_damaged(made: Path, tmp_path: Path) -> None:
    bundle = manifest.read_bundle(made)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"floats": "float8"}, "does not describe"),
        ({"integers": {"model.layers.9.mlp.up_proj": {}}}, "does not describe"),
        ({"static_inputs": ["nobody"]}, "nobody.input_scale"),
    ]
    for number, (fields, said) in enumerate(wrong):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(Damaged, match=said):
            files.read(_changed(made, tmp_path / str(number), **fields), bundle)
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    tensors = load_file(copy / manifest.TORCH_WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, copy / manifest.TORCH_WEIGHTS)
    with pytest.raises(Damaged, match=r"lacks the tensor model\.norm\.weight"):
        files.read(copy, bundle)
    (copy / manifest.TORCH_MODEL).unlink()
    with pytest.raises(Damaged, match=r"torch/model\.json is missing"):
        manifest.verify(copy, bundle["files"])


def test_other_verbs_know_it_or_say_in_a_line_that_they_do_not(made: Path) -> None:
    found = inspection.inspect(made)
    assert found.verified
    assert found.sizes["graph"] < 20_000  # model.json; the weights are counted by what they are
    assert found.sizes["linears"] > 0
    document = manifest.read_bundle(made)
    counted = macs.count(str(made), 16).products
    assert {one.scheme for one in counted if one.part == "linear"} == {"w4a8"}
    with pytest.raises(Unsupported, match="is for torch, of whose operators"):
        profiled.run(made, document, 1)
    with pytest.raises(Unsupported, match="is a bundle for torch, not for TensorRT"):
        lint_all(made)
