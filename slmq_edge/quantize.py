"""model -> Checkpoint: calibrate, prepare, round, and account for what it cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import calibration as calibrations
from slmq_edge import models
from slmq_edge.anatomy import Anatomy
from slmq_edge.errors import Damaged, UsageError, did_you_mean
from slmq_edge.quantization import Method, Progress, Task, method
from slmq_edge.scheme import Scheme, require_weights

if TYPE_CHECKING:
    from slmq_edge.calibration import Calibration, Text
    from slmq_edge.checkpoint import Checkpoint
    from slmq_edge.models import Source
    from slmq_edge.quantization.rounding import Steps


@dataclass(frozen=True)
class Request:
    """What to quantize and how; ``None`` leaves a choice to the method's default.

    windows, length: calibration size; settings: fields of the method's own ``Settings``.
    """

    scheme: Scheme
    method: str
    calib: Path | None = None
    windows: int | None = None
    length: int | None = None
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A request whose every mistake has been found: model, method, settings, text, device."""

    source: Source
    anatomy: Anatomy
    request: Request
    settings: Any
    text: Text | None
    device: str


def plan(model: str, request: Request, note: Callable[[str], None] = lambda _: None) -> Plan:
    """Check everything that can be checked before the model is read.

    Raises:
        SlmqError: one line for the first thing that is wrong.
    """
    chosen = method(request.method)
    settings = _settings(chosen, request)
    if request.method != "none":
        require_weights(request.scheme, request.method)
    device = _device(request.device)
    if chosen.CALIBRATION is None:
        _refuse_sizes_of_nothing(request)
    text = calibrations.read_text(request.calib) if request.calib is not None else None
    source = models.find(model)
    shape = models.read_anatomy(source.folder)
    models.weight_files(source.folder)
    if chosen.CALIBRATION is not None and text is None:
        text = calibrations.default_text(source)
        if text.note:
            note(text.note)
    return Plan(source, shape, request, settings, text, device)


def quantize(planned: Plan, progress: Progress = lambda share, what: None) -> Checkpoint:
    """Carry a plan out.

    Raises:
        SlmqError: damaged weights, a text too short, a loss that is no number.
    """
    import torch

    from slmq_edge.checkpoint import Checkpoint, extras_of, round_rest
    from slmq_edge.quantization import ranges

    request, source = planned.request, planned.source
    chosen = method(request.method)
    meter = _Meter(planned.device)
    progress(0.0, "reading the model")
    model = models.read(source.folder).to(torch.float32, planned.device)
    calibration = _calibration(chosen, planned)
    notes: list[str] = []
    task = Task(request.scheme, planned.settings, calibration, progress, notes.append)
    prepared = chosen.prepare(model, task)
    progress(0.0, "rounding")
    inputs: dict[str, Steps] = {}
    if request.scheme.is_static:
        assert calibration is not None, "plan() sees to it"
        inputs = ranges.find(prepared.model, calibration.tokens, request.scheme, progress)
    integers = prepared.round_linears(prepared.model, task)
    rest, tensors = round_rest(prepared.model, request.scheme)
    return Checkpoint(
        anatomy=planned.anatomy,
        scheme=request.scheme,
        integers=integers | rest,
        tensors=tensors,
        method=request.method,
        settings=dataclasses.asdict(planned.settings),
        source=source.as_json(),
        calibration=calibration.as_json() if calibration else None,
        cost=meter.read(),
        extras=extras_of(source.folder),
        prompts=calibration.prompts if calibration else None,
        online=prepared.model.online,
        inputs=inputs,
        notes=tuple(notes),
    )


def _calibration(chosen: Method, planned: Plan) -> Calibration | None:
    """Windows of the text, for the method and for golden prompts; ``None`` without a text."""
    if planned.text is None:
        return None
    request, asked = planned.request, chosen.CALIBRATION or calibrations.PROMPTS
    size = calibrations.Size(
        windows=request.windows or asked.windows,
        length=min(request.length or asked.length, planned.anatomy.max_positions),
    )
    found = calibrations.cut(planned.text, models.read_tokenizer(planned.source.folder), size)
    if int(found.tokens.max()) >= planned.anatomy.vocab:
        raise Damaged(
            f"{planned.source.name}: its tokenizer knows token {int(found.tokens.max())}, "
            f"its config.json only {planned.anatomy.vocab}"
        )
    return found


def _settings(chosen: Method, request: Request) -> Any:
    known = [f.name for f in dataclasses.fields(chosen.Settings)]
    given = {name: value for name, value in request.settings.items() if value is not None}
    for name in given:
        if name not in known:
            listed = ", ".join(f"--{k}" for k in known) or "none"
            raise UsageError(
                f"method {request.method} has no setting --{name}{did_you_mean(name, known)}; "
                f"its settings: {listed}"
            )
    return chosen.Settings(**given)


def _refuse_sizes_of_nothing(request: Request) -> None:
    options = {"--windows": request.windows, "--length": request.length}
    given = [name for name, value in options.items() if value is not None]
    if given and request.calib is None:
        raise UsageError(
            f"method {request.method} does not calibrate: leave {given[0]} out "
            "(with --calib, golden prompts are cut from the text)"
        )


def _device(name: str) -> str:
    import torch

    if name == "cpu":
        return name
    kind = name.split(":")[0]
    if kind != "cuda":
        raise UsageError(f"unknown device '{name}'{did_you_mean(kind, ('cpu', 'cuda'))}")
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    return name


class _Meter:
    """Wall time and peak memory from here to ``read``."""

    def __init__(self, device: str) -> None:
        import torch

        from slmq_edge.profiles.cpu import Cpu

        self._device = device
        self._profile = Cpu()
        self._profile.reset_peak()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        self._start = time.perf_counter()

    def read(self) -> dict[str, Any]:
        """seconds; peak memory by kind; device."""
        import torch

        memory = {"cpu_peak_rss": self._profile.memory()["cpu_peak_rss"]}
        if self._device != "cpu":
            memory["torch_peak_allocated"] = torch.cuda.max_memory_allocated(self._device)
        return {
            "seconds": time.perf_counter() - self._start,
            "memory": memory,
            "device": self._device,
        }
