"""slmq-edge lint: what would TensorRT say to a graph?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def lint(
    source: Annotated[
        Path,
        typer.Argument(
            help="Written by slmq-edge export --target trt, or any ONNX file.",
            metavar="BUNDLE_OR_ONNX",
        ),
    ],
    tensorrt: Annotated[
        list[str] | None,
        typer.Option(
            "--tensorrt",
            metavar="VERSION",
            help="8.5, 8.6, 10.3, 10.16, 11.x, or any between; several times for several. "
            "Default: all of these that the bundle is for.",
        ),
    ] = None,
    compile_it: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Also have NVIDIA's own parser and compiler look at a bundle: TensorRT-RTX, which "
            "needs no GPU (extra trt-check).",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Every finding, as JSON.")] = False,
) -> None:
    """Say what versions of TensorRT would refuse or misread in a graph, without any of them.

    Looks at operators, types, shapes, Q/DQ and scales, by the rules in docs/tensorrt-lint.md. That
    nothing is found does not mean that an engine builds: slmq-edge build does, on the device. With
    --compile a sibling of TensorRT compiles the graph, and every product that should be one of int8
    by int8 must become one.

    The exit code is 1 where there is an error.

    \b
    Examples:
      slmq-edge lint smollm-trt/
      slmq-edge lint smollm-trt/ --tensorrt 10.3
      slmq-edge lint smollm-trt/ --compile
      slmq-edge lint model.onnx --tensorrt 8.5 --tensorrt 11.x --json
    """
    from slmq_edge.errors import MissingExtra, Unsupported, UsageError
    from slmq_edge.reports import lint as report

    try:
        from slmq_edge.exporters.trt import nvidia
        from slmq_edge.exporters.trt.lint.bundle import lint_all
    except ImportError as error:
        raise MissingExtra("onnx-ir", "onnx") from error

    if compile_it and source.is_file():
        raise UsageError(f"--compile is of bundles: {source} says nowhere what is to be int8")
    if compile_it:
        nvidia.loaded()
    found = lint_all(source, tensorrt)
    write = report.to_json if json else report.terminal
    typer.echo(write(str(found.graph), found.findings), nl=False)
    if found.refusal is not None:
        raise Unsupported(found.refusal)
    if compile_it and found.recipe is not None:
        typer.echo(report.compiled(nvidia.check(found.graph, found.recipe)), err=json)
