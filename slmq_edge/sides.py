"""One side of a comparison: an artifact on a machine, measured once or several times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from slmq_edge.errors import UsageError
from slmq_edge.intervals import Sample
from slmq_edge.results import Run
from slmq_edge.runner.environment import IDENTITY

FLOAT_SCHEMES = ("fp32", "fp16", "bf16")
BYTES_OF_FLOAT16 = 2
DRIFTED = "inconclusive"  # the code of a caveat


@dataclass(frozen=True)
class Side:
    """``runs`` are of the same artifact, machine and workload; the first says what they are of."""

    runs: tuple[Run, ...]

    @property
    def run(self) -> Run:
        return self.runs[0]

    @property
    def is_steady(self) -> bool:
        """Whether no run says of itself that its repetitions drifted."""
        return all(one.code != DRIFTED for run in self.runs for one in run.caveats)

    def sample(self, get: Callable[[Run], Sequence[float]]) -> Sample:
        """One quantity of every run, each with its repetitions."""
        return tuple(tuple(get(run)) for run in self.runs)


def side(*runs: Run) -> Side:
    """Put runs of one artifact and machine together.

    Raises:
        UsageError: they are of unlike ones.
    """
    first, *others = runs
    for other in others:
        unlike = [name for name, value in identity(first).items() if identity(other)[name] != value]
        if unlike:
            raise UsageError(
                f"runs that count as one must be of one artifact, machine and workload: {unlike[0]}"
                f" is {_plain(identity(first)[unlike[0]])} in one and "
                f"{_plain(identity(other)[unlike[0]])} in another"
            )
    return Side(runs)


def grouped(runs: Iterable[Run]) -> list[Side]:
    """Runs of the same artifact, machine and workload become one side; in order of the first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key(identity(run)), []).append(run)
    return [Side(tuple(members)) for members in found.values()]


def identity(run: Run) -> dict[str, Any]:
    """All that must be equal for two runs to be repetitions of each other."""
    artifact, device = run.artifact, run.device
    return {
        "bundle": artifact.bundle_sha256,
        "model": artifact.model,
        "method": artifact.method,
        "scheme": artifact.scheme_ran,
        "device": device.name,
        "kind": device.kind,
        "origin": run.origin,
        "threads": run.workload.threads,
        **work(run),
        **{name: run.environment.get(name) for name in IDENTITY},
    }


def work(run: Run) -> dict[str, Any]:
    """What was asked of the artifact: many runs are compared in a table for each such work."""
    asked = run.workload
    return {
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "protocol": asked.protocol,
    }


def is_float(run: Run) -> bool:
    """Whether full precision ran: what a device's other runs can be held against."""
    return run.artifact.method == "none" and run.artifact.scheme_ran in FLOAT_SCHEMES


def is_quantized(run: Run) -> bool:
    """Whether the paper's profiler would not have seen the linears of this run."""
    return run.artifact.scheme_ran not in FLOAT_SCHEMES


def precision(run: Run) -> str:
    """In what full precision lies there: ``scheme_ran`` fp32 is float16 on a GPU."""
    artifact = run.artifact
    if artifact.scheme_ran == "bf16":
        return "bfloat16"
    return f"float{artifact.weight_storage_bits.get('linears', 32)}"


def float16_bytes(run: Run) -> int:
    """The model as a float16 checkpoint: 0 where nobody counted its parameters."""
    return BYTES_OF_FLOAT16 * run.artifact.counts.parameters


def key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else key(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
