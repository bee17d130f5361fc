"""A sensitivity analysis as text: terminal, CSV, JSON. Pure."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmq_edge.anatomy import LINEARS
from slmq_edge.reports.format import share_text

if TYPE_CHECKING:
    from slmq_edge.analysis.damage import Damage
    from slmq_edge.analysis.outliers import Outliers
    from slmq_edge.analysis.parts import Part
    from slmq_edge.analysis.sensitivity import Analysis

FORMAT, VERSION = "slmq-edge-analysis", 1
# Linears that the terminal shows, of a model that has more.
SHOWN = 20
KINDS = {"both": "KL", "weights": "weights", "activations": "inputs"}
Rows = Sequence[Sequence[str]]


def terminal(found: Analysis) -> str:
    """What it is of and where the loss comes from, then tables."""
    ranked = sorted(found.parts, key=lambda part: -part.kl)
    shown = ranked[:SHOWN]
    most = f"the {len(shown)} worst of {len(ranked)}" if len(shown) < len(ranked) else "worst first"
    parts = [
        "\n".join([f"{found.model}, {found.scheme} by {found.method}", *heading(found)]),
        f"Parts, each rounded alone ({most})\n{_table(_parts(found, shown))}",
        "Outliers of weights, then of inputs (channels: that hold the absmax of 90 % of rows)\n"
        + _table(_outliers(shown)),
        f"Kinds of parts, single damages summed\n{_table(_kinds(found))}",
        f"Blocks, all of each rounded\n{_table(_blocks(found))}",
    ]
    return "\n\n".join(parts) + "\n"


def heading(found: Analysis) -> list[str]:
    """What was measured, on what, and what it came to: a line each."""
    whole = found.whole.damage["both"]
    lines = [
        f"KL from the float model in nats a token, on {found.windows} windows of {found.length} "
        f"tokens held out of {found.text}",
        f"all rounded: KL {kl_text(whole.kl)} ± {kl_text(whole.kl_error)}, perplexity "
        f"{found.perplexity:.4g} -> {found.perplexity * whole.perplexity_ratio:.4g} "
        f"({change_text(whole)})",
        f"single parts summed: KL {kl_text(found.sum)}, {share_text(_ratio(found))} of the whole's",
    ]
    kept = ", ".join(short(name) for name in found.worst[:3])
    if kept and found.is_choice:
        lines.append(f"--protect 3 keeps 8-bit weights in {kept}")
    return lines


def short(name: str) -> str:
    """``3.mlp.down_proj`` of ``model.layers.3.mlp.down_proj``."""
    return name.removeprefix("model.layers.")


def kl_text(kl: float | None) -> str:
    """Two digits: 1.2e-03; ``-`` of what was not measured."""
    return "-" if kl is None else f"{kl:.1e}"


def change_text(damage: Damage) -> str:
    """Of the perplexity: +4.20 %."""
    return f"{100 * (damage.perplexity_ratio - 1):+.2f} %"


def by_kind(found: Analysis) -> dict[str, float]:
    """The single damages of all parts of a kind, summed; in the order in which they run."""
    totals: dict[str, float] = {}
    for part in found.parts:
        totals[part.kind] = totals.get(part.kind, 0.0) + part.kl
    order = {kind: place for place, kind in enumerate(LINEARS)}
    return dict(sorted(totals.items(), key=lambda pair: order.get(pair[0], len(order))))


def share_of_sum(found: Analysis, kl: float) -> float | None:
    return kl / found.sum if found.sum else None


def _ratio(found: Analysis) -> float | None:
    return found.sum / found.whole.kl if found.whole.kl else None


def _parts(found: Analysis, shown: Iterable[Part]) -> Rows:
    places = {name: str(place) for place, name in enumerate(found.worst, 1)}
    rows = [
        (
            short(part.name),
            "" if part.bits is None else str(part.bits),
            *_damages(part.damage),
            change_text(part.damage["both"]),
            share_text(share_of_sum(found, part.kl)),
            places.get(part.name, "-"),
        )
        for part in shown
    ]
    headings = ("part", "bits", "KL", "±", "weights", "inputs", "perplexity", "of the sum")
    return [(*headings, "by weights"), *rows]


def _damages(damage: Mapping[Any, Damage]) -> tuple[str, ...]:
    both = damage["both"]
    alone = (damage.get(kind) for kind in ("weights", "activations"))
    return (
        kl_text(both.kl),
        kl_text(both.kl_error),
        *(kl_text(None if one is None else one.kl) for one in alone),
    )


def _outliers(shown: Iterable[Part]) -> Rows:
    names = ("max/median", "kurtosis", "channels")
    rows = [
        (short(part.name), *_figures(part.weight_outliers), *_figures(part.input_outliers))
        for part in shown
        if part.weight_outliers is not None
    ]
    return [("part", *names, *names), *rows]


def _figures(found: Outliers | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    ratio, tails = found.absmax_over_median, found.kurtosis
    return (
        "-" if ratio is None else f"{ratio:.3g}",
        "-" if tails is None else f"{tails:.3g}",
        share_text(found.absmax_channels),
    )


def _kinds(found: Analysis) -> Rows:
    rows = [
        (kind, kl_text(kl), share_text(share_of_sum(found, kl)))
        for kind, kl in by_kind(found).items()
    ]
    return [("kind", "KL", "of the sum"), *rows]


def _blocks(found: Analysis) -> Rows:
    rows = []
    for block in found.blocks:
        total = sum(part.kl for part in found.parts if part.layer == block.layer)
        changed = change_text(block.damage["both"])
        rows.append((str(block.layer), *_damages(block.damage), changed, kl_text(total)))
    headings = ("block", "KL", "±", "weights", "inputs", "perplexity", "its parts summed")
    return [headings, *rows]


def _table(rows: Rows) -> str:
    """The first column to the left, the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"  {row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def to_csv(found: Analysis) -> str:
    """A row for the model, each block and each part; empty where nothing was measured."""
    rows = [flat("model", found.whole)]
    rows += [flat("block", one) for one in found.blocks]
    rows += [flat("part", one) for one in found.parts]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def flat(level: str, part: Part) -> dict[str, Any]:
    """One level of names: ``both_kl``, ``weights_kl_error``, ``input_kurtosis``, ..."""
    row: dict[str, Any] = {
        "level": level,
        "name": part.name,
        "kind": part.kind,
        "layer": part.layer,
        "bits": part.bits,
        "weights": part.weights,
    }
    damage: Mapping[Any, Damage] = part.damage
    for kind in KINDS:
        one = damage.get(kind)
        for field in ("kl", "kl_error", "perplexity_ratio"):
            row[f"{kind}_{field}"] = None if one is None else getattr(one, field)
    for of, outliers in (("weight", part.weight_outliers), ("input", part.input_outliers)):
        for field in ("absmax_over_median", "kurtosis", "absmax_channels"):
            row[f"{of}_{field}"] = None if outliers is None else getattr(outliers, field)
    return row


def to_json(found: Analysis) -> str:
    """All of it, in nats and at full precision."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        **dataclasses.asdict(found),
        "sum_kl": found.sum,
        "by_kind": by_kind(found),
        "worst_by_weights": list(found.worst),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Analysis], str]] = {
    "terminal": terminal,
    "csv": to_csv,
    "json": to_json,
}
