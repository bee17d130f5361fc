"""Which sheet a machine's own words fit: `runner.look`'s dict to `Facts`. It never guesses.

A Jetson is known by the part number of its module, as flashed (TNSPEC of nv_boot_control.conf) or
as in the device tree; where neither tells one, by its model's name, which third-party carrier
boards often get wrong. What the kernel has of memory must fit in each case: one part number, one
device tree or one name is often that of several sizes. Anything else is an unknown Jetson that says
what was seen.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slmq_edge.devices.jetpack import L4t, l4t
from slmq_edge.devices.sheet import Facts, Power, Signs, first_listed
from slmq_edge.errors import NotFound, unknown

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # other systems' names
UNKNOWN_JETSON = "unknown-jetson"
PART = re.compile(r"p\d{4}-\d{4}")
TNSPEC = re.compile(r"(\d{4})-\w*-(\d{4})\b")
# Firmware and carve-outs keep 3 to 16 % of a Jetson's memory from the kernel in the lines we have.
# The next smaller module has half.
LEAST_SHARE, MOST_SHARE = 0.7, 1.0
# A GPU's own count of its memory, against the sheet's.
GPU_MEMORY_TOLERANCE = 0.1
INTEGRATED = re.compile(r"\(nvgpu\)|^(NVIDIA )?(Tegra|Xavier|Orin|Thor)\b")


def match(seen: Mapping[str, Any], sheets: Sequence[Facts]) -> Facts:
    """Return the sheet of a machine: its board's, else its architecture's; in its power mode.

    Args:
        seen: what `runner.look.look` returns; what is missing counts as not seen.
        sheets: all there are.

    Raises:
        NotFound: the architecture has no sheet.
    """
    machine = str(seen.get("machine") or "").lower()
    architecture = ARCHITECTURES.get(machine, machine)
    if architecture == "aarch64" and _is_jetson(seen):
        return _as_it_runs(_jetson(seen, [s for s in sheets if s.kind == "jetson"]), seen)
    model = str(seen.get("model") or "")
    others = [sheet for sheet in sheets if sheet.kind != "jetson"]
    by_model = [sheet for sheet in others if _named(sheet, model)]
    if len(by_model) == 1:
        return by_model[0]
    known = {s.detect.architecture: s for s in others if s.detect.architecture}
    if architecture not in known:
        raise NotFound(unknown("architecture", architecture, tuple(known)))
    return known[architecture]


def match_gpu(
    name: str,
    sheets: Iterable[Facts],
    compute_capability: str | None = None,
    memory_bytes: int | None = None,
) -> Facts | None:
    """Return the sheet of a GPU by its name for itself, if what else it tells agrees."""
    for sheet in sheets:
        if name not in sheet.detect.nvml:
            continue
        capability = sheet.facts.get("compute_capability")
        if compute_capability and capability and capability.value != compute_capability:
            continue
        total = sheet.number("memory_bytes")
        if memory_bytes and total and abs(memory_bytes / total - 1) > GPU_MEMORY_TOLERANCE:
            continue
        return sheet
    return None


def is_integrated(gpu: str) -> bool:
    """Say whether a GPU, by its NVML name, is a Jetson's own and no board of its own."""
    return INTEGRATED.search(gpu) is not None


def release(seen: Mapping[str, Any]) -> L4t | None:
    """Return the L4T release that a machine says it has, by its file or by its package."""
    said = (seen.get("nv_tegra_release"), seen.get("l4t_core"))
    return next((found for text in said if text and (found := l4t(str(text)))), None)


def mode_name(seen: Mapping[str, Any]) -> str | None:
    """Return the name, in this machine's own nvpmodel.conf, of the power mode that it is in."""
    nvpmodel = seen.get("nvpmodel") or {}
    current = nvpmodel.get("current")
    names = {mode["id"]: mode["name"] for mode in nvpmodel.get("modes") or ()}
    return None if current is None else names.get(current)


