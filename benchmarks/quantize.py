"""What quantizing costs: seconds by stage and peak memory of every method, at real models' shapes.

Weights are random: cost does not depend on their values. Tokens are WikiText-2's, by the model's
own tokenizer. Every method runs in a process of its own, so that its peak is its own.

    python -m benchmarks.quantize [--shared ../shared] [--shape SmolLM-135M] [--method smoothquant]
        [--scheme w4a8] [--preset fast] [--device cuda] [--compile] [--layers 2] [--minutes 2]
        [-o results.json]

Distilling a large model takes hours: --minutes cuts it short, and a row's notes say how many tokens
were learned from in the seconds of its stage.
With --device cuda a row has torch's peaks (allocated, reserved), NVML's of the process and of the
board (sampled), and the board's energy; --preset upstream is what the papers' settings cost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu_w8a8 import ROOT, random_model
from slmq_edge import presets, torch_device
from slmq_edge.errors import SlmqError, unknown
from slmq_edge.quantization import COMPILED, METHODS
from slmq_edge.sampled import BOARD, PROCESS
from slmq_edge.scheme import SCHEMES

SHAPES = {"SmolLM-135M": "smollm2", "Qwen2.5-0.5B": "qwen2.5"}  # config -> tokenizer
SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED", ROOT.parent / "shared"))
FLOAT_BYTES = 4
DISTILL = "distill"


@dataclass(frozen=True)
class Trial:
    """One method on one model; everything that the process that runs it needs."""

    model: Path
    calib: Path
    method: str
    scheme: str
    preset: str
    device: str
    threads: int
    windows: int | None = None
    length: int | None = None
    compiles: bool = False
    minutes: float | None = None


def main(
    shared: Annotated[Path, typer.Option(help="Holds configs/, tokenizers/, data/.")] = SHARED,
    shape: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    scheme: Annotated[str, typer.Option()] = "w8a8",
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(presets.PRESETS)}.")] = "fast",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    layers: Annotated[int | None, typer.Option(min=1, help="Shorten the model.")] = None,
    windows: Annotated[int | None, typer.Option(min=8, help="Instead of the preset's.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Instead of the preset's.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    compiles: Annotated[bool, typer.Option("--compile", help="Where a method can.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="distill: how long, not the preset's epochs.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Quantize every shape by every method; a row per line, then one JSON document."""
    shapes, methods = tuple(shape or SHAPES), tuple(method or METHODS)
    _check("shape", shapes, SHAPES)
    _check("method", methods, METHODS)
    _check("scheme", (scheme,), SCHEMES)
    _check("preset", (preset,), presets.PRESETS)
    _check_device(device)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        calib = _text(shared, Path(scratch))
        for name in shapes:
            model = random_model(shared, name, SHAPES[name], Path(scratch) / name, layers)
            for used in methods:
                trial = Trial(
                    model,
                    calib,
                    used,
                    scheme,
                    preset,
                    device,
                    threads,
                    windows,
                    length,
                    compiles and used in COMPILED,
                    minutes if used == DISTILL else None,
                )
                rows.append({"shape": name, **in_process_of_its_own(trial)})
                typer.echo(json.dumps(rows[-1]), err=True)
    document = {
        "preset": preset,
        "layers": layers,
        "environment": environment(device, threads),
        "rows": rows,
    }
    typer.echo(json.dumps(document, indent=1))
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def in_process_of_its_own(trial: Trial) -> dict[str, Any]:
    """The row of a trial; of one that its method refuses or that dies, why."""
    context = multiprocessing.get_context("spawn")
    row = {"method": trial.method, "scheme": trial.scheme, "device": trial.device}
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return row | pool.submit(measured_or_why_not, trial).result()
        except BrokenProcessPool:
            return row | {"error": "the process was killed: out of memory?"}


def measured_or_why_not(trial: Trial) -> dict[str, Any]:
    """The row of a trial, run here, or the line that says why there is none."""
    import torch

    try:
        return measured(trial)
    except (SlmqError, torch.OutOfMemoryError) as error:
        return {"error": str(error)}


def measured(trial: Trial) -> dict[str, Any]:
    """Run a trial here.

    seconds: by stage, and of all. tokens: of the calibration. host_peak_bytes: VmHWM;
    host_peak_less_model_bytes: without the model's float32 tensors. ``None`` on a CPU:
    torch_peak_bytes, torch_reserved_bytes: of the allocator; gpu_process_bytes, gpu_board_bytes:
    NVML's, as ``sampled`` says. energy_joules: of what energy_of says.
    """
    import torch

    from slmq_edge.quantize import Request, plan, quantize

    torch.set_num_threads(trial.threads)
    preset = presets.preset(trial.preset, trial.method)
    request = Request(
        presets.scheme_for(preset, {"name": trial.scheme}),
        trial.method,
        calib=trial.calib,
        windows=trial.windows,
        length=trial.length,
        device=trial.device,
        preset=trial.preset,
        compiles=trial.compiles,
        settings={} if trial.minutes is None else {"minutes": trial.minutes},
    )
    planned = plan(str(trial.model), request)
    checkpoint = quantize(planned)
    assert checkpoint.calibration is not None, "a text was given"
    model_bytes = planned.anatomy.parameters * FLOAT_BYTES
    cost, memory = checkpoint.cost, checkpoint.cost["memory"]
    peak = memory["cpu_peak_rss"]
    return {
        "settings": checkpoint.settings,
        "tokens": checkpoint.calibration["windows"] * checkpoint.calibration["length"],
        "seconds": cost["seconds"],
        "seconds_by_stage": cost["stages"],
        "host_peak_bytes": peak,
        "model_bytes": model_bytes,
        "host_peak_less_model_bytes": None if peak is None else peak - model_bytes,
        "torch_peak_bytes": memory.get("torch_peak_allocated"),
        "torch_reserved_bytes": memory.get("torch_peak_reserved"),
        "gpu_process_bytes": memory.get(PROCESS),
        "gpu_board_bytes": memory.get(BOARD),
        "sampled": cost.get("sampled"),
        "memory_reasons": cost.get("memory_reasons"),
        "energy_joules": cost["energy_joules"],
        "energy_of": cost["energy_of"],
        "compiled": cost["compiled"],
        "notes": list(checkpoint.notes),
    }


def environment(device: str, threads: int) -> dict[str, Any]:
    """What decides the figures."""
    import torch

    from slmq_edge.runner.environment import capture

    found = capture()
    return {
        "cpu_model": found["cpu_model"],
        "cores": found["cores"],
        "memory_total_bytes": found["memory_total_bytes"],
        "load_average": found["load_average"],
        "device": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "threads": threads,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": found["python"],
    }


def _text(shared: Path, folder: Path) -> Path:
    """WikiText-2: 262,144 tokens need its validation and its test text."""
    texts = [shared / "data" / "wikitext2" / f"wiki.{part}.raw" for part in ("valid", "test")]
    target = folder / "wikitext2.txt"
    target.write_text("".join(text.read_text("utf-8") for text in texts), encoding="utf-8")
    return target


def _check_device(device: str) -> None:
    """In a process of its own: what has met a GPU holds memory there."""
    if device == "cpu":
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            pool.submit(torch_device.checked, device).result()
        except SlmqError as error:
            raise typer.BadParameter(str(error)) from error


def _check(kind: str, given: tuple[str, ...], known: dict[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise typer.BadParameter(unknown(kind, name, tuple(known)))


if __name__ == "__main__":
    typer.run(main)
