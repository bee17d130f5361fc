"""The doctor on a machine: real products in real processes, whatever these do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.profiles import nvml
from slmq_edge.runner import children, doctor
from slmq_edge.runner.products import PRODUCTS
from tests import fake_onnxruntime as fake
from tests.fake_nvml import FakeGpu, FakeNvml, silent

ROOT = Path(__file__).parents[1]
CPU = "CPUExecutionProvider"


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Children import the fake onnxruntime, and what else a test puts in this folder."""
    folder = tmp_path / "packages"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "fake_onnxruntime.py", folder / "onnxruntime.py")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_what_this_machine_can_do() -> None:
    document = doctor.examine()
    assert json.loads(json.dumps(document)) == document
    assert document["format"] == doctor.FORMAT
    assert document["packages"]["numpy"] is not None
    found = document["onnxruntime"]
    assert set(found["products"]) == set(found["providers"])
    assert set(found["products"][CPU]) == set(PRODUCTS)
    assert found["products"][CPU]["uint8 x uint8"]["right"]
    assert set(document["torch"]) == {"version", "gpus", "triton", "compiler"}
    assert document["sensors"]["kind"] in ("cpu", "cuda", "jetson", "raspberrypi")
    assert document["room"]["disk_free_bytes"] > 0
    assert document["machine"]["machine"]


def test_children_do_not_import_what_lies_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    assert children.trial(["onnxruntime"]).told[0]["providers"]


def test_a_user_whom_nobody_knows_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    room = doctor._room()
    assert (room["home"], room["disk_free_bytes"]) == ("~", None)
    assert room["memory_total_bytes"] > 0


def test_a_provider_that_crashes_ends_nothing(faked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PROVIDERS", f"{fake.CRASHES} {CPU}")
    found = doctor._onnxruntime(tuple(PRODUCTS))["products"]
    assert {name for name, one in found[fake.CRASHES].items() if "error" in one} == {
        "uint8 x uint8",
        "uint8 x int8",
        "int8 x int8",
    }
    assert found[fake.CRASHES]["uint8 x int8"] == {"error": "it crashed: SIGSEGV"}
    assert found[fake.CRASHES]["8-bit weights"]["right"]
    assert all(one["right"] for one in found[CPU].values())


def test_a_provider_that_never_answers_is_given_up(
    faked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = children.trial
    monkeypatch.setattr(children, "trial", lambda words: plain(words, 2.0))
    found = doctor._products(fake.HANGS, tuple(PRODUCTS))
    assert found["float32"] == {"error": "no answer within 2 s"}
    assert {one["error"] for name, one in found.items() if name != "float32"} == {"not tried"}


def test_why_a_provider_does_not_start_stands_on_stderr(faked: Path) -> None:
    found = doctor._products(fake.CUDA, ("float32",))
    said = found["float32"]["error"]
    assert said.startswith("CUDAExecutionProvider does not start: Failed to load library")
    assert "libcublasLt.so.12: cannot open shared object file" in said


def test_what_is_left_to_the_cpu_and_what_is_wrong_is_seen(faked: Path) -> None:
    silent_one = doctor._products(fake.SILENT, ("float32",))["float32"]
    assert silent_one == {"largest_error": 0.0, "right": True, "ran_on": [CPU]}
    lies = doctor._products(fake.LIES, ("float32", "int8 x int8"))
    assert lies["float32"]["right"]
    assert lies["int8 x int8"]["largest_error"] == 1.0
    assert not lies["int8 x int8"]["right"]


def test_an_onnxruntime_that_cannot_be_imported_says_why(faked: Path) -> None:
    (faked / "onnxruntime.py").write_text("raise ImportError('GLIBC_2.38 not found')\n")
    assert doctor._onnxruntime(tuple(PRODUCTS)) == {"error": "GLIBC_2.38 not found"}


def test_an_onnxruntime_whose_import_crashes_says_so(faked: Path) -> None:
    text = "import os, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nos.abort()\n"
    (faked / "onnxruntime.py").write_text(text)
    assert doctor._onnxruntime(tuple(PRODUCTS)) == {"error": "it crashed: SIGABRT"}


def test_tensorrt_is_imported_to_know_that_it_is_there(
    faked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (faked / "tensorrt.py").write_text("print('banner')\n__version__ = '10.3.0'\n")
    program = faked / "trtexec"
    program.write_text('#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] #"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{faked}{os.pathsep}{os.environ['PATH']}")
    found = doctor._tensorrt()
    assert found == {
        "version": "10.3.0",
        "of_python": list(sys.version_info[:2]),
        "trtexec": {"path": str(program), "version": "10.3.0"},
    }


def test_a_broken_tensorrt_is_an_error_in_one_line(faked: Path) -> None:
    (faked / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libnvinfer.so.99')\n")
    found = doctor._tensorrt()
    assert "libnvinfer.so.99: cannot open shared object file" in found["error"]
    assert "\n" not in found["error"]


def test_gpus_by_nvml_each_reading_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml([FakeGpu(), silent()])
    plain = nvml.load
    monkeypatch.setattr(nvml, "load", lambda: plain(library.library()))
    found = doctor._nvml()
    assert found["driver"] == "550.54.15"
    assert found["gpus"][0]["watts"] == 250.0
    assert found["gpus"][0]["reasons"] == {}
    assert found["gpus"][1]["name"] == "Orin (nvgpu)"
    assert found["gpus"][1]["watts"] is None
    assert "Not Supported" in found["gpus"][1]["reasons"]["power"]
    assert library.opened == 0
    library.refuses["nvmlSystemGetDriverVersion"] = 999
    assert "nvmlSystemGetDriverVersion" in doctor._nvml()["error"]


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ({}, "cpu"),
        ({"gpus": [{"name": "NVIDIA A800 80GB PCIe"}]}, "cuda"),
        ({"compatible": ["nvidia,p3767-0005", "nvidia,tegra234"]}, "jetson"),
        ({"nv_tegra_release": "# R36 (release)", "gpus": [{"name": "Orin (nvgpu)"}]}, "jetson"),
        ({"model": "Raspberry Pi 5 Model B Rev 1.0"}, "raspberrypi"),
    ],
)
def test_the_adapter_fits_the_machine(seen: dict[str, Any], kind: str) -> None:
    from slmq_edge.profiles import PROFILES

    assert doctor._kind(seen) == (kind if kind in PROFILES else "cpu")


def test_the_document_is_one_line_behind_a_mark() -> None:
    """As a board is asked: by the runner's own program, with a banner of the login before it."""
    command = [sys.executable, "-m", "slmq_edge.runner", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    document = doctor.read("Welcome to Ubuntu\n" + done.stdout + "logged out\n")
    assert document is not None
    assert document["onnxruntime"]["products"][CPU]["float32"]["right"]
    assert doctor.read("Welcome to Ubuntu\n") is None


def test_a_command_that_is_not_there_is_an_answer_too() -> None:
    answers = children.ask(["/no/such/program"])
    assert answers.told == []
    assert answers.end == "/no/such/program cannot be run: No such file or directory"
    assert "cannot be run" in children.reason(answers)


def test_a_child_that_says_nothing_is_told_by_its_end() -> None:
    answers = children.ask([sys.executable, "-c", "raise SystemExit(3)"])
    assert children.reason(answers) == "it ended with 3"
    killed = children.ask([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert children.reason(killed) == "it crashed: SIGKILL"
