"""One request, any machine: what is measured is said once, where it runs is found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slmq_edge.errors import Unsupported
from slmq_edge.files import existing_bundle
from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import LOCAL, Target
from slmq_edge.results import Run
from slmq_edge.runner import environment, forward, on_torch
from slmq_edge.runner.manifest import TORCH, kind_of
from slmq_edge.runner.measure import Text, Workload
from slmq_edge.tracks import inference
from slmq_edge.tracks.inference import Options, Progress


@dataclass(frozen=True)
class Asked:
    """What to measure, before it is known where.

    counts: prompt tokens, new tokens, repetitions, warm-ups. threads: None: one for every core of
    the machine. reconnect_seconds, deadline_seconds: see `remote.run.Remote`. protocol, text: see
    `runner.measure.Workload`.
    """

    bundle: Path
    counts: tuple[int, int, int, int]
    threads: int | None
    options: Options
    force: bool
    reconnect_seconds: float
    deadline_seconds: float
    protocol: str | None = None
    text: Text | None = None

    @property
    def rounds(self) -> int:
        """Warm-ups and repetitions, and those of a protocol."""
        return self.counts[2] + self.counts[3] + forward.of(self.protocol).rounds

    def workload(self, cores: int) -> Workload:
        return Workload(*self.counts, self.threads or cores, self.protocol, self.text)


def admit(asked: Asked) -> None:
    """Raise what `inference.admitted` has against the request, wherever it is to run."""
    inference.admitted(asked.bundle, asked.workload(1), asked.options)


def measure_on(target: Target, asked: Asked, output: Path, progress: Progress) -> Run:
    """Measure on one machine, and write run.json; see `inference.profile`.

    What needs no machine to be refused is refused before one is reached.
    """
    admit(asked)
    if target.transport != LOCAL and kind_of(existing_bundle(asked.bundle)) == TORCH:
        raise Unsupported(f"{target.name}: {on_torch.ELSEWHERE}")
    if target.transport == LOCAL:
        work = asked.workload(environment.cores())
        return inference.profile(
            asked.bundle, work, output, progress, asked.options, force=asked.force
        )

    def say(text: str) -> None:
        progress({"event": "note", "text": text, "done": 0})

    with Remote(
        target,
        reconnect_seconds=asked.reconnect_seconds,
        deadline_seconds=asked.deadline_seconds,
        say=say,
    ) as machine:
        work = asked.workload(machine.cores())
        return inference.profile(
            asked.bundle, work, output, progress, asked.options, force=asked.force, machine=machine
        )
