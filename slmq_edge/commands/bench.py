"""slmq-edge bench: a matrix of models, methods, schemes and machines, from a plan to a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from slmq_edge.commands.formats import Force, Output

if TYPE_CHECKING:
    from slmq_edge.bench.cells import Cell
    from slmq_edge.bench.feasible import Checked
    from slmq_edge.bench.folder import Bench, Found
    from slmq_edge.bench.plan import Plan

FAILED, WAITING, INTERRUPTED = 1, 3, 130  # exit codes

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A matrix of models, methods, schemes and machines, as a plan in TOML.",
)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="plan.toml.")]
Bench_ = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of slmq-edge bench run.")]
Folders = Annotated[
    list[str] | None,
    typer.Option(
        "--folder", metavar="NAME=PATH", help="Where a folder of the plan's [folders] is here."
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "-j",
        "--jobs",
        min=1,
        help="Cells of this machine at a time; what is timed runs alone: quantize, build, profile.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN", help="Cells whose name fits ('profile-*-gptq-*'), and what they need."
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="local: this machine and its boards; ray: a cluster, whose nodes say what they have.",
    ),
]
Retry = Annotated[
    bool, typer.Option("--retry-failed", help="Start cells once more that have failed.")
]


@app.command("check")
def check(plan: PlanFile, folder: Folders = None) -> None:
    """Find every mistake of a plan, and what of it cannot run here; nothing is run.

    Each cell is asked what its own verb would refuse at once: names, settings, schemes that a
    target cannot express, files and questions that are not there. Boards are called, and the
    GPU of this machine is looked for. The exit code is 1 where a cell is refused.

    \b
    Examples:
      slmq-edge bench check plan.toml
      slmq-edge bench check plan.toml --folder shared=/data/questions
    """
    from slmq_edge.bench import matrix
    from slmq_edge.reports import bench as report

    found = _read(plan, folder)
    cells = matrix.cells_of(found, None)
    checked = _checked(cells)
    law = _law(cells, checked)
    absent = _absent(found, cells)
    typer.echo(report.checked(cells, checked.refused, absent, _total(cells, law, 1)), nl=False)
    if checked.refused:
        raise typer.Exit(FAILED)


@app.command("run")
def run(
    plan: PlanFile,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Default: the plan's name, and -bench."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and the estimated time, and leave.")
    ] = False,
    jobs: Jobs = 1,
    only: Only = None,
    retry_failed: Retry = False,
    engine: EngineName = "local",
    folder: Folders = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace results of cells whose command is another by now."),
    ] = False,
) -> None:
    """Do what a plan says: quantize, export, profile, evaluate, each in a process of its own.

    A plan names models, methods, schemes, targets and devices, and has a section for each verb
    whose options it sets; what is said of every key is in docs/bench.md. Every cell is a command
    of slmq-edge, which OUT/cells/NAME/command.txt has to paste; log.txt is beside it.

    A bench can be killed at any point: the same command, or bench resume, goes on, and no cell
    that is done is done again. A cell that fails does not stop the others. What needs a GPU or
    a board that is not there waits for a later resume. After a change of the plan, cells whose
    command is the same are kept.

    The exit code is 0 where every cell is done, 1 where one has failed, 3 where none has and
    some wait.

    \b
    Examples:
      slmq-edge bench run plan.toml --dry-run
      slmq-edge bench run plan.toml -o night -j 2
      slmq-edge bench run plan.toml -o night --only 'eval-*' --retry-failed
    """
    from slmq_edge.bench import engines, matrix
    from slmq_edge.bench import folder as folders

    out = output or Path(f"{plan.stem}-bench")
    found = _read(plan, folder)
    engines.check(engine)
    was = folders.check(out)
    cells = matrix.cells_of(found, out)
    checked = _checked(matrix.cells_of(found, None))
    law = _law(matrix.cells_of(found, None), checked)
    created = folders.now() if was is None else was.created
    bench = folders.Bench(found.title, found.text, created, cells, law)
    if dry_run:
        _list(out, bench, only, jobs)
        return
    from slmq_edge.bench.feasible import require_all

    require_all(checked)
    with folders.locked(out) as mark:
        looked = folders.look(out, bench)
        _tell_changes(was, bench, looked, force)
        for name, text in matrix.boards_of(found).items():
            _write(out / name, text)
        folders.save(out, bench)
        how = _How(jobs, only, retry_failed, engine)
        _carry_out(out, bench, looked, mark, how)


@app.command("resume")
def resume(
    out: Bench_,
    jobs: Jobs = 1,
    only: Only = None,
    retry_failed: Retry = False,
    engine: EngineName = "local",
) -> None:
    """Go on with a bench as it was planned: cells that are not done, or that waited.

    \b
    Examples:
      slmq-edge bench resume night
      slmq-edge bench resume night --only '*-orin' --retry-failed
    """
    from slmq_edge.bench import engines
    from slmq_edge.bench import folder as folders

    engines.check(engine)
    bench = folders.load(out)
    with folders.locked(out) as mark:
        looked = folders.look(out, bench)
        _refuse_changed(looked, "slmq-edge bench run PLAN --force makes them anew")
        _carry_out(out, bench, looked, mark, _How(jobs, only, retry_failed, engine))


@app.command("report")
def report(
    out: Bench_,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="terminal, md, csv, json or html."),
    ] = None,
    output: Output = None,
    force: Force = False,
) -> None:
    """Tables and plots of what a bench has measured so far: slmq-edge report study OUT.

    That verb has more to choose, and sets several benches side by side.

    \b
    Examples:
      slmq-edge bench report night
      slmq-edge bench report night --format html -o night.html
    """
    from slmq_edge.bench import folder as folders
    from slmq_edge.bench import verbs

    folders.load(out)
    words = [str(out)]
    words += [] if format is None else ["--format", format]
    words += [] if output is None else ["--output", str(output)]
    words += ["--force"] if force else []
    verbs.command("report", "study").main(words, "slmq-edge report study", standalone_mode=False)


def _read(path: Path, folders: list[str] | None) -> Plan:
    from slmq_edge.bench import plan
    from slmq_edge.errors import UsageError

    places = {}
    for text in folders or ():
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise UsageError(f"--folder takes NAME=PATH, not '{text}'")
        places[name] = place
    return plan.read(path, places)


def _checked(cells: tuple[Cell, ...]) -> Checked:
    from slmq_edge.bench.feasible import check as check_all
    from slmq_edge.commands.making import note

    found = check_all(cells)
    for text in found.notes:
        note(text)
    return found


def _law(cells: tuple[Cell, ...], checked: Checked) -> dict[str, float]:
    from slmq_edge.bench import estimates

    refused = checked.refused
    return {
        cell.id: estimates.seconds(cell, checked.made.get(cell.id))
        for cell in cells
        if cell.id not in refused
    }


def _total(cells: tuple[Cell, ...], expected: Mapping[str, float], jobs: int) -> float:
    from slmq_edge.bench import estimates

    return estimates.left(cells, expected, jobs)


def _absent(plan: Plan, cells: tuple[Cell, ...]) -> dict[str, str]:
    """Cells that would have to wait now, and why. Each board is called once."""
    import tempfile

    from slmq_edge.bench import matrix, present

    reasons: dict[tuple[str, bool], str | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in matrix.boards_of(plan).items():
            _write(Path(scratch) / name, text)
        for cell in cells:
            key = (cell.address, cell.gpu)
            if key not in reasons:
                reasons[key] = present.missing(Path(scratch), cell)
    found = {cell.id: reasons[cell.address, cell.gpu] for cell in cells}
    return {name: why for name, why in found.items() if why is not None}


def _list(out: Path, bench: Bench, only: str | None, jobs: int) -> None:
    from slmq_edge.bench import estimates, folder
    from slmq_edge.reports import bench as report

    chosen = _chosen(bench, only)
    done = folder.look(out, bench).done
    was = folder.states_of(out, bench.cells)
    taken = {name: one.seconds for name, one in was.items() if name in done and one.seconds}
    expected = estimates.learned(bench.cells, bench.estimates, taken)
    cells = tuple(cell for cell in bench.cells if cell.id in chosen)
    total = _total(tuple(cell for cell in cells if cell.id not in done), expected, jobs)
    typer.echo(report.listing(cells, expected, total, done), nl=False)


def _chosen(bench: Bench, only: str | None) -> frozenset[str]:
    from fnmatch import fnmatchcase

    from slmq_edge.bench.cells import with_needs
    from slmq_edge.errors import UsageError, did_you_mean

    names = [cell.id for cell in bench.cells]
    if only is None:
        return frozenset(names)
    fitting = [name for name in names if fnmatchcase(name, only)]
    if not fitting:
        guess = did_you_mean(only, names)
        raise UsageError(
            f"--only {only}: no cell is called so{guess}; bench run --dry-run lists all"
        )
    return frozenset(cell.id for cell in with_needs(bench.cells, fitting))


def _tell_changes(was: Bench | None, bench: Bench, looked: Found, force: bool) -> None:
    """Say what becomes of an earlier bench in the same folder.

    Raises:
        SlmqError: results of other commands are in the way, and --force is off.
    """
    if not force:
        _refuse_changed(looked, "--force makes them anew, another -o keeps them")
    if was is None:
        return
    before, now = was.identities, bench.identities
    gone = [name for name in before if name not in now]
    changed = [name for name, identity in now.items() if before.get(name, identity) != identity]
    new = [name for name in now if name not in before]
    if changed or new or gone:
        said = [f"{len(now) - len(changed) - len(new)} cells are as they were"]
        said += [f"{len(changed)} have another command ({changed[0]})"] if changed else []
        said += [f"{len(new)} are new ({new[0]})"] if new else []
        said += [f"{len(gone)} are no more, their files stay ({gone[0]})"] if gone else []
        typer.echo(f"the plan has changed: {', '.join(said)}", err=True)


def _refuse_changed(looked: Found, advice: str) -> None:
    from slmq_edge.errors import SlmqError

    if looked.changed:
        more = len(looked.changed) - 1
        others = f" and {more} more" if more else ""
        raise SlmqError(
            f"what lies in the place of {looked.changed[0]}{others} was made by another command: "
            f"{advice}"
        )


class _How(NamedTuple):
    """Options of run and resume alike."""

    jobs: int
    only: str | None
    retry_failed: bool
    engine: str


def _carry_out(out: Path, bench: Bench, looked: Found, mark: str, how: _How) -> None:
    """Run what is to be run, print what became of it, and leave with the exit code of that."""
    from slmq_edge.bench import child, engines, folder
    from slmq_edge.bench.run import carry_out
    from slmq_edge.commands.benching import Line
    from slmq_edge.reports.bench import counted, summary

    chosen = _chosen(bench, how.only)
    strays = child.end_strays(mark)
    if strays:
        typer.echo(f"ended what a killed bench had left: {counted(strays, 'process')}", err=True)
    folder.tidy(out)
    line = Line(sorted(chosen))
    try:
        with engines.opened(how.engine, out, mark, bench.cells, how.jobs) as engine:
            found = carry_out(
                out,
                bench,
                engine,
                chosen,
                looked,
                jobs=how.jobs,
                retry_failed=how.retry_failed,
                tell=line.show,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted: slmq-edge bench resume {out} goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        line.close()
    cells = [cell for cell in bench.cells if cell.id in chosen]
    typer.echo(summary(cells, found), nl=False)
    states = {found[cell.id].state for cell in cells if cell.id in found}
    if states & {folder.FAILED, folder.SKIPPED}:
        raise typer.Exit(FAILED)
    if folder.WAITING in states:
        raise typer.Exit(WAITING)


def _write(path: Path, text: str) -> None:
    from slmq_edge.files import write_text_atomically

    write_text_atomically(path, text, force=True)
