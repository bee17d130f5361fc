"""A study as one HTML file: nothing is fetched, nothing runs, all words are escaped. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from slmq_edge import __version__
from slmq_edge.reports.plots.svg import words_of
from slmq_edge.reports.study import figures
from slmq_edge.reports.study.contents import contents, subtitle
from slmq_edge.reports.study.figures import Plot
from slmq_edge.reports.study.layout import Cell, Choice, Fold, Line, Section, Table, Verdict
from slmq_edge.reports.study.page import STYLE
from slmq_edge.study.document import Document

# Nothing but what stands in the file: not even a browser's mistake would fetch anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LEGEND = (
    "&#9650; better than the baseline, or within the margin; &#9660; worse, or beyond it; ~ not "
    "told apart by 95 % intervals, which stand in brackets. A choice with ? is not clear."
)
TONED = ("glance", "inference", "gap")


def html(found: Document) -> str:
    """The whole page."""
    sections = [*_sections(found)]
    links = "".join(
        f'<li><a href="#{section.anchor}">{words_of(short(section.title))}</a></li>'
        for section, _ in sections
    )
    body = "\n".join(_section(section, plots) for section, plots in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="generator" content="slmq-edge {words_of(__version__)}">
<title>{words_of(found.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#answer">To the answer</a>
<div class="shell">
<header>
<h1>{words_of(found.title)}</h1>
<p>{words_of(subtitle(found))}</p>
</header>
<div class="frame">
<nav aria-label="Contents"><ol>{links}</ol></nav>
<main>
{body}
</main>
</div>
<footer>Made by slmq-edge {words_of(__version__)} from the files of the study; every figure in this
page is theirs. Artifacts are joined by the digest of their bundle, never by name.</footer>
</div>
</body>
</html>
"""


def short(title: str) -> str:
    """A title without what stands in brackets behind it."""
    return title.split(" (")[0]


def _sections(found: Document) -> Iterator[tuple[Section, tuple[Plot, ...]]]:
    """Sections of the other formats, and the plots behind the table that they draw."""
    beside = {"inference": figures.speeds(found), "sensitivity": figures.sensitivity(found)}
    for section in contents(found):
        yield section, beside.get(section.anchor, ())
        if section.anchor == "glance":
            yield from _drawn(found)


def _drawn(found: Document) -> Iterator[tuple[Section, tuple[Plot, ...]]]:
    if plots := figures.trade_offs(found):
        lead = (
            "The line joins what nothing else beats in both figures; bars are 95 % intervals of "
            "what is kept. A hollow point is of a run whose repetitions were not steady."
        )
        yield Section("trade-offs", "Quality against size, speed and energy", (lead,)), plots
    if plots := figures.overview(found):
        lead = (
            "SLMQ_perf: quality kept; SLMQ_infer: memory, speed and size; SLMQ_quant: how cheap "
            "quantizing was. More is better in each; they are not of one scale."
        )
        yield Section("scores", "The three scores (the paper's Figure 4)", (lead,)), plots
    if plots := figures.distributions(found):
        title = "Weights and inputs, before and after (the paper's Figure 3)"
        lead = "Histograms of magnitudes, a row for each block; how many values is a logarithm."
        yield Section("distributions", title, (lead,)), plots


def _section(section: Section, plots: Iterable[Plot]) -> str:
    parts = [
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">',
        f'<h2 id="{section.anchor}-title"><a href="#{section.anchor}">'
        f"{words_of(section.title)}</a></h2>",
        *(f'<p class="lead">{words_of(lead)}</p>' for lead in section.leads),
        *_grid("cards", map(_verdict, section.verdicts)),
        *_grid("plots", map(_plot, plots)),
        *map(_table, section.tables),
    ]
    if section.tables and section.anchor in TONED:
        parts.append(f'<p class="legend">{LEGEND}</p>')
    parts += [*_notes(section.items), *map(_fold, section.folds), "</section>"]
    return "\n".join(parts)


