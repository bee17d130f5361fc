"""What is installed on this machine, and what of it really runs: one JSON document.

Nothing heavy is imported here: runtimes are asked in child processes, each product of matrices on
each provider of onnxruntime, because a list of providers says what was compiled in and not what
works. Python 3.8, standard library.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

import slmq_edge
from slmq_edge.errors import SlmqError
from slmq_edge.profiles import PROFILES, load, nvml
from slmq_edge.runner import children, environment, manifest
from slmq_edge.runner.children import Answers
from slmq_edge.runner.products import PRODUCTS
from slmq_edge.runner.trial import MARK

FORMAT = 1
ANSWER = "slmq-edge: "  # begins the line that is ours: logins print banners
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "tensorrt", "torch")
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SETTLING = 0.3  # seconds until what samples by itself has its first sample
IMPORT_TENSORRT = f"""
import json, sys, tensorrt
told = {{"version": tensorrt.__version__, "of_python": list(sys.version_info[:2])}}
print("\\n{MARK}" + json.dumps(told))
"""
IMPORT_TORCH = f"""
import importlib.util, json, shutil, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
told = {{
    "version": str(torch.__version__),
    "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
    "triton": importlib.util.find_spec("triton") is not None,
    "compiler": shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
}}
print("\\n{MARK}" + json.dumps(told))
"""


def main(arguments: Sequence[str]) -> int:
    """Print the document in one line, behind the mark of an answer (`ANSWER`)."""
    sys.stdout.write(f"\n{ANSWER}{json.dumps(examine())}\n")
    sys.stdout.flush()
    return 0


def read(text: str) -> dict[str, Any] | None:
    """The document in what `main` has printed, whatever else stands around it; None without one."""
    for line in reversed(text.splitlines()):
        if line.startswith(ANSWER):
            document: dict[str, Any] = json.loads(line[len(ANSWER) :])
            return document
    return None


def examine(products: Sequence[str] = tuple(PRODUCTS)) -> dict[str, Any]:
    """Look at everything; a minute where a GPU has to be started, else seconds. Nothing raises."""
    seen = _look()
    return {
        "format": FORMAT,
        "version": slmq_edge.__version__,
        "machine": seen,
        "cores": environment.cores(),
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "venv": sys.prefix != sys.base_prefix,
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "torch_runtime": importlib.util.find_spec(manifest.TORCH_RUNTIME) is not None,
        "onnxruntime": _onnxruntime(products),
        "torch": _torch(),
        "tensorrt": _tensorrt(),
        "cuda": _first(children.trial(["cuda"])),
        "nvml": _nvml(),
        "sensors": _sensors(_kind(seen)),
        "room": _room(),
    }


def _look() -> dict[str, Any]:
    from slmq_edge.runner.look import look

    return dict(look())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first(answers: Answers) -> dict[str, Any]:
    return answers.told[0] if answers.told else {"error": children.reason(answers)}


def _onnxruntime(products: Sequence[str]) -> dict[str, Any]:
    """``error``, or its version, the providers that it lists and what each product did there."""
    found = _first(children.trial(["onnxruntime"]))
    if "error" in found:
        return found
    found["products"] = {name: _products(name, products) for name in found["providers"]}
    return found


def _products(provider: str, names: Sequence[str]) -> dict[str, Any]:
    """Product -> what `trial` says of it. After a crash, the next product has a new process."""
    found: dict[str, Any] = {}
    left: list[str] = list(names)
    while left:
        answers = children.trial(["run", provider, *left])
        for one in answers.told:
            found[one.pop("product", left[0])] = _explained(one, answers)
        left = [name for name in left if name not in found]
        if left:
            found[left[0]] = {"error": answers.end or children.reason(answers)}
            hangs = answers.end.startswith("no answer")
            found.update({name: {"error": "not tried"} for name in left[1:] if hangs})
            left = [] if hangs else left[1:]
    return found


def _explained(answer: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Of a provider that does not start, onnxruntime says why on stderr alone."""
    if answer.get("error", "").endswith("does not start"):
        return {"error": f"{answer['error']}: {children.reason(answers)}"}
    return answer


