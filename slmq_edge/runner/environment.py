"""Where a measurement was taken, as far as it decides speed. What cannot be had is None."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any, Mapping

# The instruction sets that decide the speed of integer GEMMs (x86, then Arm's names).
INTEGER_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)

# What a runtime says of itself and its device, where that is not the CPU.
OF_RUNTIME = ("tensorrt", "torch", "triton", "gpu", "cuda", "driver", "engine")

# Two runs whose values agree in these may be continued one by the other.
IDENTITY = (
    "cpu_model",
    "cpu_flags",
    "cores",
    "machine",
    "memory_total_bytes",
    "kernel",
    "python",
    "numpy",
    "onnxruntime",
    "l4t",
    "power_mode",
    *OF_RUNTIME,
)

CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"
CACHES = "sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"
TEGRA_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")


def capture(
    root: str = "/",
    of_runtime: Mapping[str, Any] | None = None,
    power_mode: str | None = None,
) -> dict[str, Any]:
    """Describe this machine; files are read below ``root``. onnxruntime is not imported.

    Args:
        root: where /proc and /sys are.
        of_runtime: what a runtime says of itself and its device; see `runtimes.Runtime.check`.
        power_mode: that the machine is in, as its profile says.
    """
    top = Path(root)
    cpuinfo = _keyed(_text(top / "proc/cpuinfo"))
    return {
        "cpu_model": _cpu_model(cpuinfo),
        "cpu_flags": _cpu_flags(cpuinfo),
        "cores": cores(),
        "affinity": affinity(),
        "machine": platform.machine(),
        "governor": _text(top / CPUFREQ / "scaling_governor"),
        "frequency_hz": _kilo(_text(top / CPUFREQ / "scaling_cur_freq"), 1000),
        "load_average": load_average(root),
        "memory_total_bytes": _memory_total(top),
        "kernel": _text(top / "proc/sys/kernel/osrelease"),
        "os": _os_release(_text(top / "etc/os-release")),
        "l4t": l4t(_text(top / "etc/nv_tegra_release")),
        "power_mode": power_mode,
        "cache_bytes": cache_bytes(root),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "onnxruntime": _version("onnxruntime") or _version("onnxruntime-gpu"),
        **dict.fromkeys(OF_RUNTIME),
        **(of_runtime or {}),
    }


def identity(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an environment that must not change within one run."""
    return {name: environment.get(name) for name in IDENTITY}


def computes_on_gpu(environment: Mapping[str, Any]) -> bool:
    """Whether a runtime computed on a GPU alone, so that a CPU's threads say nothing of it."""
    on_torch = environment.get("torch") and environment.get("gpu")
    return bool(environment.get("tensorrt") or on_torch)


def affinity() -> list[int] | None:
    """Return the numbers of the cores this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def cores() -> int:
    """Return the number of cores this process may use, which os.cpu_count() is not."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average(root: str = "/") -> float | None:
    """Return the mean number of runnable tasks over the last minute."""
    text = _text(Path(root) / "proc/loadavg")
    try:
        return float(text.split()[0]) if text else None
    except ValueError:
        return None


def l4t(release: str | None) -> str | None:
    """Return a Jetson's release, 36.4.7, from the text of /etc/nv_tegra_release."""
    found = TEGRA_RELEASE.match(release or "")
    return None if found is None else f"{found.group(1)}.{found.group(2)}"


def cache_bytes(root: str = "/") -> int | None:
    """Return the bytes of all last-level caches together: what weights need not leave."""
    found: dict[tuple[int, str], int] = {}
    for cache in Path(root).glob(CACHES):
        level, cores, size = (_text(cache / f) for f in ("level", "shared_cpu_list", "size"))
        count = _kilo((size or "").rstrip("K"), 1024)
        if level and level.isdecimal() and cores and count:
            found[int(level), cores] = count
    last = max((level for level, _ in found), default=0)
    return sum(count for (level, _), count in found.items() if level == last) or None


def _text(path: Path) -> str | None:
    """Return a file's text, stripped of blanks and NUL bytes; None where it has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None


def _keyed(text: str | None) -> dict[str, str]:
    """Parse ``key : value`` lines; of a key that is repeated, the first value counts."""
    found: dict[str, str] = {}
    for line in (text or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _cpu_model(cpuinfo: Mapping[str, str]) -> str | None:
    """Return the model's name, or on Arm its numbers: some kernels there call all cores alike."""
    numbers = [cpuinfo.get(key) for key in ("CPU implementer", "CPU part")]
    if all(numbers):
        return f"Arm implementer {numbers[0]} part {numbers[1]}"
    return cpuinfo.get("model name")


def _cpu_flags(cpuinfo: Mapping[str, str]) -> list[str] | None:
    line = cpuinfo.get("flags") or cpuinfo.get("Features")
    if line is None:
        return None
    present = line.split()
    return [flag for flag in INTEGER_FLAGS if flag in present]


def _memory_total(top: Path) -> int | None:
    line = _keyed(_text(top / "proc/meminfo")).get("MemTotal", "")
    return _kilo(line.partition(" ")[0], 1024)


def _kilo(text: str | None, factor: int) -> int | None:
    return int(text) * factor if text and text.isdecimal() else None


def _os_release(text: str | None) -> str | None:
    for line in (text or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"'") or None
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
