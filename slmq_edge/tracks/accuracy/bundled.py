"""The scorer of a bundle: the runner, in a child process here or on a board.

What passes a measurement's checks is scored, and nothing else: a row of accuracy is of an artifact
that computes what its simulation did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.files import existing_bundle
from slmq_edge.runner import journal, manifest, requests, runtimes, scoring
from slmq_edge.runner.agent import packages
from slmq_edge.tracks.accuracy.sequences import (
    REQUESTS,
    Kept,
    Order,
    Progress,
    Score,
    Sequence,
)
from slmq_edge.tracks.machines import Local, Machine

# Of a machine, what may decide the last bits of a logit; see `scoring.DECIDES`.
OF_MACHINE = ("machine", "cpu_model", "cpu_features")
# Event of a journal -> what of it is worth keeping beside the scores.
RAN = {"begin": "environment", "probe": "result", "golden": "report", "end": "session"}
OF_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch")


@dataclass(frozen=True)
class Options:
    """How a bundle is run; see `runner.scoring.Job`. threads: None: one for every core there.

    runtime: what the bundle must be for, a key of `runtimes.FAMILIES`; None: whatever it is.
    torch_device: of a bundle for torch, see `runner.on_torch.chosen`.
    """

    threads: int | None = None
    engines: Path | None = None
    allow_inexact: bool = False
    runtime: str | None = None
    torch_device: str | None = None


class Bundled:
    """A ``Scorer`` of a bundle.

    Args:
        bundle: the folder that was exported.
        machine: where it runs; None: here.
        options: how.
        folder: where journals are kept; None: nothing is gone on from.
        told: of every event of the runner's journal, of uploads and of notes.

    Raises:
        NotFound, Damaged: no bundle. SlmqError: the machine cannot run it.
    """

    def __init__(
        self,
        bundle: Path,
        machine: Machine | None = None,
        options: Options = Options(),
        folder: Path | None = None,
        told: Callable[[Mapping[str, Any]], None] = lambda event: None,
    ) -> None:
        document = existing_bundle(bundle)
        if options.runtime is not None:
            runtimes.require(bundle, document, options.runtime)
        self._machine: Machine = Local() if machine is None else machine
        self._bundle, self._told, self._kept = bundle.absolute(), told, Kept(folder)
        self._limits = scoring.limits(document)
        self._options = options
        self._engines = None if options.engines is None else options.engines.absolute()
        self._threads = options.threads or self._machine.cores()
        place = runtimes.Place(
            self._bundle, document, self._threads, self._engines, options.torch_device
        )
        self._device, self._board = self._machine.device(place)
        self._ran: dict[str, Any] = {}
        self.tokens_before = 0
        self._identity = identity_of(self._bundle, document, self._machine.seen) | {
            "device": self._device.name,
            "threads": self._threads,
            "allow_inexact": options.allow_inexact,
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._identity

    @property
    def context_length(self) -> int:
        return self._limits[0]

    @property
    def ran(self) -> Mapping[str, Any]:
        """What the last process that scored says of itself.

        environment; result, of the probe; report, of the golden prompts; session.
        """
        return self._ran

    def score(self, sequences: List[Sequence], progress: Progress) -> list[Score]:
        """See ``Scorer``."""
        order = Order(sequences)
        count = order.sequences
        requests.check(order.requests, *self._limits)

        def told(event: Mapping[str, Any]) -> None:
            if event["event"] == "scores":
                progress(order.read(event["first"] + journal.taken(event)), order.tokens)
            elif event["event"] in ("note", "kept") and event["done"]:
                # Below 0: what was told of is of another run, and is no more.
                self.tokens_before = order.read(max(event["done"], 0))
                progress(self.tokens_before, order.tokens)
            self._told(event)

        progress(0, order.tokens)
        with self._kept.journal(self.identity, order) as path:
            events = journal.read(path) if path.exists() else []
            self.tokens_before = order.tokens if _is_done(events, count) else 0
            if not _is_done(events, count):
                self._run(order, path, told)
                events = journal.read(path)
        self._ran = _ran(events)
        found = order.restored(*scoring.scores(events, count))
        progress(order.tokens, order.tokens)
        return found

    def _run(self, order: Order, path: Path, told: Callable[[Mapping[str, Any]], None]) -> None:
        """Have the machine score what is not in the journal yet."""
        asked = path.with_suffix(REQUESTS)
        order.write(asked)
        work = scoring.Job(
            self._bundle,
            path.absolute(),
            asked.absolute(),
            self._threads,
            self._options.allow_inexact,
            self._engines,
            self._board,
            self._options.torch_device,
        )
        self._machine.run(work, told)

    def forget(self) -> None:
        """See ``Scorer``."""
        self._kept.forget()
        self._machine.forget()


def _is_done(events: List[Mapping[str, Any]], count: int) -> bool:
    ended = any(event["event"] == "end" for event in events)
    return ended and len(scoring.scores(events, count)[0]) == count


def _ran(events: List[Mapping[str, Any]]) -> dict[str, Any]:
    last = {event["event"]: event for event in events}
    return {name: last[of][name] for of, name in RAN.items() if of in last}


def identity_of(
    bundle: Path, document: Mapping[str, Any], seen: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a bundle on a machine that says so much of itself; see ``Scorer``."""
    installed = seen.get("packages") or packages.installed()
    described = manifest.described(document)
    return {
        "runtime": manifest.kind_of(document),
        "model": described.get("model"),
        "method": described.get("method"),
        "scheme": described.get("scheme_ran"),
        "bundle_sha256": manifest.sha256(bundle / manifest.BUNDLE_FILE),
        "machine": {name: seen.get(name) for name in OF_MACHINE},
        "versions": {name: installed[name] for name in OF_PACKAGES if installed.get(name)},
    }
