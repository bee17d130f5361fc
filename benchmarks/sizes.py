"""Real models' sizes through the command line: memory and time of exporting, and whether it runs.

Weights are random. Every verb is a process of its own, and its peak is the largest resident set
that the system saw of it: mapped files count. The limit on exporting is 2.2 x the fp32 weights.

    python -m benchmarks.sizes [--shared ../shared] [--case SmolLM2-360M-8k] [-o results.json]
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu_w8a8 import ROOT, random_model, slmq
from slmq_edge.errors import unknown

SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED", ROOT.parent / "shared"))
LIMIT = 2.2
FLOAT_BYTES = 4
NEW = 32


@dataclass(frozen=True)
class Case:
    """A shape in a scheme, run with a prompt of so many tokens."""

    config: str
    tokenizer: str
    scheme: tuple[str, ...]
    prompt: int


INT8 = ("--scheme", "w8a8", "--lm-head", "int8")
CASES = {
    "SmolLM-135M": Case("SmolLM-135M", "smollm2", INT8, 512),
    "SmolLM2-360M": Case("SmolLM2-360M", "smollm2", INT8, 512),
    "SmolLM2-360M-8k": Case("SmolLM2-360M", "smollm2", INT8, 8000),
    "Qwen2.5-0.5B": Case("Qwen2.5-0.5B", "qwen2.5", INT8, 512),
    "Qwen2.5-0.5B-w4a8-b128": Case(
        "Qwen2.5-0.5B", "qwen2.5", ("--scheme", "w4a8-b128", "--lm-head", "int8"), 512
    ),
    "Qwen3-0.6B-fp32": Case("Qwen3-0.6B", "qwen2.5", ("--scheme", "fp32"), 128),  # 2.4 GB
}


def main(
    shared: Annotated[Path, typer.Option(help="Holds configs/, tokenizers/, data/.")] = SHARED,
    case: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Export and profile every case; a row per line on stderr, then one JSON document."""
    names = tuple(case or CASES)
    for name in names:
        if name not in CASES:
            raise typer.BadParameter(unknown("case", name, tuple(CASES)))
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append({"case": name, **measured(CASES[name], shared, Path(scratch), threads)})
        typer.echo(json.dumps(rows[-1]), err=True)
    document = {"limit": LIMIT, "rows": rows}
    typer.echo(json.dumps(document, indent=1))
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    over = [row["case"] for row in rows if row["export"]["peak_over_fp32"] > LIMIT]
    if over:
        sys.exit(f"over {LIMIT} x the fp32 weights: {', '.join(over)}")


def measured(case: Case, shared: Path, folder: Path, threads: int) -> dict[str, Any]:
    """What exporting and running one case took. Bytes and seconds."""
    from slmq_edge.models import read_anatomy

    model = random_model(shared, case.config, case.tokenizer, folder / case.config)
    weights = read_anatomy(model).parameters * FLOAT_BYTES
    calib = shared / "data" / "wikitext2" / "wiki.valid.raw"
    export = ["export", model, "--method", "none", *case.scheme, "--calib", calib]
    exported = with_usage([*export, "-o", folder / "bundle"])
    run_file = folder / "run.json"
    workload = ["-p", case.prompt, "-n", NEW, "-r", 3, "--threads", threads]
    profiled = with_usage(["profile", folder / "bundle", *workload, "-o", run_file])
    run = json.loads(run_file.read_text())
    rates = {
        "prefill": case.prompt / _median(run, "prefill_seconds"),
        "decode": NEW / _median(run, "decode_seconds"),
    }
    return {
        "fp32_bytes": weights,
        "export": exported | {"peak_over_fp32": exported["peak_bytes"] / weights},
        "profile": profiled,
        "bundle_bytes": run["artifact"]["bundle_bytes"],
        "prompt": case.prompt,
        "tokens_per_second": rates,
        "memory": run["memory"],
        "environment": run["environment"],
    }


def _median(run: dict[str, Any], series: str) -> float:
    values = sorted(run["series"][series]["values"])
    return float(values[len(values) // 2])


def with_usage(arguments: list[object]) -> dict[str, float]:
    """Run a verb; seconds, and the largest resident set of any process that it was."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(arguments, sending))
    started = time.perf_counter()
    child.start()
    sending.close()
    try:
        peak = receiving.recv()
    except EOFError:
        sys.exit(f"slmq-edge {arguments[0]} failed: see above")
    child.join()
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak}


def _run(arguments: list[object], sending: Any) -> None:
    """In a process of its own, because the system remembers the peak of all children together."""
    slmq(*arguments)
    sending.send(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


if __name__ == "__main__":
    typer.run(main)
