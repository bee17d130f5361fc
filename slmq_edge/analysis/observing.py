"""model -> Distributions: weights and inputs of its linears, before and after it is prepared.

The source is measured and let go before the method reads it anew: there is never a second model.
Inputs are those on text that is held out, a batch of windows at a time, and none of them are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from slmq_edge import calibration as calibrations
from slmq_edge import models
from slmq_edge.analysis import protecting
from slmq_edge.analysis.distributions import Change, Distributions, Linear, Spread
from slmq_edge.analysis.spread import Spreading, spread_of
from slmq_edge.anatomy import LINEARS
from slmq_edge.decoder import Decoder
from slmq_edge.quantization import Progress
from slmq_edge.quantization.streams import advance, embedded
from slmq_edge.quantize import Note, Plan, Request, plan, prepare


def observe(
    model: str,
    request: Request,
    windows: int | None,
    progress: Progress,
    note: Note,
) -> Distributions:
    """Measure, prepare by the request's method, measure again; ``none`` prepares nothing.

    windows: held-out ones, ``None``: as many as usual.

    Raises:
        SlmqError: as of `quantize.plan` and `quantize.prepare`; a text too short.
    """
    planned = dataclasses.replace(plan(model, request, note), holds_out=True)
    text = planned.text or calibrations.default_text(planned.source)
    if planned.text is None and text.note:
        note(text.note)
    tokenizer = models.read_tokenizer(planned.source.folder)
    tokens = protecting.held_out(text, tokenizer, planned.anatomy, windows)
    progress(0.0, "reading the model")
    source = models.read(planned.source.folder).to(torch.float32, planned.device)
    before, reads = of_model(source, tokens, progress)
    del source
    after: dict[str, tuple[Spread, Spread]] = {}
    notes: list[str] = []

    def tell(line: str) -> None:
        notes.append(line)
        note(line)

    if request.method != "none":
        after, _ = of_model(prepare(planned, progress, tell), tokens, progress)
    return Distributions(
        model=planned.source.name,
        revision=planned.source.revision,
        method=request.method,
        scheme=planned.request.scheme.label,
        settings=dataclasses.asdict(planned.settings),
        text=text.name,
        text_sha256=text.sha256,
        windows=tokens.shape[0],
        length=tokens.shape[1],
        linears=tuple(_linears(planned, reads, before, after)),
        notes=tuple(notes),
    )


def _linears(
    planned: Plan,
    reads: Mapping[str, str],
    before: Mapping[str, tuple[Spread, Spread]],
    after: Mapping[str, tuple[Spread, Spread]],
) -> list[Linear]:
    shape = planned.anatomy
    found = []
    for layer in range(shape.layers):
        for kind in LINEARS:
            name = shape.block(layer, kind)
            later = after.get(name, (None, None))
            weights, inputs = map(Change, before[name], later)
            found.append(Linear(name, kind, layer, reads[name], weights, inputs))
    return found


def of_model(
    model: Decoder, tokens: Tensor, progress: Progress = lambda share, what: None
) -> tuple[dict[str, tuple[Spread, Spread]], dict[str, str]]:
    """Of the blocks' linears by full name: spread of weights and of inputs, and ``Linear.reads``.

    tokens: int64 [windows, length].
    """
    found: dict[str, tuple[Spread, Spread]] = {}
    reads: dict[str, str] = {}
    shape = model.anatomy
    stream = embedded(model, tokens)
    for layer in range(shape.layers):
        progress(layer / shape.layers, f"measuring distributions, block {layer + 1}")
        for linears, inputs in _inputs(model, layer, stream).items():
            for name in linears:
                found[name] = (spread_of(model.weights[f"{name}.weight"]), inputs)
                reads[name] = linears[0]
    progress(1.0, "measuring distributions")
    return found, reads


def _inputs(model: Decoder, layer: int, stream: Tensor) -> dict[tuple[str, ...], Spread]:
    """What linears of a block read together; the stream ends up behind the block."""
    adding: dict[tuple[str, ...], Spreading] = {}

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        if linears not in adding:
            adding[linears] = Spreading(inputs.shape[-1], inputs.device)
        adding[linears].add(inputs)
        return model.project(inputs, linears)

    advance(model, layer, stream, project)
    return {linears: one.spread() for linears, one in adding.items()}
