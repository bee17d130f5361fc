"""What is done, most important first, and how long it is expected to take on an H200.

Of every artifact: quantize (Track 3), export, profile (Track 2, prefill, decoding). What the paper
has in its tables comes first: W8A8 before W4A8, SmolLM before Qwen; full precision, which ratios
need, before all, and a W4A8 of each before the methods that take minutes.

The seconds are estimates, not measurements: OmniQuant's by METHODS 4.2 (2-3 and 4-8 minutes on an
H200), the others' by what the same verbs take on two CPU cores and by the work that is in them. A
call corrects them by what its own steps took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.on_gpu.material import SHAPES, TEST
from slmq_edge.bench.cells import Cell

ON_GPU, ON_CPU, ALONE = LANES = ("gpu", "cpu", "alone")
BASELINE = ("none", "fp32")
METHODS = ("smoothquant", "spinquant", "omniquant")
SMOLLM, QWEN = SHAPES
# Model, method, scheme.
ARTIFACTS: tuple[tuple[str, str, str], ...] = (
    (SMOLLM, *BASELINE),
    (SMOLLM, "smoothquant", "w8a8"),
    (SMOLLM, "spinquant", "w8a8"),
    (SMOLLM, "omniquant", "w8a8"),
    (QWEN, *BASELINE),
    (QWEN, "smoothquant", "w8a8"),
    (SMOLLM, "smoothquant", "w4a8"),
    (QWEN, "smoothquant", "w4a8"),
    (QWEN, "spinquant", "w8a8"),
    (QWEN, "omniquant", "w8a8"),
    (SMOLLM, "spinquant", "w4a8"),
    (SMOLLM, "omniquant", "w4a8"),
    (QWEN, "spinquant", "w4a8"),
    (QWEN, "omniquant", "w4a8"),
)
# Of SmolLM's shape and of Qwen's.
SECONDS: dict[str, tuple[float, float]] = {
    "model": (8, 20),
    "smoothquant": (15, 30),
    "spinquant": (70, 130),
    "omniquant": (150, 360),
    "export": (30, 75),
    "profile": (35, 45),
}
LANE = {"model": ON_CPU, "quantize": ON_GPU, "export": ON_CPU, "profile": ALONE}
CALIBRATION = "calibration.txt"
DRAWING = "benchmarks.on_gpu.material"
# A toy's calibration and workload: what is tested is the way, not the figures.
TOY: dict[str, tuple[str, ...]] = {
    "smoothquant": ("--windows", "8", "--length", "64"),
    "spinquant": ("--windows", "8", "--length", "64", "--steps", "1"),
    "omniquant": ("--windows", "8", "--length", "64", "--epochs", "1"),
    "none": ("--windows", "8", "--length", "64"),
    "profile": ("-r", "2", "-n", "4", "--warmups", "1", "--power-seconds", "0", "--once"),
}
WORKLOAD = ("-r", "10", "-n", "64")


@dataclass(frozen=True)
class Step:
    """A child process, and what it leaves in the work folder.

    seconds: expected. lane: ``gpu`` and ``cpu`` steps run one of each at a time, side by side;
    ``alone``: with nothing beside it. module: what the cell's command is of.
    """

    cell: Cell
    seconds: float
    lane: str
    module: str = "slmq_edge"

    @property
    def id(self) -> str:
        return self.cell.id

    @property
    def kind(self) -> str:
        return self.cell.kind

    @property
    def output(self) -> str:
        (found,) = self.cell.outputs
        return found


@dataclass(frozen=True)
class Settings:
    """What is the same of all steps. device: to quantize on. target: of the bundles."""

    material: Path
    device: str = "cuda"
    target: str = "torch"
    toy: bool = False


def steps(settings: Settings, artifacts: Sequence[tuple[str, str, str]] = ARTIFACTS) -> list[Step]:
    """All steps, none before what it needs."""
    found: dict[str, Step] = {}
    for model, method, scheme in artifacts:
        for one in _of_artifact(settings, model, method, scheme):
            found.setdefault(one.id, one)
    return list(found.values())


def name_of(model: str, method: str, scheme: str) -> str:
    return f"{model}-{method}-{scheme}"


def _of_artifact(settings: Settings, model: str, method: str, scheme: str) -> list[Step]:
    name, toy = name_of(model, method, scheme), settings.toy
    of = {"model": model, "method": method, "scheme": scheme}
    text = ("--calib", CALIBRATION, *(TOY[method] if toy else ()))
    making = ("--method", method, "--scheme", scheme, *text)
    drawn, checkpoint, bundle = f"models/{model}", f"checkpoints/{name}", f"bundles/{name}"

    def step(kind: str, of_what: str, output: str, needs: str, *command: str) -> Step:
        place = SHAPES[model] != "smollm2"
        seconds = SECONDS[method if kind == "quantize" else kind][place]
        after = (needs,) if needs else ()
        cell = Cell(f"{kind}-{of_what}", kind, command, after, (output,), of)
        return Step(cell, seconds, LANE[kind], DRAWING if kind == "model" else "slmq_edge")

    drawing = (str(settings.material), model, *(("--toy",) if toy else ()))
    found = [step("model", model, drawn, "", *drawing)]
    to_bundle = ("--target", settings.target, "-o", bundle, "--force")
    if (method, scheme) == BASELINE:
        found.append(
            step("export", name, bundle, f"model-{model}", "export", drawn, *making, *to_bundle)
        )
    else:
        where = ("--preset", "upstream", "--device", settings.device)
        found.append(
            step("quantize", name, checkpoint, f"model-{model}",
                 "quantize", drawn, *making, *where, "-o", checkpoint, "--force")
        )  # fmt: skip
        found.append(
            step("export", name, bundle, f"quantize-{name}", "export", checkpoint, *to_bundle)
        )
    run = f"runs/{name}.json"
    paper = ("-p", "128", "--protocol", "paper", "--text", str(settings.material / TEST))
    # Said, so that a GPU that torch does not see is an error, and no row of the CPU.
    workload = TOY["profile"] if toy else (*WORKLOAD, "--torch-device", settings.device)
    found.append(
        step("profile", name, run, f"export-{name}",
             "profile", bundle, *paper, *workload, "-o", run, "--force")
    )  # fmt: skip
    return found
