"""Cells on a cluster of Ray's: its nodes offer CPUs, GPUs, and devices as custom resources.

A node that is, or reaches, the device ``orin`` is started with it; the machine ``local`` of a plan
is the node that says so:

    ray start --address HEAD:6379 --resources '{"slmq-orin": 1, "slmq-local": 1}'

A cell that measures takes its device whole, so that there is one at a time wherever it was asked
for; one that is timed on the node itself takes all of its CPUs besides, and so does quantizing, on
whichever node. All nodes need the bench's
folder at the same path, and slmq-edge in the same Python.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.bench import child
from slmq_edge.bench.cells import Cell
from slmq_edge.bench.schedule import OF_A_DEVICE, is_quiet
from slmq_edge.errors import SlmqError
from slmq_edge.remote.target import LOCAL

ADDRESS = "RAY_ADDRESS"
LOST = 255  # of a cell whose node is gone: no exit code


@dataclass(frozen=True)
class Sent:
    """A cell that Ray has, queued or running; see `engines.Work`."""

    cell: Cell
    began: float
    started: str
    log: Path
    log_start: int
    ref: Any


def resource(device: str) -> str:
    """What a node offers that is, or reaches, a device."""
    return f"slmq-{device}"


def needs(cell: Cell, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """What a cell takes of a node, as Ray's options; ``None``: no node has it.

    nodes: the resources of each.
    """
    measures = cell.is_remote or cell.kind in OF_A_DEVICE or cell.device != LOCAL
    device = {resource(cell.device): 1.0} if measures else {}
    wanted = {"CPU": 1.0, **device, **({"GPU": 1.0} if cell.gpu else {})}
    fitting = [node for node in nodes if all(node.get(k, 0) >= v for k, v in wanted.items())]
    if not fitting:
        return None
    cpus = fitting[0]["CPU"] if is_quiet(cell) else 0.0 if cell.is_remote else 1.0
    return {"num_cpus": cpus, "num_gpus": 1 if cell.gpu else 0, "resources": device}


class OnRay:
    """See `engines.Engine`. What may run beside what is Ray's to decide, by what cells take."""

    def __init__(self, ray: Any, out: Path, mark: str) -> None:
        self._ray, self._out, self._mark = ray, out.absolute(), mark
        self._task = ray.remote(max_retries=0)(_work)
        self._took: dict[str, float] = {}

    def missing(self, cell: Cell) -> str | None:
        if needs(cell, self._nodes()) is not None:
            return None
        what = f"{resource(cell.device)}{' and a GPU' if cell.gpu else ''}"
        return f"no node of the cluster offers {what}"

    def may_start(self, cell: Cell, running: Sequence[Cell], jobs: int) -> bool:
        return True

    def start(self, cell: Cell, at: str) -> Sent:
        log = self._out / "cells" / cell.id / "log.txt"
        begin = log.stat().st_size if log.exists() else 0
        options = needs(cell, self._nodes())
        if options is None:
            raise SlmqError(f"{cell.id}: the node that it was for has left the cluster: resume")
        ref = self._task.options(**options).remote(str(self._out), cell, self._mark, at)
        return Sent(cell, time.monotonic(), at, log, begin, ref)

    def wait(self, running: Sequence[Any], seconds: float) -> None:
        self._ray.wait([one.ref for one in running], timeout=seconds)

    def ended(self, work: Any) -> int | None:
        if not self._ray.wait([work.ref], timeout=0)[0]:
            return None
        try:
            code, took = self._ray.get(work.ref)
        except self._ray.exceptions.RayError as error:
            with work.log.open("a") as words:
                words.write(f"error: the cluster lost it: {str(error).splitlines()[0]}\n")
            return LOST
        self._took[work.cell.id] = float(took)
        return int(code)

    def seconds(self, work: Any) -> float:
        """Without the time in Ray's queue."""
        queued: float = time.monotonic() - work.began
        return self._took.get(work.cell.id, queued)

    def interrupt(self, running: Sequence[Any]) -> None:
        for one in running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(one.ref)
        refs = [one.ref for one in running]
        _, left = self._ray.wait(refs, num_returns=len(refs), timeout=2 * child.GRACE_SECONDS)
        for ref in left:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)

    def _nodes(self) -> list[dict[str, float]]:
        return [dict(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]


def _work(out: str, cell: Cell, mark: str, at: str) -> tuple[int, float]:
    """On a node: what this machine would do, seen to its end."""
    one = child.start(Path(out), cell, mark, at)
    try:
        while (code := child.ended_by(one)) is None:
            child.wait([one], 0.5)
    except BaseException:  # a cell that is cancelled is interrupted here
        child.interrupt([one])
        raise
    return code, time.monotonic() - one.began


@contextlib.contextmanager
def cluster(out: Path, mark: str, cells: Sequence[Cell], jobs: int) -> Iterator[OnRay]:
    """The cluster that RAY_ADDRESS names, or one of this machine alone, for as long as the block.

    That one has ``jobs`` CPUs, and every device of the plan.
    """
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if not os.environ.get(ADDRESS):
        devices = {resource(cell.device): 1.0 for cell in cells}
        options |= {"num_cpus": jobs, "resources": devices, "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        raise SlmqError(f"Ray does not start: {str(error).splitlines()[0]}") from error
    try:
        yield OnRay(ray, out, mark)
    finally:
        ray.shutdown()
