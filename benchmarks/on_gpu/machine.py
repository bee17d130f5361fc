"""The machine of a call: GPU, driver, limits and clocks by NVML, and what is installed.

python -m benchmarks.on_gpu.machine     prints it; torch is asked in a process of its own, so
                                        that whoever measures holds nothing on the GPU
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from typing import Any

from benchmarks.cpu_w8a8 import ROOT

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "onnx", "onnx-ir",
    "onnxscript", "onnxruntime", "onnxruntime-gpu", "typer", "rich", "psutil", "huggingface_hub",
)  # fmt: skip
SECONDS = 120.0


def capture() -> dict[str, Any]:
    """CPU and system as run.json has them; ``gpu``, ``packages``, ``torch``, ``revision``.

    Nothing here raises: what cannot be had is None, or says why.
    """
    from slmq_edge import __version__
    from slmq_edge.runner import environment

    return {
        **environment.capture(),
        "gpu": gpu(),
        "torch": _torch(),
        "packages": {name: _version(name) for name in PACKAGES},
        "slmq_edge": __version__,
        "revision": _revision(),
    }


def gpu(library: Any = None) -> dict[str, Any]:
    """What NVML tells: facts, the power limit and mode, clocks and heat now, other processes.

    library: in place of NVML's.
    """
    from slmq_edge.profiles.cuda import Cuda

    profile = Cuda(library=library)
    try:
        mode = profile.mode()
        return {
            **profile.facts(),
            "mode": None if mode is None else mode._asdict(),
            "clocks_hertz": profile.clocks(),
            "celsius": profile.temperatures().get("gpu"),
            "watts": profile.power(),
            "system": profile.system(),
        }
    finally:
        profile.close()


def name_of(found: dict[str, Any]) -> str | None:
    """The GPU's name for itself in what `gpu` returned; ``None`` without one."""
    return found["gpu"]["gpu"].get("name") if found.get("gpu") else None


def _torch() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.on_gpu.machine", "--torch"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"error": str(error)[:500]}


def torch_facts() -> dict[str, Any]:
    """What torch says of itself and of the device that it takes first."""
    import torch

    found: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "available": torch.cuda.is_available(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        found |= {
            "name": seen.name,
            "capability": f"{seen.major}.{seen.minor}",
            "multiprocessors": seen.multi_processor_count,
            "memory_bytes": seen.total_memory,
        }
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit of the checkout, where git and its folder are there."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    asked = torch_facts() if "--torch" in sys.argv else capture()
    print(json.dumps(asked))  # noqa: T201  this is what it is for
