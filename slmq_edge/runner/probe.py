"""Promise 3: integers are exact on the CPU they run on.

On x86 without VNNI, onnxruntime's kernel for uint8 activations and int8 weights adds pairs
of products in 16 bits, which saturate: 255 * 127 * 2 > 2^15. Only extreme values show it.
The bundle ships the probe's graph, so that the device needs no package that writes ONNX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple

import numpy as np

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.runner.manifest import PROBE
from slmq_edge.runner.ort import open_session, session_settings

ZERO_POINT = {"uint8": 128, "int8": 0}
TOKENS = (1, 7)  # decoding and prefill take different kernels
SEED = 20


class ProbeReport(NamedTuple):
    operator: str
    exact: bool
    largest_error: int  # in units of the integer accumulator


def run(folder: Path, bundle: Mapping[str, Any], threads: int) -> ProbeReport | None:
    """Multiply extreme integers as the bundle's graph does; None for a bundle of floats.

    ``ort/probe.onnx`` multiplies its input ``a`` uint8 [M, K] by constant weights, as the graph
    does (constants take the kernel's prepacked path), into ``y``; ``weights`` [K, N] returns them.
    """
    lowering = bundle.get("lowering")
    gemm = lowering.get("integer_gemm") if isinstance(lowering, dict) else None
    if gemm is None:
        return None
    if not isinstance(gemm, dict) or gemm.get("weight") not in ZERO_POINT:
        raise Damaged(f"{folder}: lowering.integer_gemm is damaged: {gemm!r}")
    graph = folder / PROBE
    session = open_session(graph, threads, session_settings(bundle))
    inputs = {node.name: node.shape for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    if set(inputs) != {"a"} or outputs != {"y", "weights"}:
        raise Damaged(f"{graph}: its ports are {sorted(inputs)} and {sorted(outputs)}")
    largest = 0
    shapes = [(tokens, int(inputs["a"][1])) for tokens in TOKENS]
    for a in (a for shape in shapes for a in activations(shape)):
        result, weights = session.run(["y", "weights"], {"a": a})
        if not np.isfinite(result).all():
            raise SlmqError(f"{graph} returns numbers that are not finite")
        expected = product(a, weights)
        difference = np.abs(result.astype(np.float64) - expected.astype(np.float64))
        largest = max(largest, int(np.ceil(difference.max())))
    return ProbeReport(str(gemm.get("operator")), largest == 0, largest)


def product(a: Any, b: Any) -> Any:
    """(a - 128) (b - zero point) in int64: uint8 [M, K] x uint8|int8 [K, N] -> [M, N]."""
    zero = ZERO_POINT[b.dtype.name]
    return (a.astype(np.int64) - ZERO_POINT["uint8"]) @ (b.astype(np.int64) - zero)


def activations(shape: tuple[int, int]) -> list[Any]:
    """Return uint8 matrices that saturate, with extreme weights, a kernel that can saturate."""
    generator = np.random.default_rng(SEED)
    ends = np.array([0, 255], np.uint8)
    return [np.full(shape, end, np.uint8) for end in ends] + [generator.choice(ends, shape)]


def refuse_inexact(report: ProbeReport | None, allowed: bool) -> None:
    """Raise unless the kernel is exact or the user accepts that it is not."""
    if report is not None and not report.exact and not allowed:
        raise SlmqError(
            f"{report.operator} is not exact on this CPU: integers are off by up to "
            f"{report.largest_error}; export with unsigned weights, or --allow-inexact"
        )
