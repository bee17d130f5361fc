"""The loop: what is ready starts, what has ended is written down, until nothing is left to start.

One thread: the kernel ends a cell with the thread that has started it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq_edge.bench import estimates, folder
from slmq_edge.bench.cells import Cell, identities, is_whole
from slmq_edge.bench.engines import Engine, Work
from slmq_edge.bench.folder import DONE, FAILED, RUNNING, SKIPPED, WAITING, Status
from slmq_edge.errors import Busy

TICK_SECONDS = 1.0
INTERRUPTED = "interrupted: slmq-edge bench resume goes on"


@dataclass(frozen=True)
class News:
    """Told when a cell starts or ends, and every second between.

    event: ``start``, ``end`` or ``tick``. running: cells and their seconds. left: seconds, by what
    was seen so far.
    """

    event: str
    cell: Cell | None
    status: Status | None
    states: Mapping[str, str]
    running: Mapping[str, float]
    left: float


Tell = Callable[[News], None]


@dataclass
class _Loop:
    """cells: of the whole bench, in order. chosen: of which some are to be done now."""

    out: Path
    engine: Engine
    cells: Sequence[Cell]
    chosen: frozenset[str]
    law: Mapping[str, float]
    jobs: int
    tell: Tell
    states: dict[str, str]
    errors: dict[str, str]
    attempts: dict[str, int]
    taken: dict[str, float]
    running: list[Work] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identities = identities(self.cells)

    def go(self) -> None:
        try:
            while True:
                self._reap()
                self._start()
                if not self.running:
                    return
                self._say("tick")
                self.engine.wait(self.running, TICK_SECONDS)
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        for cell in self.cells:
            if cell.id not in self.chosen or cell.id in self.states:
                continue
            if not self._is_ready(cell):
                continue
            if not self.engine.may_start(cell, [one.cell for one in self.running], self.jobs):
                continue
            reason = self.engine.missing(cell)
            if reason is not None:
                self._settle(cell, WAITING, reason)
                continue
            self._begin(cell)

    def _is_ready(self, cell: Cell) -> bool:
        """Whether all that it needs is done; where that will not be, it is settled."""
        for need in cell.needs:
            state = self.states.get(need)
            if state in (FAILED, SKIPPED):
                how = "failed" if state == FAILED else "was skipped"
                self._settle(cell, SKIPPED, f"needs {need}, which {how}")
                return False
            if state == WAITING:
                self._settle(cell, WAITING, f"needs {need}, which waits")
                return False
            if state != DONE:
                return False
        return True

    def _begin(self, cell: Cell) -> None:
        started, attempt = folder.now(), self.attempts.get(cell.id, 0) + 1
        self.attempts[cell.id] = attempt
        folder.clear(self.out, cell, self.identities[cell.id])
        folder.describe(self.out, cell)
        for output in cell.outputs:
            (self.out / output).parent.mkdir(parents=True, exist_ok=True)
        now = Status(RUNNING, self.identities[cell.id], started, attempts=attempt)
        folder.put(self.out, cell, now)
        self.states[cell.id] = RUNNING
        self.running.append(self.engine.start(cell, started))
        self._say("start", cell, now)

    def _reap(self) -> None:
        for one in list(self.running):
            code = self.engine.ended(one)
            if code is not None:
                self.running.remove(one)
                self._ended(one, code)

    def _ended(self, one: Work, code: int) -> None:
        error = None
        if code != 0:
            error = folder.last_words(one.log, one.log_start) or "it said nothing"
            if code > 128:
                name = _signal_name(code - 128)
                hint = " (out of memory?)" if code == 128 + signal.SIGKILL else ""
                error = f"ended by {name}{hint}: {error}"
        else:
            missing = [one for one in one.cell.outputs if not is_whole(self.out, one)]
            if missing:
                error = f"it ended well, and {missing[0]} is not there or not whole"
        took = self.engine.seconds(one)
        state = FAILED if error else DONE
        if error is not None and one.cell.is_remote:
            gone = None if code == Busy.exit_code else self.engine.missing(one.cell)
            if gone is not None:  # switched off meanwhile: what it has measured is gone on from
                error = f"{gone}; it ended with: {error}"
            if gone is not None or code == Busy.exit_code:
                state = WAITING
        self._settle(one.cell, state, error, one, took, code)

    def _settle(
        self,
        cell: Cell,
        state: str,
        error: str | None,
        ran: Work | None = None,
        took: float | None = None,
        code: int | None = None,
    ) -> None:
        """Write down what became of a cell."""
        now = Status(
            state,
            self.identities[cell.id],
            None if ran is None else ran.started,
            None if took is None else round(took, 3),
            code,
            error,
            self.attempts.get(cell.id, 0),
        )
        folder.put(self.out, cell, now)
        self.states[cell.id] = state
        if error is not None:
            self.errors[cell.id] = error
        if state == DONE and took is not None:
            self.taken[cell.id] = took
        self._say("end", cell, now)

    def _end(self) -> None:
        """End what runs; what it has kept, its verb goes on from."""
        running, self.running = self.running, []
        self.engine.interrupt(running)
        for one in running:
            self._settle(one.cell, WAITING, INTERRUPTED, one)

    def _say(self, event: str, cell: Cell | None = None, status: Status | None = None) -> None:
        open_cells = [
            one
            for one in self.cells
            if one.id in self.chosen and self.states.get(one.id) in (None, RUNNING)
        ]
        expected = estimates.learned(self.cells, self.law, self.taken)
        at = time.monotonic()
        seconds = {one.cell.id: at - one.began for one in self.running}
        rest = {name: max(value - seconds.get(name, 0), 0) for name, value in expected.items()}
        left = estimates.left(open_cells, rest, self.jobs)
        self.tell(News(event, cell, status, dict(self.states), seconds, left))


def carry_out(
    out: Path,
    bench: folder.Bench,
    engine: Engine,
    chosen: frozenset[str],
    found: folder.Found,
    *,
    jobs: int,
    retry_failed: bool,
    tell: Tell,
) -> Mapping[str, Status]:
    """Do the chosen cells that are not done, and return what is written of every one of them.

    Args:
        out: the bench's folder, which we have locked.
        bench: what is in its bench.json.
        engine: what starts cells.
        chosen: cells, with what they need.
        found: what is done already; failed cells are left alone without ``retry_failed``.
        jobs: cells of this machine at a time.
        retry_failed: start what has failed once more.
        tell: told of all that happens.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what ran is ended.
    """
    states = dict.fromkeys(found.done, DONE)
    errors: dict[str, str] = {}
    if not retry_failed:
        states |= dict.fromkeys(found.failed, FAILED)
        errors |= found.failed
    was = folder.states_of(out, bench.cells)
    taken = {name: one.seconds for name, one in was.items() if name in found.done and one.seconds}
    for cell in bench.cells:
        one = was[cell.id]
        if cell.id in found.done and one is not None and one.state != DONE:
            folder.put(out, cell, dataclasses.replace(one, state=DONE, error=None))
    loop = _Loop(
        out, engine, bench.cells, chosen, bench.estimates, jobs, tell,
        states, errors, dict(found.attempts), taken,
    )  # fmt: skip
    with _terminated_as_interrupted():
        loop.go()
    return {name: one for name, one in folder.states_of(out, bench.cells).items() if one}


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and a terminal that is closed end a bench as Ctrl-C does; under nohup none does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
