"""What a bundle would do on a device where it has not run: projected, with an interval.

    decode     seconds a token  = bytes / (share * bandwidth) + layers * launch + fixed
    prefill    seconds          = 2 multiply-adds / (share * peak) + layers * launch + fixed

Fitted per family of runtime and board in ``devices/projection.toml``, which
``python -m benchmarks.projection`` makes of published figures, with the factor by which rows of a
model, or of a device, that was left out of a fit were missed. The interval is that factor, or how
far other runtimes on the same boards are from the family's law, where that is more: no row is of
the engines that we build. Where no family is of a bundle's target and board,
nothing is projected: runs measured on the board itself say more (``calibrate``).
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from slmq_edge import bounds, devices
from slmq_edge.bounds import Card
from slmq_edge.errors import Damaged, SlmqError, Unsupported, UsageError, unknown
from slmq_edge.laws import Features, Law, Point, fit
from slmq_edge.results import Run

PHASES = ("prefill", "decode")
ORIGIN = "projected"  # one of results.ORIGINS
BANDWIDTH, PEAK, LAYERS, ONCE = "bandwidth_seconds", "peak_seconds", "layers", "once"
BYTES, WEIGHTS, KV, MACS = "bytes", "weight_bytes", "kv_bytes", "macs"
NAMES = {"decode": (BANDWIDTH, LAYERS, ONCE), "prefill": (PEAK, LAYERS, ONCE)}
APART = 1.25  # bytes, or work, of the largest of the runs to fit over those of the smallest
FEWEST_WITH_KV = 4
FARTHEST = 8.0  # below, and above, what the rows of a family read for a token


@dataclass(frozen=True)
class Fitted:
    """A law of one phase, on how many rows, and by what factor such laws were off.

    off_by_model, off_by_device: of nine in ten rows of what was left out; ``None``: not known.
    """

    law: Law
    rows: int
    off_by_model: float
    off_by_device: float | None = None


@dataclass(frozen=True)
class Family:
    """Rows of one runtime on boards of one kind, and the laws that were fitted on them.

    targets: bundles that it stands in for. devices: sheets with rows; others: of the same GPU,
    without. span: bytes that a token reads, least and most. slower, faster: factors by which other
    runtimes on these boards decode off its law; of prefill no row tells, so they hold there too.
    """

    name: str
    title: str
    targets: tuple[str, ...]
    devices: tuple[str, ...]
    others: tuple[str, ...]
    source: str
    fitted: str
    span: tuple[float, float]
    slower: float
    faster: float
    phases: Mapping[str, Fitted]

    @property
    def modes(self) -> tuple[str, ...]:
        """Power modes that its rows name, the fastest first; none where rows do not say."""
        found = self.phases["decode"].law.modes
        return tuple(sorted(found, key=lambda mode: found[mode]))


@dataclass(frozen=True)
class Cell:
    """Tokens/s with an interval; ``None`` with the reason. Never measured: see ``ORIGIN``."""

    phase: str
    per_second: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    origin: str = ORIGIN


def families() -> dict[str, Family]:
    """All that were fitted, by name.

    Raises:
        Damaged: the file is not what the benchmark writes.
    """
    text = resources.files(devices.__name__).joinpath("projection.toml").read_text("utf-8")
    try:
        return {name: _family(name, one) for name, one in tomllib.loads(text)["families"].items()}
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"devices/projection.toml is damaged: {error}") from error


def off_of_runs() -> dict[str, float]:
    """By what factor laws of one's own runs were off, of nine in ten, for each phase."""
    text = resources.files(devices.__name__).joinpath("projection.toml").read_text("utf-8")
    return {phase: float(one["ninetieth"]) for phase, one in tomllib.loads(text)["runs"].items()}


def _family(name: str, table: Mapping[str, Any]) -> Family:
    phases = {}
    for phase in PHASES:
        if phase in table:
            one = table[phase]
            phases[phase] = Fitted(
                Law(one["costs"], one.get("modes", {})),
                one["rows"],
                one["off_by_model"],
                one.get("off_by_device"),
            )
    return Family(
        name,
        table["title"],
        tuple(table["targets"]),
        tuple(table["devices"]),
        tuple(table["others"]),
        table["source"],
        table["fitted"],
        (float(table["bytes"][0]), float(table["bytes"][1])),
        table.get("slower", 1.0),
        table.get("faster", 1.0),
        phases,
    )


