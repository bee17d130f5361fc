"""slmq-edge estimate: how fast would a bundle be on a device, and would it fit?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def estimate(
    bundle: Annotated[Path, typer.Argument(help="Folder written by slmq-edge export.")],
    device: Annotated[
        str, typer.Option(metavar="NAME", help="A device's sheet: jetson-orin-nano-8gb.")
    ],
    prompt_tokens: Annotated[
        int, typer.Option("-p", "--prompt-tokens", min=1, help="Length of the prompt.")
    ] = 128,
    new_tokens: Annotated[
        int, typer.Option("-n", "--new-tokens", min=1, help="Decoding steps.")
    ] = 64,
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="Power mode. Default: the fastest.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As what other runtime would do with the same bytes."),
    ] = None,
    fit: Annotated[
        list[Path] | None,
        typer.Option("--fit", metavar="RUN", help="A run.json of that device; at least two."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Project a bundle's speed on a device where it has not run, and say whether it fits there.

    Bytes over the device's bandwidth, and a cost per layer and per token, fitted on published
    figures of similar boards: every figure is labelled projected and has an interval. Where no
    figures are of such a bundle on such a device, only what the device allows is printed. Runs of
    two or more bundles measured on the device (--fit) say more than anything published.

    The memory counts weights as they lie when they run, keys and values of the whole text, the
    runtime, and for TensorRT the building of the engine.

    \b
    Examples:
      slmq-edge estimate smollm-trt --device jetson-orin-nano-8gb
      slmq-edge estimate smollm-trt --device jetson-orin-nano-8gb --mode 15W \\
        --family llama.cpp-cuda-orin-nano
      slmq-edge estimate qwen-w8a8 --device raspberry-pi-5 --fit a-run.json --fit b-run.json
    """
    from slmq_edge.files import existing

    for path in fit or []:
        existing(path, "run")

    from slmq_edge.errors import UsageError
    from slmq_edge.expected import Request
    from slmq_edge.expected import estimate as expect
    from slmq_edge.reports.estimate import render, to_json
    from slmq_edge.results import load

    if fit and family is not None:
        raise UsageError("--fit and --family contradict each other: fit on runs, or on figures")
    runs = tuple(load(path) for path in fit or [])
    request = Request(bundle, device, prompt_tokens, new_tokens, mode, family, runs)
    found = expect(request)
    typer.echo(to_json(found) if as_json else render(found), nl=False)
