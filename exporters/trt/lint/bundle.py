"""A bundle's graph, or any other, for every version that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmq_edge.errors import NotFound, Unsupported
from slmq_edge.exporters.trt.lint import Finding, lint, load, refusal
from slmq_edge.exporters.trt.lint.findings import ERROR
from slmq_edge.exporters.trt.lint.targets import TARGETS, since, target
from slmq_edge.runner.manifest import TRT, graph_of, kind_of, read_bundle
from slmq_edge.runner.trt import recipe as recipes
from slmq_edge.runner.trt.recipe import Recipe


@dataclass(frozen=True)
class Linted:
    """recipe: of a bundle. findings: by version. refusal: one line, where one is an error."""

    graph: Path
    recipe: Recipe | None
    findings: dict[str, list[Finding]]
    refusal: str | None


def lint_all(source: Path, versions: Sequence[str] | None = None) -> Linted:
    """Lint a bundle for TensorRT, or an ONNX file.

    versions: default: all of ``TARGETS`` that the bundle's recipe is for; of a file, all.

    Raises:
        UsageError: no such version.
        NotFound, Damaged, Unsupported: there is no such bundle or file, or it cannot be read.
    """
    for version in versions or ():
        target(version)
    graph, recipe = _read(source)
    asked = versions or (TARGETS if recipe is None else since(recipe.tensorrt))
    read = load(graph)
    findings = {version: lint(read, version, recipe) for version in dict.fromkeys(asked)}
    return Linted(graph, recipe, findings, _refusal(findings))


def _read(source: Path) -> tuple[Path, Recipe | None]:
    if not source.exists():
        raise NotFound(f"there is no {source}")
    if not source.is_dir():
        return source, None
    bundle = read_bundle(source)
    if kind_of(bundle) != TRT:
        raise Unsupported(
            f"{source} is a bundle for {kind_of(bundle)}, not for TensorRT: "
            f"export it with --target {TRT}, or name the ONNX file to look at"
        )
    return source / graph_of(bundle), recipes.read(source)


def _refusal(findings: dict[str, list[Finding]]) -> str | None:
    for version, found in findings.items():
        errors = [one for one in found if one.level == ERROR]
        if errors:
            return refusal(version, errors)
    return None
