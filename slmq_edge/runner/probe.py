"""Promise 3: integers are exact on the CPU they run on, and they are integers.

On x86 without VNNI, onnxruntime's kernel for uint8 activations and int8 weights adds pairs
of products in 16 bits, which saturate: 255 * 127 * 2 > 2^15. Only extreme values show it.
MatMulNBits, told to round its input, leaves it in float on an Arm core without dot products (a
Raspberry Pi 4's). Only values between the integers show that.
The bundle ships the probe's graph, so that the device needs no package that writes ONNX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple

import numpy as np

from slmq_edge.errors import Damaged, SlmqError, Unsupported
from slmq_edge.runner.asked import (
    ON_CPU,
    Provider,
    minimum_version,
    provider_of,
    session_settings,
)
from slmq_edge.runner.manifest import GRAPH, PROBE, SIGNED_GRAPH, SIGNED_PROBE, TORCH_WEIGHTS
from slmq_edge.runner.ort import check_runtime, is_at_least, open_session

BLOCK_OPERATOR = "MatMulNBits"
ZERO_POINT = {"uint8": 128, "int8": 0}
TOKENS = (1, 7)  # decoding and prefill take different kernels
SEED = 20
LEAST_BLOCK = 16  # of inputs; every other is some of these together
# From here on, unsigned weights take twice the time of signed ones (measured, AVX512-VNNI).
FAST_WHEN_SIGNED = "1.27"


class ProbeReport(NamedTuple):
    operator: str
    exact: bool
    largest_error: int  # in units of the integer accumulator
    graph: str = GRAPH  # which was probed, and is to be run


def run(folder: Path, bundle: Mapping[str, Any], threads: int) -> ProbeReport | None:
    """Multiply extreme integers as the bundle's graphs do; None for a bundle of floats.

    The signed graph is the one to run where this runtime is fast with it and its kernel exact.

    Raises:
        SlmqError: the runtime is too old for the bundle. Unsupported: what ought to be a product
            of integers is one of floats on this CPU.
    """
    check_runtime(minimum_version(bundle))
    lowering = bundle.get("lowering")
    gemm = lowering.get("integer_gemm") if isinstance(lowering, dict) else None
    if gemm is None:
        return None
    if not isinstance(gemm, dict) or gemm.get("weight") not in ZERO_POINT:
        raise Damaged(f"{folder}: lowering.integer_gemm is damaged: {gemm!r}")
    operator, settings = str(gemm.get("operator")), session_settings(bundle)
    if operator == BLOCK_OPERATOR and not rounds_input(folder / PROBE, threads, settings):
        raise Unsupported(
            f"{operator} leaves its input in float on this CPU, where the bundle promises 8-bit "
            "integers (on Arm it takes a core with dot products, asimddp): export it with --scheme "
            "w8a8 or w4a8, whose inputs have one scale a token, or with w4a16-g32"
        )
    if SIGNED_GRAPH in bundle.get("files", {}) and is_at_least(FAST_WHEN_SIGNED):
        error = largest_error(folder / SIGNED_PROBE, threads, settings)
        if error == 0:
            return ProbeReport(operator, True, 0, SIGNED_GRAPH)
    error = largest_error(folder / PROBE, threads, settings, provider_of(bundle))
    return ProbeReport(operator, error == 0, error)


def graph_to_run(report: ProbeReport | None) -> str:
    return GRAPH if report is None else report.graph


def largest_error(
    graph: Path, threads: int, settings: Mapping[str, str], provider: Provider = ON_CPU
) -> int:
    """How far a probe's sums are from the exact ones, at most.

    It multiplies its input ``a`` uint8 [M, K] by constant weights, as the graph does (constants
    take the kernel's prepacked path), into ``y``; ``weights`` [K, N] returns them.
    """
    session, depth = _open(graph, threads, settings, provider)
    shapes = [(tokens, depth) for tokens in TOKENS]
    errors = [_error(session, graph, a) for shape in shapes for a in activations(shape)]
    return int(np.ceil(max(errors)))


def rounds_input(graph: Path, threads: int, settings: Mapping[str, str]) -> bool:
    """Whether a probe's product in blocks rounds what it multiplies to 8 bits, with any tokens.

    Of a block whose largest value is 100, 1 is no multiple of the step, 100 / 127: the sums of a
    kernel that rounds are not those of one that does not.
    """
    session, depth = _open(graph, threads, settings, ON_CPU)
    a = np.full((max(TOKENS), depth), ZERO_POINT["uint8"] + 1, np.uint8)
    a[:, ::LEAST_BLOCK] = ZERO_POINT["uint8"] + 100
    return all(_error(session, graph, a[:tokens]) >= 1 for tokens in TOKENS)


def _open(
    graph: Path, threads: int, settings: Mapping[str, str], provider: Provider
) -> tuple[Any, int]:
    """Open a probe; return its session and K."""
    session = open_session(graph, threads, settings, provider=provider)
    inputs = {node.name: node.shape for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    if set(inputs) != {"a"} or outputs != {"y", "weights"}:
        raise Damaged(f"{graph}: its ports are {sorted(inputs)} and {sorted(outputs)}")
    return session, int(inputs["a"][1])


def _error(session: Any, graph: Path, a: Any) -> float:
    """How far the sums of ``a`` are from the exact ones, at most."""
    result, weights = session.run(["y", "weights"], {"a": a})
    if not np.isfinite(result).all():
        raise SlmqError(f"{graph} returns numbers that are not finite")
    expected = product(a, weights)
    return float(np.abs(result.astype(np.float64) - expected.astype(np.float64)).max())


def product(a: Any, b: Any) -> Any:
    """(a - 128) (b - zero point) in int64: uint8 [M, K] x uint8|int8 [K, N] -> [M, N]."""
    zero = ZERO_POINT[b.dtype.name]
    return (a.astype(np.int64) - ZERO_POINT["uint8"]) @ (b.astype(np.int64) - zero)


def activations(shape: tuple[int, int]) -> list[Any]:
    """Return uint8 matrices that saturate, with extreme weights, a kernel that can saturate."""
    generator = np.random.default_rng(SEED)
    ends = np.array([1, 255], np.uint8)  # -127 and 127: what a symmetric grid holds
    return [np.full(shape, end, np.uint8) for end in ends] + [generator.choice(ends, shape)]


def refuse_inexact(report: ProbeReport | None, allowed: bool) -> None:
    """Raise unless the kernel is exact or the user accepts that it is not."""
    if report is not None and not report.exact and not allowed:
        is_torch = report.graph == TORCH_WEIGHTS
        where, runtime = ("here", "torch") if is_torch else ("on this CPU", "onnxruntime")
        raise SlmqError(
            f"{report.operator} is not exact {where}: integers are off by up to "
            f"{report.largest_error}; use another {runtime}, or --allow-inexact"
        )