def family_for(target: str, device: str) -> Family | None:
    """The family that stands in for a target's bundles on a device; None where there is none."""
    for family in families().values():
        if target in family.targets and device in (*family.devices, *family.others):
            return family
    return None


def named(name: str, device: str) -> Family:
    """The family of this name, asked for by the user: what another runtime would do.

    Raises:
        UsageError: there is none, or it is of other boards.
    """
    known = families()
    if name not in known:
        raise UsageError(unknown("family", name, tuple(known)))
    found = known[name]
    if device not in (*found.devices, *found.others):
        has = ", ".join((*found.devices, *found.others))
        raise UsageError(f"family {name} is not of {device}, but of {has}")
    return found


def require_runnable(target: str, on_gpu: bool, facts: devices.Facts) -> None:
    """Refuse a bundle for a GPU on a board without, and one for a CPU on the sheet of a GPU.

    Raises:
        Unsupported: one of these.
    """
    if on_gpu and facts.kind not in bounds.GPU_KINDS:
        raise Unsupported(f"this bundle is for {target}, and {facts.name} has no GPU for it")
    if not on_gpu and facts.kind == "cuda":
        raise Unsupported(
            f"this bundle runs on a CPU, and {facts.name} is a GPU: name the machine's own sheet"
        )


def project(
    asked: Card,
    facts: Mapping[str, Any],
    device: str,
    family: Family,
    mode: str | None = None,
    stands_in: bool = True,
) -> tuple[Cell, ...]:
    """Prefill and decode of a card by a family's laws; of a mode of its rows, if they name any.

    Args:
        asked: a card, of a bundle that runs on the device.
        facts: of the device in that mode, as in run.json.
        device: the sheet's name.
        family: whose laws.
        mode: None: the fastest.
        stands_in: for a runtime that none of its rows is of, so that what lies between runtimes
            widens the interval.

    Raises:
        UsageError: a mode that the family's rows do not name.
    """
    if mode is not None and not family.modes:
        reason = f"rows of {family.title} name no power mode: measure in it, and give the runs"
        return tuple(Cell(phase, None, reason=reason) for phase in PHASES)
    if mode is not None and mode not in family.modes:
        raise UsageError(unknown("mode", mode, family.modes))
    least, most = family.span
    if not least / FARTHEST <= asked.bytes_per_token <= most * FARTHEST:
        reason = (
            f"rows of {family.title} read {least / 1e6:.0f} to {most / 1e6:.0f} MB a token, and "
            f"{asked.bytes_per_token / 1e6:.3g} MB are too far from that"
        )
        return tuple(Cell(phase, None, reason=reason) for phase in PHASES)
    chosen = mode or next(iter(family.modes), "")
    found = []
    for phase in PHASES:
        fitted = family.phases.get(phase)
        if fitted is None:
            reason = f"no prefill among the rows of {family.title}, or too few to fit"
            found.append(Cell(phase, None, reason=reason))
            continue
        features = _features(asked, facts, phase)
        if isinstance(features, str):
            found.append(Cell(phase, None, reason=features))
            continue
        seconds = fitted.law.seconds(features, chosen)
        off = fitted.off_by_model
        if device not in family.devices:
            off = max(off, fitted.off_by_device or off)
        tokens = asked.prompt_tokens if phase == "prefill" else 1
        rate = tokens / seconds
        slower, faster = (family.slower, family.faster) if stands_in else (1.0, 1.0)
        found.append(Cell(phase, rate, rate / max(off, slower), rate * max(off, faster)))
    return tuple(found)


def capped(cells: Sequence[Cell], limits: bounds.Ceilings) -> tuple[Cell, ...]:
    """Nothing above what is possible."""
    found = []
    for cell in cells:
        bound = bounds.lowest(getattr(limits, cell.phase))
        most = None if bound is None or not bound.certain else bound.per_second
        if most is None or cell.per_second is None or cell.low is None or cell.high is None:
            found.append(cell)
        else:
            low, high = min(cell.low, most), min(cell.high, most)
            found.append(Cell(cell.phase, min(cell.per_second, most), low, high))
    return tuple(found)


