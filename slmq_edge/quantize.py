"""model -> Checkpoint: calibrate, prepare, round, and account for what it cost."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import __version__, models, presets, recipe, record
from slmq_edge import calibration as calibrations
from slmq_edge.anatomy import Anatomy
from slmq_edge.calibration import Size
from slmq_edge.cost import Meter, went_on
from slmq_edge.deviations import Run, deviations
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.presets import Preset
from slmq_edge.quantization import COMPILED, HOLDS_OUT, Method, Progress, Task, method
from slmq_edge.recipe import Recipe
from slmq_edge.runner.manifest import sha256
from slmq_edge.scheme import Scheme, check_protected, require_weights, words_of
from slmq_edge.settings import settings_of
from slmq_edge.torch_device import at_work, checked, release

if TYPE_CHECKING:
    from slmq_edge.calibration import Calibration, Text
    from slmq_edge.checkpoint import Checkpoint
    from slmq_edge.decoder import Decoder
    from slmq_edge.models import Source
    from slmq_edge.quantization.finished import Finished
    from slmq_edge.quantization.rounding import Steps

# What static ranges are found on where the method itself looks at no text.
RANGES = Size(windows=128, length=512)
# A window of one token predicts nothing.
FEWEST = {"--windows": 1, "--length": 2}

Note = Callable[[str], None]


def _unheard(line: str) -> None:
    """No one to tell."""


@dataclass(frozen=True)
class Request:
    """What to quantize and how; ``None`` leaves a choice to the preset, or to the method.

    windows, length: calibration size; settings: fields of the method's own ``Settings``, as values
    or as text. preset: of windows, length and settings that are not given, and ``upstream-exact``
    of what is rounded; the rest of the scheme is as it stands. revision: of a hub model.
    text_sha256: what the calibration text's must be. spill: folder for activations. fresh: forget
    what an interrupted run has finished. compiles: let torch compile what is repeated often.
    """

    scheme: Scheme
    method: str
    calib: Path | None = None
    windows: int | None = None
    length: int | None = None
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    revision: str | None = None
    text_sha256: str | None = None
    spill: Path | None = None
    fresh: bool = False
    compiles: bool = False


@dataclass(frozen=True)
class Plan:
    """A request whose every mistake has been found: model, method, settings, text, device.

    size: of the calibration, if the text is long enough. recipe: the words that make the same
    again, ``None`` where no words can. unfinished: where finished blocks are kept until ``forget``;
    ``None``: nowhere. holds_out: calibrate on four fifths of the text, to measure on the rest.
    """

    source: Source
    anatomy: Anatomy
    request: Request
    settings: Any
    text: Text | None
    device: str
    size: Size
    recipe: Recipe | None = None
    unfinished: Path | None = None
    holds_out: bool = False


def plan(model: str, request: Request, note: Note = _unheard, output: Path | None = None) -> Plan:
    """Check everything that can be checked before the model is read.

    output: what the checkpoint will become; finished blocks are kept beside it.

    Raises:
        SlmqError: one line for the first thing that is wrong.
    """
    chosen = method(request.method)
    words = words_of(request.scheme)
    preset = Preset() if request.preset is None else presets.preset(request.preset, request.method)
    bits = request.scheme.weights.bits if request.scheme.weights else 8
    settings = settings_of(chosen.Settings, request.method, request.settings, preset.values(bits))
    if request.method != "none":
        require_weights(request.scheme, request.method)
    if request.compiles and request.method not in COMPILED:
        raise UsageError(
            f"--compile: {request.method} has no step that is compiled "
            f"({', '.join(COMPILED)} has): leave it out"
        )
    device = checked(request.device)
    _check_spill(request.spill)
    calibrates = chosen.CALIBRATION is not None or request.scheme.is_static
    # Which linears are protected is found on the text, or was.
    reads = calibrates or request.scheme.protects > 0
    _check_sizes(request, reads)
    text = calibrations.read_text(request.calib) if request.calib is not None else None
    source = models.find(model, request.revision)
    shape = models.read_anatomy(source.folder)
    models.weight_files(source.folder)
    if request.preset == presets.EXACT:
        exact = presets.as_released(request.scheme, request.method, shape)
        request = dataclasses.replace(request, scheme=exact)
    chosen.check(shape, request.scheme, settings)
    check_protected(request.scheme, shape)
    if reads and text is None:
        text = calibrations.default_text(source)
        if text.note:
            note(text.note)
    _check_text(text, request.text_sha256)
    size = _size(request, preset, chosen, shape)
    if request.method in HOLDS_OUT and size.windows < 2:
        raise UsageError(f"{request.method} holds some windows out, and needs at least --windows 2")
    unfinished = None
    if output is not None:
        unfinished = output.absolute().parent / f".{output.absolute().name}.unfinished"
    found = Plan(source, shape, request, settings, text, device, size, None, unfinished)
    return dataclasses.replace(found, recipe=_recipe(model, found, size, words))


def quantize(
    planned: Plan,
    progress: Progress = lambda share, what: None,
    note: Note = _unheard,
    shown: Callable[[Decoder], None] = lambda model: None,
) -> Checkpoint:
    """Carry a plan out. ``note`` hears, a line at a time, what the method has to say.

    shown: given the model as the method has prepared it, with the float weights that rounding takes
    out of it: to hold it costs the memory of the model.

    Blocks that are finished stay in ``planned.unfinished``, so that the same plan goes on behind
    them: call ``forget`` when the checkpoint is written.

    Raises:
        SlmqError: damaged weights, a text too short, a loss that is no number.
    """
    with at_work(planned.device):
        release(planned.device)
        meter = Meter(planned.device, "tokenizing")
        try:
            return _metered(planned, meter, progress, note, shown)
        finally:
            meter.close()


def _metered(
    planned: Plan,
    meter: Meter,
    progress: Progress,
    note: Note,
    shown: Callable[[Decoder], None],
) -> Checkpoint:
    """A plan carried out, its cost read from the meter."""
    tokenizer = None if planned.text is None else models.read_tokenizer(planned.source.folder)
    report = meter.watched(progress)
    report(0.0, "tokenizing")
    calibration = _calibration(planned, tokenizer)
    finished = _finished(planned)
    done, parts = (0, ()) if finished is None else (finished.count, finished.parts)
    if done or parts:
        what = went_on(done, parts)
        note(f"going on {what} of a run that was interrupted (--fresh starts anew)")
    notes: list[str] = []

    def tell(line: str) -> None:
        notes.append(line)
        note(line)

    if calibration is not None:
        planned = _with_found(planned, calibration, tell)
    # Prepared is the model for the scheme as it is named; what is protected is another's rounding.
    named = dataclasses.replace(planned.request.scheme, protected=())
    request = planned.request
    task = Task(
        named,
        planned.settings,
        calibration,
        report,
        tell,
        finished,
        request.spill,
        request.compiles,
    )
    try:
        made = _made(planned, task, tokenizer, shown)
    except BaseException as error:
        _keep(finished, note, isinstance(error, KeyboardInterrupt))
        raise
    cost = meter.read() | {
        "calibration_tokens": 0 if calibration is None else calibration.tokens.numel(),
        "calibration_sha256": None if planned.text is None else planned.text.sha256,
        "resumed_behind_block": done,
        "resumed_with": list(parts),
        "compiled": request.compiles,
        "made_with": record.here(),
    }
    return dataclasses.replace(made, cost=cost, notes=tuple(notes))


def prepare(
    planned: Plan,
    progress: Progress = lambda share, what: None,
    note: Note = _unheard,
) -> Decoder:
    """The float model as a plan's method makes it ready; it is not rounded, and nothing is kept.

    Raises:
        SlmqError: as of ``quantize``.
    """
    tokenizer = None if planned.text is None else models.read_tokenizer(planned.source.folder)
    calibration = _calibration(planned, tokenizer)
    if calibration is not None:
        planned = _with_found(planned, calibration, note)
    request = planned.request
    named = dataclasses.replace(request.scheme, protected=())
    task = Task(named, planned.settings, calibration, progress, note, None, request.spill)
    with at_work(planned.device):
        return method(request.method).prepare(_read(planned, progress), task).model


def forget(planned: Plan) -> None:
    """What was planned is written: the blocks kept for going on are not needed any more."""
    if planned.unfinished is not None and planned.unfinished.is_dir():
        _finished_folder(planned).remove()


def _made(
    planned: Plan, task: Task, tokenizer: Any, shown: Callable[[Decoder], None]
) -> Checkpoint:
    """The checkpoint, but for its cost and its notes. task: of preparing."""
    from slmq_edge.checkpoint import Checkpoint, extras_of, round_rest
    from slmq_edge.quantization import ranges

    source, calibration = planned.source, task.calibration
    # The model read is nobody's but the method's: what it replaces is freed as it goes.
    prepared = method(planned.request.method).prepare(_read(planned, task.progress), task)
    release(planned.device)
    if planned.request.scheme.is_open:
        from slmq_edge.analysis import protecting

        planned = protecting.named(planned, prepared.model, tokenizer, task)
        release(planned.device)
    request = planned.request
    inputs: dict[str, Steps] = {}
    if request.scheme.is_static:
        assert calibration is not None, "plan() sees to it"
        tokens = calibration.tokens.to(planned.device)
        inputs = ranges.find(prepared.model, tokens, request.scheme, task.progress)
        release(planned.device)
    model = prepared.model
    shown(dataclasses.replace(model, weights=dict(model.weights)))
    task.progress(0.0, "rounding")
    rounding = dataclasses.replace(task, scheme=request.scheme, inputs=inputs)
    integers = prepared.round_linears(model, rounding)
    task.progress(1.0, "rounding")
    rest, tensors = round_rest(model, request.scheme)
    extras = extras_of(source.folder)
    if planned.recipe is not None:
        heading = f"slmq-edge {__version__}: slmq-edge quantize --config {recipe.FILE}"
        extras[recipe.FILE] = recipe.text(planned.recipe, heading).encode()
    return Checkpoint(
        anatomy=planned.anatomy,
        scheme=request.scheme,
        integers=integers | rest,
        tensors=tensors,
        method=request.method,
        settings=dataclasses.asdict(planned.settings),
        source=source.as_json() | {"files": models.digests(source.folder)},
        calibration=calibration.as_json() if calibration else None,
        cost={},
        extras=extras,
        prompts=calibration.prompts if calibration else None,
        online=model.online,
        inputs=inputs,
        recipe=None if planned.recipe is None else planned.recipe.as_json(),
    )


def _read(planned: Plan, progress: Progress) -> Decoder:
    import torch

    progress(0.0, "reading the model")
    model = models.read(planned.source.folder).to(torch.float32, planned.device)
    progress(0.0, f"preparing by {planned.request.method}")
    return model


def _calibration(planned: Plan, tokenizer: Any) -> Calibration | None:
    """Windows of the text, for the method and for golden prompts; ``None`` without a text."""
    if planned.text is None:
        return None
    text = calibrations.split(planned.text)[0] if planned.holds_out else planned.text
    found = calibrations.cut(text, tokenizer, planned.size)
    if int(found.tokens.max()) >= planned.anatomy.vocab:
        raise Damaged(
            f"{planned.source.name}: its tokenizer knows token {int(found.tokens.max())}, "
            f"its config.json only {planned.anatomy.vocab}"
        )
    return found


def _with_found(planned: Plan, calibration: Calibration, note: Note) -> Plan:
    """The plan, its recipe by the windows that were found: a short text has fewer than asked."""
    windows, length = calibration.tokens.shape
    asked = planned.size.windows
    if windows < asked:
        name = calibration.text.name
        note(f"calibration text '{name}' has {windows} windows of {length} tokens, not {asked}")
    if planned.recipe is None:
        return planned
    model, words = str(planned.recipe.model), dict(planned.recipe.scheme)
    found = _recipe(model, planned, Size(windows, length), words)
    return dataclasses.replace(planned, recipe=found)


def _size(request: Request, preset: Preset, chosen: Method, shape: Anatomy) -> Size:
    """What was asked for, or the preset's, no longer than the model allows.

    Raises:
        UsageError: a length that was asked for, and is longer.
    """
    own = RANGES if request.scheme.is_static else calibrations.PROMPTS
    asked = chosen.CALIBRATION or own
    if request.length is not None and request.length > shape.max_positions:
        raise UsageError(
            f"--length {request.length} is more than the {shape.max_positions} positions that "
            "the model has"
        )
    return Size(
        windows=request.windows or preset.windows or asked.windows,
        length=request.length or min(preset.length or asked.length, shape.max_positions),
    )


def _recipe(model: str, planned: Plan, size: Size, words: dict[str, Any] | None) -> Recipe | None:
    """The request in words (its scheme's are ``words``), with every value that it leads to."""
    request, text = planned.request, planned.text
    if words is None:
        return None
    settings = dataclasses.asdict(planned.settings)
    run = Run(
        method=request.method,
        scheme=request.scheme,
        settings=settings,
        text=None if text is None else text.name,
        windows=None if text is None else size.windows,
        length=None if text is None else size.length,
    )
    calibration: dict[str, Any] = {}
    if text is not None:
        calibration = {"text": text.name, "sha256": text.sha256} | dataclasses.asdict(size)
        if request.calib is not None:
            calibration["file"] = str(request.calib)
    return Recipe(
        model=model,
        revision=planned.source.revision,
        method=request.method,
        preset=request.preset,
        device=request.device,
        scheme=words,
        calibration=calibration,
        settings={name: "none" if value is None else value for name, value in settings.items()},
        deviations=deviations(run),
    )


def _finished(planned: Plan) -> Finished | None:
    """The blocks of this very plan that an interrupted run has left, or a place for new ones."""
    folder = planned.unfinished
    if folder is None:
        return None
    from slmq_edge.quantization.finished import IDENTITY

    is_ours = not folder.exists() or (folder / IDENTITY).is_file()
    if not is_ours and (folder.is_file() or any(folder.iterdir())):
        raise SlmqError(f"{folder} is in the way, and not ours: move it away")
    if planned.request.fresh and folder.is_dir():
        _finished_folder(planned).remove()
    return _finished_folder(planned)


def _finished_folder(planned: Plan) -> Finished:
    from slmq_edge.quantization.finished import Finished

    assert planned.unfinished is not None, "asked for only where there is one"
    request = planned.request
    identity = {
        "version": __version__,
        "anatomy": planned.anatomy.as_json(),
        "weights": {
            file.name: (file.stat().st_size, file.stat().st_mtime_ns)
            for file in models.weight_files(planned.source.folder)
        },
        "tokenizer": {
            name: sha256(planned.source.folder / name)
            for name in models.TOKENIZER_FILES
            if (planned.source.folder / name).is_file()
        },
        "scheme": request.scheme.as_json(),
        "method": request.method,
        "settings": dataclasses.asdict(planned.settings),
        "calibration": None if planned.text is None else planned.text.sha256,
        "size": dataclasses.asdict(planned.size),
        "device": planned.device,
        **({"compiles": True} if request.compiles else {}),
    }
    return Finished(planned.unfinished, identity)


def _keep(finished: Finished | None, note: Note, interrupted: bool) -> None:
    """A run ends early: leave its blocks, if it has any, for the next."""
    if finished is None:
        return
    if not finished.count and not finished.parts:
        finished.remove()
    elif interrupted:
        what = went_on(finished.count, finished.parts)
        note(f"interrupted: the same command goes on {what}")


def _check_sizes(request: Request, calibrates: bool) -> None:
    options = {"--windows": request.windows, "--length": request.length}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if value < FEWEST[name]:
            raise UsageError(f"{name} is at least {FEWEST[name]}, not {value}")
    if given and not calibrates and request.calib is None:
        raise UsageError(
            f"method {request.method} does not calibrate: leave {next(iter(given))} out "
            "(with --calib, golden prompts are cut from the text)"
        )


def _check_text(text: Text | None, expected: str | None) -> None:
    if text is not None and expected is not None and text.sha256 != expected:
        raise SlmqError(
            f"calibration text '{text.name}' is not the one of the recipe: its sha256 is "
            f"{text.sha256[:12]}..., the recipe's {expected[:12]}... (--calib FILE takes another)"
        )


def _check_spill(folder: Path | None) -> None:
    if folder is None:
        return
    if not folder.is_dir():
        raise NotFound(f"--spill {folder}: no such folder")
    if not os.access(folder, os.W_OK):
        raise SlmqError(f"--spill {folder}: the folder is not writable")
