"""Target ort-cuda at SmolLM-135M's shape: every scheme's golden check and speed, scheme by scheme.

Weights are random: size and speed do not depend on their values. Each bundle is exported through
the command line, held to its golden prompts on the provider that is measured, and then timed by
the runner's own loop, in turn, round after round.

    python -m benchmarks.gpu_ort [--shared ../shared] [--provider cuda] [--layers 2] [-o run.json]

``--provider cpu`` runs the same graphs on a CPU: a rehearsal, whose speed says nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.cpu_w8a8 import ROOT, random_model, slmq
from slmq_edge.errors import SlmqError, UsageError, unknown
from slmq_edge.profiles import load as load_profile
from slmq_edge.runner import asked, environment, golden, manifest, measure, ort, probe, profiled

SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED", ROOT.parent / "shared"))
INT8_HEAD = ("--lm-head", "int8")
SCHEMES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "w8a8": INT8_HEAD,
    "w4a8": INT8_HEAD,
    "w4a16-g32": (),
}
PROVIDERS = {"cuda": asked.ON_CUDA, "cpu": asked.ON_CPU}


def main(
    shared: Annotated[Path, typer.Option(help="Holds configs/ and tokenizers/.")] = SHARED,
    shape: Annotated[str, typer.Option(help="Which of the configs.")] = "SmolLM-135M",
    tokenizer: Annotated[str, typer.Option(help="Which of the tokenizers.")] = "smollm2",
    provider: Annotated[str, typer.Option(help=f"One of {', '.join(PROVIDERS)}.")] = "cuda",
    layers: Annotated[int | None, typer.Option(min=1, help="Shorten the model.")] = None,
    prompt: Annotated[int, typer.Option(min=1)] = 128,
    new: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Export all schemes, check them, time them in turn, and print what came of it."""
    if provider not in PROVIDERS:
        raise UsageError(unknown("provider", provider, tuple(PROVIDERS)))
    on = PROVIDERS[provider]
    ort.check_provider(on)
    rows: dict[str, dict[str, Any]] = {}
    sessions: dict[str, ort.Session] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = random_model(shared, shape, tokenizer, Path(scratch) / shape, layers)
        for scheme, words in SCHEMES.items():
            bundle = Path(scratch) / scheme
            slmq("export", model, "--method", "none", "--scheme", scheme, *words,
                 "--target", "ort-cuda", "-o", bundle)  # fmt: skip
            sessions[scheme], rows[scheme] = checked(bundle, on)
        tokens = golden.prompt_tokens(Path(scratch) / "fp32" / "golden.npz", prompt)
        timed(sessions, rows, tokens, new, rounds)
    document = {
        "shape": shape,
        "layers": layers,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "provider": on._asdict(),
        "gpu": gpu(),
        "environment": environment.capture(),
        "rows": rows,
    }
    typer.echo(json.dumps(document, indent=1))
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n")


def checked(bundle: Path, on: asked.Provider) -> tuple[ort.Session, dict[str, Any]]:
    """A session of a bundle's graph; what its integers and golden prompts said, and what ran."""
    document = manifest.read_bundle(bundle)
    row: dict[str, Any] = {
        "scheme_ran": document["lowering"]["scheme_ran"],
        "int8_gemm_share": document["lowering"]["int8_gemm_share"],
        "bundle_bytes": sum(entry["bytes"] for entry in document["files"].values()),
    }
    if document["lowering"]["integer_gemm"] is not None:
        row["largest_integer_error"] = probe.largest_error(bundle / manifest.PROBE, 1, {}, on)
    session = ort.Session(bundle / manifest.GRAPH, 1, {}, provider=on)
    arrays = golden.load(golden.golden_file(bundle, document))
    try:
        report = golden.check(session, arrays, golden.limits(document))
        row["golden"] = report._asdict()
    except SlmqError as error:
        row["golden"] = str(error)
    ran = profiled.run(bundle, {**document, "runtime": {**document["runtime"], **entries(on)}}, 1)
    row["ran"] = {
        name: {
            "integer_share": step.integer_share,
            "calls": {f"{one.provider} {one.name}": one.calls for one in step.operators},
        }
        for name, step in ran.items()
    }
    return session, row


def entries(provider: asked.Provider) -> dict[str, Any]:
    """A bundle's entries of its provider."""
    return {"provider": provider.name, "provider_options": dict(provider.options)}


def timed(
    sessions: Mapping[str, golden.Decoder],
    rows: Mapping[str, dict[str, Any]],
    tokens: Any,
    new: int,
    rounds: int,
) -> None:
    """Add seconds and tokens/s to the rows; the first round of each is thrown away."""
    profile = load_profile("cpu")
    for index in range(-1, rounds):
        for name, session in sessions.items():
            timing = measure.once(session, tokens, new, profile, time.perf_counter)
            if index >= 0:
                rows[name].setdefault("prefill_seconds", []).append(timing.prefill_seconds)
                rows[name].setdefault("decode_seconds", []).append(timing.decode_seconds)
    for row in (rows[name] for name in sessions):
        row["prefill_tokens_per_second"] = tokens.size / median(row["prefill_seconds"])
        row["decode_tokens_per_second"] = new / median(row["decode_seconds"])


def gpu() -> str | None:
    """Name, driver and power limit of the GPU, as its driver says them; ``None`` without one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlmqError as error:
        sys.exit(f"error: {error}")
