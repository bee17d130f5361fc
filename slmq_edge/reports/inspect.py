"""What is inside a bundle or a checkpoint, as text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from slmq_edge.inspection import Inspected
from slmq_edge.reports.card import license_text, runtime_name
from slmq_edge.reports.format import bytes_text, seconds_text, share_text
from slmq_edge.reports.made import (
    calibration_text,
    changes_text,
    cost_text,
    grids,
    names_text,
    online_text,
    ran_text,
    stages_text,
    verified_text,
)
from slmq_edge.runner.profiled import Step
from slmq_edge.scheme import Scheme

FORMAT, VERSION = "slmq-edge-inspect", 1
# Seen and counted shares that differ by more than this are said to.
TOLERANCE = 0.01
LINEARS = ("linear", "count", "asked", "executed", "operator", "bits on disk, in memory", "input",
           "exact", "share of work")  # fmt: skip
OPERATORS = ("operator", "provider", "calls", "time", "share of work", "integers")

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def facts(found: Inspected) -> dict[str, str]:
    """What there is to say, a line each, by name."""
    manifest, is_bundle = found.manifest, found.kind == "bundle"
    said = {
        "model": _model(found.model),
        "licence": license_text(found.model, found.license_texts),
        "method": _method(found),
        **(_of_bundle(manifest) if is_bundle else _of_checkpoint(manifest)),
        "calibration": _calibration(manifest.get("calibration")),
        "cost": cost_text(manifest["cost"]),
        "stages": stages_text(manifest["cost"]),
        "size on disk": bytes_text(sum(found.sizes.values())),
        "of that": ", ".join(f"{part} {bytes_text(n)}" for part, n in found.sizes.items()),
        "files": _files(found),
        "made by": manifest.get("created_by"),
    }
    return {name: text for name, text in said.items() if text}


def remarks(found: Inspected) -> list[str]:
    """Notes of the method, and where the run is not what the released code does."""
    recipe = found.manifest.get("recipe") or {}
    notes = [f"note: {note}" for note in found.manifest.get("notes", ())]
    return [*notes, *(f"deviation: {line}" for line in recipe.get("deviations", ()))]


def tables(found: Inspected) -> list[Table]:
    """Title, headings and cells: the linears by kind, and the operators that ran."""
    listed: list[Table] = []
    if found.rows:
        listed.append(("Linears", LINEARS, _linears(found.rows)))
    for name, step in found.ran.items():
        took = seconds_text(step.seconds)
        title = f"{name.capitalize()} of {step.graph}, by onnxruntime's record ({took})"
        listed.append((title, OPERATORS, _operators(step)))
    return listed


def seen(found: Inspected) -> str | None:
    """Whether what ran is what was counted when the graph was written."""
    if not found.ran:
        return None
    share = found.ran["decode"].integer_share
    counted = float(found.manifest["lowering"]["int8_gemm_share"])
    same = "as" if abs(share - counted) <= TOLERANCE else "NOT as"
    return (
        f"{share_text(share)} of a decoded token's multiply-adds by weights were between integers, "
        f"{same} counted ({share_text(counted)})"
    )


def terminal(found: Inspected) -> str:
    """Two columns, then tables, then remarks."""
    said = facts(found)
    width = max(map(len, said))
    parts = ["\n".join(f"{name:<{width}}  {text}" for name, text in said.items())]
    parts += [f"{title}\n{_columns([headings, *rows])}" for title, headings, rows in tables(found)]
    parts += [line for line in (seen(found), "\n".join(remarks(found))) if line]
    return "\n\n".join(parts) + "\n"


def markdown(found: Inspected) -> str:
    """GitHub's Markdown."""
    lines = [f"# {_escaped(found.place)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_escaped(text)} |" for name, text in facts(found).items()]
    for title, headings, rows in tables(found):
        lines += ["", f"## {_escaped(title)}", ""]
        lines += ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
        lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
    listed = [line for line in (seen(found), *remarks(found)) if line]
    lines += ["", *(f"- {_escaped(line)}" for line in listed)] if listed else []
    return "\n".join(lines) + "\n"


