"""What TensorRT would refuse, or misread, in a graph: said on any machine (TENSORRT 5.4).

A rule is a function of a `Case` that yields what it finds, and a line in ``RULES``. Nothing of
NVIDIA's is needed, and nothing of it is proof that an engine builds; it is what is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slmq_edge.errors import Unsupported
from slmq_edge.exporters.trt.lint import (
    attention,
    operators,
    quantizers,
    ranges,
    sides,
    weights,
)
from slmq_edge.exporters.trt.lint.findings import ERROR, Case, Finding, Problem
from slmq_edge.exporters.trt.lint.graph import load
from slmq_edge.exporters.trt.lint.profiles import Profiles, profiles
from slmq_edge.exporters.trt.lint.targets import TARGETS, since, target
from slmq_edge.runner.trt.recipe import Recipe
from slmq_edge.runner.trt.shapes import CONTEXT

__all__ = ["RULES", "TARGETS", "Finding", "check", "lint", "load", "since", "target"]

RULES: dict[int, tuple[str, Callable[[Case], Iterator[Problem]]]] = {
    1: ("known operators", operators.known_operators),
    2: ("integer operators", operators.integer_operators),
    3: ("zero points", quantizers.zero_points),
    4: ("scales", quantizers.scales),
    5: ("activation scales", quantizers.activation_scales),
    6: ("scale pairs", quantizers.scale_pairs),
    7: ("weight axes", weights.weight_axes),
    8: ("integer constants", weights.integer_constants),
    9: ("both sides", sides.both_sides),
    10: ("sharing", sides.sharing),
    11: ("scale types", sides.scale_types),
    12: ("mixed types", sides.mixed_types),
    13: ("form of 8", quantizers.form_of_8),
    14: ("int64 inputs", operators.int64_inputs),
    15: ("quantized attention", attention.quantized_attention),
    16: ("operator Attention", attention.attention_operator),
    17: ("float16 norms", ranges.half_norms),
    18: ("float16 ranges", ranges.half_ranges),
    19: ("four bits", weights.four_bits),
    20: ("sizes", weights.sizes),
    21: ("shapes", ranges.shapes),
    22: ("embedded weights", operators.embedded_weights),
    23: ("node names", operators.node_names),
    24: ("domains", operators.domains),
}


def lint(
    source: Path | Any,
    version: str,
    recipe: Recipe | None = None,
    ranges: Mapping[str, float] | None = None,
    shapes: Profiles | None = None,
) -> list[Finding]:
    """What is wrong with a graph for a version of TensorRT, rule by rule.

    source: a file, a model of onnx-ir or of onnx, or what `load` made of one, so that a graph for
    several versions is read once. ranges: the largest magnitude seen, by the tensor's name; static
    scales say theirs. shapes: of the engine; default: those of `slmq-edge build`.

    Raises:
        UsageError: no such version.
        NotFound, Damaged, Unsupported: ``source`` cannot be read.
    """
    aim = target(version)
    context_length = CONTEXT if recipe is None else recipe.context_length
    case = Case(load(source), aim, recipe, ranges or {}, shapes or profiles(context_length))
    return [
        Finding(number, name, found.level, found.node, found.what, found.advice)
        for number, (name, rule) in RULES.items()
        for found in rule(case)
    ]


def check(
    source: Path | Any,
    version: str,
    recipe: Recipe | None = None,
    ranges: Mapping[str, float] | None = None,
    shapes: Profiles | None = None,
) -> list[Finding]:
    """The warnings of `lint`.

    Raises:
        Unsupported: an error was found; says the first, and how many more there are.
    """
    findings = lint(source, version, recipe, ranges, shapes)
    errors = [one for one in findings if one.level == ERROR]
    if errors:
        raise Unsupported(refusal(version, errors))
    return findings


def refusal(version: str, errors: list[Finding]) -> str:
    """One line on the first of some errors."""
    first = errors[0]
    place = f"{first.node}: " if first.node else ""
    more = f" (and {len(errors) - 1} more: slmq-edge lint)" if len(errors) > 1 else ""
    return (
        f"not a graph for TensorRT {version}: rule {first.rule}, {first.name}: "
        f"{place}{first.what}; {first.advice}{more}"
    )