def _torch() -> dict[str, Any]:
    """``error``, or its version, the GPUs that it sees, and what its kernels need there."""
    if _version("torch") is None:
        return {"error": "not installed"}
    return _first(children.ask([sys.executable, "-c", IMPORT_TORCH]))


def _tensorrt() -> dict[str, Any]:
    """Its module, here and, in a virtual environment, in the system's Python; and trtexec."""
    found = _first(children.ask([sys.executable, "-c", IMPORT_TENSORRT]))
    system = shutil.which("python3", path="/usr/bin:/bin")
    if "error" in found and sys.prefix != sys.base_prefix and system:
        elsewhere = _first(children.ask([system, "-c", IMPORT_TENSORRT], variables=_plain()))
        found["system"] = {"python": system, **elsewhere}
    return {**found, "trtexec": _trtexec()}


def _plain() -> dict[str, str]:
    """The environment without what leads another Python to this one's packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def _trtexec() -> dict[str, Any]:
    from slmq_edge.runner.trt import trtexec

    try:
        program = trtexec.find()
        return {"path": str(program), "version": str(trtexec.version(program))}
    except SlmqError as error:
        return {"error": str(error)}


def _nvml() -> dict[str, Any]:
    """``error``, or the driver, and of each GPU what it tells and why it does not tell the rest."""
    try:
        library = nvml.load()
    except SlmqError as error:
        return {"error": str(error)}
    try:
        return {"driver": library.driver(), "gpus": [_gpu(gpu) for gpu in library.gpus()]}
    except nvml.Refused as error:
        return {"error": str(error)}
    finally:
        library.close()


def _gpu(gpu: nvml.Gpu) -> dict[str, Any]:
    told = {
        "name": gpu.name(),
        "uuid": gpu.uuid(),
        "compute_capability": gpu.compute_capability(),
        "memory_bytes": gpu.memory_bytes(),
        "memory_used_bytes": gpu.memory_used(),
        "watts": gpu.watts(),
        "limit_watts": gpu.limit_watts(),
    }
    return {**told, "reasons": dict(gpu.reasons)}


def _kind(seen: Mapping[str, Any]) -> str:
    """The adapter for this machine, without its sheet, which is the host's to read."""
    model, compatible = str(seen.get("model") or ""), seen.get("compatible") or []
    kind = "cpu"
    if seen.get("nv_tegra_release") or any("nvidia,tegra" in str(one) for one in compatible):
        kind = "jetson"
    elif model.startswith("Raspberry Pi"):
        kind = "raspberrypi"
    elif seen.get("gpus"):
        kind = "cuda"
    return kind if kind in PROFILES else "cpu"


def _sensors(kind: str) -> dict[str, Any]:
    """What the machine tells of itself now."""
    profile = load(kind)
    try:
        profile.energy(), profile.power()
        time.sleep(SETTLING)
        mode = profile.mode()
        return {
            "power": dict(profile.power()),
            "energy": profile.energy() is not None,
            "clocks": dict(profile.clocks()),
            "temperatures": dict(profile.temperatures()),
            "throttling": dict(profile.throttling()),
            "mode": None if mode is None else {"name": mode.name, "id": mode.id},
            **profile.facts(),
        }
    finally:
        profile.close()


def _room() -> dict[str, Any]:
    """Bytes of disk, where the agent's folder or else the login's home is, and of memory."""
    home = os.path.expanduser("~")  # which stays "~" for a user whom nobody knows
    archive = Path(slmq_edge.__file__).parents[1]
    if archive.is_file():  # HOME/runners/<digest>.pyz
        home = str(archive.parents[1])
    try:
        disk: int | None = shutil.disk_usage(home).free
    except OSError:
        disk = None
    profile = load("cpu")
    available = profile.system()["memory_available_bytes"]
    total = environment.capture()["memory_total_bytes"]
    return {
        "home": home,
        "disk_free_bytes": disk,
        "memory_available_bytes": available,
        "memory_total_bytes": total,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
