"""Fit ``devices/projection.toml`` on published figures, and say how far such fits are off.

    python -m benchmarks.projection [--facts ../shared/facts/edge_published.csv] [--check]

The back-test: every row is predicted by a law of all rows but those of its model, and by one of all
rows but those of its device. Beside it, on the same rows, a pure roofline (bytes over the sheet's
bandwidth). Errors are factors, up or down: 1.10 is 10 % too fast or too slow. And, on our own runs
in ``benchmarks/results/peers-*.json``, how far ``estimate --fit`` is off for a model that is new to
it.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import published
from benchmarks.published import BANDWIDTH, FAMILIES, KEYS
from slmq_edge.errors import SlmqError
from slmq_edge.laws import Law, Off, Point, fit, left_out, off, ratios
from slmq_edge.projection import BYTES, KV, MACS, NAMES, ONCE, WEIGHTS, calibrate

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED", ROOT.parent / "shared"))
CSV = SHARED / "facts" / "edge_published.csv"
FITTED, RESULTS = ROOT / "devices" / "projection.toml", ROOT / "benchmarks" / "results"
FEWEST = 5  # rows of a law
MOST_KNOWN = "tensorrt-edge-llm-orin"
WORST = 2.0  # of nine in ten rows of a model left out: a law that is further off is not kept
# Keys and values in float32, a position: 2 layers kv_heads head_dim 4.
OWN_KV = {"SmolLM-135M": 46080, "SmolLM2-360M": 81920, "Qwen2.5-0.5B": 24576}


def main(
    facts: Annotated[Path, typer.Option(help="Published figures.")] = CSV,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, print the errors.")
    ] = False,
) -> None:
    """Refit, back-test, print, and write projection.toml and projection.json."""
    if not facts.is_file():
        sys.exit(f"error: no {facts}: set SLMQ_EDGE_SHARED, or give --facts")
    document, toml = made(facts, datetime.date.today().isoformat())
    typer.echo(text(document), nl=False)
    if check:
        return
    FITTED.write_text(toml, encoding="utf-8")
    (RESULTS / "projection.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    typer.echo(f"written: {FITTED}, {RESULTS / 'projection.json'}", err=True)


def made(facts: Path, date: str) -> tuple[dict[str, Any], str]:
    """The back-test as JSON, and the text of projection.toml."""
    used, unused = published.read(facts)
    families: dict[str, dict[str, Any]] = {}
    laws: dict[tuple[str, str], Law] = {}
    for name in FAMILIES:
        families[name] = {}
        for phase in NAMES:
            points = [p for row in used if row.family == name if (p := getattr(row, phase))]
            if len(points) >= FEWEST:
                tested, laws[name, phase] = back_test(points, phase)
                families[name][phase] = tested
    others = {name: apart(name, laws[name, "decode"], used) for name in FAMILIES}
    reasons = [reason for _, reason in unused]
    document = {
        "rows": len(used),
        "without_lengths": sum(not row.lengths for row in used),
        "left_out": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "families": families,
        "other_runtimes": {name: found for name, found in others.items() if found},
        "runs": own_runs(),
    }
    sources = {
        name: sorted({row.source for row in used if row.family == name}) for name in FAMILIES
    }
    return document, as_toml(document, laws, sources, date)


def back_test(points: Sequence[Point], phase: str) -> tuple[dict[str, Any], Law]:
    """Fit one family's law, and see how far it is off on what it has not seen."""
    law, of_decode = fit(points, NAMES[phase]), phase == "decode"
    tested = {
        "rows": len(points),
        "models": len({point.model for point in points}),
        "devices": len({point.device for point in points}),
        "bytes": [round(pick(map(_bytes, points))) for pick in (min, max)] if of_decode else None,
        "fit": _off(off(ratios(law, points))),
    }
    for what, key in KEYS.items():
        found = left_out(points, NAMES[phase], key)
        tested[f"without_its_{what}"] = _off(off(found))
    if of_decode:
        tested["roofline"] = _off(off([p.features[BANDWIDTH] / p.seconds for p in points]))
        tested["roofline_of_smallest"] = _smallest(points, law)
    return tested, law


