"""model -> Analysis: what every part of a model loses by rounding, and what its numbers look like.

The model is quantized as ``slmq-edge quantize`` does it, by any method; then each part alone takes
what came of it, where all else stays in float: the integers of the weights, the rounding of the
inputs, and both. It is measured on text that is held out: what is calibrated, is on the rest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq_edge import calibration as calibrations
from slmq_edge import models
from slmq_edge.analysis import protecting
from slmq_edge.analysis.damage import measure
from slmq_edge.analysis.outliers import of_inputs, of_weights
from slmq_edge.analysis.parts import Cases, Part
from slmq_edge.errors import Unsupported
from slmq_edge.quantization import Progress
from slmq_edge.quantize import Note, Request, plan, quantize

if TYPE_CHECKING:
    from slmq_edge.decoder import Decoder


@dataclass(frozen=True)
class Analysis:
    """What was measured.

    scheme, method: of what. text, windows, length: what it was measured on. perplexity: of the
    float model there. whole: all parts at once. blocks: all of a block. parts: every one, in the
    order in which they run. notes: of the method, a line each. is_choice: ``worst`` is the order in
    which ``--protect`` would take them.
    """

    model: str
    method: str
    scheme: str
    text: str
    text_sha256: str
    windows: int
    length: int
    perplexity: float
    whole: Part
    blocks: tuple[Part, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    is_choice: bool = False

    @property
    def linears(self) -> tuple[Part, ...]:
        """Of the blocks."""
        return tuple(part for part in self.parts if part.weight_outliers is not None)

    @property
    def sum(self) -> float:
        """Of the mean KL of every single part; near the whole's where damages simply add up."""
        return sum(part.kl for part in self.parts)

    @property
    def worst(self) -> tuple[str, ...]:
        """Linears of less than 8 bits, that one first whose weights alone cost most."""
        found = {
            part.name: part.damage["weights"].kl
            for part in self.linears
            if part.bits is not None and part.bits < 8
        }
        return tuple(sorted(found, key=lambda name: -found[name]))


def analyze(
    model: str,
    request: Request,
    windows: int | None,
    progress: Progress,
    note: Note,
) -> Analysis:
    """Quantize, then round part by part. windows: held-out ones, ``None``: as many as usual.

    Raises:
        Unsupported: a scheme that rounds nothing.
        SlmqError: as of `quantize.plan` and `quantize.quantize`; a text too short.
    """
    if request.scheme.weights is None:
        raise Unsupported(
            f"scheme {request.scheme.name} rounds nothing: there is no damage to analyze"
        )
    planned = plan(model, request, note)
    text = planned.text or calibrations.default_text(planned.source)
    if planned.text is None and text.note:
        note(text.note)
    tokenizer = models.read_tokenizer(planned.source.folder)
    tokens = protecting.held_out(text, tokenizer, planned.anatomy, windows)
    prepared: list[Decoder] = []
    checkpoint = quantize(
        dataclasses.replace(planned, holds_out=True), progress, note, prepared.append
    )
    (floats,) = prepared
    cases = Cases(checkpoint)
    perplexity, found = measure(floats, checkpoint, tokens, cases.all(), progress)
    progress(0.0, "looking for outliers")
    weights, inputs = of_weights(floats), of_inputs(floats, tokens)
    return Analysis(
        model=planned.source.name,
        method=request.method,
        scheme=checkpoint.scheme.label,
        text=text.name,
        text_sha256=text.sha256,
        windows=tokens.shape[0],
        length=tokens.shape[1],
        perplexity=perplexity,
        whole=cases.whole.part(found),
        blocks=tuple(block.part(found) for block in cases.blocks),
        parts=tuple(
            dataclasses.replace(
                single.part(found),
                weight_outliers=weights.get(single.name),
                input_outliers=inputs.get(single.name),
            )
            for single in cases.single
        ),
        notes=checkpoint.notes,
        is_choice=request.method == "none"
        and not request.scheme.protects
        and windows in (None, protecting.MEASURED.windows),
    )
