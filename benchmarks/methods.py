"""Which method is worth what: perplexity and accuracy of exported artifacts on the built-in world.

Every row is a bundle, scored through the runner on text and questions that the models never saw.

    python benchmarks/methods.py [-o results.json]
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from slmq_edge import builtin, models
from slmq_edge.builtin import score, world
from slmq_edge.export import export
from slmq_edge.quantization import METHODS
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.runner import manifest
from slmq_edge.runner.ort import Session, open_bundle
from slmq_edge.scheme import scheme

WINDOW = 512
ROWS = [("fp32", "none"), *((s, m) for s in ("w8a8", "w4a8") for m in METHODS)]


def main(output: Annotated[Path | None, typer.Option("-o", "--output")] = None) -> None:
    """Quantize, export and score every combination; a row per line, then one JSON document."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = []
    for name in builtin.MODELS:
        for precision, method in ROWS:
            rows.append(measured(name, precision, method))
            typer.echo(" ".join(str(value) for value in rows[-1].values()), err=True)
    typer.echo(json.dumps(rows, indent=1))
    if output is not None:
        output.write_text(json.dumps(rows, indent=1) + "\n")


def measured(name: str, precision: str, method: str) -> dict[str, Any]:
    """Quality of one bundle, and the seconds that quantizing took."""
    checkpoint = quantize(plan(name, Request(scheme(precision), method)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        document = export(checkpoint, folder)
        session = open_bundle(folder, manifest.read_bundle(folder), threads=1)
        tokenizer = models.read_tokenizer(folder)
        return {
            "model": name,
            "scheme": document["lowering"]["scheme_ran"],
            "method": method,
            "perplexity": round(perplexity(session, tokenizer), 4),
            "accuracy": round(accuracy(session, tokenizer), 4),
            "quantize_seconds": round(checkpoint.cost["seconds"], 1),
        }


def log_probabilities(session: Session, tokens: list[int]) -> NDArray[np.float64]:
    """Log-probability of every token but the first, [length - 1]."""
    logits = session.prefill(np.array([tokens]))[0][0, :-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    found: NDArray[np.float64] = logits[np.arange(len(logits)), tokens[1:]]
    return found


def perplexity(session: Session, tokenizer: Any) -> float:
    """exp of the mean over non-overlapping windows of 512 tokens; the tail is dropped."""
    stream = score.stream(tokenizer, world.heldout_documents())
    starts = range(0, len(stream) - WINDOW + 1, WINDOW)
    scored = [log_probabilities(session, stream[at : at + WINDOW]) for at in starts]
    return math.exp(-float(np.concatenate(scored).mean()))


def accuracy(session: Session, tokenizer: Any) -> float:
    """Share of questions whose right choice has the highest log-probability."""

    def likelihood(context: list[int], continuation: list[int]) -> float:
        return float(log_probabilities(session, context + continuation)[-len(continuation) :].sum())

    return score.score_questions(likelihood, tokenizer, world.questions())


if __name__ == "__main__":
    typer.run(main)
