"""What NVIDIA's own parser and compiler make of our graphs (TensorRT-RTX, no GPU; extra trt-check).

Every product that a recipe calls int8 must be one of int8 by int8 in the compiled plan, and no
other; nothing may be warned of.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from slmq_edge import models
from slmq_edge.anatomy import Anatomy
from slmq_edge.checkpoint import Checkpoint, IntegerWeight
from slmq_edge.errors import SlmqError
from slmq_edge.exporters import Wanted, graph
from slmq_edge.exporters.trt import bundle, nvidia
from slmq_edge.quantization.rounding import Steps
from slmq_edge.runner.manifest import TRT_GRAPH
from slmq_edge.runner.trt import recipe as recipes
from slmq_edge.runner.trt.recipe import Recipe
from slmq_edge.scheme import Scheme, in_words
from tests.shared import shared
from tests.test_cli import assert_one_line, slmq

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'slmq-edge[trt-check]'")

SHAPES = ("SmolLM-135M", "Qwen2.5-0.5B", "Qwen3-0.6B")
# Words of a scheme, how activations are rounded, which TensorRT.
FLAVOURS = {
    "w8a8 per token": ({"name": "w8a8"}, None, None),
    "w8a8 static": ({"name": "w8a8"}, "static", None),
    "w8a8 static, int8 head": ({"name": "w8a8", "lm_head": "int8"}, "static", None),
    "w8a8 per token for 8.5": ({"name": "w8a8"}, None, "8.5"),
    "w4a8 per token, int8 head": ({"name": "w4a8", "lm_head": "int8"}, None, None),
    "w4a16-g64": ({"name": "w4a16-g64"}, None, None),
    "w4a16-g32": ({"name": "w4a16-g32"}, None, None),
    "w8a16": ({"name": "w8a16"}, None, None),
    "fp16": ({"name": "fp32"}, None, None),
}

# Of the other shapes: what biases and normed heads could come between.
USUAL = ("w8a8 per token", "w8a8 static, int8 head", "w4a16-g32")


def cut(name: str, layers: int, vocab: int) -> Anatomy:
    """A model's shape with fewer layers and words."""
    whole = models.read_anatomy(shared(f"configs/{name}"))
    return dataclasses.replace(whole, layers=layers, vocab=vocab)


def drawn(shape: Anatomy, wanted: Scheme) -> Checkpoint:
    """A checkpoint of random numbers: what is compiled does not depend on them."""
    generator = torch.Generator().manual_seed(5)
    integers: dict[str, IntegerWeight] = {}
    tensors: dict[str, torch.Tensor] = {}
    grids = dict.fromkeys(shape.linears(), wanted.weights)
    grids |= {"model.embed_tokens": wanted.table(shape.tied), "lm_head": wanted.lm_head(shape.tied)}
    for name, size in shape.tensors().items():
        linear, _, kind = name.rpartition(".")
        grid = grids.get(linear) if kind == "weight" else None
        if grid is None:
            tensors[name] = torch.randn(size, generator=generator) / 40
            continue
        levels = torch.randint(grid.bottom, grid.top + 1, size, generator=generator)
        scales = torch.rand(size[0], grid.groups(size[1]), generator=generator) * 1e-3 + 1e-3
        integers[linear] = IntegerWeight(levels.to(torch.int8), scales, None, grid)
    inputs = {}
    if wanted.is_static:
        firsts = [one for one in integers if one.endswith(("q_proj", "o_proj", "gate_proj"))]
        firsts += [one for one in integers if one.endswith("down_proj")] + ["lm_head"]
        inputs = {one: Steps(torch.tensor([0.02]), None) for one in firsts}
    return Checkpoint(
        shape, wanted, integers, tensors, "none", {}, {"name": "drawn"}, None, {}, {},
        inputs=inputs,
    )  # fmt: skip


def made(shape: Anatomy, flavour: str, folder: Path) -> tuple[Path, Recipe]:
    words, mode, runtime = FLAVOURS[flavour]
    if mode == "static":
        words = {**words, "activation_scale": "tensor"}
    bundle.write(drawn(shape, in_words(words)), folder, Wanted("trt", runtime, mode))
    return folder / TRT_GRAPH, recipes.read(folder)