def _smallest(points: Sequence[Point], law: Law) -> dict[str, Any]:
    """Of the model with the fewest bytes, in the fastest mode: a roofline is so much too fast."""
    best = [p for p in points if p.mode == _fastest(law)]
    point = min(best, key=_bytes)
    return {"model": point.model, "too_fast": round(point.seconds / point.features[BANDWIDTH], 3)}


def _bytes(point: Point) -> float:
    """That a decoded token reads."""
    return point.features[BANDWIDTH] * published.BOARDS[point.device].bandwidth


def apart(name: str, law: Law, rows: Sequence[published.Row]) -> dict[str, Any] | None:
    """Other runtimes on the same boards in their fastest mode, against this family's law."""
    boards = {published.BOARDS[board].sheet for board in FAMILIES[name].boards}
    found = []
    for row in rows:
        point = row.decode
        sheet = published.BOARDS[point.device].sheet
        fastest = point.mode in ("", "MAXN_SUPER")
        if row.family != name and sheet in boards and fastest:
            plain = Law(law.costs)
            found.append(point.seconds / plain.seconds(point.features))
    if len(found) < FEWEST:
        return None
    return {
        "rows": len(found),
        "slower": round(max(1.0, float(np.quantile(found, 0.9))), 4),
        "faster": round(max(1.0, 1 / float(np.quantile(found, 0.1))), 4),
    }


def own_runs() -> dict[str, Any]:
    """How far ``--fit`` is off: laws of runs of other models, threads and scheme the same."""
    groups: dict[tuple[str, int], list[dict[str, Point]]] = {}
    for file in sorted(RESULTS.glob("peers-*.json")):
        document = json.loads(file.read_text("utf-8"))
        for row in document["rows"]:
            if row["contestant"].startswith("ours"):
                for threads, found in _own_points(row, document["plan"]):
                    groups.setdefault((row["contestant"], threads), []).append(found)
    missed: dict[str, list[float]] = {"decode": [], "prefill": []}
    for group in groups.values():
        for found in group:
            others = [one for one in group if one["decode"].model != found["decode"].model]
            try:
                laws = calibrate({phase: [one[phase] for one in others] for phase in missed})
            except SlmqError:
                continue  # too few, or too much alike
            for phase, law in laws.items():
                missed[phase] += ratios(law, [found[phase]])
    return {phase: _off(off(found)) for phase, found in missed.items()}


