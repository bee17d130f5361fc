"""What a bundle needs of a machine that is not this one, looked at before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from slmq_edge.errors import NotFound, SlmqError, Unsupported
from slmq_edge.remote.target import Target
from slmq_edge.runner import asked, manifest, ort, runtimes

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
        UsageError: this release runs no such bundle. Unsupported: a package is missing there.
        NotFound: no folder of engines is named. SlmqError: onnxruntime is too old there.
    """
    runtimes.of(place)
    kind, packages = manifest.kind_of(place.bundle), seen["packages"]
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
    elif place.engines is None:
        raise NotFound(
            f"{target.name}: an engine is built on the machine that runs it: slmq-edge build "
            f"{place.folder.name} --engines DIR there, then --engines DIR here, by its path there"
        )
