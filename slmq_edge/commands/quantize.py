"""slmq-edge quantize: a model becomes a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from slmq_edge.commands import options
from slmq_edge.models import DEFAULT_MODEL


def quantize_command(
    model: Annotated[
        str,
        typer.Argument(help="Hub id, local folder, demo-llama or demo-qwen2."),
    ] = DEFAULT_MODEL,
    method: options.MethodName = options.DEFAULT_METHOD,
    scheme: options.SchemeName = options.DEFAULT_SCHEME,
    output: options.Output = None,
    lm_head: options.LmHead = options.DEFAULT_HEAD,
    calib: options.Calib = None,
    windows: options.Windows = None,
    length: options.Length = None,
    device: options.Device = "cpu",
    alpha: options.Alpha = None,
    steps: options.Steps = None,
    rate: options.Rate = None,
    seed: options.Seed = None,
    as_json: options.AsJson = False,
    force: options.Force = False,
) -> None:
    """Quantize a model to a checkpoint: integer weights, scales, and what it cost.

    A checkpoint says how it was made (method and all its settings, calibration text by hash,
    time, peak memory), and export takes it as well as a model. Quantize once, export often.

    \b
    Examples:
      slmq-edge quantize demo-llama --method smoothquant --scheme w4a8
      slmq-edge quantize HuggingFaceTB/SmolLM-135M --calib pile.jsonl -o smollm-spin/
      slmq-edge quantize ./my-qwen2 --method spinquant --steps 0 --lm-head int8
    """
    import json

    from slmq_edge.commands import making
    from slmq_edge.commands.progress import bar
    from slmq_edge.files import check_output
    from slmq_edge.quantize import Request, quantize
    from slmq_edge.reports.made import checkpoint_table
    from slmq_edge.scheme import scheme as find_scheme

    target = output or options.default_output(model, method, scheme, "checkpoint")
    check_output(target, force, folder=True)
    request = Request(
        scheme=find_scheme(scheme, lm_head),
        method=method,
        calib=calib,
        windows=windows,
        length=length,
        device=device,
        settings={"alpha": alpha, "steps": steps, "rate": rate, "seed": seed},
    )
    planned = making.planned(model, request, target)

    from slmq_edge import checkpoint as checkpoints

    with bar("reading the model") as progress:
        manifest = checkpoints.save(quantize(planned, progress), target, force)
    typer.echo(json.dumps(manifest, indent=1) if as_json else checkpoint_table(manifest))
    typer.echo(f"written: {target}", err=True)
