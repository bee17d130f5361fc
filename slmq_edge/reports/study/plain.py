"""A study for a terminal, and as GitHub's Markdown. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from slmq_edge.reports.study.contents import contents, subtitle
from slmq_edge.reports.study.layout import Section, Table
from slmq_edge.reports.tables import WIDTH, aligned, bullets, escaped, piped
from slmq_edge.study.document import Document

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def terminal(found: Document) -> str:
    """Sections below each other; environments are left to the other formats."""
    parts = [f"{found.title}\n{subtitle(found)}"]
    for section in contents(found):
        parts.append(f"{section.title}\n{'=' * len(section.title)}")
        parts += [_filled(lead) for lead in section.leads]
        for verdict in section.verdicts:
            lines = [verdict.title, *(_filled(text, "  ") for text in verdict.sentences)]
            parts.append("\n".join([*lines, *(_filled(text, "  ? ") for text in verdict.doubts)]))
        parts += [_aligned(table) for table in section.tables]
        warned = [(fold.title, fold.warnings) for fold in section.folds if fold.warnings]
        parts += [textwrap.indent(fold.text.rstrip(), "  ") for fold in section.folds if fold.text]
        if any(fold.pairs for fold in section.folds) and not warned:
            parts.append("no caveats")
        for title, warnings in warned:
            parts.append("\n".join([title, *(_filled(text, "  ! ") for text in warnings)]))
        parts += [_filled(text, "! ") for text in section.items]
    # What a file says must not command the terminal.
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", "\n\n".join(parts)) + "\n"


def _aligned(table: Table) -> str:
    rows = [[cell.flat for cell in line.cells] for line in table.lines]
    body = aligned([table.headings, *rows], table.texts)
    notes = [_filled(note, "  ") for note in table.notes]
    return "\n".join([*([table.caption] if table.caption else []), body, *notes])


def _filled(text: str, before: str = "") -> str:
    inside = " " * len(before)
    return textwrap.fill(text, WIDTH, initial_indent=before, subsequent_indent=inside)


def markdown(found: Document) -> str:
    """One page: every section, environments folded away."""
    parts = [f"# {escaped(found.title)}", escaped(subtitle(found))]
    for section in contents(found):
        parts += [f"## {escaped(section.title)}", *_section(section)]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from map(escaped, section.leads)
    for verdict in section.verdicts:
        yield f"**{escaped(verdict.title)}**: {escaped(' '.join(verdict.sentences))}"
        if verdict.doubts:
            yield bullets(map(escaped, verdict.doubts))
    for table in section.tables:
        if table.caption:
            yield f"### {escaped(table.caption)}"
        rows = [[cell.flat for cell in line.cells] for line in table.lines]
        yield piped([table.headings, *rows], table.texts)
        if table.notes:
            yield bullets(map(escaped, table.notes))
    if section.items:
        yield bullets(map(escaped, section.items))
    for fold in section.folds:
        badge = f" ({len(fold.warnings)})" if fold.warnings else ""
        pairs = [f"{name}: {value}" for name, value in fold.pairs]
        body = bullets(map(escaped, [*(f"! {text}" for text in fold.warnings), *pairs]))
        body += textwrap.indent(fold.text, "    ")
        yield f"<details><summary>{escaped(fold.title)}{badge}</summary>\n\n{body}\n\n</details>"
