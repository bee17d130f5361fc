"""Target trt on a GPU: every flavour's engine built, held to its golden prompts and timed, in turn.

Weights are random: size and speed do not depend on their values. Engines are built, checked and run
by what ``slmq-edge build`` and ``profile`` use.

    python -m benchmarks.gpu_trt [--module tensorrt] [--trtexec PATH] [--layers 2] [-o run.json]

``--module tensorrt_rtx`` does it with TensorRT-RTX, which speaks as TensorRT 11 does; whether its
runtime takes this GPU is the first thing that is tried and told. Logits of the engines and of ONNX
Runtime on the same graph are set side by side as the golden checks' KL.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import types
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu_w8a8 import ROOT, random_model, slmq
from benchmarks.gpu_ort import timed
from slmq_edge.errors import SlmqError
from slmq_edge.runner import environment, golden, manifest
from slmq_edge.runner.trt import build, cuda
from slmq_edge.runner.trt.engine import Session, open_engine

SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED", ROOT.parent / "shared"))
STATIC = ("--activation-mode", "static")
FLAVOURS: dict[str, tuple[str, ...]] = {
    "fp16": ("--scheme", "fp32"),
    "w8a8-pertoken": ("--scheme", "w8a8", "--lm-head", "int8"),
    "w8a8-static": ("--scheme", "w8a8", "--lm-head", "int8", *STATIC),
    "w4a8-pertoken": ("--scheme", "w4a8", "--lm-head", "int8"),
    "w4a16-g64": ("--scheme", "w4a16-g64"),
}
SPEAKS_AS = "11.4.1"  # TensorRT-RTX, whose own number is another product's


def main(
    shared: Annotated[Path, typer.Option(help="Holds configs/ and tokenizers/.")] = SHARED,
    shape: Annotated[str, typer.Option(help="Which of the configs.")] = "SmolLM-135M",
    tokenizer: Annotated[str, typer.Option(help="Which of the tokenizers.")] = "smollm2",
    module: Annotated[str, typer.Option(help="tensorrt or tensorrt_rtx.")] = "tensorrt",
    flavour: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    trtexec: Annotated[Path | None, typer.Option(help="Build with it.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Shorten the model.")] = None,
    prompt: Annotated[int, typer.Option(min=1)] = 128,
    new: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    workspace: Annotated[int, typer.Option(min=1, help="MiB for building.")] = 4096,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Export all flavours, build, check and time their engines, and print what came of it."""
    version = use(module)
    device = cuda.device()
    rows: dict[str, dict[str, Any]] = {}
    sessions: dict[str, Session] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = random_model(shared, shape, tokenizer, Path(scratch) / shape, layers)
        for name in flavour or FLAVOURS:
            bundle = Path(scratch) / name
            slmq("export", model, "--method", "none", *FLAVOURS[name], "--target", "trt",
                 "-o", bundle)  # fmt: skip
            rows[name] = row = described(bundle)
            try:
                sessions[name] = built(bundle, row, workspace, trtexec)
            except SlmqError as error:  # of this flavour: the others may do better
                row["error"] = str(error)
            tokens = golden.prompt_tokens(bundle / "golden.npz", prompt)
        timed(sessions, rows, tokens, new, rounds)
        for name, session in sessions.items():
            rows[name]["device_memory"] = session.device_memory()
            rows[name]["session"] = session.facts()
    document = {
        "shape": shape,
        "layers": layers,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "module": module,
        "version": version,
        "gpu": {**device._asdict(), "memory_total": cuda.memory()[1]},
        "environment": environment.capture(),
        "rows": rows,
    }
    typer.echo(json.dumps(document, indent=1))
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n")


def use(module: str) -> str:
    """Make ``import tensorrt`` give that module; its version, by its own count."""
    if module == "tensorrt":
        from slmq_edge.runner.trt import versions

        return str(versions.module().__version__)
    found = import_module(module)
    alias = types.ModuleType("tensorrt")
    vars(alias).update({name: value for name, value in vars(found).items() if name[:2] != "__"})
    vars(alias)["__version__"] = SPEAKS_AS
    sys.modules["tensorrt"] = alias
    return str(found.__version__)


def described(bundle: Path) -> dict[str, Any]:
    """What a bundle says of itself: also what ONNX Runtime made of its graph on the CPU."""
    document = manifest.read_bundle(bundle)
    return {
        "scheme_ran": document["lowering"]["scheme_ran"],
        "int8_gemm_share": document["lowering"]["int8_gemm_share"],
        "changes": document["lowering"]["changes"],
        "bundle_bytes": sum(entry["bytes"] for entry in document["files"].values()),
        "onnxruntime": document["verified"],
    }


def built(bundle: Path, row: dict[str, Any], workspace: int, trtexec: Path | None) -> Session:
    """An engine that has passed the golden check; what it took and became is added to the row."""
    request = build.Request(bundle, workspace_mib=workspace, trtexec=trtexec)
    engine = build.build(request, lambda text: typer.echo(text, err=True))
    kept = ("golden", "int8_missing", "int8_reasons", "plan_bytes", "seconds", "warnings")
    row["engine"] = {name: engine.sidecar.get(name) for name in kept}
    started = time.perf_counter()
    session = open_engine(engine)
    row["load_seconds"] = time.perf_counter() - started
    return session


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlmqError as error:
        sys.exit(f"error: {error}")
