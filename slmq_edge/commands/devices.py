"""slmq-edge devices: what is known of boards and GPUs, and which of them this machine is."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Boards and GPUs we know.")

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, in SI units.")]


@app.callback()
def _several() -> None:
    """Boards and GPUs we know."""


@app.command("list")
def list_command(json: AsJson = False) -> None:
    """List every fact sheet: memory, bandwidth, dense peaks, and the adapter that measures it.

    A question mark stands after what sources disagree on or nobody checked.

    \b
    Examples:
      slmq-edge devices list
      slmq-edge devices list --json | jq '.devices[].name'
    """
    from slmq_edge import devices
    from slmq_edge.reports import devices as report

    write = report.list_json if json else report.list_terminal
    typer.echo(write([devices.load(name) for name in devices.known()]), nl=False)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="As slmq-edge devices list has it.")],
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="The facts as they are in a power mode.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Print what is known of a device, each number with its source, and what is not, with why.

    \b
    Examples:
      slmq-edge devices show jetson-orin-nano-8gb
      slmq-edge devices show jetson-orin-nano-8gb --mode 15W
    """
    from slmq_edge import devices
    from slmq_edge.reports import devices as report

    facts = devices.load(name)
    facts = facts if mode is None else facts.in_mode(mode)
    typer.echo((report.show_json if json else report.show_terminal)(facts), nl=False)


@app.command("detect")
def detect(
    root: Annotated[
        str, typer.Option(metavar="DIR", help="Where /proc, /sys, /etc and /var are.")
    ] = "/",
    machine: Annotated[
        str | None, typer.Option(metavar="ARCH", help="What uname -m says, with --root.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Say which device this machine is, by its own words, and nothing where they do not suffice.

    Reads the device tree, nv_tegra_release, nv_boot_control.conf, nvpmodel.conf, cpuinfo and NVML;
    needs no privilege. With --json also everything that was seen.

    \b
    Examples:
      slmq-edge devices detect
      slmq-edge devices detect --root /mnt/jetson --machine aarch64 --json
    """
    from pathlib import Path

    from slmq_edge import devices
    from slmq_edge.errors import NotFound
    from slmq_edge.reports import devices as report
    from slmq_edge.runner.look import look

    if not Path(root).is_dir():
        raise NotFound(f"{root} is no folder")
    seen = {**look(root), **({} if machine is None else {"machine": machine})}
    found = report.Detected(
        seen,
        devices.detect(seen),
        devices.gpus(seen),
        devices.release(seen),
        devices.mode_name(seen),
    )
    typer.echo((report.detect_json if json else report.detect_terminal)(found), nl=False)
