"""From a model to figures of an engine, by the command line alone.

The graph is the exporter's own. A script stands in for trtexec and `fake_tensorrt` for TensorRT and
CUDA: its engines compute the graph on ONNX Runtime, so that what is checked here is everything but
NVIDIA's arithmetic and its speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slmq_edge import results
from slmq_edge.anatomy import LINEARS
from slmq_edge.runner.trt import recipe as recipes
from slmq_edge.runner.trt.recipe import Recipe
from tests.shared import shared
from tests.test_cli import assert_one_line, slmq

ROOT = Path(__file__).resolve().parents[1]
SITE = """
import os
if "FAKE_TENSORRT" in os.environ:
    from tests import fake_tensorrt
    device = fake_tensorrt.Cudart(total=1 << 33)
    fake_tensorrt.install(os.environ["FAKE_TENSORRT"], device)
"""

TRTEXEC = """#!{python}
import json, re, sys
sys.path.insert(0, {root!r})
from slmq_edge.runner.trt import recipe as recipes
from tests import fake_builder, fake_tensorrt
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] #", *sys.argv)
if "--help" in sys.argv:
    sys.exit(0)
profiles = []
for word in sys.argv[1:]:
    name, _, value = word.lstrip("-").partition("=")
    if name == "profile":
        profiles.append({{}})
    if name.endswith("Shapes"):
        for port, shape in re.findall(r"([^:,]+):([0-9x]+)", value):
            profiles[-1].setdefault(port, []).append([int(dim) for dim in shape.split("x")])
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
names = json.loads(open({products!r}).read())
plan = fake_tensorrt.plan_of(options["onnx"], "10.3.0", profiles, products=names)
open(options["saveEngine"], "wb").write(plan)
layers = [fake_builder.product(name, "N/A due to dynamic shapes") for name in names]
open(options["exportLayerInfo"], "w").write(json.dumps({{"Layers": layers}}))
open(options["timingCacheFile"], "a").write("timed")
"""


class Board:
    """A machine with a GPU: ``run`` a verb there."""

    def __init__(self, home: Path) -> None:
        self.home, self.products = home, home / "products.json"
        (home / "sitecustomize.py").write_text(SITE)
        self.trtexec = home / "trtexec"
        text = TRTEXEC.format(python=sys.executable, root=str(ROOT), products=str(self.products))
        self.trtexec.write_text(text)
        self.trtexec.chmod(0o755)
        self.variables = {"PYTHONPATH": f"{home}:{ROOT}", "FAKE_TENSORRT": "10.3.0"}
        self.environment = {**os.environ, **self.variables}

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return slmq(*arguments, cwd=self.home, **self.variables)

    def export(self, name: str, *options: str) -> Recipe:
        made = self.run(
            "export", "demo-qwen2", "-m", "none", "--target", "trt", *options, "-o", name
        )
        assert made.returncode == 0, made.stderr
        return recipes.read(self.home / name)

    def build(self, name: str, products: list[str]) -> subprocess.CompletedProcess[str]:
        """products: the nodes that its trtexec makes products of int8 by int8."""
        self.products.write_text(json.dumps(products))
        return self.run("build", name, "--trtexec", self.trtexec)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def bundle(board: Board) -> Recipe:
    """``w8a8``, with its engine."""
    recipe = board.export("w8a8", "--activation-mode", "static")
    early = board.run("profile", "w8a8", "--runtime", "trt")
    assert_one_line(early, 1, "no engine for w8a8", "slmq-edge build w8a8")
    built = board.build("w8a8", list(recipe.int8))
    assert built.returncode == 0, built.stderr
    return recipe


def test_a_model_becomes_an_engine_that_is_checked_and_measured(
    board: Board, bundle: Recipe
) -> None:
    (plan,) = (board.home / "w8a8" / "engines").glob("*.plan")
    sidecar = json.loads(plan.with_suffix(".json").read_text())
    assert sidecar["int8_missing"] == []
    assert sidecar["with_shapes"]
    assert sidecar["golden"]["mean_kl"] < 5e-3
    words = ("-p", 24, "-n", 8, "-r", 2)
    done = board.run("profile", "w8a8", "--runtime", "trt", *words, "-o", "w8a8.json")
    assert done.returncode == 0, done.stderr
    run = results.load(board.home / "w8a8.json")
    assert run.artifact.scheme_ran == "w8a8"
    assert run.environment["tensorrt"] == "10.3.0"
    assert run.device_memory is not None
    assert run.device_memory["kv"] >= 2 * 32 * bundle.kv_bytes_per_token
    said = board.run("generate", "w8a8", "--prompt", "The ant", "--max-new-tokens", 5)
    assert said.returncode == 0, said.stderr


@pytest.mark.slow
def test_it_is_compared_with_the_float16_baseline_of_the_same_writer(
    board: Board, bundle: Recipe
) -> None:
    recipe = board.export("fp16", "--scheme", "fp32")
    assert recipe.int8 == ()
    assert board.build("fp16", []).returncode == 0
    for name in ("fp16", "w8a8"):
        words = ("-p", 16, "-n", 4, "-r", 2, "-o", f"{name}-short.json")
        assert board.run("profile", name, *words).returncode == 0
    done = board.run("compare", "-b", "fp16-short.json", "-c", "w8a8-short.json")
    assert done.returncode == 0, done.stderr
    assert "SLMQ_infer" in done.stdout


@pytest.mark.slow  # 12 s
def test_an_engine_whose_products_are_not_int8_loses_its_name(board: Board) -> None:
    recipe = board.export("floats")
    built = board.build("floats", list(recipe.int8[:3]))
    assert built.returncode == 0, built.stderr
    assert "3 of 35" in built.stdout + built.stderr
    done = board.run("profile", "floats", "-p", 16, "-n", 4, "-r", 1, "-o", "floats.json")
    assert done.returncode == 0, done.stderr
    assert results.load(board.home / "floats.json").artifact.scheme_ran == "w8a16"
    half = board.build("floats", [name for name in recipe.int8 if "mlp" in name])
    assert "is there already" in half.stderr


def test_a_report_to_paste_says_all_of_it(board: Board, bundle: Recipe) -> None:
    done = board.run("trt", "report", "w8a8")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (engine,) = report["bundles"][0]["engines"]
    assert report["gpu"] == "Fake Orin"
    assert engine["golden"]["mean_kl"] < 5e-3
    assert str(board.home) not in done.stdout


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_is_ready(board: Board) -> None:
    names = [f"model.layers.0.{linear}.matmul" for linear in LINEARS]
    board.products.write_text(json.dumps([*names, "lm_head.matmul"]))
    command = [sys.executable, "-m", "benchmarks.gpu_trt", "--shared", str(shared("."))]
    command += ["--trtexec", str(board.trtexec), "--layers", "1", "--workspace", "64"]
    command += ["--flavour", "fp16", "--flavour", "w8a8-static"]
    command += ["--prompt", "8", "--new", "2", "--rounds", "1", "-o", str(board.home / "gpu.json")]
    done = subprocess.run(
        command, cwd=ROOT, env=board.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((board.home / "gpu.json").read_text())
    assert set(document["rows"]) == {"fp16", "w8a8-static"}
    for row in document["rows"].values():
        assert "error" not in row
        assert row["engine"]["int8_missing"] == []
        assert row["decode_tokens_per_second"] > 0
    assert document["gpu"]["name"] == "Fake Orin"
