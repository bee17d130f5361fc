"""slmq-edge reproduce: is what a run measured made and measured again, and what drifted?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq_edge.commands.formats import Force
from slmq_edge.commands.options import Where

if TYPE_CHECKING:
    from slmq_edge.recipe import Recipe
    from slmq_edge.remote.target import Target
    from slmq_edge.reproduce import Recorded, Reproduction
    from slmq_edge.results import Run
    from slmq_edge.runner.measure import Text
    from slmq_edge.tracks.inference import Options

# Seconds for which a lost link is put up with, and after which a board ends the job by itself.
RECONNECT, DEADLINE = 900.0, 6 * 3600.0


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run.json of slmq-edge profile.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write. Default: NAME-reproduced."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where the model is now; checked by sha256."),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the calibration text is now; checked by sha256."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the text of the prompt is now; checked by sha256."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="The bundle that was measured: tensors that differ are named."
        ),
    ] = None,
    device: Where = "local",
    engines: Annotated[
        Path | None,
        typer.Option(help="Of slmq-edge build, for TensorRT. Default: engines/ in the bundle."),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="SHARE", help="By how much a figure may change.")
    ] = "5%",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Make the artifact alone.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print reproduction.json.")] = False,
    force: Force = False,
) -> None:
    """Make what a run measured anew, measure it again, and say what drifted.

    run.json says how its artifact was made: model and calibration text by sha256, recipe, options
    of export, versions, CPU. From that alone the bundle is made again; its files are compared by
    sha256, its golden prompts are checked, and it is measured as it was. On another machine
    figures are not comparable, and the artifact alone is.

    A figure matches where the 95 % interval of its change lies within --tolerance, has drifted
    where it lies outside, and is inconclusive otherwise, or if the machine was not at rest. Exit
    code 0: the artifact is the same and no figure is shown to have drifted. 1: something drifted.

    In FOLDER: bundle/, run.json, reproduction.json. An interrupted reproduction goes on with the
    bundle that it has made.

    \b
    Examples:
      slmq-edge reproduce smollm-w8a8-run.json
      slmq-edge reproduce orin-run.json --device ssh://me@orin.local
      slmq-edge reproduce my-run.json --model models/mine --no-measure
    """
    from slmq_edge import reproduce as reproducing
    from slmq_edge.errors import SlmqError, UsageError
    from slmq_edge.export import check_target
    from slmq_edge.files import check_output, existing, write_text_atomically
    from slmq_edge.remote.inventory import targets
    from slmq_edge.reports.reproduce import terminal, verdict
    from slmq_edge.results import load

    share = _share(tolerance)
    where = targets(device)
    if len(where) > 1:
        raise UsageError(f"{device} names {len(where)} boards: a run was measured on one")
    then = load(existing(run, "run"))
    recorded = reproducing.recorded(then, str(run))
    folder = output or Path(f"{run.stem}-reproduced")
    report = folder / "reproduction.json"
    check_output(report, force)
    check_target(recorded.wanted)
    before = None if against is None else _original(against, then)
    recipe = _moved(recorded, model, calib)
    _check_model(recorded, recipe)
    options = _options(then, engines, str(run))
    if measure:
        _check_text(then, text)

    bundle = folder / "bundle"
    made = _bundle(recorded, recipe, bundle, force)
    found = _artifact(then, run, recorded, made, bundle, share)
    if before is not None:
        found = _with_tensors(found, before, bundle)
    if measure:
        how = (options, _reading(then, bundle, made, text))
        found = _measured(found, then, where[0], how, force)
    write_text_atomically(report, found.as_json(), force)
    typer.echo(found.as_json() if as_json else terminal(found), nl=False)
    typer.echo(f"written: {folder}", err=True)
    if found.verdict == reproducing.DRIFTED:
        raise SlmqError(verdict(found))


def _share(text: str) -> float:
    from slmq_edge.errors import UsageError

    try:
        value = float(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"--tolerance {text}: give a share below 100 %, like 5% or 0.05")
    return value


def _original(folder: Path, then: Run) -> Path:
    """The bundle that was measured, and no other."""
    from slmq_edge.errors import SlmqError
    from slmq_edge.files import existing_bundle
    from slmq_edge.runner import manifest

    document = existing_bundle(folder)
    if manifest.sha256(folder / manifest.BUNDLE_FILE) != then.artifact.bundle_sha256:
        raise SlmqError(f"--against {folder}: that is not the bundle that was measured")
    manifest.verify(folder, document["files"])
    return folder


def _moved(recorded: Recorded, model: str | None, calib: Path | None) -> Recipe:
    """The recipe, with its model and its text where they are now; what they must be stays."""
    recipe = recorded.recipe
    if model is not None:
        recipe = dataclasses.replace(recipe, model=model, revision=None)
    if calib is not None:
        words = {**recipe.calibration, "file": str(calib)}
        recipe = dataclasses.replace(recipe, calibration=words)
    return recipe


def _check_model(recorded: Recorded, recipe: Recipe) -> None:
    from slmq_edge import models
    from slmq_edge.errors import NotFound
    from slmq_edge.reproduce import check_model

    try:
        source = models.find(str(recipe.model), recipe.revision)
    except NotFound as error:
        raise NotFound(f"{error}; --model FOLDER says where the run's model is now") from error
    check_model(recorded, str(recipe.model), models.digests(source.folder))


@contextlib.contextmanager
def _threads(recorded: Recorded) -> Iterator[None]:
    """As many of torch as then, on which the order of its sums depends, where there are so many."""
    import torch

    from slmq_edge.runner import environment

    before = torch.get_num_threads()
    then = recorded.made_with.get("quantize", {}).get("threads")
    if isinstance(then, int) and 1 <= then <= environment.cores():
        torch.set_num_threads(then)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bundle(recorded: Recorded, recipe: Recipe, folder: Path, force: bool) -> Mapping[str, Any]:
    """The manifest of the bundle, made anew, or before by a reproduction that was interrupted."""
    from slmq_edge.commands import making
    from slmq_edge.commands.export import export_model

    with _threads(recorded):
        made = None if force else _made_before(recorded, recipe, folder)
        if made is not None:
            making.note(f"going on with {folder}, which was made before")
            return made
        request = making.request_of(recipe, {"spill": None, "fresh": False, "compile": False})
        return export_model(str(recipe.model), request, folder, recorded.wanted, force)


def _made_before(recorded: Recorded, recipe: Recipe, folder: Path) -> Mapping[str, Any] | None:
    from slmq_edge import record
    from slmq_edge.recipe import from_document
    from slmq_edge.runner import manifest

    if not (folder / manifest.BUNDLE_FILE).is_file():
        return None
    document = manifest.read_bundle(folder)
    found = record.of_bundle(document)
    if record.lacks(found) or found["made_with"].get("export") != record.here():
        return None
    of_it = (from_document(found["recipe"], folder), found["export"], found["model"]["files"])
    asked = dataclasses.asdict(recorded.wanted)
    if of_it != (recipe, asked, recorded.model["files"]):
        return None
    manifest.verify(folder, document["files"])
    return document


def _artifact(
    then: Run, name: Path, recorded: Recorded, made: Mapping[str, Any], bundle: Path, share: float
) -> Reproduction:
    """What became of the bundle; its figures are to come."""
    from slmq_edge import record
    from slmq_edge.reproduce import Reproduction, by_the_clock, files, made_differently
    from slmq_edge.runner import manifest

    now = record.of_bundle(made)
    return Reproduction(
        run=str(name),
        model=then.artifact.model,
        method=then.artifact.method,
        scheme=then.artifact.scheme_ran,
        bundle=str(bundle),
        bundle_sha256=manifest.sha256(bundle / manifest.BUNDLE_FILE),
        tolerance=share,
        files=files(recorded.files, now["files"]),
        drift=(
            *made_differently(recorded.made_with, now["made_with"]),
            *by_the_clock(recorded.recipe),
        ),
        figures=(),
        unmeasured="--no-measure",
    )


def _with_tensors(found: Reproduction, before: Path, bundle: Path) -> Reproduction:
    from slmq_edge.tensors import differing

    names = [file.name for file in found.differing]
    return dataclasses.replace(found, tensors=tuple(differing(before, bundle, names)))


def _options(then: Run, engines: Path | None, name: str) -> Options:
    from slmq_edge.errors import Damaged
    from slmq_edge.tracks.inference import Options

    try:
        return Options(engines=engines, **then.options or {})
    except TypeError as error:
        raise Damaged(f"{name} is damaged: options ({error})") from error


def _reading(then: Run, bundle: Path, made: Mapping[str, Any], file: Path | None) -> Text | None:
    """What the prompt is cut from; ``None``: the golden prompts."""
    from slmq_edge.tracks.reading import reading

    if then.workload.text is None:
        return None
    return reading(bundle, made, then.workload.prompt_tokens, file)


def _check_text(then: Run, file: Path | None) -> None:
    """Refuse another text than the one from which the prompt was cut."""
    from slmq_edge import calibration
    from slmq_edge.errors import NotFound, SlmqError

    was = then.workload.text
    if was is None:
        return
    if file is not None:
        found = calibration.read_text(file, "--text")
    elif was.source in (calibration.BUILTIN_WORLD, calibration.WIKITEXT_TRAIN):
        is_builtin = was.source == calibration.BUILTIN_WORLD
        found = calibration.usual_text("built-in" if is_builtin else "hub")
    else:
        raise NotFound(f"the prompt was cut from '{was.source}': --text FILE says where it is now")
    if found.sha256 != was.sha256:
        raise SlmqError(
            f"drifted: text '{found.name}' is not the one that was read: its sha256 is "
            f"{found.sha256[:12]}..., the run's {was.sha256[:12]}..."
        )


def _measured(
    found: Reproduction,
    then: Run,
    target: Target,
    how: tuple[Options, Text | None],
    force: bool,
) -> Reproduction:
    """The same with figures; or why there are none.

    Raises:
        SlmqError: the machine is busy or out of reach, or lacks what it takes, and the artifact is
            the same: nothing has drifted, and the same command goes on with the bundle.
    """
    from slmq_edge.errors import Busy, MissingExtra, NotFound, SlmqError, Unsupported, UsageError
    from slmq_edge.remote.transport import LinkLost
    from slmq_edge.reproduce import compared, measured_differently

    bundle = Path(found.bundle)
    try:
        now = _run(then, bundle, bundle.with_name("run.json"), target, how, force)
    except _ElsewhereError as error:
        return dataclasses.replace(found, unmeasured=f"{error}: figures are not comparable")
    except (Busy, LinkLost, MissingExtra, NotFound, Unsupported, UsageError) as error:
        if not found.differing:
            raise
        return dataclasses.replace(found, unmeasured=str(error))
    except SlmqError as error:
        return dataclasses.replace(found, unmeasured=str(error), failed=True)
    return dataclasses.replace(
        found,
        figures=compared(then, now, found.tolerance),
        drift=(*found.drift, *measured_differently(then, now)),
        unmeasured=None,
    )


class _ElsewhereError(Exception):
    """The machine is not the run's: nothing is measured."""


