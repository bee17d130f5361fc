"""slmq-edge build: from a bundle for TensorRT to an engine, on the machine that will run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    bundle: Annotated[
        Path, typer.Argument(help="Folder written by slmq-edge export --target trt.")
    ],
    prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a prompt that run together. Default: 512."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Positions to have room for. Default: all, at most 2048."),
    ] = None,
    workspace: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Memory that a kernel may take to work in.")
    ] = 1024,
    engines: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where engines are kept. Default: BUNDLE/engines."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Build anew, and also where memory looks short."),
    ] = False,
    trtexec: Annotated[
        Path | None,
        typer.Option(metavar="PROGRAM", help="Build by this trtexec, not by Python."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sidecar, no table.")] = False,
) -> None:
    """Build a bundle's TensorRT engine here, check it, and keep it beside the bundle.

    Uses Python's tensorrt where it can be imported, else trtexec. The files are verified and the
    memory is looked at before the build. After it, TensorRT's own layer information says which
    products multiply int8 by int8, and the golden prompts must come out as they did in simulation.

    An engine is for this graph, this TensorRT, this CUDA and this GPU; slmq-edge profile refuses
    it anywhere else. What is there already is not built again.

    \b
    Examples:
      slmq-edge build smollm-trt
      slmq-edge build smollm-trt --context 1024 --workspace 512
      slmq-edge build smollm-trt --json | jq .int8_missing
    """
    import json

    from slmq_edge.files import existing_bundle
    from slmq_edge.runner.trt import build as builds
    from slmq_edge.runner.trt import outcome

    existing_bundle(bundle)
    request = builds.Request(bundle, prompt, context, workspace, engines, force, trtexec)
    engine = builds.build(request, lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps(engine.sidecar, indent=1) if as_json else outcome.render(engine))
