"""What a graph's lint found, version by version, as text. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq_edge.exporters.trt.lint.findings import Finding
    from slmq_edge.exporters.trt.nvidia import Compiled

FORMAT, VERSION = "slmq-edge-lint", 1
HEADINGS = ("level", "rule", "name", "nodes")


def terminal(graph: str, found: Mapping[str, Sequence[Finding]]) -> str:
    """A table for each version: a row for each rule and level, told by the first of its nodes."""
    lines = [graph]
    for version, findings in found.items():
        lines += ["", f"TensorRT {version}: {summary(findings)}"]
        lines += _table(findings)
    return "\n".join(lines) + "\n"


def to_json(graph: str, found: Mapping[str, Sequence[Finding]]) -> str:
    """All of it, node by node."""
    versions = {
        version: [dataclasses.asdict(finding) for finding in findings]
        for version, findings in found.items()
    }
    document = {"format": FORMAT, "version": VERSION, "graph": graph, "tensorrt": versions}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def compiled(found: Compiled) -> str:
    """What NVIDIA's compiler made of a graph: its products, by the types that they multiply."""
    products = ", ".join(f"{count} of {types}" for types, count in sorted(found.products.items()))
    return (
        f"TensorRT-RTX {found.version} compiles it without a warning: {len(found.int8)} MatMuls "
        f"are int8 by int8, as the recipe says. Products, once joined: {products}"
    )


def summary(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 warning``, or that there is nothing."""
    counts = [
        (sum(finding.level == level for finding in findings), level)
        for level in ("error", "warning")
    ]
    told = [f"{count} {level}{'s' * (count > 1)}" for count, level in counts if count]
    return ", ".join(told) or "nothing found"


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    groups: dict[tuple[str, int], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.rule), []).append(finding)
    if not groups:
        return
    rows = [
        (level, str(rule), group[0].name, str(len(group)))
        for (level, rule), group in sorted(groups.items())
    ]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    yield _row(HEADINGS, widths, "first of them")
    for row, (_, group) in zip(rows, sorted(groups.items()), strict=True):
        first = group[0]
        place = f"{first.node}: " if first.node else ""
        yield _row(row, widths, f"{place}{first.what}; {first.advice}")


def _row(cells: Sequence[str], widths: Sequence[int], text: str) -> str:
    """Numbers to the right, words to the left, two blanks apart."""
    level, rule, name, nodes = (
        f"{cell:>{width}}" if index in (1, 3) else f"{cell:<{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"  {level}  {rule}  {name}  {nodes}  {text}"
