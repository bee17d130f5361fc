"""What became of a reproduction, as text. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

from slmq_edge.reports.format import bytes_text, rate_text
from slmq_edge.reports.tables import aligned
from slmq_edge.reproduce import DRIFTED, MATCH, Figure, Reproduction

HEADINGS = ("figure", "then", "now", "change", "95 %", "verdict")
SHOWN = 8  # tensors
WIDTH = 95


def terminal(found: Reproduction) -> str:
    """Artifact, figures, what else differs, and the verdict."""
    parts = [f"{found.model} {found.method} {found.scheme}, of {found.run}"]
    parts.append("\n".join(_artifact(found)))
    if found.figures:
        parts.append(aligned([HEADINGS, *map(_cells, found.figures)], texts=1))
    if found.unmeasured:
        parts.append(textwrap.fill(f"not measured: {found.unmeasured}", WIDTH))
    whys = dict.fromkeys(figure.why for figure in found.figures if figure.why)
    notes = [*(f"~ {why}" for why in whys), *(f"! {line}" for line in found.drift)]
    if notes:
        parts.append("\n".join(notes))
    parts.append(verdict(found))
    return "\n\n".join(parts) + "\n"


def verdict(found: Reproduction) -> str:
    """One line that names what drifted."""
    if found.verdict == MATCH:
        files = f"match: {len(found.files)} files of the bundle are the same to the bit"
        matched = sum(figure.verdict == MATCH for figure in found.figures)
        within = f"within {100 * found.tolerance:g} %"
        figures = (
            f"; {matched} of {len(found.figures)} figures are {within}, none is shown not to be"
        )
        return files + (figures if found.figures else "; no figures were compared")
    return f"drifted: {'; '.join(_drifted(found))}"


def _drifted(found: Reproduction) -> Iterator[str]:
    if found.differing:
        yield ", ".join(file.name for file in found.differing)
    for figure in found.figures:
        if figure.verdict == DRIFTED:
            yield f"{figure.name} by {100 * (figure.change - 1):+.1f} %"
    if found.failed:
        yield "it could not be measured again"


def _artifact(found: Reproduction) -> Iterator[str]:
    same = len(found.files) - len(found.differing)
    yield f"bundle made anew: {found.bundle}; {same} of {len(found.files)} files are the same"
    for file in found.differing:
        what = "is not there any more" if file.now is None else "is new" if not file.then else ""
        yield f"  {file.name} {what or f'{_short(file.then)} then, {_short(file.now)} now'}"
    tensors = found.tensors or ()
    for name in tensors[:SHOWN]:
        yield f"  {name} differs"
    if len(tensors) > SHOWN:
        yield f"  and {len(tensors) - SHOWN} tensors more"


TEXTS: dict[str, Callable[[float], str]] = {
    "B": bytes_text,
    "tokens/s": rate_text,
    "tokens/J": lambda value: rate_text(value, "tok/J"),
}


def _cells(figure: Figure) -> tuple[str, ...]:
    show = TEXTS[figure.unit]
    interval = f"[{100 * (figure.low - 1):+.1f}, {100 * (figure.high - 1):+.1f}]"
    return (
        figure.name,
        show(figure.then),
        show(figure.now),
        f"{100 * (figure.change - 1):+.1f} %",
        "" if figure.low == figure.high else interval,
        figure.verdict,
    )


def _short(digest: str | None) -> str:
    return f"{(digest or '')[:12]}..."
