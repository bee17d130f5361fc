"""The front of a report: the answer for each device, and what it was chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slmq_edge.reports.format import bytes_text, rate_text
from slmq_edge.reports.study.layout import (
    BASELINE,
    NOTHING,
    PLAIN,
    TIMES,
    Cell,
    Choice,
    Line,
    Section,
    Table,
    Verdict,
    line,
    listed,
    tidied,
)
from slmq_edge.reports.study.words import (
    kept_cell,
    kept_name,
    points,
    rate,
    score_cell,
    span,
    times,
    times_cell,
)
from slmq_edge.study.answer import (
    FASTEST,
    LOSES,
    SMALLEST,
    TRUEST,
    UNKNOWN,
    Answer,
    Candidate,
    Pick,
)
from slmq_edge.study.document import Document
from slmq_edge.study.inference import Row

HEADINGS = (
    "artifact", "quality kept", "decode tok/s", f"decode {TIMES}", "size", f"smaller {TIMES}",
    f"less memory {TIMES}", "tokens/J", "SLMQ_infer", "SLMQ_quant",
)  # fmt: skip


def answer(found: Document) -> Section:
    """Two sentences a device and model, and why they are to be doubted."""
    margin = points(found.within)
    lead = (
        f"Chosen for speed and size is only what is not shown to lose more than {margin} of full "
        "precision's quality; the intervals are of 95 %. What they do not tell apart is called "
        "inconclusive."
    )
    verdicts = tuple(_verdict(one) for one in found.answers)
    if not verdicts:
        lead = "Nothing was timed or scored here: there is no answer yet."
    return Section("answer", "The answer", (lead,), verdicts)


def glance(found: Document) -> Section:
    """Every candidate of every device, the choices marked."""
    costs = {place: row.score for place, row in found.costs.items()}
    tables = tuple(_candidates(one, costs) for one in found.answers)
    lead = (
        f"Quality kept: 100 is full precision's own. {TIMES} of speed and of memory: times better "
        "than the baseline of the same device, in the same kind of memory; of size: 2 bytes a "
        "parameter over the bytes of the weights, on every device."
    )
    return Section("glance", "All candidates", (lead,) if tables else (), tables=tables)


def title_of(one: Answer) -> str:
    return one.model if one.place is None else f"{one.model} on {one.place.title}"


def _verdict(one: Answer) -> Verdict:
    picks = [pick for pick in one.picks if pick.what in (FASTEST, SMALLEST, TRUEST)]
    sentences = tuple(_sentences(one))
    choices = tuple(_choice(pick) for pick in picks)
    doubts: dict[str, list[str]] = {}
    for pick in picks:
        for doubt in pick.doubts:
            doubts.setdefault(doubt, []).append(pick.what)
    told = tuple(f"{', '.join(what)}: {doubt}" for doubt, what in doubts.items())
    clear = bool(picks) and all(pick.is_clear for pick in picks)
    return Verdict(title_of(one), choices, sentences, told, clear)


def _choice(pick: Pick) -> Choice:
    row, kept = pick.candidate.row, pick.candidate.kept
    figure, below = "", ""
    if pick.what == FASTEST and row is not None:
        figure = rate_text(row.decode)
        below = _faster(row)
    elif pick.what == SMALLEST and row is not None:
        figure, below = bytes_text(row.size), f"{times(row.smaller)} smaller than float16"
    elif kept is not None:
        figure = f"{kept.value:.1f}"
        below = f"{kept_name(kept)} {span(kept.low, kept.high, 1)}".strip()
    return Choice(pick.what, pick.candidate.subject.name, figure, below, pick.is_clear)


def _sentences(one: Answer) -> Iterator[str]:
    fastest, smallest, truest = (one.pick(what) for what in (FASTEST, SMALLEST, TRUEST))
    if fastest is not None:
        yield _fastest(fastest)
    elif one.place is not None:
        yield _alone(one)
    second = []
    if smallest is not None and smallest.candidate.row is not None:
        same = fastest is not None and smallest.candidate.subject == fastest.candidate.subject
        row = smallest.candidate.row
        size = f"{bytes_text(row.size)}, {times(row.smaller)} smaller than a float16 checkpoint"
        name = f"smallest is {smallest.candidate.subject.name}"
        second.append(
            f"it is also the smallest, {size}"
            if same
            else f"{name}: {size}{_quality(smallest.candidate)}"
        )
    if truest is not None and truest.candidate.kept is not None:
        kept = truest.candidate.kept
        known = f"{kept_name(kept)} {kept.value:.1f} {span(kept.low, kept.high, 1)}".strip()
        verb = "keeps most of the quality" if truest.is_clear else "scored highest"
        second.append(f"of what is quantized {truest.candidate.subject.name} {verb} ({known})")
    if second:
        text = "; ".join(second)
        yield f"{text[0].upper()}{text[1:]}."


def _fastest(pick: Pick) -> str:
    row = pick.candidate.row
    assert row is not None, "of what was timed"
    name, speed = pick.candidate.subject.name, rate_text(row.decode)
    if row.is_baseline:
        return (
            f"Nothing here decodes faster than the baseline, {name}: {speed}."
            if pick.is_clear
            else (f"Inconclusive: the baseline {name} leads with {speed} of decoding.")
        )
    against = ""
    if figure := _faster(row):
        against = f", {figure} of {row.baseline}"
    if pick.is_clear:
        return f"Take {name}: it decodes fastest, {speed}{against}{_quality(pick.candidate)}."
    return (
        f"Inconclusive: {name} leads with {speed} of decoding{against}{_quality(pick.candidate)}."
    )


def _faster(row: Row) -> str:
    """A ratio and its interval; nothing of a baseline."""
    found = row.faster
    if found is None:
        return ""
    return f"{times(found.ratio)} {span(found.low, found.high, 2)}".strip()


def _alone(one: Answer) -> str:
    timed = [candidate for candidate in one.candidates if candidate.row is not None]
    if len(timed) == 1 and timed[0].row is not None:
        name = timed[0].subject.name
        return f"Only {name} was timed: {rate_text(timed[0].row.decode)} of decoding."
    lost = [candidate.subject.name for candidate in timed if candidate.verdict == LOSES]
    why = [f"{listed(lost)} {'lose' if len(lost) > 1 else 'loses'} more than the margin"]
    unknown = [one.subject.name for one in timed if one.verdict == UNKNOWN]
    wrong = [one.subject.name for one in timed if one.row is not None and one.row.is_implausible]
    told = [
        *(why if lost else ()),
        *([f"{listed(wrong)} cannot be: more than the device can do"] if wrong else ()),
        *([f"the quality of {listed(unknown)} is not known"] if unknown else ()),
    ]
    return f"Nothing to choose: {'; '.join(told)}."


def _quality(one: Candidate) -> str:
    if one.kept is None:
        return "" if one.verdict != UNKNOWN else ", its quality unknown"
    known = f"{one.kept.value:.1f} {span(one.kept.low, one.kept.high, 1)}".strip()
    return f", {kept_name(one.kept)} {known}"


def _candidates(one: Answer, costs: Mapping[str, float | None]) -> Table:
    several = len({candidate.subject.runtime for candidate in one.candidates}) > 1
    best: dict[int, list[Pick]] = {}
    for pick in one.picks:
        best.setdefault(one.candidates.index(pick.candidate), []).append(pick)
    lines = tuple(
        _line(candidate, best.get(place, []), costs, several)
        for place, candidate in enumerate(one.candidates)
    )
    return tidied(Table(title_of(one), HEADINGS, lines, 1))


def _line(
    one: Candidate, picks: list[Pick], costs: Mapping[str, float | None], several: bool
) -> Line:
    row = one.row
    kept = (
        Cell("100", "itself")
        if one.subject.is_float and one.kept is None
        else kept_cell(one.kept, one.verdict)
    )
    marks = [pick.what if pick.is_clear else f"{pick.what}?" for pick in picks]
    name = Cell(one.subject.name, ", ".join([*([one.subject.runtime] if several else []), *marks]))
    made = one.subject.manifest
    cost = costs.get(made.path) if made else None
    quant = NOTHING if cost is None else f"{cost:.1f}"
    if row is None:
        return line(name, kept, *[NOTHING] * 7, quant)
    return line(
        name,
        kept,
        rate(row.decode),
        times_cell(row, row.faster),
        bytes_text(row.size),
        times(row.smaller),
        times_cell(row, row.less),
        NOTHING if row.tokens_per_joule is None else rate(row.tokens_per_joule),
        score_cell(row),
        quant,
        kind=BASELINE if row.is_baseline else PLAIN,
    )