def _is_jetson(seen: Mapping[str, Any]) -> bool:
    """Any one sign will do: in a container most of them are missing."""
    kernel, model = str(seen.get("kernel") or ""), str(seen.get("model") or "").lower()
    compatible = seen.get("compatible") or ()
    return (
        any(str(entry).startswith("nvidia,tegra") for entry in compatible)
        or "jetson" in model
        or model.startswith("nvidia")
        or bool(seen.get("nv_tegra_release") or seen.get("l4t_core"))
        or kernel.endswith("-tegra")
        or any(is_integrated(str(gpu.get("name"))) for gpu in seen.get("gpus") or ())
    )


def _jetson(seen: Mapping[str, Any], sheets: Sequence[Facts]) -> Facts:
    near = _by_evidence(seen, sheets)
    memory = seen.get("memory_total_bytes")
    fitting = near if memory is None else [sheet for sheet in near if _fits(sheet, memory)]
    if len(fitting) == 1:
        return fitting[0]
    return _unknown(seen, fitting or near, bool(fitting))


def _by_evidence(seen: Mapping[str, Any], sheets: Sequence[Facts]) -> list[Facts]:
    """Return the sheets that the best evidence leaves; better evidence is not overruled."""
    spec = seen.get("boot_spec") or {}
    flashed = [f"p{base}-{sku}" for base, sku in TNSPEC.findall(str(spec.get("TNSPEC") or ""))[:1]]
    families = {board.partition("-")[0] for sheet in sheets for board in sheet.detect.boards}
    tree = PART.findall(" ".join(map(str, seen.get("compatible") or ())))
    words = " ".join(str(text) for text in spec.values() if text)
    named = [s for s in sheets if any(_is_word(name, words) for name in s.detect.specs)]
    for parts, found in ((flashed, []), ([], named), (tree, [])):
        if found:
            return found
        if any(part.partition("-")[0] in families for part in parts):
            return [sheet for sheet in sheets if set(parts) & set(sheet.detect.boards)]
    return [sheet for sheet in sheets if _named(sheet, str(seen.get("model") or ""))]


def _is_word(name: str, words: str) -> bool:
    """Names of boards end with a dash in TNSPEC, and a longer one begins with a shorter."""
    return re.search(rf"(?<![\w]){re.escape(name)}-?(?!\w)", words) is not None


def _named(sheet: Facts, model: str) -> bool:
    return any(name.lower() in f"{model.lower()} " for name in sheet.detect.models)


def _fits(sheet: Facts, memory: float) -> bool:
    total = sheet.number("memory_bytes")
    return total is not None and LEAST_SHARE <= memory / total <= MOST_SHARE


def _unknown(seen: Mapping[str, Any], near: Sequence[Facts], several: bool) -> Facts:
    """A Jetson of which nothing is known but what it says of itself."""
    model = seen.get("model")
    boards = [part for entry in seen.get("compatible") or () for part in PART.findall(str(entry))]
    memory = seen.get("memory_total_bytes")
    said = [
        f"model '{model}'" if model else "no model in its device tree",
        ", ".join(dict.fromkeys(boards)) or "no part number",
        "memory unknown" if memory is None else f"{memory / 2**30:.1f} GiB of memory",
    ]
    if near:
        names = ", ".join(sheet.name for sheet in near)
        said.append(f"could be {names}" if several else f"its memory is not that of {names}")
    return Facts(
        UNKNOWN_JETSON,
        f"Jetson without a fact sheet ({'; '.join(said)})",
        "jetson",
        Signs(),
        {},
        # NVIDIA calls the mode without limits so on every board that has one.
        power=Power((), ("MAXN_SUPER", "MAXN"), "NVIDIA's nvpmodel.conf of all Jetsons"),
    )


def _as_it_runs(facts: Facts, seen: Mapping[str, Any]) -> Facts:
    """Facts in the power mode of now; the best mode is the best of those that are there."""
    listed = [mode["name"] for mode in (seen.get("nvpmodel") or {}).get("modes") or ()]
    if listed:
        best = first_listed(facts.power.maximum_modes, listed)
        power = dataclasses.replace(facts.power, maximum_modes=best)
        facts = dataclasses.replace(facts, power=power)
    now = mode_name(seen)
    return facts.in_mode(now) if now is not None and facts.mode_named(now) else facts
