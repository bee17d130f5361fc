"""What a doctor's document means: what works, what is missing for what, and what gets it. Pure.

The document is `slmq_edge.runner.doctor.examine`'s, of this machine or of a board.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slmq_edge import devices
from slmq_edge.errors import MissingExtra, NotFound, SlmqError, Unsupported
from slmq_edge.runner.doctor import CPU, CUDA, TENSORRT
from slmq_edge.runner.products import FLOATS, MIXED, SIGNED, UNSIGNED

# ok: works. absent: is not here, and need not be. doubtful: worth a look. missing: in the way.
State = Literal["ok", "absent", "doubtful", "missing"]
OLDEST_ONNXRUNTIME = "1.19"
OLDEST_PYTHON = (3, 11)  # of slmq-edge itself; its runner needs 3.8
NEEDED = (FLOATS, UNSIGNED)  # on a CPU: what bundles of --target ort are made of
ON_GPU = (FLOATS, SIGNED)  # and those of --target ort-cuda
SATURATING = (MIXED, SIGNED)  # on a CPU without VNNI; no bundle has them where they are not exact
ROOM_BYTES, MEMORY_BYTES = 1e9, 5e8  # less is worth a line


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. fix: a command or a step that gets what is missing."""

    part: str
    name: str
    state: State
    text: str
    fix: str = ""


def findings(document: Mapping[str, Any], local: bool) -> tuple[Finding, ...]:
    """Everything that can be said of one machine; local: it is the one we run on."""
    return (
        *_machine(document),
        *_runtimes(document, local),
        *_products(document["onnxruntime"]),
        *_sensors(document["sensors"]),
    )


