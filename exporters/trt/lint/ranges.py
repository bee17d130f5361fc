"""Rules 17, 18 and 21: what must fit float16, and what must fit the engine's profiles."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from slmq_edge.exporters.trt.lint.findings import WARNING, Case, Problem
from slmq_edge.exporters.trt.lint.graph import QUANTIZE, label, made_by, operand
from slmq_edge.exporters.trt.lint.products import Product, is_integer, is_of_weight, products
from slmq_edge.runner.trt.recipe import KEPT, NEW, ROOM, Port

LARGEST_HALF = 65504.0
# What is run may be larger than what was calibrated on.
MARGIN = 2.0
TOP = 127
HALF = ir.DataType.FLOAT16
SQUARES = ("Pow", "ReduceMean", "ReduceSumSquare", "ReduceL2")


def half_norms(case: Case) -> Iterator[Problem]:
    """Rule 17: sums of squares, which float16 ends at 256 to hold."""
    for node in case.graph.of(*SQUARES):
        if case.graph.dtype(operand(node, 0)) == HALF:
            what = f"{node.op_type} in float16, as in a norm: squares of 256 overflow"
            yield Problem(label(node), what, "Cast to float32 around the norm", WARNING)


def half_ranges(case: Case) -> Iterator[Problem]:
    """Rule 18: calibrated magnitudes, as float16 tensors and as products before their scale."""
    for value, reach in _reaches(case):
        if reach * MARGIN > LARGEST_HALF:
            what = f"reached {reach:.4g} in calibration; float16 ends at {LARGEST_HALF:.0f}"
            yield Problem(value.name or "", what, "keep it in float32, or smooth it", WARNING)
    for product in products(case.graph):
        if not is_integer(product) or case.graph.dtype(_weight_scale(product)) != HALF:
            continue
        largest = case.ranges.get(product.node.outputs[0].name or "")
        weight_scales = case.graph.constant(_weight_scale(product))
        if largest is None or weight_scales is None:
            what = "sums are float16 before their scales, and how large they get is not known"
            yield Problem(product.name, what, "store scales in float32", WARNING)
            continue
        sums = largest / float(weight_scales.min())
        if sums > LARGEST_HALF:
            what = f"sums reach {sums:.4g} before their float16 scales; {LARGEST_HALF:.0f} is most"
            yield Problem(product.name, what, "store scales in float32", WARNING)


def _weight_scale(product: Product) -> ir.Value | None:
    return None if product.weight is None else product.weight.scale


def _reaches(case: Case) -> Iterator[tuple[ir.Value, float]]:
    """float16 tensors, and what they are known to reach: by calibration, or a static scale."""
    graph = case.graph
    named = ((value, case.ranges.get(value.name or "")) for value in graph.values())
    found = {value: reach for value, reach in named if reach is not None}
    for node in graph.of(QUANTIZE):
        scale, rounded = graph.constant(operand(node, 1)), operand(node, 0)
        if scale is None or scale.size != 1 or is_of_weight(graph, node):
            continue
        while rounded is not None:
            found.setdefault(rounded, TOP * float(scale.item()))
            cast = made_by(rounded, "Cast")
            rounded = None if cast is None else cast.inputs[0]
    return (
        (value, reach)
        for value, reach in found.items()
        if graph.dtype(value) == HALF and math.isfinite(reach)
    )


def shapes(case: Case) -> Iterator[Problem]:
    """Rule 21: every dimension that varies has a range in every profile, and they fit together."""
    names = set()
    for port in case.graph.inputs:
        for index, dim in enumerate(case.graph.dims(port) or ()):
            if dim is None:
                what = f"dimension {index} has no size and no name"
                yield Problem(port.name or "", what, f"name it {NEW}, {ROOM} or {KEPT}, or fix it")
            elif isinstance(dim, str):
                names.add(dim)
                missing = [name for name, one in case.profiles.items() if dim not in one]
                if missing:
                    what = f"dimension {dim} has no range in profile {', '.join(missing)}"
                    advice = f"name it {NEW}, {ROOM} or {KEPT}, or give its range"
                    yield Problem(port.name or "", what, advice)
        if case.graph.dims(port) is None:
            yield Problem(port.name or "", "an input without a shape", "write its shape down")
        if not port.uses() and not port.is_graph_output():
            what = "nothing reads it, and the engine may still ask for it"
            yield Problem(port.name or "", what, "leave it out", WARNING)
    for name, one in case.profiles.items():
        for dim in sorted(names & set(one)):
            if not 1 <= one[dim].least <= one[dim].typical <= one[dim].most:
                what = f"{dim} from {one[dim].least} by {one[dim].typical} to {one[dim].most}"
                yield Problem(name, what, "a profile has least <= typical <= most")
        for few, many in ((NEW, ROOM), (KEPT, NEW)):
            if {few, many} <= names & set(one) and one[few].most > one[many].most:
                what = f"{few} up to {one[few].most}, {many} only to {one[many].most}"
                yield Problem(name, what, f"let {many} go as far as {few}")
    if case.recipe is not None:
        yield from _ports(case, "input", case.graph.inputs, case.recipe.inputs)
        yield from _ports(case, "output", case.graph.outputs, case.recipe.outputs)


def _ports(
    case: Case, kind: str, values: tuple[ir.Value, ...], ports: tuple[Port, ...]
) -> Iterator[Problem]:
    """What the recipe says of inputs and outputs, which the runtime goes by."""
    graph, there = case.graph, {value.name: value for value in values}
    for name in sorted({port.name for port in ports} ^ {str(name) for name in there}):
        place = "the graph" if name in there else "the recipe"
        yield Problem(name, f"an {kind} of {place} alone", "export it again")
    for port in ports:
        value = there.get(port.name)
        dtype = None if value is None else graph.dtype(value)
        if value is None or dtype is None:
            continue
        found, dims = str(dtype.numpy()), graph.dims(value)
        if found != port.dtype or dims != port.shape:
            theirs = f"{port.dtype} {_text(port.shape)}"
            what = f"{found} {_text(dims)} in the graph, {theirs} in the recipe"
            yield Problem(port.name, what, "export it again")


def _text(dims: tuple[object, ...] | None) -> str:
    return "of unknown shape" if dims is None else f"[{', '.join(map(str, dims))}]"