def to_json(found: Inspected) -> str:
    """The manifest, and what was found besides, in SI units."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "kind": found.kind,
        "place": found.place,
        "model": found.model,
        "changed_settings": found.settings,
        "bytes": found.sizes,
        "verified": found.verified,
        "problem": found.problem,
        "license_texts": found.license_texts,
        "ran": {name: _ran(step) for name, step in found.ran.items()} or None,
        "manifest": found.manifest,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Inspected], str]] = {
    "terminal": terminal,
    "md": markdown,
    "json": to_json,
}


def _model(model: Mapping[str, Any]) -> str:
    revision = model.get("revision")
    return f"{model['name']} ({model.get('origin')}{f', {revision}' if revision else ''})"


def _method(found: Inspected) -> str:
    preset = (found.manifest.get("recipe") or {}).get("preset")
    said = ", ".join(f"{name} {value}" for name, value in found.settings.items())
    settings = f"; not as upstream: {said}" if said else ""
    return f"{found.manifest['method']}{f', preset {preset}' if preset else ''}{settings}"


def _of_bundle(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    lowering, limits, runtime = manifest["lowering"], manifest["golden"], manifest["runtime"]
    bits = ", ".join(f"{part} {n}" for part, n in lowering["weight_storage_bits"].items())
    profile = runtime.get("profile")
    return {
        "scheme": f"{manifest['scheme_requested']} asked, {ran_text(lowering)} executed",
        "integer GEMM": f"{share_text(lowering['int8_gemm_share'])} of the weights' multiply-adds",
        "weights": lowering.get("weights"),
        "protected": names_text(lowering.get("protected", ())),
        "activations": lowering["activation_mode"],
        "lm_head": lowering["lm_head"],
        "KV cache": lowering.get("kv_cache"),
        "bits on disk": bits,
        "changed": changes_text(lowering),
        "attention": lowering.get("attention"),
        "online": ", ".join(lowering.get("online_rotations", ())),
        "linears": None if "linears" in lowering else "not recorded one by one (an older bundle)",
        "runtime": f"{runtime['kind']}{f', {profile}' if profile else ''}, "
        f"{runtime_name(runtime)} {runtime['minimum_version']} or later, "
        f"context of {manifest['context_length']} tokens",
        "golden limits": f"mean KL {limits['kl_limit']:.1e} nats, "
        f"perplexity {share_text(limits['perplexity_limit'])}",
        "golden check": verified_text(manifest.get("verified")),
        "of graphs": ", ".join((manifest.get("verified") or {}).get("graphs", ())),
    }


def _of_checkpoint(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    scheme = Scheme.from_json(manifest["scheme"])
    parts = grids(scheme, manifest["anatomy"]["tied"])
    return {
        "scheme": scheme.label,
        **{part: str(grid) for part, grid in parts.items()},
        "online": online_text(manifest),
    }


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "none"
    return f"{calibration_text(calibration)}, sha256 {calibration['sha256']}"


def _files(found: Inspected) -> str:
    if found.problem is not None:
        return f"NOT as they were written: {found.problem}"
    count = len(found.manifest["files"])
    return f"{count}, every sha256 verified" if found.verified else f"{count}, not verified"


def _linears(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows that say the same, block after block, as one; the share of work is of all of them."""
    listed = list(rows)
    total = sum(row["macs_per_token"] for row in listed)
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in listed:
        groups.setdefault(_cells(row), []).append(row["macs_per_token"])
    return [
        (kind, str(len(macs)), *rest, share_text(sum(macs) / total))
        for (kind, *rest), macs in groups.items()
    ]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    exact = {True: "yes", False: "NO", None: "float"}[row["exact"]]
    asked = row["asked_weights"]
    return (
        re.sub(r"^model\.layers\.\d+\.", "", row["name"]),
        "-" if asked is None else f"{asked}; input {row['asked_activations']}",
        row["scheme"],
        row["operator"],
        f"{row['storage_bits']}, {row['memory_bits']}",
        row["activation_mode"],
        exact,
    )


def _operators(step: Step) -> list[tuple[str, ...]]:
    return [
        (
            one.name,
            one.provider,
            str(one.calls),
            seconds_text(one.seconds),
            share_text(one.macs / step.macs) if one.macs else "",
            "yes" if one.integer else "",
        )
        for one in step.operators
    ]


def _ran(step: Step) -> dict[str, Any]:
    operators = [one._asdict() for one in step.operators]
    return {
        "graph": step.graph,
        "seconds": step.seconds,
        "integer_share": step.integer_share,
        "operators": operators,
    }


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _escaped(text: str) -> str:
    for character in "\\|*_`<":
        text = text.replace(character, f"\\{character}")
    return text
