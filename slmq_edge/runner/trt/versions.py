"""Releases of TensorRT, and what differs between them as far as building an engine is concerned.

=====================================  ========  ========  ==================================
what                                   from      until     who says so
=====================================  ========  ========  ==================================
weak typing: flags FP16, INT8          -         10.x      migration guide 10.x to 11.x
STRONGLY_TYPED, needed                 10.0      10.x      the same
STRONGLY_TYPED, accepted and ignored   11.0      -         NvInfer.h of 11.1
EXPLICIT_BATCH, needed                 -         8.x       migration guide 8.x to 10.x
int64 inputs become int32              -         8.x       onnx-tensorrt, changelog of 9.0
trtexec --buildOnly                    -         8.5       trtexec --help of 8.5
trtexec --skipInference                8.6       -         trtexec.cpp of 8.6
trtexec --profile, --useProfile        10.3      -         sampleOptions.cpp of 10.3
PROFILE_SHARING_0806                   8.6       9.x       NvInfer.h of 8.6; always on from 10.0
IProgressMonitor                       10.0      -         Python API 10.0
ParserError.node_name, node_operator   10.0      -         Python API 10.0
layers inside of Myelin are told of    10.0      -         NVIDIA/TensorRT issue 3243
device_memory_size                     -         10.x      migration guide 10.x to 11.x
device_memory_size_v2                  10.3      -         NvInfer.h of 10.3
=====================================  ========  ========  ==================================

Between 8.6 and 10.0 lies 9.x, for data centres only; it is taken for an 8.6.
"""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

from slmq_edge.errors import NotFound, SlmqError, Unsupported
from slmq_edge.runner.trt.recipe import Recipe

OLDEST = "8.5"
# What NVIDIA's own tools print of themselves: 8.6.1 is v8601, 10.3.0 is v100300.
BANNER = re.compile(r"\[TensorRT v(\d{4,6})\]")


class Version(NamedTuple):
    """A release. The fourth number of a build is left out: trtexec does not know it."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return ".".join(map(str, self))

    def is_at_least(self, text: str) -> bool:
        return self >= parse(text)


class Traits(NamedTuple):
    """How a release is to be spoken to; the table above says since when."""

    explicit_batch: bool
    weak: bool
    strong_flag: bool
    skip: str
    profiles: bool  # trtexec takes several
    share_profiles: bool  # has to be asked for: several contexts on one profile
    progress: bool
    parser_names: bool
    memory_size: str


def parse(text: str) -> Version:
    """Read ``10.3``, ``10.3.0`` or ``8.5.2.2``.

    Raises:
        Unsupported: it is no version.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if numbers is None:
        raise Unsupported(f"{text!r} is no version of TensorRT")
    return Version(*(int(number or 0) for number in numbers.groups()))


def of_banner(text: str) -> Version:
    """The release that a run of trtexec names in its first line.

    Raises:
        Unsupported: there is no such line.
    """
    found = BANNER.search(text)
    if found is None:
        raise Unsupported("trtexec does not say of which TensorRT it is")
    digits = int(found.group(1))
    if digits < 10000:  # up to 9.x: a digit for the minor number
        return Version(digits // 1000, digits // 100 % 10, digits % 100)
    return Version(digits // 10000, digits // 100 % 100, digits % 100)


def traits(version: Version) -> Traits:
    """How that release is to be spoken to.

    Raises:
        Unsupported: it is older than `OLDEST`.
    """
    if not version.is_at_least(OLDEST):
        raise Unsupported(f"TensorRT {version} is too old: {OLDEST} or later is needed")
    ten = version.is_at_least("10.0")
    return Traits(
        explicit_batch=not ten,
        weak=not ten,
        strong_flag=version.major == 10,
        skip="--skipInference" if version.is_at_least("8.6") else "--buildOnly",
        profiles=version.is_at_least("10.3"),
        share_profiles=version.is_at_least("8.6") and not ten,
        progress=ten,
        parser_names=ten,
        memory_size=f"device_memory_size{'_v2' if version.is_at_least('10.3') else ''}",
    )


def precision(version: Version, recipe: Recipe) -> tuple[str, ...]:
    """Builder flags that allow the graph's types: none where it is strongly typed.

    A weakly typed network without INT8 takes no DequantizeLinear, and without FP16 computes in
    float32 what its graph says is float16.
    """
    if not traits(version).weak:
        return ()
    integers = recipe.int8 or recipe.weight_only
    return (("FP16",) if recipe.floats == "float16" else ()) + (("INT8",) if integers else ())


def module() -> Any:
    """The Python package ``tensorrt``.

    Raises:
        NotFound: this Python cannot import it.
        SlmqError: it is there and fails to load.
    """
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise NotFound(
            "this Python has no tensorrt: on a Jetson it belongs to the system's Python "
            "(python3 -m slmq_edge.runner.trt, or a venv made with --system-site-packages), "
            "elsewhere pip install tensorrt"
        ) from error
    except (ImportError, OSError) as error:
        raise SlmqError(f"tensorrt cannot be loaded: {' '.join(str(error).split())}") from error


def installed() -> Version:
    """The release of the Python package.

    Raises:
        SlmqError: see `module`.
        Unsupported: it is too old.
    """
    version = parse(str(module().__version__))
    traits(version)
    return version
