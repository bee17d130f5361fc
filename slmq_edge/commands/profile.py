"""slmq-edge profile: how fast is a bundle here, and how much memory does it take?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def profile(
    bundle: Annotated[Path, typer.Argument(help="Folder written by slmq-edge export.")],
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
        typer.Option("-o", "--output", help="Default: NAME-run.json in this folder."),
    ] = None,
    warmups: Annotated[int, typer.Option(min=0, help="Rounds before the first counts.")] = 2,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: one for every core we may use.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="What the bundle must be for: ort or trt. Default: whatever it is."),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(help="Of slmq-edge build, for TensorRT. Default: engines/ in the bundle."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json, no table.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="Measure even if this CPU's integer kernel is not exact."
        ),
    ] = False,
) -> None:
    """Measure a bundle on this machine: tokens per second, memory by phase, time to load.

    Before anything is timed, every file is verified, the CPU's integer arithmetic is probed,
    and the golden prompts must come out as they did in simulation. A bundle that fails is
    refused: there is no speed of wrong numbers. A bundle for TensorRT runs the engine that
    slmq-edge build made of it on this machine.

    Every repetition is on disk before the next begins. After Ctrl-C or a crash the same
    command takes only the repetitions that are missing.

    \b
    Examples:
      slmq-edge profile smollm-w8a8
      slmq-edge profile smollm-w8a8 -p 512 -n 128 -r 20 --threads 4 -o night.json
      slmq-edge profile smollm-w8a8 --json | jq .series.decode_seconds.values
      slmq-edge profile smollm-trt --runtime trt
    """
    from slmq_edge.files import check_output, existing

    target = output or Path(f"{bundle.absolute().name}-run.json")
    existing(bundle, "bundle")
    check_output(target, force)

    from slmq_edge.reports.profile import render
    from slmq_edge.results import to_json
    from slmq_edge.runner import environment
    from slmq_edge.runner.measure import Workload
    from slmq_edge.tracks import inference

    used = threads or environment.cores()
    workload = Workload(prompt_tokens, new_tokens, repetitions, warmups, used)
    with _Bar(warmups + repetitions) as bar:
        run = inference.profile(
            bundle,
            workload,
            target,
            bar.show,
            inference.Options(allow_inexact, runtime, engines),
            force=force,
        )
    typer.echo(to_json(run) if as_json else render(run), nl=False)
    typer.echo(f"written: {target}", err=True)


class _Bar:
    """A progress bar with the time left, on stderr, fed by the journal's events."""

    def __init__(self, rounds: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("verifying files", total=rounds)
        self._stages: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "begin": lambda event: "probing integers",
            "probe": lambda event: "checking golden prompts",
            "golden": lambda event: "loading",
            "load": lambda event: "warming up",
            "warmup": lambda event: "warming up",
            "repetition": lambda event: f"repetition {event['index'] + 1}",
        }

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        name = event["event"]
        if name == "note":
            self._progress.console.print(event["text"], markup=False, highlight=False)
            self._progress.update(self._task, advance=event["done"])
        if name in self._stages:
            steps = 1 if name in ("warmup", "repetition") else 0
            text = self._stages[name](event)
            self._progress.update(self._task, description=text, advance=steps)