def targets(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Kinds of bundles, as ``export --target`` names them, that this machine can measure."""
    products = document["onnxruntime"].get("products", {})
    one_runtime = not _both(document["packages"])
    usable = one_runtime and "error" not in document["onnxruntime"] and not _old(document)
    found = []
    if usable and not _wrong(products.get(CPU), NEEDED):
        found.append("ort")
    if usable and not _wrong(products.get(CUDA), ON_GPU, CUDA):
        found.append("ort-cuda")
    if "error" not in document["tensorrt"] and "error" not in document["cuda"]:
        found.append("trt")
    if document.get("torch_runtime") and document["packages"].get("torch"):
        found.append("torch")
    return tuple(found)


def obstacle(found: tuple[Finding, ...], local: bool) -> SlmqError | None:
    """What keeps this machine from measuring any bundle; None: nothing does."""
    missing = next((one for one in found if one.state == "missing"), None)
    if missing is None:
        return None
    if local and missing.text == ABSENT and missing.name == "onnxruntime":
        return MissingExtra("onnxruntime", missing.fix.partition("[")[2].partition("]")[0])
    return Unsupported(f"no bundle can be measured: {missing.name}: {missing.text}: {missing.fix}")


ABSENT = "not installed"


def _machine(document: Mapping[str, Any]) -> Iterator[Finding]:
    seen, room, python = document["machine"], document["room"], document["python"]
    part = "Machine"
    yield _sheet(part, seen)
    release = seen.get("nv_tegra_release") or seen.get("l4t_core")
    if release:
        yield Finding(part, "L4T", "ok", str(release))
    for gpu in document["nvml"].get("gpus", ()):
        yield Finding(part, "GPU", "ok", _gpu(gpu))
    features = ", ".join(seen.get("cpu_features") or ()) or "none that speeds integers up"
    yield Finding(part, "CPU", "ok", f"{document['cores']} cores; {features}")
    yield Finding(part, "Python", "ok", f"{python['version']} ({python['executable']})")
    free, total = room["memory_available_bytes"], room["memory_total_bytes"]
    text = f"{_gigabytes(free)} of {_gigabytes(total)} are free"
    if free is not None and free < MEMORY_BYTES:
        yield Finding(part, "memory", "doubtful", text, "end other programs before a run")
    else:
        yield Finding(part, "memory", "ok", text)
    disk = room["disk_free_bytes"]
    text = f"{_gigabytes(disk)} are free at {room['home']}"
    if disk is not None and disk < ROOM_BYTES:
        yield Finding(part, "disk", "doubtful", text, "a bundle takes from 0.1 to 2 GB: make room")
    else:
        yield Finding(part, "disk", "ok", text)


def _sheet(part: str, seen: Mapping[str, Any]) -> Finding:
    """What the fact sheets take this machine for."""
    try:
        sheet = devices.detect(seen)
    except NotFound as error:
        return Finding(part, "device", "doubtful", str(error))
    return Finding(part, "device", "ok", f"{sheet.title} (slmq-edge devices show {sheet.name})")


def _gpu(gpu: Mapping[str, Any]) -> str:
    known = [
        gpu["compute_capability"] and f"compute capability {gpu['compute_capability']}",
        gpu["memory_bytes"] and _gigabytes(gpu["memory_bytes"]),
    ]
    silent = len(gpu["reasons"])
    left_out = f"{silent} of NVML's readings are not supported" if silent else None
    return ", ".join(
        text for text in (gpu["name"] or "one without a name", *known, left_out) if text
    )


def _runtimes(document: Mapping[str, Any], local: bool) -> Iterator[Finding]:
    yield _onnxruntime(document, local, needed=not targets(document))
    if "torch" in document:  # older runners do not look at it
        yield _torch(document["torch"])
    yield from _tensorrt(document, local)
    cuda = document["cuda"]
    if "error" in cuda:
        yield Finding("Runtimes", "CUDA", "absent", str(cuda["error"]))
    else:
        driver = f", driver {cuda['driver']}" if cuda["driver"] else ""
        yield Finding("Runtimes", "CUDA", "ok", f"{cuda['cuda']} sees {cuda['name']}{driver}")
    nvml = document["nvml"]
    if "error" in nvml:
        yield Finding("Runtimes", "NVML", "absent", str(nvml["error"]))
    else:
        yield Finding("Runtimes", "NVML", "ok", f"driver {nvml['driver']}")


def _onnxruntime(document: Mapping[str, Any], local: bool, needed: bool) -> Finding:
    """needed: nothing else here could measure a bundle."""
    packages, found = document["packages"], document["onnxruntime"]
    fix = _install(document, local)
    if _both(packages):
        text = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
        fix = "pip uninstall both, then install one"
    elif "error" in found:
        installed = packages["onnxruntime"] or packages["onnxruntime-gpu"]
        text = f"cannot be imported: {found['error']}" if installed else ABSENT
    elif _old(document):
        text = f"{found['version']}, and bundles need {OLDEST_ONNXRUNTIME} or later"
    elif wrong := _wrong(found["products"].get(CPU), NEEDED):
        text = f"{found['version']} cannot multiply on this CPU: {wrong}"
        fix = "install another version of onnxruntime"
    else:
        text = f"{found['version']} (numpy {found['numpy']})"
        return Finding("Runtimes", "onnxruntime", "ok", text)
    return Finding("Runtimes", "onnxruntime", "missing" if needed else "doubtful", text, fix)


def _torch(found: Mapping[str, Any]) -> Finding:
    """Whether bundles for torch would run on a GPU, and by which operators."""
    if "error" in found:
        return Finding("Runtimes", "torch", "absent", str(found["error"]))
    seen = f"{found['version']} sees {', '.join(found['gpus']) or 'no GPU'}"
    if not found["gpus"]:
        return Finding("Runtimes", "torch", "ok", f"{seen}: bundles for torch run on the CPU")
    if not found["triton"]:
        text = f"{seen}; without triton, integers are multiplied by plain torch"
        return Finding("Runtimes", "torch", "doubtful", text, "pip install triton")
    if not found["compiler"]:
        text = f"{seen}; triton has no C compiler to launch kernels with"
        return Finding("Runtimes", "torch", "doubtful", text, "apt-get install gcc python3-dev")
    return Finding("Runtimes", "torch", "ok", f"{seen}, with triton")


def _both(packages: Mapping[str, Any]) -> bool:
    return bool(packages["onnxruntime"] and packages["onnxruntime-gpu"])


def _old(document: Mapping[str, Any]) -> bool:
    version = document["onnxruntime"].get("version", OLDEST_ONNXRUNTIME)
    return _numbers(version) < _numbers(OLDEST_ONNXRUNTIME)


def _wrong(products: Mapping[str, Any] | None, needed: Iterable[str], provider: str = CPU) -> str:
    """Of the products that bundles take, the first that a provider does not compute rightly."""
    for name in needed:
        one = (products or {}).get(name) or {"error": "not tried"}
        if "error" in one:
            return f"{name}: {one['error']}"
        if provider not in one["ran_on"]:
            return f"{name} runs elsewhere"
        if not one["right"]:
            return f"{name} is off by {one['largest_error']:g}"
    return ""


def _install(document: Mapping[str, Any], local: bool) -> str:
    gpu = bool(document["nvml"].get("gpus")) and not _is_jetson(document)
    if local:
        return f"pip install 'slmq-edge[{'gpu' if gpu else 'cpu'}]'"
    package = "onnxruntime-gpu" if gpu else "onnxruntime"
    python = document["python"]["executable"]
    return (
        f"on the device: {python} -m pip install {package} (where its system forbids that, in a "
        "virtual environment, which an inventory names: python = ...)"
    )


def _is_jetson(document: Mapping[str, Any]) -> bool:
    seen = document["machine"]
    compatible = any("nvidia,tegra" in str(one) for one in seen.get("compatible") or ())
    return compatible or bool(seen.get("nv_tegra_release") or seen.get("l4t_core"))


def _tensorrt(document: Mapping[str, Any], local: bool) -> Iterator[Finding]:
    part, name = "Runtimes", "TensorRT"
    found, program = document["tensorrt"], document["tensorrt"]["trtexec"]
    jetson = _is_jetson(document)
    gpu = jetson or "error" not in document["cuda"] or bool(document["nvml"].get("gpus"))
    state: State = "doubtful" if gpu else "absent"
    elsewhere = found.get("system") or {}
    if "error" not in found:
        yield Finding(part, name, "ok", str(found["version"]))
    elif "version" in elsewhere:
        text = f"{elsewhere['version']} in {elsewhere['python']}, not in this virtual environment"
        fix = f"make it anew: {elsewhere['python']} -m venv --system-site-packages"
        if tuple(elsewhere["of_python"]) < OLDEST_PYTHON:  # JetPack 6 has 3.10
            fix = "measure with --device ssh://localhost: the runner is content with that Python"
        yield Finding(part, name, "doubtful", text, fix)
    elif not gpu:
        yield Finding(part, name, state, f"{ABSENT}; it needs an NVIDIA GPU")
    else:
        fix = "sudo apt-get install python3-libnvinfer (of JetPack)"
        fix = fix if jetson else _pip(document, local)
        yield Finding(part, name, state, _short(found["error"]), fix)
    if "error" not in program:
        yield Finding(part, "trtexec", "ok", f"{program['version']} ({program['path']})")
    elif gpu:
        fix = "sudo apt-get install libnvinfer-bin" if jetson else ""
        yield Finding(part, "trtexec", "absent", str(program["error"]), fix)


def _pip(document: Mapping[str, Any], local: bool) -> str:
    if local:
        return "pip install 'slmq-edge[tensorrt]'"
    return f"on the device: {document['python']['executable']} -m pip install tensorrt"


def _short(error: object) -> str:
    return ABSENT if "No module named 'tensorrt'" in str(error) else f"cannot be imported: {error}"


def _products(found: Mapping[str, Any]) -> Iterator[Finding]:
    part = "Products of matrices, run and compared with the right answer"
    if "error" in found:
        return
    listed = list(found["providers"])
    for provider in (CPU, *(one for one in listed if one != CPU)):
        yield _provider(part, provider, found["products"].get(provider) or {})
    for provider in (CUDA, TENSORRT):
        if provider not in listed:
            yield Finding(part, provider, "absent", "not in this onnxruntime")
    yield from _exactness(part, found["products"].get(CPU) or {})


def _provider(part: str, provider: str, products: Mapping[str, Any]) -> Finding:
    """Which products one provider computes itself and rightly; and why not the others."""
    right: list[str] = []
    wrong: list[str] = []
    elsewhere: list[str] = []
    failed: dict[str, list[str]] = {}
    for name, one in products.items():
        if "error" in one:
            failed.setdefault(str(one["error"]), []).append(name)
        elif provider not in one["ran_on"]:
            elsewhere.append(name)
        elif not one["right"] and not (provider == CPU and name in SATURATING):  # told by itself
            wrong.append(f"{name} (off by {one['largest_error']:g})")
        else:
            right.append(name)
    said = [f"runs {', '.join(right)}"] if right else []
    said += [f"WRONG: {', '.join(wrong)}"] if wrong else []
    said += [f"leaves {_names(elsewhere, products)} to the CPU"] if elsewhere else []
    said += [f"{_names(names, products)}: {why}" for why, names in failed.items()]
    if right:
        return Finding(part, provider, "doubtful" if wrong else "ok", "; ".join(said))
    state: State = "doubtful" if failed or wrong else "absent"
    return Finding(part, provider, state, f"listed, does not run: {'; '.join(said)}")


def _names(names: list[str], products: Mapping[str, Any]) -> str:
    return "all" if len(names) == len(products) else ", ".join(names)


def _exactness(part: str, products: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether signed weights are exact on this CPU; a bundle takes them only where they are."""
    told = {name: products[name] for name in SATURATING if "right" in products.get(name, {})}
    wrong = [
        f"{name} by {one['largest_error']:g}" for name, one in told.items() if not one["right"]
    ]
    if wrong:
        text = f"saturate ({', '.join(wrong)}: no VNNI); bundles multiply uint8 weights here"
        yield Finding(part, "int8 weights on the CPU", "ok", text)
    elif told:
        yield Finding(part, "int8 weights on the CPU", "ok", "exact at the ends of their grid too")


def _sensors(found: Mapping[str, Any]) -> Iterator[Finding]:
    part, reasons = f"Sensors (adapter {found['kind']})", found["reasons"]
    rails = {name: watts for name, watts in found["power"].items() if watts is not None}
    if rails:
        text = ", ".join(f"{name} {watts:.2f} W" for name, watts in rails.items())
        yield Finding(part, "power", "ok", text)
    else:
        why = str(reasons.get("power") or "no rails on this kind of machine")
        yield Finding(part, "power", "absent", why)
    if found["energy"]:
        yield Finding(part, "energy", "ok", "a counter of joules")
    elif not rails:
        yield Finding(part, "energy", "absent", str(reasons.get("energy") or "not told"))
    clocks = {name: hertz for name, hertz in found["clocks"].items() if hertz}
    text = ", ".join(f"{name} {hertz / 1e6:.0f} MHz" for name, hertz in clocks.items())
    yield _told(part, "clocks", text, str(reasons.get("clock") or "not told"))
    heat = {name: c for name, c in found["temperatures"].items() if c is not None}
    text = ", ".join(f"{name} {celsius:.0f} C" for name, celsius in heat.items())
    yield _told(part, "temperatures", text, "no thermal zone tells any")
    text = ", ".join(name for name, count in found["throttling"].items() if count is not None)
    yield _told(part, "throttling", text, str(reasons.get("throttling") or "not counted"))
    mode = found["mode"]
    yield _told(part, "power mode", mode and str(mode["name"]), str(reasons.get("mode") or "none"))


def _told(part: str, name: str, text: str | None, why: str) -> Finding:
    return Finding(part, name, "ok", text) if text else Finding(part, name, "absent", why)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _gigabytes(count: float | None) -> str:
    return "an unknown size" if count is None else f"{count / 1e9:.1f} GB"
