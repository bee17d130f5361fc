"""What the SLMQuant paper prints, for the two models that it reports on.

``slmquant_tables.json`` has every cell of its Tables 1 to 4 that our sources quote, each row with
its source. Cells that they do not quote are ``None``: nothing was solved for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TITLE = "SLMQuant, arXiv 2511.13023"
# Names of checkpoints -> the paper's name of the model.
MODELS = {
    "smollm-135m": "SmolLM-135M",
    "qwen2.5-0.5b": "Qwen2.5-0.5B",
}
METHODS = {
    "full": "none",
    "SmoothQuant": "smoothquant",
    "OmniQuant": "omniquant",
    "SpinQuant": "spinquant",
}


@dataclass(frozen=True)
class Printed:
    """A row of a table. score: SLMQ_perf, _infer or _quant; cells: as printed, by column.

    recomputed: the score from the table's own cells, where it was computed.
    """

    table: int
    model: str
    method: str
    scheme: str
    score: str | None
    recomputed: str | None
    cells: Mapping[str, str | None]
    source: str


def model_of(name: str) -> str | None:
    """The paper's name of a model like ``HuggingFaceTB/SmolLM-135M@REVISION``, or ``None``."""
    return MODELS.get(name.split("@")[0].rstrip("/").split("/")[-1].lower())


def printed(table: int, model: str) -> tuple[Printed, ...]:
    """Rows of Table ``table`` for a model, by the paper's name of it."""
    return tuple(row for row in _rows() if row.table == table and row.model == model)


@cache
def _rows() -> tuple[Printed, ...]:
    text = files("slmq_edge.study").joinpath("slmquant_tables.json").read_text(encoding="utf-8")
    return tuple(
        Printed(
            table=row["table"],
            model=row["model"],
            method=METHODS[row["method"]],
            scheme=str(row["scheme"]).lower(),
            score=row.get("printed"),
            recomputed=row.get("recomputed"),
            cells={name: _cell(value) for name, value in row["cells"].items()},
            source=row["source"],
        )
        for row in json.loads(text)["rows"]
    )


def _cell(value: str | list[str] | None) -> str | None:
    return " to ".join(value) if isinstance(value, list) else value
