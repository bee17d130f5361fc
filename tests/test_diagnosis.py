"""What a doctor's document means: what can be measured, what is in the way, what gets it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slmq_edge import installed
from slmq_edge.cli import app
from slmq_edge.diagnosis import Finding, findings, obstacle, targets
from slmq_edge.errors import MissingExtra, Unsupported
from slmq_edge.reports import doctor as report
from slmq_edge.runner.products import PRODUCTS

ROOT = Path(__file__).parents[1]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
AZURE = "AzureExecutionProvider"
GPU = {
    "name": "NVIDIA A800 80GB PCIe",
    "uuid": "GPU-1",
    "compute_capability": "8.0",
    "memory_bytes": 80 << 30,
    "reasons": {},
}
ORIN = {
    "name": "Orin (nvgpu)",
    "uuid": None,
    "compute_capability": None,
    "memory_bytes": None,
    "reasons": {"power": "Not Supported", "uuid": "Not Supported"},
}
NO_TENSORRT = {"error": "ModuleNotFoundError: No module named 'tensorrt'",
               "trtexec": {"error": "there is no trtexec on PATH"}}  # fmt: skip


def _right(provider: str) -> dict[str, Any]:
    return {n: {"largest_error": 0.0, "right": True, "ran_on": [provider]} for n in PRODUCTS}


def _document(**changes: Any) -> dict[str, Any]:
    """A plain machine with onnxruntime; changes replace whole sections."""
    plain = {
        "format": 1,
        "version": "0.1.0",
        "machine": {"machine": "x86_64", "hostname": "here", "cpu_model": "A CPU", "os": "Debian",
                    "cpu_features": ["avx2"], "compatible": [], "model": None},
        "cores": 4,
        "python": {"version": "3.11.2", "executable": "/usr/bin/python3", "venv": False},
        "packages": {"numpy": "2.0", "onnxruntime": "1.23.2", "onnxruntime-gpu": None},
        "onnxruntime": {"version": "1.23.2", "numpy": "2.0", "providers": [AZURE, CPU],
                        "products": {AZURE: _right(CPU), CPU: _right(CPU)}},
        "tensorrt": NO_TENSORRT,
        "cuda": {"error": "CUDA's runtime is not here"},
        "nvml": {"error": "libnvidia-ml.so.1 is not here"},
        "sensors": {"kind": "cpu", "power": {}, "energy": False, "clocks": {"cpu": None},
                    "temperatures": {}, "throttling": {}, "mode": None, "total_rails": [],
                    "reasons": {"energy": "no RAPL counter", "clock": "no cpufreq in /sys"}},
        "room": {"home": "/home/me", "disk_free_bytes": 9e9, "memory_available_bytes": 4e9,
                 "memory_total_bytes": 8e9},
    }  # fmt: skip
    return copy.deepcopy({**plain, **changes})


def _without_onnxruntime(**changes: Any) -> dict[str, Any]:
    packages = {"numpy": "2.0", "onnxruntime": None, "onnxruntime-gpu": None}
    missing = {"error": "No module named 'onnxruntime'"}
    return _document(packages=packages, onnxruntime=missing, **changes)


def _with(provider: str, products: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = _document(**changes)
    found["onnxruntime"]["providers"].append(provider)
    found["onnxruntime"]["products"][provider] = products
    return found


def _named(found: tuple[Finding, ...], name: str) -> Finding:
    (one,) = [one for one in found if one.name == name]
    return one


def _problem(document: dict[str, Any], local: bool = True) -> str:
    return str(obstacle(findings(document, local), local) or "")


def test_a_plain_machine_measures_bundles_for_the_cpu() -> None:
    document = _document()
    assert targets(document) == ("ort",)
    assert obstacle(findings(document, True), True) is None


def test_a_bare_install_is_told_the_extra() -> None:
    problem = obstacle(findings(_without_onnxruntime(), True), True)
    assert isinstance(problem, MissingExtra)
    assert str(problem) == "onnxruntime is not installed: pip install 'slmq-edge[cpu]'"
    gpu = _without_onnxruntime(nvml={"driver": "550", "gpus": [GPU]})
    assert "slmq-edge[gpu]" in _problem(gpu)


def test_a_board_is_told_its_own_command() -> None:
    said = _problem(_without_onnxruntime(), local=False)
    assert "on the device: /usr/bin/python3 -m pip install onnxruntime " in said
    assert "slmq-edge[" not in said


def test_tensorrt_alone_measures_its_bundles() -> None:
    document = _without_onnxruntime(
        tensorrt={"version": "10.3.0", "trtexec": {"error": "none"}},
        cuda={"cuda": "12.6", "name": "Orin", "driver": None},
        nvml={"driver": "540", "gpus": [ORIN]},
    )
    assert targets(document) == ("trt",)
    found = findings(document, True)
    assert obstacle(found, True) is None
    assert _named(found, "onnxruntime").state == "doubtful"


@pytest.mark.parametrize(
    ("packages", "found", "words"),
    [
        ({"onnxruntime": "1.23.2", "onnxruntime-gpu": "1.23.2"}, {}, "overwrite each other"),
        ({}, {"error": "libc.so.6: version GLIBC_2.38 not found"}, "cannot be imported: libc.so.6"),
        ({}, {"version": "1.18.1"}, "1.18.1, and bundles need 1.19 or later"),
    ],
)
def test_an_onnxruntime_that_will_not_do(
    packages: dict[str, Any], found: dict[str, Any], words: str
) -> None:
    document = _document()
    document["packages"].update(packages)
    document["onnxruntime"].update(found)
    assert targets(document) == ()
    problem = obstacle(findings(document, True), True)
    assert isinstance(problem, Unsupported)
    assert words in str(problem)
    assert "pip " in str(problem)


@pytest.mark.parametrize("name", ["float32", "uint8 x uint8"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": "it crashed: SIGILL"}, "it crashed: SIGILL"),
        ({"largest_error": 7.0, "right": False, "ran_on": [CPU]}, "off by 7"),
    ],
)
def test_a_cpu_that_multiplies_wrong_measures_nothing(
    name: str, answer: dict[str, Any], words: str
) -> None:
    document = _document()
    document["onnxruntime"]["products"][CPU][name] = answer
    assert targets(document) == ()
    assert f"cannot multiply on this CPU: {name}" in _problem(document)
    assert words in _problem(document)


def test_4_and_8_bit_weights_are_needed_by_some_bundles_only() -> None:
    """onnxruntime 1.19 has no 8-bit blocks (DEVICES.md 6.5)."""
    document = _document()
    document["onnxruntime"]["products"][CPU]["8-bit weights"] = {"error": "Only 4b is supported"}
    found = findings(document, True)
    assert targets(document) == ("ort",)
    one = _named(found, CPU)
    assert one.state == "ok"
    assert one.text.endswith("; 8-bit weights: Only 4b is supported")


def test_signed_weights_that_saturate_are_told_and_no_fault() -> None:
    document = _document()
    bad = {"largest_error": 32.0, "right": False, "ran_on": [CPU]}
    document["onnxruntime"]["products"][CPU]["uint8 x int8"] = bad
    found = findings(document, True)
    assert _named(found, CPU).state == "ok"
    said = _named(found, "int8 weights on the CPU").text
    assert said.startswith("saturate (uint8 x int8 by 32: no VNNI)")
    exact = _named(findings(_document(), True), "int8 weights on the CPU").text
    assert exact.startswith("exact")


def test_a_provider_that_is_listed_and_does_not_run_says_its_error() -> None:
    why = f"{CUDA} does not start: libcublasLt.so.12: cannot open shared object file"
    document = _with(CUDA, {name: {"error": why} for name in PRODUCTS})
    one = _named(findings(document, True), CUDA)
    assert (one.state, one.text) == ("doubtful", f"listed, does not run: all: {why}")
    assert targets(document) == ("ort",)


def test_a_provider_that_leaves_all_to_the_cpu_runs_nothing() -> None:
    one = _named(findings(_document(), True), AZURE)
    assert (one.state, one.text) == ("absent", "listed, does not run: leaves all to the CPU")


def test_a_gpu_that_multiplies_wrong_is_no_target() -> None:
    products = _right(CUDA)
    document = _with(CUDA, products)
    assert targets(document) == ("ort", "ort-cuda")
    document["onnxruntime"]["products"][CUDA]["uint8 x uint8"]["ran_on"] = [CPU]
    one = _named(findings(document, True), CUDA)
    assert one.state == "ok"
    assert one.text.endswith("; leaves uint8 x uint8 to the CPU")
    wrong = {"largest_error": 3.0, "right": False, "ran_on": [CUDA]}
    document["onnxruntime"]["products"][CUDA]["int8 x int8"] = wrong
    one = _named(findings(document, True), CUDA)
    assert one.state == "doubtful"
    assert "WRONG: int8 x int8 (off by 3)" in one.text
    assert targets(document) == ("ort",)


def test_providers_that_are_not_in_this_build_are_named() -> None:
    found = findings(_document(), True)
    for provider in (CUDA, TENSORRT):
        assert _named(found, provider).text == "not in this onnxruntime"


JETSON = {"machine": "aarch64", "hostname": "orin", "model": "NVIDIA Jetson Orin Nano",
          "compatible": ["nvidia,p3767-0005", "nvidia,tegra234"], "cpu_features": ["asimddp"],
          "nv_tegra_release": "# R36 (release), REVISION: 4.3", "os": "Ubuntu 22.04",
          "memory_total_bytes": 7_990_000_000}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "state", "words"),
    [
        ({"error": "not installed"}, "absent", "not installed"),
        ({}, "ok", "2.13.0 sees no GPU: bundles for torch run on the CPU"),
        ({"gpus": ["H100"]}, "ok", "2.13.0 sees H100, with triton"),
        ({"gpus": ["H100"], "triton": False}, "doubtful", "plain torch"),
        ({"gpus": ["H100"], "compiler": None}, "doubtful", "no C compiler"),
    ],
)
def test_torch_says_what_its_bundles_would_run_on(
    told: dict[str, Any], state: str, words: str
) -> None:
    seen = {"version": "2.13.0", "gpus": [], "triton": True, "compiler": "/usr/bin/cc", **told}
    one = _named(findings(_document(torch=seen), True), "torch")
    assert one.state == state
    assert words in one.text
    assert bool(one.fix) == (state == "doubtful")


def test_a_jetson_is_told_of_jetpacks_packages() -> None:
    document = _document(machine=JETSON, nvml={"driver": "540.4", "gpus": [ORIN]})
    found = findings(document, True)
    assert "jetson-orin-nano-8gb" in _named(found, "device").text
    assert _named(found, "L4T").text == "# R36 (release), REVISION: 4.3"
    one = _named(found, "TensorRT")
    assert (one.state, one.text) == ("doubtful", "not installed")
    assert one.fix == "sudo apt-get install python3-libnvinfer (of JetPack)"
    assert _named(found, "trtexec").fix == "sudo apt-get install libnvinfer-bin"
    assert "2 of NVML's readings are not supported" in _named(found, "GPU").text
    # The vendor's onnxruntime is never to be overwritten by a GPU build for other machines.
    bare = _without_onnxruntime(machine=JETSON, nvml={"driver": "540.4", "gpus": [ORIN]})
    assert "slmq-edge[cpu]" in _problem(bare)


def test_a_virtual_environment_hides_jetpacks_tensorrt() -> None:
    system = {"python": "/usr/bin/python3", "version": "10.3.0", "of_python": [3, 12]}
    hidden = {**NO_TENSORRT, "system": system}
    one = _named(findings(_document(machine=JETSON, tensorrt=hidden), True), "TensorRT")
    assert one.text == "10.3.0 in /usr/bin/python3, not in this virtual environment"
    assert one.fix == "make it anew: /usr/bin/python3 -m venv --system-site-packages"
    system["of_python"] = [3, 10]
    one = _named(findings(_document(machine=JETSON, tensorrt=hidden), True), "TensorRT")
    assert "--device ssh://localhost" in one.fix


def test_without_a_gpu_tensorrt_is_no_lack() -> None:
    one = _named(findings(_document(), True), "TensorRT")
    assert (one.state, one.fix) == ("absent", "")
    gpu = _document(nvml={"driver": "550", "gpus": [GPU]})
    assert _named(findings(gpu, True), "TensorRT").fix == "pip install 'slmq-edge[tensorrt]'"
    assert _named(findings(gpu, False), "TensorRT").fix == (
        "on the device: /usr/bin/python3 -m pip install tensorrt"
    )


def test_little_room_is_worth_a_line() -> None:
    room = {"home": "/root", "disk_free_bytes": 3e8, "memory_available_bytes": 2e8,
            "memory_total_bytes": 4e9}  # fmt: skip
    found = findings(_document(room=room), True)
    assert _named(found, "disk").state == _named(found, "memory").state == "doubtful"
    unknown = dict.fromkeys(room)
    found = findings(_document(room=unknown), True)
    assert _named(found, "disk").text.startswith("an unknown size")


def test_sensors_say_what_they_read_or_why_not() -> None:
    sensors = {
        "kind": "jetson",
        "power": {"VDD_IN": 4.321, "NC": None},
        "energy": False,
        "clocks": {"gpu": 612e6, "emc": None},
        "temperatures": {"gpu": 45.2, "off": None},
        "throttling": {"oc1": 0},
        "mode": {"name": "15W", "id": 0},
        "reasons": {},
        "total_rails": [],
    }
    found = findings(_document(sensors=sensors), True)
    said = {one.name: one.text for one in found if one.part == "Sensors (adapter jetson)"}
    assert said == {
        "power": "VDD_IN 4.32 W",
        "clocks": "gpu 612 MHz",
        "temperatures": "gpu 45 C",
        "throttling": "oc1",
        "power mode": "15W",
    }
    plain = findings(_document(), True)
    assert _named(plain, "energy").text == "no RAPL counter"
    assert _named(plain, "clocks").text == "no cpufreq in /sys"


def test_the_report_marks_what_is_in_the_way() -> None:
    document = _without_onnxruntime()
    text = report.render(document, findings(document, True))
    assert text.startswith("slmq-edge 0.1.0 on here: A CPU, x86_64, Debian\n\nMachine\n")
    assert "\nX onnxruntime  not installed\n" in text
    assert "\n                 pip install 'slmq-edge[cpu]'\n" in text
    assert text.endswith("by --target: none\n")
    whole = report.render(_document(), findings(_document(), True))
    assert "\nX " not in whole
    assert whole.endswith("by --target: ort\n")


def test_json_holds_document_findings_and_targets() -> None:
    document = _document()
    told = json.loads(report.to_json(document, findings(document, True)))
    assert {**told, "findings": None, "targets": None} == {
        **document,
        "findings": None,
        "targets": None,
    }
    assert told["targets"] == ["ort"]
    assert told["findings"][0].keys() == {"part", "name", "state", "text", "fix"}


def test_extras_are_those_of_the_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, (_, packages) in installed.EXTRAS.items():
        asked = listed["optional-dependencies"][extra]
        parsed = [re.fullmatch(r"([\w-]+)[>=]=([\d.]+)(,.*)?", text) for text in asked]
        assert {m[1]: m[2] for m in parsed if m} == packages
        assert len(parsed) == len(packages)


def test_what_an_extra_lacks_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnx": "1.16.2", "onnx-ir": "0.2", "onnxscript": "0.5.0+cpu", "torch": "2.10.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr("shutil.which", lambda name: None)
    said = {one.name: one for one in installed.findings()}
    assert said["export, lint"].text == "needs onnx 1.17 (here is 1.16.2), optimum-onnx"
    assert said["export, lint"].fix == "pip install 'slmq-edge[onnx]'"
    assert "torch" not in said["quantize, export"].text
    assert said["boards over ssh"].text == "ssh and sftp not found"


def _run(*arguments: str, monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]) -> Any:
    monkeypatch.setattr("slmq_edge.runner.doctor.examine", lambda: document)
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_the_verb_ends_with_0_where_bundles_can_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = _run(monkeypatch=monkeypatch, document=_document())
    assert done.exit_code == 0, done.output
    assert "Other work on this machine" in done.stdout
    told = _run("--json", monkeypatch=monkeypatch, document=_document())
    assert json.loads(told.stdout)["targets"] == ["ort"]


def test_boards_of_an_inventory_are_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(target: object) -> Any:
        raise Unsupported("two: no python3 there")

    monkeypatch.setattr("slmq_edge.commands.doctor._asked", unreachable)
    one, two = (f'[[board]]\nname = "{n}"\ndevice = "{d}"\n' for n, d in BOARDS)
    (tmp_path / "boards.toml").write_text(one + two)
    told = _run(
        "--device",
        str(tmp_path / "boards.toml"),
        "--json",
        monkeypatch=monkeypatch,
        document=_document(),
    )
    first, second = json.loads(told.stdout)
    assert (first["name"], first["error"], first["targets"]) == ("one", None, ["ort"])
    assert second == {"name": "two", "error": "two: no python3 there"}
    assert isinstance(told.exception, Unsupported)


BOARDS = (("one", "local"), ("two", "ssh://two"))


def test_the_verb_names_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run(monkeypatch=monkeypatch, document=_without_onnxruntime())
    assert isinstance(done.exception, MissingExtra)
    assert "X onnxruntime" in done.stdout


@pytest.mark.parametrize("python", [sys.executable, "/no/python"])
def test_a_board_is_asked_by_its_own_python(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner goes there as a zip archive, and looks by itself; the way there is no ssh."""
    from slmq_edge.remote import target, transport

    board = dataclasses.replace(target.parse("ssh://me@board"), python=python)
    monkeypatch.setattr(target, "parse", lambda text: board)
    monkeypatch.setattr(transport, "connect", lambda _: transport.LocalTransport(tmp_path))
    done = CliRunner().invoke(app, ["doctor", "--device", "ssh://me@board", "--json"])
    if python != sys.executable:
        assert isinstance(done.exception, Unsupported)
        assert "ssh://me@board: no /no/python there" in str(done.exception)
        return
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["onnxruntime"]["products"][CPU]["uint8 x uint8"]["right"]
    assert told["room"]["home"] == str(tmp_path / ".slmq")  # where files will go
    assert all(one["part"] != "Other work on this machine" for one in told["findings"])


def test_a_board_whose_doctor_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmq_edge.remote import agent, target, transport
    from slmq_edge.remote.transport import Done

    monkeypatch.setattr(transport, "connect", lambda _: transport.LocalTransport(tmp_path))
    monkeypatch.setattr(
        agent.Agent, "python", lambda self, words, timeout: Done(1, "", "a\nMemoryError\n")
    )
    done = CliRunner().invoke(app, ["doctor", "--device", "ssh://me@board"])
    assert "ssh://me@board: the doctor ended there with 1: a | MemoryError" in str(done.exception)
    assert target.parse("ssh://me@board").transport == "ssh"


def test_an_unknown_machine_is_worth_a_line_and_no_more() -> None:
    document = _document()
    document["machine"]["machine"] = "riscv64"
    found = findings(document, True)
    one = _named(found, "device")
    assert one.state == "doubtful"
    assert "riscv64" in one.text
    assert obstacle(found, True) is None