def _own_points(row: Mapping[str, Any], plan: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """Points of decoding at each depth, with the prefill of as many tokens as were appended."""
    found = []
    for threads in plan["threads"]:
        for depth in plan["depths"]:
            taken = [s for s in row["samples"] if (s["threads"], s["depth"]) == (threads, depth)]
            decode = statistics.median(s["decode_seconds"] for s in taken) / plan["new"]
            prefill = statistics.median(s["whole_seconds"] for s in taken)
            positions = depth + plan["prompt"]
            # The files are of tied models: what lies there is what a token reads.
            weights = float(row["bytes"])
            kv = OWN_KV[row["shape"]] * (positions + plan["new"] / 2)
            features = {WEIGHTS: weights, KV: kv, BYTES: weights + kv, ONCE: 1.0}
            work = {MACS: weights * positions, ONCE: 1.0}  # of one scheme, macs are as the bytes
            points = {
                "decode": Point(features, decode, row["shape"], "here"),
                "prefill": Point(work, prefill, row["shape"], "here"),
            }
            found.append((threads, points))
    return found


def _fastest(law: Law) -> str:
    return min(law.modes, key=lambda mode: law.modes[mode]) if law.modes else ""


def _off(found: Off | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "median": round(found.median, 4),
        "ninetieth": round(found.ninetieth, 4),
        "rows": found.rows,
    }


def as_toml(
    document: Mapping[str, Any],
    laws: Mapping[tuple[str, str], Law],
    sources: Mapping[str, Sequence[str]],
    date: str,
) -> str:
    """projection.toml: only what ``estimate`` reads."""
    lines = [
        "# Made by python -m benchmarks.projection: fit again, do not edit.",
        "# costs: seconds for each second that the bytes take at the sheet's bandwidth, or the",
        "# multiply-adds at its peak; for each layer; and once. off_by: the factor by which nine",
        "# in ten rows of a model, or of a device, were missed by a law that had not seen it.",
        "# slower, faster: how far other runtimes on these boards are from the family's decoding,",
        "# of nine in ten. bytes: a token's, in the rows, least and most.",
    ]
    for name, family in FAMILIES.items():
        tested = document["families"][name]
        kept = [phase for phase in tested if _is_kept(tested[phase])]
        if "decode" not in kept:
            continue
        sheets = sorted({published.BOARDS[board].sheet for board in family.boards})
        lines += [
            "",
            f"[families.{_key(name)}]",
            f"title = {_quoted(family.title)}",
            f"targets = {_list(family.targets)}",
            f"devices = {_list(sheets)}",
            f"others = {_list(family.others)}",
            f"source = {_quoted('; '.join(sources[name]))}",
            f"fitted = {_quoted(date)}",
            f"bytes = {tested['decode']['bytes']}",
        ]
        # Thor's boards have run nothing else: what is so on Orin stands in.
        other = document["other_runtimes"].get(name) or document["other_runtimes"][MOST_KNOWN]
        lines += [f"slower = {other['slower']}", f"faster = {other['faster']}"]
        for phase in kept:
            lines += _phase(name, phase, tested[phase], laws[name, phase])
    for phase, found in document["runs"].items():
        lines += ["", f"[runs.{phase}]"]
        lines += [f"ninetieth = {found['ninetieth']}", f"rows = {found['rows']}"]
    return "\n".join(lines) + "\n"


def _phase(name: str, phase: str, tested: Mapping[str, Any], law: Law) -> list[str]:
    costs = ", ".join(f"{key} = {cost:.5g}" for key, cost in law.costs.items())
    lines = ["", f"[families.{_key(name)}.{phase}]", f"costs = {{ {costs} }}"]
    if law.modes:
        modes = ", ".join(f"{_quoted(key)} = {one:.4f}" for key, one in law.modes.items())
        lines.append(f"modes = {{ {modes} }}")
    lines += [f"rows = {tested['rows']}"]
    for what in KEYS:
        if found := tested[f"without_its_{what}"]:
            lines.append(f"off_by_{what} = {found['ninetieth']}")
    return lines


def _is_kept(tested: Mapping[str, Any]) -> bool:
    missed = tested["without_its_model"]
    return missed is not None and missed["ninetieth"] <= WORST


def _key(name: str) -> str:
    return _quoted(name) if "." in name else name


def _quoted(value: str) -> str:
    return json.dumps(value)


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def text(document: Mapping[str, Any]) -> str:
    """The back-test as a table: factors, median and ninetieth percentile."""
    lines = [
        f"{document['rows']} rows used, {document['without_lengths']} of them without lengths "
        "(no keys and values counted); left out:",
        *(f"  {count:>3}  {reason}" for reason, count in document["left_out"].items()),
        "",
        "off by a factor of (median / 90th percentile)",
        f"{'family, phase':<36}{'rows':>5}{'fit':>14}{'new model':>14}{'new device':>14}"
        f"{'roofline':>14}",
    ]
    for name, phases in document["families"].items():
        for phase, tested in phases.items():
            cells = ("fit", "without_its_model", "without_its_device", "roofline")
            columns = "".join(f"{_pair(tested.get(cell)):>14}" for cell in cells)
            dropped = "" if _is_kept(tested) else "  not kept"
            lines.append(f"{f'{name}, {phase}':<36}{tested['rows']:>5}{columns}{dropped}")
    lines.append("")
    for name, phases in document["families"].items():
        found = phases["decode"]["roofline_of_smallest"]
        lines.append(
            f"a pure roofline of {found['model']} ({name}): {found['too_fast']:.1f} times too fast"
        )
    for name, found in document["other_runtimes"].items():
        lines.append(
            f"other runtimes against {name}: up to {found['slower']:.2f} times slower, "
            f"{found['faster']:.2f} times faster (9 in 10 of {found['rows']} rows)"
        )
    for phase, found in document["runs"].items():
        lines.append(f"--fit on our own runs, {phase}: {_pair(found)} ({found['rows']} points)")
    return "\n".join(lines) + "\n"


def _pair(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['median']:.2f} / {found['ninetieth']:.2f}"


if __name__ == "__main__":
    typer.run(main)
