"""Does a run come out again? What must be in its record, and what of it is as it was.

    change = median now / median then, of tokens per second, bytes or tokens per joule

A change has the 95 % interval of a bootstrap over the repetitions of both (`intervals`). With a
tolerance t it is a *match* where the interval lies within 1 - t ... 1 + t, *drifted* where it lies
outside, and *inconclusive* where it does both, or where a run says that its machine was not at
rest. Repetitions of one process do not tell how much processes differ: t has to.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge import energy, intervals, record
from slmq_edge.caveats import IMPLAUSIBLE
from slmq_edge.errors import Damaged, SlmqError, Unsupported
from slmq_edge.exporters import Wanted
from slmq_edge.recipe import Recipe
from slmq_edge.recipe import from_document as recipe_of
from slmq_edge.results import Run, Series
from slmq_edge.runner import environment
from slmq_edge.settings import says

FORMAT, VERSION = "slmq-edge-reproduction", 1
MATCH, DRIFTED, INCONCLUSIVE = "match", "drifted", "inconclusive"
PEAK = "peak"  # what has this in its name is a high-water mark of memory
# Caveats of a machine that was not at rest: its times say nothing of the artifact.
RESTLESS = (
    "inconclusive",
    "throttled",
    "mode-changed",
    "background-load",
    "gpu-shared",
    "fewer-cores-than-threads",
    "clocks-unstable",
    "swap-in-use",
    "unstable-repetitions",
)


@dataclass(frozen=True)
class Recorded:
    """How a run's artifact was made. model: see `record`; files: sha256 by name."""

    model: Mapping[str, Any]
    recipe: Recipe
    wanted: Wanted
    files: Mapping[str, str]
    made_with: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class File:
    """A file of the bundle then and now, by sha256; ``None``: there was none."""

    name: str
    then: str | None
    now: str | None

    @property
    def is_same(self) -> bool:
        return self.then == self.now


@dataclass(frozen=True)
class Figure:
    """One figure then and now, in its unit; see above. why: of what cannot be told."""

    name: str
    unit: str
    then: float
    now: float
    change: float
    low: float
    high: float
    verdict: str
    why: str | None = None


