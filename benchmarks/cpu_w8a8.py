"""W8A8 against fp32 at SmolLM-135M's shape, on this CPU, through the command line users type.

The weights are random: size and speed do not depend on their values. Baseline and candidate are
profiled in turn, round after round, so that a machine that drifts drifts for both; the ratios are
of medians over all rounds.

    python benchmarks/cpu_w8a8.py [--shared ../shared] [--rounds 3] [--threads 2] [-o results.json]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 128, 64
BARS = {"size": 0.30, "decode": 1.7, "prefill": 1.2}


def main(
    shared: Annotated[Path, typer.Option(help="Holds configs/, tokenizers/, data/.")] = ROOT.parent
    / "shared",
    config: Annotated[str, typer.Option(help="Which of the configs.")] = "SmolLM-135M",
    tokenizer: Annotated[str, typer.Option(help="Which of the tokenizers.")] = "smollm2",
    scheme: Annotated[str, typer.Option(help="The candidate's scheme.")] = "w8a8",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Export both, profile both in turn, and print the three ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = random_model(shared, config, tokenizer, folder / config)
        calib = shared / "data" / "wikitext2" / "wiki.valid.raw"
        quick = ["--calib", str(calib), "--windows", "16", "--length", "256"]
        head = ["--lm-head", "int8"]
        slmq("export", model, "--method", "smoothquant", "--scheme", scheme, *head, *quick,
             "-o", folder / "candidate")  # fmt: skip
        slmq("export", model, "--method", "none", "--scheme", "fp32", "-o", folder / "baseline")
        runs: dict[str, list[dict[str, Any]]] = {"baseline": [], "candidate": []}
        for index in range(rounds):
            for name, taken in runs.items():
                target = folder / f"{name}-{index}.json"
                slmq("profile", folder / name, "-p", PROMPT, "-n", NEW, "-r", repetitions,
                     "--threads", threads, "-o", target)  # fmt: skip
                taken.append(json.loads(target.read_text()))
    document = summary(config, scheme, runs)
    typer.echo(json.dumps(document, indent=1))
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n")


def random_model(
    shared: Path,
    config: str,
    tokenizer: str,
    folder: Path,
    layers: int | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """A Hugging Face folder of the config's shape, weights drawn from N(0, 0.02), gains of one.

    layers: how many blocks, ``None`` for the config's own number. changes: other values of it.
    """
    import torch
    from safetensors.torch import save_file

    from slmq_edge.models import read_anatomy

    folder.mkdir()
    for part in (shared / "configs" / config, shared / "tokenizers" / tokenizer):
        for file in part.glob("*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    if layers is not None:
        changes = {**changes, "num_hidden_layers": layers}
    if changes:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**document, **changes}))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(size) if "norm" in name else 0.02 * torch.randn(size, generator=generator)
        for name, size in read_anatomy(folder).tensors().items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def slmq(*arguments: object) -> None:
    """Run the command line; its progress and errors go to our stderr."""
    command = [sys.executable, "-m", "slmq_edge", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def summary(
    config: str, scheme: str, runs: Mapping[str, list[dict[str, Any]]]
) -> dict[str, object]:
    """Ratios of medians over all rounds, beside the bars, and what ran where."""

    def seconds(name: str, series: str) -> float:
        values = [float(v) for run in runs[name] for v in run["series"][series]["values"]]
        return median(values)

    def size(name: str) -> int:
        return int(runs[name][0]["artifact"]["bundle_bytes"])

    first = runs["candidate"][0]
    return {
        "shape": config,
        "schemes": ["fp32", f"{scheme}, lm_head and table int8"],
        "ratios": {
            part: seconds("baseline", f"{part}_seconds") / seconds("candidate", f"{part}_seconds")
            for part in ("decode", "prefill")
        }
        | {
            "size": size("candidate") / size("baseline"),
        },
        "bars": BARS,
        "tokens_per_second": {
            name: {
                "prefill": PROMPT / seconds(name, "prefill_seconds"),
                "decode": NEW / seconds(name, "decode_seconds"),
            }
            for name in runs
        },
        "decode_peak_rss_bytes": {
            name: max(run["memory"]["decode"]["cpu_peak_rss"] for run in taken)
            for name, taken in runs.items()
        },
        "bundle_bytes": {name: size(name) for name in runs},
        "workload": first["workload"],
        "rounds": len(runs["candidate"]),
        "device": first["device"]["name"],
        "environment": first["environment"],
        "caveats": sorted(
            {
                caveat["code"]
                for taken in runs.values()
                for run in taken
                for caveat in run["caveats"]
            }
        ),
    }


if __name__ == "__main__":
    typer.run(main)
