"""Questions and text of the built-in world, as files that ``eval --data-dir`` reads."""

from __future__ import annotations

import json
from pathlib import Path

from slmq_edge.builtin import world


def write_questions(folder: Path) -> None:
    """Twelve questions as ARC-e, and a text of two documents as WikiText-2, below a new folder."""
    (folder / "arc_easy").mkdir(parents=True)
    rows = [
        {"id": f"w{index}", "question": one.question, "choices": one.choices, "answer": one.answer}
        for index, one in enumerate(world.questions()[:12])
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "arc_easy" / "test.jsonl").write_text(lines)
    (folder / "wikitext2").mkdir()
    text = " \n".join(f" {document}" for document in world.calibration_text()[:60])
    raw = f" \n = First = \n \n{text[:4000]} \n = Second = \n \n{text[4000:6000]} \n"
    (folder / "wikitext2" / "wiki.test.raw").write_text(raw)
