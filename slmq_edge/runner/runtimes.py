"""What runs a bundle: a runtime for every kind, which answers the same questions.

Adding a kind is a class and a line in `RUNTIMES`. What a runtime needs is imported when it is
asked, so that a bundle for one does not need another.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Protocol

from slmq_edge.errors import UsageError, unknown
from slmq_edge.runner import asked, manifest, on_torch, ort, placed, probe, profiled
from slmq_edge.runner.forward import Together
from slmq_edge.runner.golden import Decoder
from slmq_edge.runner.probe import ProbeReport


class Place(NamedTuple):
    """A bundle, and how it is to run.

    engines: where those for TensorRT are; None: beside it. torch_device: see `on_torch.chosen`.
    """

    folder: Path
    bundle: Mapping[str, Any]
    threads: int
    engines: Path | None = None
    torch_device: str | None = None


class Session(Decoder, Protocol):
    """What is loaded and ready: besides decoding, it says what it takes and what it is."""

    @property
    def kv_bytes_per_token(self) -> int: ...

    @property
    def most_positions(self) -> int | None:
        """How long a text can become here; None: as the bundle says."""

    @property
    def together(self) -> Together | None:
        """What it takes at once; None: any prompt, and logits of all of it."""

    @property
    def batches(self) -> bool:
        """Whether ``logits`` takes several rows."""

    def logits(self, tokens: Any, keep: int) -> Iterator[Any]:
        """Of the last ``keep`` positions of texts, int64 [rows, length], which nothing follows.

        Float32 [rows, positions, vocab], a piece of the positions at a time.
        """

    def device_memory(self) -> Mapping[str, int] | None:
        """Bytes on a device of its own by what they are for; None where that is the host."""

    def facts(self) -> Mapping[str, Any]:
        """What else of a run ought to be kept. JSON."""


class Runtime(Protocol):
    def check(self, place: Place) -> Mapping[str, Any]:
        """Describe what a bundle runs on here, for `environment`; raise SlmqError if it cannot.

        It comes before anything that takes long, and leaves no memory taken on a device.
        """

    def probe(self, place: Place) -> ProbeReport | None:
        """Whether integers are exact here, and which graph to run; None: nothing to probe."""

    def placed(self, place: Place, graph: str) -> Mapping[str, Any] | None:
        """Where the operators of ``graph`` run, see `placed.Placed`; None: nobody tells.

        Raises:
            Unsupported: not where the bundle says.
        """

    def prepare(self, place: Place, graph: str) -> Callable[[], Session]:
        """Do what is no part of loading, and return what loads ``graph`` of a verified bundle."""


class OnnxRuntime:
    def check(self, place: Place) -> Mapping[str, Any]:
        provider = asked.provider_of(place.bundle)
        ort.check_provider(provider)
        return {} if provider.name == asked.ON_CPU.name else _gpu()

    def probe(self, place: Place) -> ProbeReport | None:
        return probe.run(place.folder, place.bundle, place.threads)

    def placed(self, place: Place, graph: str) -> Mapping[str, Any] | None:
        provider = asked.provider_of(place.bundle).name
        if provider == asked.ON_CPU.name:
            return None
        steps = profiled.traced(place.folder, place.bundle, place.threads, graph)
        return placed.as_json(placed.check(steps, provider))

    def prepare(self, place: Place, graph: str) -> Callable[[], Session]:
        ort.load_onnxruntime()
        return functools.partial(ort.open_bundle, place.folder, place.bundle, place.threads, graph)


def _gpu() -> Mapping[str, Any]:
    """The GPU that onnxruntime takes, as NVML calls it."""
    from slmq_edge.profiles.cuda import UNNAMED, Cuda

    profile = Cuda()
    try:
        found = profile.facts()["gpu"]
    finally:
        profile.close()
    return {"gpu": found["name"] or UNNAMED, "driver": found["driver"]}


class TensorRT:
    """A GPU adds products of integers up in 32 bits: none are probed, as on a CPU.

    Which of them are products of integers at all, the engine's sidecar says.
    """

    def check(self, place: Place) -> Mapping[str, Any]:
        from slmq_edge.runner.trt import cache, cuda, versions

        engine = cache.find(place.folder, place.bundle, place.engines)
        device = cuda.device()
        return {
            "tensorrt": str(versions.module().__version__),
            "gpu": device.name,
            "cuda": device.cuda,
            "driver": device.driver,
            "engine": engine.plan.stem,
        }

    def probe(self, place: Place) -> ProbeReport | None:
        return None

    def placed(self, place: Place, graph: str) -> Mapping[str, Any] | None:
        return None

    def prepare(self, place: Place, graph: str) -> Callable[[], Session]:
        from slmq_edge.runner.trt import cache, versions
        from slmq_edge.runner.trt.engine import open_engine

        versions.module()
        engine = cache.find(place.folder, place.bundle, place.engines)
        return functools.partial(open_engine, engine)


# Kinds of bundles by the runtime that runs them, as --runtime names it.
FAMILIES = {
    "ort": ("ort", "ort-cuda"),
    manifest.TRT: (manifest.TRT,),
    manifest.TORCH: (manifest.TORCH,),
}
RUNTIMES: dict[str, Runtime] = {
    "ort": OnnxRuntime(),
    "ort-cuda": OnnxRuntime(),
    manifest.TRT: TensorRT(),
    manifest.TORCH: on_torch.Torch(),
}


def of(place: Place) -> Runtime:
    """The runtime of a bundle.

    Raises:
        UsageError: this release has none for it, or none with ``engines`` or ``torch_device``.
    """
    kind = manifest.kind_of(place.bundle)
    if kind not in RUNTIMES:
        raise UsageError(unknown("runtime", kind, tuple(RUNTIMES)))
    if place.engines is not None and kind != manifest.TRT:
        raise UsageError(f"--engines is of bundles for TensorRT; {place.folder} is for {kind}")
    if place.torch_device is not None and kind != manifest.TORCH:
        raise UsageError(f"--torch-device is of bundles for torch; {place.folder} is for {kind}")
    return RUNTIMES[kind]


def require(folder: Path, bundle: Mapping[str, Any], asked: str) -> None:
    """Refuse a bundle that the runtime asked for does not run.

    Raises:
        UsageError: it is for another, or there is no runtime of that name.
    """
    if asked not in FAMILIES:
        raise UsageError(unknown("runtime", asked, tuple(FAMILIES)))
    kind = manifest.kind_of(bundle)
    if kind not in FAMILIES[asked]:
        raise UsageError(
            f"{folder} is a bundle for {kind}, which --runtime {asked} does not run: export the "
            f"model again with --target {asked}"
        )
