"""Which operators of a graph for a GPU really ran there, by onnxruntime's own record.

A provider that lacks an operator leaves it to the CPU, and says so nowhere. A few that compute
shapes belong there; a product of matrices does not: a row of a GPU is of a GPU. Kernels of a GPU
are launched and not waited for, so that times are of the host: how long it was busy with each.
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from slmq_edge.errors import Unsupported
from slmq_edge.runner.profiled import INTEGER_GEMMS, OTHER_GEMMS, Operator, Step

GEMMS = (*INTEGER_GEMMS, *OTHER_GEMMS)


class Placed(NamedTuple):
    """One run of a graph.

    macs: share of the multiply-adds by weights that ran on the GPU; None where the record counts
    none. seconds: share of the host's time in operators. elsewhere: calls of those that ran on
    another provider, by name.
    """

    macs: float | None
    seconds: float
    elsewhere: Mapping[str, int]


def of(step: Step, provider: str) -> Placed:
    """Where the operators of a run were, as seen from a provider."""
    there = [one for one in step.operators if one.provider == provider]
    calls: dict[str, int] = {}
    for one in step.operators:
        if one.provider != provider:
            calls[one.name] = calls.get(one.name, 0) + one.calls
    return Placed(
        sum(one.macs for one in there) / step.macs if step.macs else None,
        sum(one.seconds for one in there) / step.seconds if step.seconds else 0.0,
        calls,
    )


def check(steps: Mapping[str, Step], provider: str) -> dict[str, Placed]:
    """Where each run was, if its products of matrices were where they should be.

    Raises:
        Unsupported: a product by weights ran elsewhere, or none was seen on the provider.
    """
    for name, step in steps.items():
        strangers = _products([one for one in step.operators if one.provider != provider], step)
        if strangers or not _products([o for o in step.operators if o.provider == provider], step):
            found = of(step, provider)
            what = ", ".join(sorted({f"{one.name} on {one.provider}" for one in strangers}))
            share = 0.0 if found.macs is None else found.macs
            raise Unsupported(
                f"{name} is not a row of {provider}: {100 * share:.0f} % of its multiply-adds ran "
                f"there ({what or 'no product of matrices did'}); another onnxruntime-gpu may have "
                "the kernels, --target torch has its own, --target ort is for a CPU"
            )
    return {name: of(step, provider) for name, step in steps.items()}


def _products(listed: Sequence[Operator], step: Step) -> list[Operator]:
    """Those that multiply by weights; where the record does not tell weights, all products."""
    return [one for one in listed if (one.macs if step.macs else one.name in GEMMS)]


def as_json(found: Mapping[str, Placed]) -> dict[str, Any]:
    return {
        name: {**one._asdict(), "elsewhere": dict(one.elsewhere)} for name, one in found.items()
    }