def _run(
    then: Run,
    bundle: Path,
    output: Path,
    target: Target,
    how: tuple[Options, Text | None],
    force: bool,
) -> Run:
    """Measured as it was, or before by a reproduction that was interrupted."""
    from slmq_edge.commands.rounds import Event, Rounds
    from slmq_edge.reproduce import elsewhere
    from slmq_edge.results import load
    from slmq_edge.runner import manifest
    from slmq_edge.tracks.measuring import Asked, measure_on

    if output.exists() and not force:
        there = load(output)
        if there.artifact.bundle_sha256 == manifest.sha256(bundle / manifest.BUNDLE_FILE):
            return there
    work, (options, text) = then.workload, how
    counts = (work.prompt_tokens, work.new_tokens, work.repetitions, work.warmups)
    asked = Asked(
        bundle, counts, work.threads, options, force, RECONNECT, DEADLINE, work.protocol, text
    )
    with Rounds([target.name], asked.rounds) as bars:

        def show(event: Event) -> None:
            if event["event"] == "device":
                device, seen = event["device"], event["seen"]
                why = elsewhere(then, device.name, device.kind, seen.get("cpu_model"))
                if why is not None:
                    raise _ElsewhereError(why)
            bars.show(target.name, event)

        return measure_on(target, asked, output, show)
