"""What a bundle asks of onnxruntime: the section ``runtime`` of its manifest."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

from slmq_edge.errors import Damaged, Unsupported


class Provider(NamedTuple):
    """On what onnxruntime runs a graph; of its options, those that change numbers are set."""

    name: str
    options: Mapping[str, str] = {}

    @property
    def memory(self) -> str:
        """Where it keeps what it computes with, as OrtValue names it."""
        return MEMORY[self.name]


MEMORY = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
ON_CPU = Provider("CPUExecutionProvider")
# Products of float32, where there are any, keep their 24 bits.
ON_CUDA = Provider("CUDAExecutionProvider", {"use_tf32": "0"})


def session_settings(bundle: Mapping[str, Any]) -> dict[str, str]:
    """Return ``runtime.session_options``: configuration entries, and perhaps `LEVEL`."""
    return _entries(bundle, "session_options")


def provider_of(bundle: Mapping[str, Any]) -> Provider:
    """Return what a bundle runs on: ``runtime.provider`` and its options; a CPU by default."""
    name = runtime_section(bundle).get("provider", ON_CPU.name)
    if name not in MEMORY:
        raise Unsupported(f"this bundle runs on {name!r}; this release knows {', '.join(MEMORY)}")
    return Provider(str(name), _entries(bundle, "provider_options"))


def _entries(bundle: Mapping[str, Any], section: str) -> dict[str, str]:
    found = runtime_section(bundle).get(section) or {}
    if not isinstance(found, dict):
        raise Damaged(f"bundle.json is damaged: runtime.{section} is not an object")
    return {str(name): str(value) for name, value in found.items()}


def minimum_version(bundle: Mapping[str, Any]) -> str | None:
    """Return the oldest onnxruntime that runs the bundle."""
    found = runtime_section(bundle).get("minimum_version")
    if not isinstance(found, (str, type(None))):
        raise Damaged("bundle.json is damaged: runtime.minimum_version is no text")
    return found


def runtime_section(bundle: Mapping[str, Any]) -> Mapping[str, Any]:
    section = bundle.get("runtime")
    if not isinstance(section, dict):
        raise Damaged("bundle.json is damaged: it has no section 'runtime'")
    return section
