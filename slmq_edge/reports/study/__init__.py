"""The report of a study: one content, five formats. Pure.

layout     what sections are made of
front      the answer, and what it was chosen from
scores, speeds, costs
           the paper's Tables 1 to 4; printed: its own figures beside ours
devices    GPU beside edge, and whether rankings transfer
evidence   gaps, what ran, where it was measured, what is missing
contents   all of these in their order
figures    plots
page, html one file for a browser
plain      terminal and Markdown
records    CSV and JSON

A new format is a function from `Document` to text, ending in a newline, and a line in `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from slmq_edge.reports.study.html import html
from slmq_edge.reports.study.plain import markdown, terminal
from slmq_edge.reports.study.records import comma_separated, to_json
from slmq_edge.study.document import Document

WRITERS: dict[str, Callable[[Document], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": to_json,
    "html": html,
}
