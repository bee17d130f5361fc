"""slmq-edge doctor: what is installed, what can run, and what is missing?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq_edge.errors import SlmqError

if TYPE_CHECKING:
    from slmq_edge.diagnosis import Finding
    from slmq_edge.remote.target import Target

SECONDS = 900.0  # a board that builds TensorRT engines for small products takes minutes


def doctor(
    device: Annotated[
        str,
        typer.Option(
            "-d",
            "--device",
            metavar="WHERE",
            help="local, ssh://user@host:port, or a TOML file that names several boards.",
        ),
    ] = "local",
    as_json: Annotated[
        bool, typer.Option("--json", help="All that is found, as JSON; a list for a TOML file.")
    ] = False,
) -> None:
    """Say what of a machine works: by running it, not by what is listed.

    Every provider of onnxruntime multiplies small matrices of floats, of 8-bit integers and with
    4-bit and 8-bit weights, and its answers are checked, each in a process of its own. TensorRT is
    imported, GPUs and sensors are asked. What is missing comes with the command that gets it.

    The exit code is 0 where bundles can be measured on that machine, and 1, with what is in the
    way, where they cannot. Quantizing and exporting need no board: what they lack is listed only.

    \b
    Examples:
      slmq-edge doctor
      slmq-edge doctor --device ssh://jetson@192.168.1.20
      slmq-edge doctor --device boards.toml
      slmq-edge doctor --json | jq '.findings[] | select(.state != "ok")'
    """
    from slmq_edge.remote.inventory import is_inventory, targets
    from slmq_edge.reports import doctor as report

    looked, problems = [], []
    for number, one in enumerate(targets(device)):
        document, found, problem = _look(one)
        looked.append((one.name, document, found, problem))
        if problem is not None:
            problems.append(problem)
        if document is not None and not as_json:
            typer.echo(("\n" if number else "") + report.render(document, found), nl=False)
    if as_json and is_inventory(device):
        typer.echo(report.several_json(looked), nl=False)
    elif as_json and (document := looked[0][1]) is not None:
        typer.echo(report.to_json(document, looked[0][2]), nl=False)
    for problem in problems[:-1]:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise problems[-1]


def _look(
    target: Target,
) -> tuple[Mapping[str, Any] | None, tuple[Finding, ...], SlmqError | None]:
    """What one machine says, what that means, and what is in the way there."""
    from slmq_edge import installed
    from slmq_edge.diagnosis import findings, obstacle
    from slmq_edge.remote.target import LOCAL
    from slmq_edge.runner.doctor import examine

    local = target.transport == LOCAL
    typer.echo(f"looking at {target.name}: seconds, with a GPU a minute", err=True)
    try:
        document = examine() if local else _asked(target)
    except SlmqError as error:
        return None, (), error
    found = (*findings(document, local), *(installed.findings() if local else ()))
    problem = obstacle(found, local)
    if problem is not None and not local:
        problem = type(problem)(f"{target.name}: {problem}")
    return document, found, problem


def _asked(target: Target) -> Mapping[str, Any]:
    """The document of a board: its own Python looks at it."""
    from slmq_edge.remote.agent import Agent
    from slmq_edge.remote.transport import connect
    from slmq_edge.runner.doctor import read

    transport = connect(target)
    try:
        done = Agent(transport, target).python(["doctor"], timeout=SECONDS)
    finally:
        transport.close()
    document = read(done.stdout)
    if document is None:
        last = " | ".join(done.stderr.strip().splitlines()[-3:]) or "it said nothing"
        raise SlmqError(f"{target.name}: the doctor ended there with {done.code}: {last}")
    return document
