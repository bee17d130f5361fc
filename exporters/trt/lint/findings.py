"""What a rule finds, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from slmq_edge.exporters.trt.lint.graph import Graph
from slmq_edge.exporters.trt.lint.profiles import Profiles
from slmq_edge.exporters.trt.lint.targets import Target
from slmq_edge.runner.trt.recipe import Recipe

Level = Literal["error", "warning"]
ERROR: Level = "error"
WARNING: Level = "warning"


class Problem(NamedTuple):
    """node: its name, or the name of a tensor or of a port; ``""``: the graph as a whole."""

    node: str
    what: str
    advice: str
    level: Level = ERROR


@dataclass(frozen=True)
class Finding:
    """A problem, and the rule that found it; numbers are those of docs/tensorrt-lint.md.

    An error: this version refuses the graph, or runs it wrongly or without its integers. A warning:
    it runs, but slowly or not surely as it is meant.
    """

    rule: int
    name: str
    level: Level
    node: str
    what: str
    advice: str


@dataclass(frozen=True)
class Case:
    """A graph, the version it is for, and what else is known.

    ranges: the largest magnitude that calibration saw, by the tensor's name. profiles: of the
    engine that will be built.
    """

    graph: Graph
    target: Target
    recipe: Recipe | None
    ranges: Mapping[str, float]
    profiles: Profiles
