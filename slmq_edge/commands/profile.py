"""slmq-edge profile: how fast is a bundle on a machine, and how much memory and energy it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq_edge.commands.formats import Force
from slmq_edge.commands.options import Where
from slmq_edge.commands.rounds import Event, Rounds

if TYPE_CHECKING:
    from slmq_edge.remote.target import Target
    from slmq_edge.results import Run
    from slmq_edge.tracks.measuring import Asked


def profile(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="Folder written by slmq-edge export; with --runtime torch also a checkpoint.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("-p", "--prompt-tokens", min=1, help="Length of the prompt.")
    ] = 128,
    new_tokens: Annotated[
        int, typer.Option("-n", "--new-tokens", min=1, help="Decoding steps that are timed.")
    ] = 64,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", min=1, help="How often to measure.")
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Default: NAME-run.json in this folder; of an inventory, NAME-BOARD-run.json.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="paper: also time what the SLMQuant paper times."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read the prompt from this text. Default: the golden prompts."
        ),
    ] = None,
    device: Where = "local",
    warmups: Annotated[int, typer.Option(min=0, help="Rounds before the first counts.")] = 2,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: one for every core we may use.")
    ] = None,
    power_seconds: Annotated[
        float,
        typer.Option(
            min=0, max=600, help="Least length of an idle, prefill, decode window; 0: no energy."
        ),
    ] = 2.0,
    power_source: Annotated[
        str | None,
        typer.Option(help="On a Jetson: sysfs, tegrastats or jtop. Default: the first two."),
    ] = None,
    cool_down: Annotated[
        float,
        typer.Option(
            min=0, max=3600, help="Longest wait, in seconds, before a repetition while warmer."
        ),
    ] = 0.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Take repetitions that are not steady no second time."),
    ] = False,
    deadline: Annotated[
        float,
        typer.Option(min=0.01, max=1000, help="Hours after which a board ends the job by itself."),
    ] = 6.0,
    reconnect_limit: Annotated[
        float, typer.Option(min=0, help="Minutes for which a lost link is put up with.")
    ] = 15.0,
    runtime: Annotated[
        str | None,
        typer.Option(help="What it must be for: ort, trt or torch. Default: whatever it is."),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(help="Of slmq-edge build, for TensorRT. Default: engines/ in the bundle."),
    ] = None,
    torch_device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a bundle for torch: cpu, cuda or cuda:N. Default: a GPU where torch has one.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json, no table.")] = False,
    force: Force = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="Measure even if this CPU's integer kernel is not exact."
        ),
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End what runs on --device, of any bundle, and leave.")
    ] = False,
) -> None:
    """Measure a bundle: tokens per second, memory by phase, energy, time to load.

    Before anything is timed, every file is verified, the CPU's integer arithmetic is probed,
    and the golden prompts must come out as they did in simulation. A bundle that fails is
    refused: there is no speed of wrong numbers. A bundle for TensorRT runs the engine that
    slmq-edge build made of it on this machine. One for torch runs on this machine's GPU, or its
    CPU; of a checkpoint, --runtime torch makes that bundle first, beside the output, and once.

    Every repetition is on disk before the next begins. After Ctrl-C or a crash the same
    command takes only the repetitions that are missing. Where the last are not like the first,
    all are taken once more, after a pause; if that does not help, the run says inconclusive.

    --protocol paper also takes Track 2 of the SLMQuant paper: 100 forward passes of 128 tokens
    of WikiText-2, after 10 to warm up, logits of all positions; from --text where that is given,
    and of a built-in model from its own world. The prompt then has 128 tokens, and -p may say no
    other number; -n, -r and --warmups are of the prefill and decoding that are timed as ever.

    With --device ssh://..., the bundle is sent to a board (once), checked and measured there by
    the same code, and the run comes home. The board needs ssh, Python 3.8 and onnxruntime, and
    nothing of ours. The job goes on without the link: the same command follows it, after
    Ctrl-C too; --stop ends it. A TOML file names several boards, which work side by side:

    \b
      [[board]]
      name = "orin"
      device = "ssh://me@orin.local"
      python = "/opt/venv/bin/python"      # and home, config: an ssh_config

    \b
    Examples:
      slmq-edge profile smollm-w8a8
      slmq-edge profile smollm-w8a8 -p 512 -n 128 -r 20 --threads 4 -o night.json
      slmq-edge profile smollm-w8a8 --protocol paper --text wikitext-2-test.txt
      slmq-edge profile smollm-w8a8 --json | jq .series.decode_seconds.values
      slmq-edge profile smollm-w8a8 --device ssh://me@orin.local
      slmq-edge profile smollm-w8a8 --device boards.toml
      slmq-edge profile --device boards.toml --stop
      slmq-edge profile smollm-trt --runtime trt
      slmq-edge profile my-checkpoint --runtime torch --torch-device cuda
    """
    from slmq_edge.checkpoint import is_checkpoint
    from slmq_edge.commands import making
    from slmq_edge.commands.progress import bar
    from slmq_edge.errors import UsageError
    from slmq_edge.files import check_output, existing
    from slmq_edge.remote.inventory import is_inventory, targets
    from slmq_edge.runner import on_torch
    from slmq_edge.tracks import exported

    where = targets(device)
    if stop:
        _stop(where)
        return
    if bundle is None:
        raise UsageError("name a bundle to measure: a folder written by slmq-edge export")
    existing(bundle, "bundle")
    several, named = len(where) > 1, is_inventory(device)
    if several and output is not None:
        raise UsageError("-o is of one machine: with several, files are named after the boards")
    remote = any(one.transport != "local" for one in where)
    if engines is not None and not engines.is_absolute() and remote:
        raise UsageError(f"--engines {engines}: on another machine, the whole path there is needed")
    if torch_device is not None:
        on_torch.check_name(torch_device)
    of_checkpoint = is_checkpoint(bundle)
    if of_checkpoint:
        exported.check(bundle, runtime, remote, torch_device)
    stem = exported.place_of(bundle, Path()).name if of_checkpoint else bundle.absolute().name
    outputs = {
        one.name: output or Path(f"{stem}-{one.name}-run.json" if named else f"{stem}-run.json")
        for one in where
    }
    for path in outputs.values():
        check_output(path, force)

    from slmq_edge.runner.measure import Workload
    from slmq_edge.tracks.inference import Options
    from slmq_edge.tracks.measuring import Asked, admit

    if of_checkpoint:
        counts = prompt_tokens, new_tokens, repetitions, warmups
        exported.check_workload(bundle, Workload(*counts, threads or 1, protocol))
        with bar("reading the checkpoint") as progress:
            (output_of_it,) = outputs.values()
            bundle = exported.bundle_of(bundle, output_of_it.parent, progress, making.note)
    options = Options(
        allow_inexact,
        runtime,
        engines,
        power_seconds,
        cool_down,
        _source(power_source),
        not once,
        torch_device,
    )
    asked = Asked(
        bundle,
        (prompt_tokens, new_tokens, repetitions, warmups),
        threads,
        options,
        force,
        reconnect_limit * 60,
        deadline * 3600,
        protocol,
    )
    admit(asked)
    if protocol is not None or text is not None:
        asked = _with_text(asked, text)
    if several:
        _measure_all(where, asked, outputs, as_json)
        return
    run = _measure_one(where[0], asked, outputs[where[0].name])
    _print(run, as_json)
    typer.echo(f"written: {outputs[where[0].name]}", err=True)


def _with_text(asked: Asked, file: Path | None) -> Asked:
    import dataclasses

    from slmq_edge.files import existing_bundle
    from slmq_edge.tracks.reading import reading

    prompt_tokens, *_ = asked.counts
    found = reading(asked.bundle, existing_bundle(asked.bundle), prompt_tokens, file)
    return dataclasses.replace(asked, text=found)


def _measure_one(target: Target, asked: Asked, output: Path) -> Run:
    from slmq_edge.tracks.measuring import measure_on

    with Rounds([target.name], asked.rounds) as bars:

        def show(event: Event) -> None:
            if event["event"] == "device":
                bars.say(_card(event))
            bars.show(target.name, event)

        return measure_on(target, asked, output, show)


def _measure_all(
    where: tuple[Target, ...], asked: Asked, outputs: dict[str, Path], as_json: bool
) -> None:
    """Side by side; a line for each of what became of it, and exit code 1 if any failed."""
    from slmq_edge.remote.inventory import side_by_side
    from slmq_edge.reports import inventory as report
    from slmq_edge.tracks.measuring import measure_on

    with Rounds([one.name for one in where], asked.rounds) as bars:
        outcomes = side_by_side(
            where, lambda one, show: measure_on(one, asked, outputs[one.name], show), bars.show
        )
    write = report.to_json if as_json else report.render
    typer.echo(write(outcomes, outputs), nl=False)
    for outcome in outcomes:
        if outcome.run is None:
            typer.echo(f"error: {report.failure(outcome)}", err=True)
    if any(outcome.run is None for outcome in outcomes):
        raise typer.Exit(1)


def _print(run: Run, as_json: bool) -> None:
    from slmq_edge.reports.profile import render
    from slmq_edge.results import to_json

    typer.echo(to_json(run) if as_json else render(run), nl=False)


def _card(event: Event) -> str:
    """What the bundle asks for and the device allows, before anything is measured."""
    from slmq_edge import bounds
    from slmq_edge.reports import bounds as rows
    from slmq_edge.reports.format import section

    device = event["device"]
    card = bounds.card(event["bundle"], event["workload"], device.kind)
    cache = bounds.cache_of(card, device.facts, device.kind, event["seen"])
    limits = bounds.ceilings(card, device.facts, device.kind, cache)
    return section(f"On {device.name}", [*rows.asked(card), *rows.allowed(limits)])


def _source(name: str | None) -> str | None:
    from slmq_edge.errors import UsageError, unknown
    from slmq_edge.profiles.jetson import SOURCES

    if name is not None and name not in SOURCES:
        raise UsageError(unknown("power source", name, SOURCES))
    return name


def _stop(where: tuple[Target, ...]) -> None:
    """On every board, whatever becomes of the others; the last error is the command's."""
    from slmq_edge.errors import NotFound, SlmqError, UsageError
    from slmq_edge.remote.run import Remote

    if any(target.transport == "local" for target in where):
        raise UsageError("--stop is of boards: on this machine, Ctrl-C ends what runs")
    errors: list[SlmqError] = []
    for target in where:
        try:
            with Remote(target) as machine:
                typer.echo(f"{target.name}: job {machine.stop()[:12]} is told to end", err=True)
        except NotFound:
            typer.echo(f"{target.name}: nothing runs there", err=True)
        except SlmqError as error:
            errors.append(error)
    for earlier in errors[:-1]:
        typer.echo(f"error: {earlier}", err=True)
    if errors:
        raise errors[-1]
