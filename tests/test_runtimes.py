"""Golden prompts pass under the oldest, the locked and the newest onnxruntime.

``make test-runtimes``: each release is installed, with numpy alone, into a virtual environment
below ``.runtimes``; bundles are made here and checked there, by the runner's own code.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.export import export
from slmq_edge.scheme import SCHEMES, Scheme
from tests.decoders import DECODERS, text_for
from tests.test_onnx_schemes import FORMS, form_of

ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = ROOT / ".runtimes"
OLDEST, LOCKED, NEWEST = "1.19.2", "1.23.2", "1.31.1"
STANDARD = "random untied Llama"  # whose heads no fused attention takes
PLAIN = ("fp32", "w8a8", "w4a8", "w4a8-g32", "w4a8-b32", "w4a16-g32")
MODERN = "w8a8-b32"  # 8-bit blocks, which the oldest does not know
IN_BLOCKS = ("w4a8-b32 int4 head", "w4a8-b128 int4 head, int8 table", "w4a16-g32 int4 head")
WRITTEN_OUT = ("w8a8 asymmetric activations", "w8a8 static", "w8a8 kv 8", *IN_BLOCKS, MODERN)
CASES = [
    *((name, form) for name in ("demo-llama", "demo-qwen2") for form in (*PLAIN, *WRITTEN_OUT)),
    *((STANDARD, form) for form in ("fp32", "w8a8", "w8a8 kv 8")),
]
# A prompt in pieces is right to float32's precision, or it is far off: nothing lies between.
RIGHT, WRONG = 1e-8, 1e-4

pytestmark = pytest.mark.runtimes
Findings = dict[str, dict[str, Any]]
Ask = Callable[[str], Findings]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make(name, form, folder / f"{name}, {form}") for name, form in CASES]


def make(name: str, form: str, folder: Path) -> Path:
    wanted: Scheme = SCHEMES[form] if form in SCHEMES and form not in FORMS else FORMS[form]
    checkpoint = form_of(DECODERS[name](), wanted)
    length = min(128, checkpoint.anatomy.max_positions // 2)
    prompts = text_for(name, 128 if name == STANDARD else 64, length)
    export(dataclasses.replace(checkpoint, prompts=prompts), folder)
    return folder


@pytest.fixture(scope="module")
def ask(bundles: list[Path]) -> Ask:
    """What a release finds in all bundles; asked once."""

    @functools.cache
    def findings(version: str) -> Findings:
        driver = Path(__file__).with_name("runtime_driver.py")
        command = [str(python_with(version)), str(driver), *map(str, bundles)]
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["onnxruntime"] == version
        found: Findings = report["bundles"]
        return found

    return findings


def python_with(version: str) -> Path:
    """A virtual environment's Python, made where there is none yet."""
    if version == OLDEST and sys.version_info >= (3, 13):
        pytest.skip(f"onnxruntime {OLDEST} has no wheel for Python 3.13: take 3.11 or 3.12")
    tag = f"py{sys.version_info.major}{sys.version_info.minor}"
    home = RUNTIMES / f"onnxruntime-{version}-{tag}"
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"onnxruntime=={version}", "numpy"], check=True)
        ready.touch()
    return python


@pytest.mark.parametrize("version", [OLDEST, LOCKED, NEWEST])
def test_golden_prompts_pass(ask: Ask, version: str) -> None:
    found = ask(version)
    assert list(found) == [f"{name}, {form}" for name, form in CASES]
    say(f"onnxruntime {version}: mean KL, and with a past")
    for name, graphs in found.items():
        if name.endswith(MODERN) and version == OLDEST:
            assert "is too old for this bundle: it needs 1.23" in str(graphs["refused"])
            say(f"{name:45} refused: needs 1.23")
            continue
        for graph, one in graphs.items():
            say(f"{name:45} {graph:18} {one['mean_kl']:8.1e} {one['mean_kl_with_past']:8.1e}")
            assert one["positions_compared"] > one["positions_below_margin"]
            assert one["step_refuses"]


@pytest.mark.parametrize("version", [OLDEST, LOCKED, NEWEST])
def test_several_tokens_on_a_past(ask: Ask, version: str) -> None:
    """Wrong under the oldest where attention is fused: why a session takes one token a step."""
    say(f"onnxruntime {version}: mean KL of a prompt in two pieces from the whole")
    for name, graphs in ask(version).items():
        for graph, one in graphs.items():
            if graph == "refused":
                continue
            say(f"{name:45} {graph:18} {one['chunked_kl']:8.1e}")
            if name.endswith("fp32"):
                wrong = version == OLDEST and not name.startswith(STANDARD)
                assert one["chunked_kl"] > WRONG if wrong else abs(one["chunked_kl"]) < RIGHT


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