def _features(asked: Card, facts: Mapping[str, Any], phase: str) -> Features | str:
    """What a law asks of a card and a sheet; or the fact that is missing."""
    if asked.layers is None:
        return "bundle.json has no anatomy: export it anew"
    base = {LAYERS: float(asked.layers), ONCE: 1.0}
    if phase == "decode":
        bandwidth, _ = bounds.fact(facts, bounds.BANDWIDTH)
        if bandwidth is None:
            return f"the sheet has no {bounds.BANDWIDTH}"
        return {**base, BANDWIDTH: asked.bytes_per_token / bandwidth}
    (_, peak) = bounds.ceilings(asked, facts, "jetson").prefill
    if peak.per_second is None:
        return peak.reason or "no peak is known"
    return {**base, PEAK: asked.prompt_tokens / peak.per_second}


def calibrate(points: Mapping[str, Sequence[Point]]) -> dict[str, Law]:
    """Laws of a board's own points, by phase: decode of bytes, prefill of multiply-adds.

    Keys and values get a cost of their own where there are points enough to tell it.

    Raises:
        SlmqError: too few points, or too much alike to tell bytes from a fixed cost.
    """
    laws = {}
    for phase, main in (("decode", BYTES), ("prefill", MACS)):
        found = points[phase]
        work = [point.features[main] for point in found]
        if len(found) < 2 or max(work) < APART * min(work):
            raise SlmqError(
                "--fit needs runs of at least two bundles, one a quarter larger than the other "
                "(and two prompts of such lengths): profile another model on the same board"
            )
        several = len(found) >= FEWEST_WITH_KV and phase == "decode"
        laws[phase] = fit(found, (WEIGHTS, KV, ONCE) if several else (main, ONCE))
    return laws


def point_of(run: Run, phase: str, with_steps: bool) -> Point:
    """One phase of a run, for ``calibrate``; see `own_features`."""
    told = run.artifact if with_steps else dataclasses.replace(run.artifact, read_bytes=None)
    asked = bounds.card_of(dataclasses.replace(run, artifact=told))
    rate = run.decode_rate if phase == "decode" else run.prefill_rate
    tokens = 1 if phase == "decode" else run.workload.prompt_tokens
    return Point(
        own_features(asked, phase, with_steps),
        tokens / rate.median,
        run.artifact.model,
        run.device.name,
    )


def own_features(asked: Card, phase: str, with_steps: bool) -> dict[str, float]:
    """What laws of one's own runs ask of a card; with scales where all of the runs count them."""
    if phase == "decode":
        weights = float(asked.read_bytes - (0 if with_steps else asked.steps_bytes))
        return {WEIGHTS: weights, KV: asked.kv_bytes, BYTES: weights + asked.kv_bytes, ONCE: 1.0}
    linears = asked.linears.integer + asked.linears.floats
    head = asked.head.integer + asked.head.floats
    return {MACS: linears * asked.prompt_tokens + head, ONCE: 1.0}


def mode_of(run: Run) -> str | None:
    """The power mode that a run began in, where its board has modes and told."""
    mode = run.states[0].get("mode") if run.states else None
    return str(mode["name"]) if isinstance(mode, Mapping) and "name" in mode else None


def by_runs(
    asked: Card, target: str, ran: str, device: str, runs: Sequence[Run], mode: str | None = None
) -> Sequence[Cell]:
    """Prefill and decode by the law of runs measured on the same device, and in the same mode.

    Raises:
        SlmqError: a run of another device, target, scheme, mode or number of threads; or too few.
    """
    for run in runs:
        for what, has, wanted in (
            ("origin", run.origin, "measured"),
            ("device", run.device.name, device),
            ("target", str(run.artifact.runtime.get("kind")), target),
            ("scheme", run.artifact.scheme_ran, ran),
            ("threads", run.workload.threads, runs[0].workload.threads),
            ("power mode", mode_of(run), mode or mode_of(runs[0])),
        ):
            if has != wanted:
                name = f"{run.artifact.model}, {run.artifact.scheme_ran}"
                raise SlmqError(f"--fit {name}: its {what} is {has}, not {wanted}")
    told = all(run.artifact.read_bytes is not None for run in runs)
    laws = calibrate({phase: [point_of(run, phase, told) for run in runs] for phase in PHASES})
    off, found = off_of_runs(), []
    for phase in PHASES:
        tokens = asked.prompt_tokens if phase == "prefill" else 1
        rate = tokens / laws[phase].seconds(own_features(asked, phase, told))
        found.append(Cell(phase, rate, rate / off[phase], rate * off[phase]))
    return found
