"""Devices beside each other: SLMQ_infer of every method, GPU beside edge, and whether ranks hold.

Only what `across` makes comparable is here: ratios to each device's own full precision. Raw memory
of two devices never meets.
"""

from __future__ import annotations

from collections.abc import Iterator

from slmq_edge.across import Cell as Measured
from slmq_edge.across import Matrix
from slmq_edge.quantities import MEMORY, SPEED
from slmq_edge.rankings import PREFILL, SCORE
from slmq_edge.reports.study.layout import (
    BAD,
    DOUBTFUL,
    GOOD,
    NOTHING,
    TIMES,
    Cell,
    Line,
    Section,
    Table,
    line,
    listed,
    tidied,
)
from slmq_edge.reports.study.words import OF_RATIOS, span, times
from slmq_edge.study.document import Document
from slmq_edge.transfer import Transfer

RANKS = ("ranking by", "on", "and on", "order", "tau", "p", "verdict")
BY = {SPEED: "decoding", PREFILL: "prefill", MEMORY: "memory", SCORE: "SLMQ_infer"}
TONES = {"transfers": GOOD, "reversed": BAD, "inconclusive": DOUBTFUL}


def devices(found: Document) -> Section:
    """Two tables for every model that was timed on more than one device."""
    tables: list[Table] = []
    items: list[str] = []
    for matrix in found.inference.matrices:
        if len(matrix.places) < 2:
            continue
        if matrix.mixed and not found.inference.mixed:
            items.append(
                f"{matrix.model} is not set beside itself: {matrix.mixed}; measure the same "
                "precision everywhere, or say --mixed-baselines"
            )
            continue
        tables += _tables(matrix)
        items += [matrix.mixed] if matrix.mixed else []
    lead = (
        f"SLMQ_infer of each device against its own baseline, and decoding {TIMES} it. tau: "
        "Kendall's tau-b of two rankings of the methods, 1 the same and -1 reversed, with a 95 % "
        "interval over repetitions; p: the share of all orders that agree or disagree as much by "
        "chance. A ranking is said to transfer where the interval holds no 0 and p is at most "
        "0.05, which takes 5 methods."
    )
    leads = (lead,) if tables else ()
    return Section(
        "devices", "Device beside device", leads, tables=tuple(tables), items=tuple(items)
    )


def _tables(matrix: Matrix) -> Iterator[Table]:
    work = matrix.work
    caption = f"{matrix.model}, prompt {work['prompt']}, {work['new tokens']} new tokens"
    headings = ["method"]
    for place in matrix.places:
        headings += [f"{place.name}: SLMQ_infer", f"decode {TIMES} {place.precision}"]
    lines = tuple(_method(method, matrix) for method in matrix.methods)
    notes = (
        f"memory in SLMQ_infer: {place.name}: {listed(place.memory)}" for place in matrix.places
    )
    yield tidied(Table(caption, tuple(headings), lines, 1, tuple(notes)))
    ranks = tuple(map(_transfer, matrix.transfers))
    yield tidied(Table(f"{matrix.model}: does the ranking transfer?", RANKS, ranks, 4))


def _method(method: str, matrix: Matrix) -> Line:
    cells: list[Cell] = []
    for place in matrix.places:
        one = next((cell for cell in place.cells if cell.method == method), None)
        if one is not None:
            cells += _measured(one)
        elif method == place.baseline and place.reference is not None:
            cells += [Cell(f"{place.reference:.1f}", "baseline"), Cell(times(1.0))]
        else:
            cells += [Cell(NOTHING), Cell(NOTHING)]
    return line(method, *cells)


def _measured(one: Measured) -> list[Cell]:
    score, speed = one.comparison.score, one.decode
    value = NOTHING if score.value is None else f"{score.value:.1f}"
    return [
        Cell(value, span(score.low, score.high, 0), OF_RATIOS.get(score.verdict or "", "")),
        Cell(
            times(speed.ratio),
            span(speed.low, speed.high, 2),
            OF_RATIOS.get(speed.verdict or "", ""),
        ),
    ]


def _transfer(one: Transfer) -> Line:
    first, second = (" > ".join(order) for order in one.orders)
    order = first if first == second else f"{first}; there {second}"
    said = one.said or one.reason or NOTHING
    tau = NOTHING if one.tau is None else f"{one.tau:.2f}"
    return line(
        BY.get(one.by, one.by),
        *one.places,
        order,
        Cell(tau, span(one.low, one.high, 2)),
        NOTHING if one.p is None else f"{one.p:.2g}",
        Cell(said, tone=TONES.get(said, "")),
    )
