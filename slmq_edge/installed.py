"""What of this package's extras and of the system's programs is installed here."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Iterator

from slmq_edge.diagnosis import Finding

# Extra -> what it is for, and its packages with the oldest version that will do; pyproject.toml
# says the same, and a test that it does.
EXTRAS: dict[str, tuple[str, dict[str, str]]] = {
    "quantize": (
        "quantize, export",
        {"torch": "2.5", "transformers": "4.56", "safetensors": "0.4.5", "pyarrow": "15"},
    ),
    "onnx": (
        "export, lint",
        {"onnx": "1.17", "onnx-ir": "0.1.12", "onnxscript": "0.5", "optimum-onnx": "0.1.0"},
    ),
    "eval": ("accuracy on tasks", {"lm-eval": "0.4.13", "transformers": "4.56"}),
    "trt-check": ("lint --compile", {"tensorrt-rtx-cu13": "1.7.1.116"}),
}
PART = "Other work on this machine"


def findings() -> Iterator[Finding]:
    """Extra by extra, and what boards over ssh need."""
    for extra, (purpose, packages) in EXTRAS.items():
        short = [text for name, least in packages.items() if (text := _short(name, least))]
        name, fix = f"{purpose}", f"pip install 'slmq-edge[{extra}]'"
        if short:
            yield Finding(PART, name, "absent", f"needs {', '.join(short)}", fix)
        else:
            yield Finding(PART, name, "ok", ", ".join(packages))
    programs = {name: shutil.which(name) for name in ("ssh", "sftp")}
    lost = [name for name, path in programs.items() if path is None]
    if lost:
        text = f"{' and '.join(lost)} not found"
        fix = "install OpenSSH's client (Debian: apt-get install openssh-client)"
        yield Finding(PART, "boards over ssh", "absent", text, fix)
    else:
        yield Finding(PART, "boards over ssh", "ok", ", ".join(map(str, programs.values())))


def _short(package: str, least: str) -> str:
    """What is wrong with a package: it is not there, or too old; empty where it will do."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return package
    return f"{package} {least} (here is {version})" if _numbers(version) < _numbers(least) else ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]
