"""slmq-edge quantize: a model becomes a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slmq_edge.commands import options
from slmq_edge.models import DEFAULT_MODEL


@options.of_making
def quantize_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, local folder, demo-llama or demo-qwen2. "
            f"Default: the recipe's, or {DEFAULT_MODEL}."
        ),
    ] = None,
    output: options.Output = None,
    as_json: options.AsJson = False,
    force: options.Force = False,
    **words: Any,
) -> None:
    """Quantize a model to a checkpoint: integer weights, scales, and what it cost.

    A checkpoint says how it was made (method and all its settings, calibration text by hash,
    time, peak memory), and export takes it as well as a model. Quantize once, export often.
    Its recipe.toml makes it again, to the last bit on the same kind of CPU (what a GPU learns
    differs by rounding, and what learned for some --minutes by how far it came).

    --preset upstream has the released code's symmetry and hyper-parameters (upstream-exact
    also rounds what no exported graph can), paper the symmetry that the SLMQuant paper
    states, fast a few short windows, best what measured best here: GPTQ with asymmetric
    weights, drift made up for, columns polished; distill twice as long. What is said
    explicitly goes over it. Nobody released distill: upstream and paper are its defaults.

    A run that is interrupted goes on behind its last finished block when the same command
    is given again; distill, from where it was at most some minutes before.

    \b
    Examples:
      slmq-edge quantize demo-llama --method smoothquant --scheme w4a8
      slmq-edge quantize HuggingFaceTB/SmolLM-135M --calib pile.jsonl -o smollm-spin/
      slmq-edge quantize ./my-qwen2 --method spinquant --steps 0 --lm-head int8
      slmq-edge quantize demo-llama --preset fast --scheme w4a8-g32 --set clip=0.5
      slmq-edge quantize demo-llama --method distill --scheme w4a8 --minutes 2
      slmq-edge quantize --config smollm-spin/recipe.toml --seed 1 -o smollm-spin-1/
    """
    import json

    from slmq_edge.commands import making
    from slmq_edge.commands.progress import bar
    from slmq_edge.files import check_output
    from slmq_edge.quantize import forget, quantize
    from slmq_edge.reports.made import checkpoint_table

    recipe = options.recipe(model, words)
    request = making.request_of(recipe, words)
    name = str(recipe.model)
    target = output or options.default_output(
        name, request.method, request.scheme.label, "checkpoint"
    )
    check_output(target, force, folder=True)
    planned = making.planned(name, request, target)

    from slmq_edge import checkpoint as checkpoints

    with bar("reading the model") as progress:
        manifest = checkpoints.save(quantize(planned, progress, making.note), target, force)
    forget(planned)
    typer.echo(json.dumps(manifest, indent=1) if as_json else checkpoint_table(manifest))
    typer.echo(f"written: {target}", err=True)