@dataclass(frozen=True)
class Reproduction:
    """What became of it.

    bundle, bundle_sha256: what was made anew. drift: what else differs, a line each. figures: none
    where ``unmeasured`` says why; failed: because it could not be measured, not because it need not
    be. tensors: that differ, where the first bundle was at hand; ``None``: it was not.
    """

    run: str
    model: str
    method: str
    scheme: str
    bundle: str
    bundle_sha256: str
    tolerance: float
    files: tuple[File, ...]
    drift: tuple[str, ...]
    figures: tuple[Figure, ...]
    unmeasured: str | None = None
    failed: bool = False
    tensors: tuple[str, ...] | None = None

    @property
    def differing(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if not file.is_same)

    @property
    def verdict(self) -> str:
        """Drifted where anything has; a figure that cannot be told has not."""
        figures = any(figure.verdict == DRIFTED for figure in self.figures)
        return DRIFTED if self.differing or figures or self.failed else MATCH

    def as_json(self) -> str:
        head = {"format": FORMAT, "version": VERSION, "verdict": self.verdict}
        document = {**head, **dataclasses.asdict(self)}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def recorded(run: Run, name: str) -> Recorded:
    """Read a run's record; ``name`` is how errors call it.

    Raises:
        Unsupported: the run lacks what it takes; says what. Damaged: a part is not what it is.
    """
    found = run.artifact.recipe
    missing = record.lacks(found)
    if found is None or missing:
        raise Unsupported(
            f"{name} cannot be reproduced: it lacks {', '.join(missing)} (older releases did not "
            "record them): export the model anew and profile that bundle"
        )
    if run.origin != "measured":
        raise Unsupported(f"{name} is {run.origin}, not measured: nothing of it can come out again")
    try:
        return Recorded(
            model={**found["model"], "files": dict(found["model"]["files"])},
            recipe=recipe_of(found["recipe"], Path(name)),
            wanted=Wanted(**found["export"]),
            files=dict(found["files"]),
            made_with={stage: dict(with_) for stage, with_ in found["made_with"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{name} is damaged: artifact.recipe ({error})") from error


def check_model(recorded: Recorded, name: str, found: Mapping[str, str]) -> None:
    """Refuse another model than the run's. found: sha256 of its files, by name.

    Raises:
        SlmqError: names the files that differ.
    """
    differ = [file.name for file in files(recorded.model["files"], found) if not file.is_same]
    if differ:
        raise SlmqError(
            f"drifted: {name} is not the model that was measured: {', '.join(differ)} "
            f"{'differs' if len(differ) == 1 else 'differ'} by sha256"
        )


def files(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[File, ...]:
    """Side by side, all that either has."""
    return tuple(File(name, then.get(name), now.get(name)) for name in sorted({*then, *now}))


def made_differently(
    then: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """In what making differs, a line each: ``quantize: torch 2.12.0 then, 2.13.0 now``."""
    for stage in then:
        there = now.get(stage, {})
        for name in dict.fromkeys([*then[stage], *there]):
            before, after = then[stage].get(name), there.get(name)
            if before != after:
                yield f"{stage}: {name} {_plain(before)} then, {_plain(after)} now"


def by_the_clock(recipe: Recipe) -> Iterator[str]:
    """Why other bits are no surprise: what learns for so long has no fixed number of steps."""
    if says(recipe.settings, "minutes"):
        minutes = recipe.settings["minutes"]
        yield f"quantize: it learned for {minutes} minutes, which epochs would say repeatably"


def measured_differently(then: Run, now: Run) -> Iterator[str]:
    """In what the machine differs, of what decides speed, a line each."""
    before, after = (environment.identity(dict(run.environment)) for run in (then, now))
    for name in before:
        if before[name] != after[name]:
            yield f"profile: {name} {_plain(before[name])} then, {_plain(after[name])} now"
    figures = [run.golden.get("perplexity") for run in (then, now)]
    if figures[0] != figures[1]:
        yield f"profile: perplexity of golden prompts {figures[0]} then, {figures[1]} now"


def elsewhere(run: Run, name: str, kind: str, cpu: str | None) -> str | None:
    """Why a machine's figures are not comparable with the run's; ``None``: it is like its."""
    then = run.device
    if (then.name, then.kind) != (name, kind):
        return f"it was measured on {then.name} ({then.kind}), this is {name} ({kind})"
    was = run.environment.get("cpu_model")
    if was is not None and cpu is not None and was != cpu:
        return f"it was measured on {was}, this is {cpu}"
    return None


def compared(then: Run, now: Run, tolerance: float) -> tuple[Figure, ...]:
    """Every figure that both have, judged; see above."""
    told = sorted({one.code for run in (then, now) for one in run.caveats} & {*RESTLESS})
    restless = f"not at rest ({', '.join(told)})" if told else None
    if any(one.code == IMPLAUSIBLE for run in (then, now) for one in run.caveats):
        raise SlmqError("a figure is beyond what the device can do: nothing is compared with it")
    found = []
    for name, unit, before, after in _pairs(then, now):
        doubt = restless if unit != "B" else None
        found.append(judge(name, unit, before, after, tolerance, doubt))
    return tuple(found)


def judge(
    name: str,
    unit: str,
    then: Sequence[float],
    now: Sequence[float],
    tolerance: float,
    doubt: str | None = None,
) -> Figure:
    """One figure; doubt: why a change would say nothing, ``None`` where it would."""
    found = intervals.interval(then, now, "higher")
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    inside = 1 - tolerance <= low and high <= 1 + tolerance
    outside = high < 1 - tolerance or low > 1 + tolerance
    verdict = MATCH if inside else DRIFTED if outside else INCONCLUSIVE
    why = None if inside or outside else "the interval reaches beyond the tolerance"
    if verdict == DRIFTED and doubt is not None:
        verdict, why = INCONCLUSIVE, doubt
    medians = statistics.median(then), statistics.median(now)
    return Figure(name, unit, *medians, found.value, low, high, verdict, why)


def _pairs(then: Run, now: Run) -> Iterator[tuple[str, str, Sequence[float], Sequence[float]]]:
    """Name, unit, values then, values now."""

    def of(name: str, before: Series, after: Series) -> tuple[str, str, Any, Any]:
        return name, before.unit, before.values, after.values

    yield of("prefill", then.prefill_rate, now.prefill_rate)
    yield of("decode", then.decode_rate, now.decode_rate)
    first, second = then.forward_rate, now.forward_rate
    if first is not None and second is not None:
        yield of("forward passes", first, second)
    for phase, kinds in then.memory.items():
        for kind, before in kinds.items():
            after = now.memory.get(phase, {}).get(kind)
            if PEAK in kind and before and after:
                yield f"{phase}: {kind}", "B", (before,), (after,)
    for part, count in (then.device_memory or {}).items():
        held = (now.device_memory or {}).get(part)
        if count and held:
            yield f"device: {part}", "B", (count,), (held,)
    for phase in energy.WORK:
        both = [energy.of(run.power or {}, phase) for run in (then, now)]
        known = [one.tokens_per_joule for one in both if isinstance(one, energy.Energy)]
        if len(known) == len(both):
            yield f"{phase}, tokens per joule", "tokens/J", known[:1], known[1:]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
