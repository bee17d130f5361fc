"""slmq-edge macs: how many multiply-adds a forward pass takes, and in which precision."""

from __future__ import annotations

from typing import Annotated

import typer

from slmq_edge.commands.formats import Force, Output


def macs(
    what: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder with config.json, demo-llama, demo-qwen2, checkpoint or bundle."
        ),
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the pass, each with logits.")] = 128,
    past: Annotated[int, typer.Option(min=0, help="Tokens before it, in the cache.")] = 0,
    convention: Annotated[
        str, typer.Option(metavar="NAME", help="ours, or paper: the column of its Table 3.")
    ] = "ours",
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="terminal, md, csv or json.")
    ] = "terminal",
    output: Output = None,
    force: Force = False,
) -> None:
    """Count the multiply-adds of linears, head, rotations and attention, from sizes alone.

    Of a checkpoint each product has the precision that its scheme asks for, of a bundle the one
    that its graph executes; a model is all floats. Attention counts Q K^T and the mix of V for
    all pairs of positions, as kernels compute them, masked or not. No weights are read.

    --convention paper prints what Table 3 of the SLMQuant paper has in place of tokens per second:
    linears and head in full precision, the head alone for any quantized model.

    \b
    Examples:
      slmq-edge macs HuggingFaceTB/SmolLM-135M
      slmq-edge macs smollm-w4a8 --tokens 1 --past 2047
      slmq-edge macs Qwen/Qwen2.5-0.5B --convention paper
      slmq-edge macs smollm-w8a8 --format json | jq .by_weight_bits
    """
    from slmq_edge.commands.formats import deliver
    from slmq_edge.errors import UsageError, unknown
    from slmq_edge.files import check_output
    from slmq_edge.macs import count
    from slmq_edge.reports.macs import OURS, PAPER, WRITERS

    if format not in WRITERS:
        raise UsageError(unknown("format", format, tuple(WRITERS)))
    if convention not in (OURS, PAPER):
        raise UsageError(unknown("convention", convention, (OURS, PAPER)))
    if convention == PAPER and past:
        raise UsageError("the paper's column leaves attention out: --past says nothing there")
    if output is not None:
        check_output(output, force)
    text = WRITERS[format](count(what, tokens, past), convention)
    deliver(text, output, force)
