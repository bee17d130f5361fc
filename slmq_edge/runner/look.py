"""What a machine says of itself, as raw text, without any privilege. Nothing here raises.

The host makes a device of it (`slmq_edge.devices.detect`): the sheets are TOML, which this Python
cannot read.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from slmq_edge.runner import environment

# Docker hides /sys/firmware, to which the first is a link.
DEVICE_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
BOOT_WORDS = ("TNSPEC", "COMPATIBLE_SPEC")
L4T_PACKAGE = re.compile(r"^Package: nvidia-l4t-core$(?:\n.+)*?\nVersion: (\S+)", re.MULTILINE)


def look(root: str = "/") -> dict[str, Any]:
    """Return what there is to see, JSON; None where a machine does not tell.

    machine (``uname -m``), kernel, os, hostname, memory_total_bytes, cpu_model, cpu_features
    (of those that decide the speed of integers), cache_bytes (all last-level caches); model and
    compatible (device tree); nv_tegra_release (first line), l4t_core (the package's version,
    where that file is missing), boot_spec (of nv_boot_control.conf); nvpmodel: modes (id, name)
    and current (id); gpus (NVML): name, compute_capability, memory_bytes.

    Args:
        root: where /proc, /sys, /etc and /var are. Elsewhere than in /, NVML is not asked.
    """
    top = Path(root)
    here = environment.capture(root)
    release = (_text(top / "etc/nv_tegra_release") or "").partition("\n")[0] or None
    return {
        "machine": platform.machine(),
        "kernel": here["kernel"],
        "os": here["os"],
        "hostname": _text(top / "proc/sys/kernel/hostname"),
        "memory_total_bytes": here["memory_total_bytes"],
        "cpu_model": here["cpu_model"],
        "cpu_features": here["cpu_flags"],
        "cache_bytes": here["cache_bytes"],
        "model": _model(top),
        "compatible": _compatible(top),
        "nv_tegra_release": release,
        "l4t_core": None if release else _package(top),
        "boot_spec": _boot_spec(_text(top / "etc/nv_boot_control.conf")),
        "nvpmodel": _nvpmodel(top),
        "gpus": _gpus() if root == "/" else [],
    }


def _model(top: Path) -> str | None:
    texts = [_text(top / tree / "model") for tree in DEVICE_TREES]
    return next((text for text in texts if text), None)


def _compatible(top: Path) -> list[str]:
    texts = [_text(top / tree / "compatible") for tree in DEVICE_TREES]
    return next(([entry for entry in text.split("\0") if entry] for text in texts if text), [])


def _package(top: Path) -> str | None:
    found = L4T_PACKAGE.search(_text(top / "var/lib/dpkg/status") or "")
    return found.group(1) if found else None


def _boot_spec(text: str | None) -> dict[str, str] | None:
    lines = [line.split(None, 1) for line in (text or "").splitlines()]
    found = {line[0]: line[1].strip() for line in lines if len(line) == 2 and line[0] in BOOT_WORDS}
    return found or None


def _nvpmodel(top: Path) -> dict[str, Any] | None:
    """The modes of this board and release, by its own file: an id means nothing without it."""
    conf = _text(top / "etc/nvpmodel.conf")
    if conf is None:
        return None
    from slmq_edge.profiles import nvpmodel

    status = _text(top / "var/lib/nvpmodel/status")
    return {
        "modes": [{"id": mode.id, "name": mode.name} for mode in nvpmodel.modes(conf)],
        "current": nvpmodel.current(status) if status else None,
    }


def _gpus() -> list[dict[str, Any]]:
    from slmq_edge.profiles import nvml

    return [dict(gpu) for gpu in nvml.gpus()]


def _text(path: Path) -> str | None:
    """A file's text without NUL bytes and blanks around it; None where it has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n\t ") or None
    except (OSError, ValueError):
        return None