def _grid(name: str, items: Iterable[str]) -> list[str]:
    inside = list(items)
    return [f'<div class="{name}">', *inside, "</div>"] if inside else []


def _verdict(found: Verdict) -> str:
    kind = "card is-clear" if found.is_clear else "card"
    choices = "".join(map(_choice, found.choices))
    told = "".join(f"<p>{words_of(text)}</p>" for text in found.sentences)
    doubts = "".join(f"<li>{words_of(text)}</li>" for text in found.doubts)
    return (
        f'<article class="{kind}"><h3>{words_of(found.title)}</h3>'
        + (f'<dl class="choices">{choices}</dl>' if choices else "")
        + told
        + (f"<ul>{doubts}</ul>" if doubts else "")
        + "</article>"
    )


def _choice(found: Choice) -> str:
    tone, word = ("good", "clear") if found.is_clear else ("doubtful", "inconclusive")
    return (
        f"<div><dt>{words_of(found.what)}</dt>"
        f'<dd class="who">{words_of(found.name)}</dd>'
        f'<dd class="figure">{words_of(found.figure)}</dd>'
        f'<dd class="below">{words_of(found.below)}</dd>'
        f'<dd><span class="pill {tone}">{word}</span></dd></div>'
    )


def _plot(plot: Plot) -> str:
    kind = ' class="wide"' if plot.is_wide else ""
    return f"<figure{kind}><figcaption>{words_of(plot.caption)}</figcaption>{plot.svg}</figure>"


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"{_kind(place < table.texts, "")}>{words_of(heading)}</th>'
        for place, heading in enumerate(table.headings)
    )
    rows = "\n".join(_line(row, table.texts) for row in table.lines)
    caption = f"<h3>{words_of(table.caption)}</h3>" if table.caption else ""
    label = f' aria-label="{words_of(table.caption)}"' if table.caption else ""
    notes = "".join(_notes(table.notes))
    return (
        f'{caption}<div class="scroll" tabindex="0" role="region"{label or " aria-label=table"}>'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{notes}"
    )


def _line(row: Line, texts: int) -> str:
    first, *others = row.cells
    kind = f' class="{row.kind}"' if row.kind else ""
    cells = "".join(
        f"<td{_kind(place < texts, cell.tone)}>{_cell(cell)}</td>"
        for place, cell in enumerate(others, 1)
    )
    return f'<tr{kind}><th scope="row">{_cell(first)}</th>{cells}</tr>'


def _kind(is_text: bool, tone: str) -> str:
    names = " ".join(name for name in ("text" if is_text else "", tone) if name)
    return f' class="{names}"' if names else ""


def _cell(cell: Cell) -> str:
    below = f"<small>{words_of(cell.below)}</small>" if cell.below else ""
    return words_of(cell.text) + below


def _notes(notes: Iterable[str]) -> list[str]:
    lines = "".join(f"<li>{words_of(note)}</li>" for note in notes)
    return [f'<ul class="notes">{lines}</ul>'] if lines else []


def _fold(fold: Fold) -> str:
    count = len(fold.warnings)
    word = "caveat" if count == 1 else "caveats"
    badge = f' <span class="pill doubtful">{count} {word}</span>' if count else ""
    warnings = "".join(f"<li>{words_of(text)}</li>" for text in fold.warnings)
    listed = f'<ul class="warnings">{warnings}</ul>' if warnings else ""
    pairs = "".join(
        f"<dt>{words_of(name)}</dt><dd>{words_of(value)}</dd>" for name, value in fold.pairs
    )
    text = f'<pre tabindex="0">{words_of(fold.text)}</pre>' if fold.text else ""
    return (
        f"<details><summary>{words_of(fold.title)}{badge}</summary>"
        f'<div class="inside">{listed}{f"<dl>{pairs}</dl>" if pairs else ""}{text}</div></details>'
    )
