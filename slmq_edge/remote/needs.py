"""What a bundle needs of a machine that is not this one, looked at before anything is sent.

An engine for TensorRT is not looked for: it is built of the bundle that is there, so that has to be
sent first; the runner then says where it is and what builds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from slmq_edge.errors import SlmqError, Unsupported
from slmq_edge.remote.target import Target
from slmq_edge.runner import asked, manifest, on_torch, ort, runtimes

ON_GPU = ("ort-cuda", manifest.TRT)


class Need(NamedTuple):
    """Distributions of which any will do, and how to get one; ``{python}`` is the one there."""

    distributions: tuple[str, ...]
    advice: str


NEEDS = {
    "ort": Need(ort.DISTRIBUTIONS, "{python} -m pip install onnxruntime numpy"),
    "ort-cuda": Need(
        ort.DISTRIBUTIONS,
        "{python} -m pip install onnxruntime-gpu numpy (on a Jetson: NVIDIA's own wheel)",
    ),
    manifest.TRT: Need(
        ("tensorrt",),
        "{python} -m pip install tensorrt numpy (on a Jetson: apt-get install python3-libnvinfer)",
    ),
}


def require(target: Target, seen: Mapping[str, Any], place: runtimes.Place) -> None:
    """Refuse what cannot run there.

    Args:
        target: the machine.
        seen: what its agent says of it.
        place: the bundle, and how it is to run.

    Raises:
        UsageError: this release runs no such bundle. Unsupported: a package is missing there, or
            all of slmq-edge is needed.
        SlmqError: onnxruntime is too old there.
    """
    runtimes.of(place)
    kind, packages = manifest.kind_of(place.bundle), seen["packages"]
    if kind == manifest.TORCH:
        raise Unsupported(f"{target.name}: {on_torch.ELSEWHERE}")
    need = NEEDS[kind]
    found = {name: packages[name] for name in need.distributions if packages.get(name)}
    missing = ([] if found else [need.distributions[0]]) + (
        [] if packages.get("numpy") else ["numpy"]
    )
    if missing:
        advice = need.advice.format(python=target.python)
        raise Unsupported(
            f"{target.name}: {target.python} has no {' and no '.join(missing)} there: {advice}"
        )
    if kind != manifest.TRT:
        try:
            ort.check_runtime(asked.minimum_version(place.bundle), found)
        except SlmqError as error:
            raise SlmqError(f"{target.name}: {error}") from error
