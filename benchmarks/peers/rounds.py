"""Who runs when: memory once, then round after round, one process at a time."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.contestants import Entry
from benchmarks.peers.process import Failed, Process

STEADY = 512  # tokens after which memory is read
WARM_STEPS = 4
SPARE = 8  # positions of a cache beyond those that are used


@dataclass(frozen=True)
class Plan:
    """What is measured: prompt and new tokens, depths, threads, and how often."""

    prompt: int
    new: int
    depths: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int
    repetitions: int

    @property
    def context(self) -> int:
        """Positions that a cache must hold."""
        return max(max(self.depths) + self.prompt + self.new, STEADY) + SPARE


def tokens(count: int, vocab: int) -> list[int]:
    """The same random tokens for everyone, none of the special ones at either end of the table."""
    return random.Random(0).choices(range(vocab // 8, vocab // 2), k=count)


def visit(
    entry: Entry, path: Path, plan: Plan, threads: int, prompt: Sequence[int]
) -> dict[str, Any]:
    """Start a worker, load, warm up, repeat at every depth.

    Returns:
        ``load``: the worker's answer. ``warm_up``: its first repetition, load not in it.
        ``samples``: one per depth and repetition, without the tokens chosen.

    Raises:
        Failed: the worker did.
    """
    arguments = {"path": str(path), "threads": threads, "context": plan.context}
    short = list(prompt[: plan.prompt])
    samples = []
    with Process(entry.python) as worker:
        load = worker.ask("load", runtime=entry.contestant.runtime, **arguments)
        warm = worker.ask("repeat", tokens=short, depth=0, new=WARM_STEPS)
        for depth in plan.depths:
            taken = list(prompt[: depth + plan.prompt])
            for _ in range(plan.repetitions):
                sample = worker.ask("repeat", tokens=taken, depth=depth, new=plan.new)
                samples.append({"depth": depth, "threads": threads, **_timed(sample)})
    return {"load": load, "warm_up": _timed(warm), "samples": samples}


def footprint(
    entry: Entry, path: Path, plan: Plan, threads: int, prompt: Sequence[int]
) -> dict[str, Any]:
    """Memory of a process that loads and takes `STEADY` tokens, and what it computes.

    Returns:
        ``imported``, ``loaded``, ``steady``: as `worker.memory`. ``system``. ``appends``.
        ``logits``: after the prompt, as many as `worker.SHOWN`.

    Raises:
        Failed: the worker did.
    """
    arguments = {"path": str(path), "threads": threads, "context": STEADY + SPARE}
    short = list(prompt[: min(plan.prompt, STEADY - 1)])
    with Process(entry.python) as worker:
        load = worker.ask("load", runtime=entry.contestant.runtime, **arguments)
        worker.ask("repeat", tokens=short, depth=0, new=STEADY - len(short))
        return {
            "imported": load["imported"],
            "loaded": load["loaded"],
            "steady": worker.ask("memory"),
            "system": load["system"],
            "appends": load["appends"],
            **worker.ask("logits", tokens=short),
        }


def turns(entries: Sequence[Entry], plan: Plan) -> Iterator[tuple[int, int, Entry]]:
    """(round, threads, entry), each round beginning with another entry."""
    for index in range(plan.rounds):
        shift = index % len(entries) if entries else 0
        for threads in plan.threads:
            for entry in (*entries[shift:], *entries[:shift]):
                yield index, threads, entry


def measure(
    rows: dict[str, dict[str, Any]],
    running: dict[str, tuple[Entry, Path]],
    plan: Plan,
    vocab: int,
    saved: Callable[[str], object],
) -> None:
    """Fill the rows of one shape; a contestant that fails is left out from then on.

    Args:
        rows: by label; gets ``memory``, ``loads``, ``samples``, or ``error``.
        running: who has something to run, by label.
        plan: what to measure.
        vocab: tokens are below this.
        saved: called after every visit with a line about it.
    """
    prompt = tokens(max(plan.depths) + plan.prompt, vocab)
    for label, (entry, path) in running.items():
        try:
            found = footprint(entry, path, plan, plan.threads[0], prompt)
            rows[label].update(memory=found, loads=[], samples=[])
        except Failed as error:
            rows[label]["error"] = str(error)
        saved(f"{label}: memory, {rows[label].get('error', 'done')}")
    alive = [entry for entry, _ in running.values() if "error" not in rows[entry.label]]
    for index, threads, entry in turns(alive, plan):
        row = rows[entry.label]
        if "error" in row:
            continue
        where = {"round": index, "load_average": os.getloadavg()[0]}
        try:
            found = visit(entry, running[entry.label][1], plan, threads, prompt)
        except Failed as error:
            row["error"] = str(error)
        else:
            row["samples"] += [{**where, **sample} for sample in found["samples"]]
            seconds = {"seconds": found["load"]["seconds"], "warm_up": found["warm_up"]}
            row["loads"].append({**where, "threads": threads, **seconds})
        outcome = row.get("error", "done")
        saved(f"round {index + 1} of {plan.rounds}, threads {threads}, {entry.label}: {outcome}")


def _timed(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "tokens"}
