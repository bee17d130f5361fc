"""slmq-edge export: a model or a checkpoint becomes a bundle that a device can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq_edge import presets
from slmq_edge.commands import options
from slmq_edge.errors import UsageError
from slmq_edge.exporters import ACTIVATION_MODES, TARGETS, Wanted
from slmq_edge.models import DEFAULT_MODEL
from slmq_edge.runner.manifest import TRT

if TYPE_CHECKING:
    from slmq_edge.quantize import Request

DEFAULT_TARGET = "ort"


@options.of_making
def export(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, local folder, demo-llama or demo-qwen2; or a checkpoint's folder. "
            f"Default: the recipe's, or {DEFAULT_MODEL}."
        ),
    ] = None,
    output: options.Output = None,
    target: Annotated[str, typer.Option(help=f"One of {', '.join(TARGETS)}.")] = DEFAULT_TARGET,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Which onnxruntime it is for: portable (1.19 and later) or modern (1.23 and "
            "later); with --target trt which TensorRT: 8.5 or 10.3. Default: portable where the "
            "scheme allows, 10.3."
        ),
    ] = None,
    activation_mode: Annotated[
        str | None,
        typer.Option(
            help=f"How --target trt rounds activations: {' or '.join(ACTIVATION_MODES)} (by token "
            "as it runs, or by a scale calibrated for it). Default: as the scheme has it."
        ),
    ] = None,
    as_json: options.AsJson = False,
    force: options.Force = False,
    **words: Any,
) -> None:
    """Export a model or a checkpoint to a bundle: graph, tokenizer, golden prompts, report.

    A model is quantized first, with the same options as quantize. The graph is held to its
    simulation before anything is written, and carries golden prompts with which the device
    repeats the check before it prints a speed.

    \b
    Examples:
      slmq-edge export demo-llama --method spinquant --scheme w8a8 -o bundle/
      slmq-edge export demo-llama --method none --scheme fp32 -o baseline/
      slmq-edge export HuggingFaceTB/SmolLM-135M --method smoothquant --lm-head int8
      slmq-edge export my-checkpoint/ -o bundle/
      slmq-edge export my-checkpoint/ --target ort-cuda -o bundle-for-a-gpu/
      slmq-edge export my-checkpoint/ --target torch -o bundle-for-torch/
      slmq-edge export my-checkpoint/ --target trt --activation-mode static -o bundle-for-a-jetson/
      slmq-edge export --config my-checkpoint/recipe.toml --lm-head int8
    """
    from slmq_edge.checkpoint import is_checkpoint
    from slmq_edge.export import check_target

    wanted = Wanted(target, runtime, activation_mode)
    check_target(wanted)
    if model is not None and is_checkpoint(Path(model)):
        _refuse_settings(context, model)
        destination = output or options.default_output(model, target)
        _print(_export_checkpoint(Path(model), destination, wanted, force), destination, as_json)
        return

    from slmq_edge.commands import making

    recipe = options.recipe(model, words)
    request = making.request_of(recipe, words)
    presets.check_exportable(str(recipe.preset), request.method)
    name = str(recipe.model)
    named = () if target == DEFAULT_TARGET else (target,)
    destination = output or options.default_output(
        name, request.method, request.scheme.label, *named
    )
    _print(export_model(name, request, destination, wanted, force), destination, as_json)


def export_model(
    model: str, request: Request, destination: Path, wanted: Wanted, force: bool
) -> dict[str, Any]:
    """Quantize a model and write its bundle, with a bar on stderr; return the manifest."""
    from slmq_edge.commands import making
    from slmq_edge.commands.progress import bar
    from slmq_edge.export import check_scheme
    from slmq_edge.export import export as write
    from slmq_edge.exporters.limits import check_widths
    from slmq_edge.files import check_output
    from slmq_edge.quantize import forget, quantize

    check_output(destination, force, folder=True)
    planned = making.planned(model, request, destination, target=wanted.target)
    check_scheme(planned.request.scheme, wanted)
    check_widths(planned.request.scheme, planned.anatomy, wanted.target)
    with bar("reading the model") as progress:
        checkpoint = quantize(planned, progress, making.note)
        manifest = write(checkpoint, destination, wanted, force, progress, keep=False)
    forget(planned)
    return manifest


def _export_checkpoint(
    folder: Path, destination: Path, wanted: Wanted, force: bool
) -> dict[str, Any]:
    from slmq_edge.checkpoint import described, load
    from slmq_edge.commands.progress import bar
    from slmq_edge.export import check_scheme
    from slmq_edge.export import export as write
    from slmq_edge.exporters.limits import check_widths
    from slmq_edge.files import (
        check_not_input,
        check_output,
        check_space,
        folder_bytes,
    )
    from slmq_edge.tracks.exported import digest_of

    check_output(destination, force, folder=True)
    check_not_input(destination, folder)
    shape, scheme = described(folder)
    check_scheme(scheme, wanted)
    check_widths(scheme, shape, wanted.target)
    # For TensorRT, a checkpoint's 4 bits may become 8.
    check_space(destination, folder_bytes(folder) * (2 if wanted.target == TRT else 1))
    with bar("reading the checkpoint") as progress:
        digest = digest_of(folder)
        return write(load(folder), destination, wanted, force, progress, keep=False, digest=digest)


def _refuse_settings(context: typer.Context, checkpoint: str) -> None:
    """A checkpoint has been quantized: an option of quantizing on the command line is a mistake."""
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in options.MAKING
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise UsageError(
            f"{checkpoint} is a checkpoint, quantized already: {', '.join(given)} cannot change "
            "it (export the model itself, or leave the option out)"
        )


def _print(manifest: dict[str, Any], destination: Path, as_json: bool) -> None:
    import json

    from slmq_edge.reports.made import bundle_table

    typer.echo(json.dumps(manifest, indent=1) if as_json else bundle_table(manifest))
    typer.echo(f"written: {destination}", err=True)
