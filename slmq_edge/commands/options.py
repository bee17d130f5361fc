"""Options that several verbs share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.quantization import METHODS
from slmq_edge.scheme import HEADS, SCHEMES

MethodName = Annotated[
    str,
    typer.Option("--method", "-m", help=f"One of {', '.join(METHODS)}."),
]
SchemeName = Annotated[str, typer.Option("--scheme", "-s", help=f"One of {', '.join(SCHEMES)}.")]
LmHead = Annotated[
    str,
    typer.Option(
        help=f"Precision of the lm_head ({', '.join(HEADS)}); on a tied model the lookup table "
        "is the same tensor and follows."
    ),
]
Calib = Annotated[
    Path | None,
    typer.Option(
        help="Calibration text, from which golden prompts are cut too: plain text, or JSONL with "
        "a 'text' field. Default: the built-in world for the demo models, WikiText-2 from the "
        "hub otherwise."
    ),
]
Windows = Annotated[
    int | None,
    typer.Option(min=1, help="How many token windows to calibrate on. Default: the method's own."),
]
Length = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens in a calibration window. Default: the method's own."),
]
Device = Annotated[str, typer.Option(help="Where to quantize: cpu, cuda or cuda:N.")]
Alpha = Annotated[
    float | None,
    typer.Option(help="smoothquant: share of the difficulty moved (0.85 for w8a8, 0.5 for w4a8)."),
]
Steps = Annotated[
    int | None,
    typer.Option(help="spinquant: steps of learning (100); 0 keeps random Hadamard rotations."),
]
Rate = Annotated[
    float | None, typer.Option(help="spinquant: learning rate of the first step (1.5).")
]
Seed = Annotated[int | None, typer.Option(help="spinquant: seed of the first rotations (0).")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the manifest, no table.")]

# What a model is quantized with, by parameter name: a checkpoint has had it all.
OF_QUANTIZING = (
    "method",
    "scheme",
    "lm_head",
    "calib",
    "windows",
    "length",
    "device",
    "alpha",
    "steps",
    "rate",
    "seed",
)

DEFAULT_METHOD = "spinquant"
DEFAULT_SCHEME = "w8a8"
DEFAULT_HEAD = "float"


def default_output(model: str, *parts: str) -> Path:
    """``./SmolLM-135M-spinquant-w8a8`` for a hub id, a folder or a built-in name."""
    return Path("-".join((Path(model).resolve().name, *parts)))