def expected(shape: Anatomy, flavour: str) -> int:
    """Products of integers: the linears, and the head where it is int8."""
    wanted = in_words(FLAVOURS[flavour][0])
    if wanted.activations is None:
        return 0
    return sum(1 for _ in shape.linears()) + (wanted.head is not None)


@pytest.mark.parametrize(
    ("name", "flavour"),
    [
        *((SHAPES[0], flavour) for flavour in FLAVOURS),
        *itertools.product(SHAPES[1:], USUAL),
    ],
)
def test_two_layers_become_the_products_that_the_recipe_says(
    name: str, flavour: str, tmp_path: Path
) -> None:
    shape = cut(name, layers=2, vocab=512)
    file, recipe = made(shape, flavour, tmp_path)
    assert len(recipe.int8) == expected(shape, flavour)
    found = nvidia.check(file, recipe)
    assert found.int8 == set(recipe.int8)
    # q, k and v are one product, and so are gate and up.
    int8 = sum(layer.is_int8 for layer in found.layers)
    head = len(recipe.int8) - len(recipe.int8) // 7 * 7
    assert int8 == len(recipe.int8) // 7 * 4 + head
    if flavour.startswith("w4a16"):
        assert any("Int4" in pair for pair in found.products)


def test_a_product_that_is_none_of_integers_is_named(tmp_path: Path) -> None:
    shape = dataclasses.replace(
        models.read_anatomy(shared("configs/SmolLM-135M")), layers=1, vocab=64
    )
    file, recipe = made(shape, "w8a16", tmp_path)
    promised = recipe._replace(int8=recipe.weight_only)
    with pytest.raises(SlmqError, match=r"does not multiply model\.layers\.0\..*7 such of 7"):
        nvidia.check(file, promised)
    (tmp_path / "int8").mkdir()
    file, recipe = made(shape, "w8a8 per token", tmp_path / "int8")
    with pytest.raises(SlmqError, match=r"multiplies model\.layers\.0\..*down_proj"):
        nvidia.check(file, recipe._replace(int8=recipe.int8[:-1]))


def test_what_its_parser_refuses_is_said_with_the_node(tmp_path: Path) -> None:
    import onnx_ir as ir

    shape = dataclasses.replace(
        models.read_anatomy(shared("configs/SmolLM-135M")), layers=1, vocab=64
    )
    file, recipe = made(shape, "w8a8 per token", tmp_path)
    model = ir.load(file)
    name = "model.layers.0.mlp.down_proj.zeros"
    zeros = model.graph.initializers[name].const_value
    assert zeros is not None
    model.graph.initializers[name].const_value = ir.tensor(zeros.numpy() + 1, name=name)
    graph.save(model, tmp_path / "bad.onnx")
    with pytest.raises(SlmqError, match=r"down_proj\.weight_dequantize.*[Zz]ero point"):
        nvidia.check(tmp_path / "bad.onnx", recipe)


@pytest.mark.slow
def test_the_command_line_compiles_a_bundle(tmp_path: Path) -> None:
    made = slmq(
        "export", "demo-qwen2", "-m", "none", "--target", "trt", "-o", "bundle", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    done = slmq("lint", "bundle", "--compile", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "TensorRT 10.3: nothing found" in done.stdout
    assert "35 MatMuls are int8 by int8, as the recipe says" in done.stdout
    refused = slmq("lint", "bundle/trt/model.onnx", "--compile", cwd=tmp_path)
    assert_one_line(refused, 2, "--compile is of bundles")


@pytest.mark.nvidia
@pytest.mark.parametrize("flavour", ["w8a8 per token", "w8a8 static, int8 head", "w4a16-g64"])
@pytest.mark.parametrize("name", ["SmolLM-135M", "Qwen2.5-0.5B"])
def test_whole_models_do_too(name: str, flavour: str, tmp_path: Path) -> None:
    shape = models.read_anatomy(shared(f"configs/{name}"))
    file, recipe = made(shape, flavour, tmp_path)
    assert nvidia.check(file, recipe).int8 == set(recipe.int8)
