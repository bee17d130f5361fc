"""What the reports on accuracy share: names and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq_edge.reports.format import UNKNOWN
from slmq_edge.tracks.accuracy.results import MEAN


def label(identity: Mapping[str, Any]) -> str:
    """What scored, by what makes it differ from others: ``demo-llama spinquant w8a8 (ort)``."""
    model = identity.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    parts = [name, identity.get("method"), identity.get("scheme") or identity.get("dtype")]
    device = identity.get("device")
    where = f" on {device}" if device and device != "cpu" else ""
    said = " ".join(str(part) for part in parts if part) or UNKNOWN
    return f"{said} ({identity.get('runtime', UNKNOWN)}{where})"


def value_text(kind: str, value: float) -> str:
    """Percent of an accuracy; of a perplexity the number."""
    if kind == MEAN:
        return f"{100 * value:.2f} %"
    return f"{value:.3f}" if value < 1000 else f"{value:.4g}"


def interval_text(ends: tuple[float, float] | None, digits: str, factor: float = 1) -> str:
    """[1.2, 3.4], of ends times ``factor``; nothing where there is no interval."""
    if ends is None:
        return ""
    low, high = (format(factor * end, digits) for end in ends)
    return f"[{low}, {high}]"


def limit_text(limit: int | None) -> str:
    return "none" if limit is None else str(limit)
