"""What ``--method distill`` keeps, what of it helps, and what it costs beside the other methods.

Every row is a checkpoint as it simulates (which its artifacts are held to), on text that it never
saw and that chose no setting: held-out text of the kind it was calibrated on, and unrelated text
(WikiText-2 for stories260K, TinyStories for the built-in models), where a model that was fitted to
its calibration text would drift.

    python -m benchmarks.distill results.json [--table starts] [--model stories260K] [--seeds 3]

Rows that results.json already holds are not measured again. ``won back`` is the share of the
log-perplexity that plain rounding per channel loses; KL is the mean over positions of the
divergence from full precision, in millinats.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.quality import (
    MODELS,
    SHARED,
    STORIES,
    WINDOW,
    calibration_documents,
    heldout,
    shuffled,
    source,
    spread,
)
from slmq_edge import builtin, models, presets
from slmq_edge.builtin import score, world
from slmq_edge.files import write_text_atomically
from slmq_edge.scheme import TOKENS_8, WEIGHTS_4, Grid, Scheme

WINDOWS, LENGTH = 128, 512
# Tokens of unrelated text, in windows of WINDOW.
UNRELATED_WINDOWS = 16
W3A8 = Scheme("w3a8", Grid(3, WEIGHTS_4.per), TOKENS_8)


@dataclass(frozen=True)
class Case:
    """A method with settings on a scheme. as_long_as: a case that took its ``--minutes``."""

    method: str = "distill"
    scheme: str = "w4a8"
    preset: str = "upstream"
    settings: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    as_long_as: Case | None = None

    @property
    def name(self) -> str:
        """What it is called in the table, its scheme aside."""
        preset = [] if self.preset == "upstream" else [self.preset]
        said = {**self.words, **self.settings}
        words = [self.method, *preset, *(f"{key} {value}" for key, value in said.items())]
        if self.as_long_as is not None:
            words.append(f"as long as {self.as_long_as.name}")
        return " ".join(words)


# Few passes: enough to tell choices apart, three seeds of each in an evening.
SHORT = {"epochs": 4}
OTHERS = (
    Case("gptq"),
    Case("gptq", preset="best"),
    Case("omniquant"),
    Case("spinquant"),
    Case("spinquant", preset="best"),
)


def _tried(*settings: dict[str, Any]) -> tuple[Case, ...]:
    return tuple(Case(settings={**SHORT, **one}) for one in settings)


PLAIN = tuple(Case("none", scheme) for scheme in ("fp32", "w8a8", "w4a8", "w4a8-g32", "w3a8"))
TABLES: dict[str, tuple[Case, ...]] = {
    "schemes": (
        *(Case(scheme=scheme) for scheme in ("w4a8", "w4a8-g32", "w8a8", "w3a8")),
        Case(preset="best"),
        Case(scheme="w4a8-g32", preset="best"),
        Case(words={"kv": 8}),
        Case(words={"protect": 4}),
    ),
    "starts": _tried(
        {}, *({"start": start} for start in ("clipped", "gptq", "omniquant", "spinquant"))
    ),
    "data": _tried({}, {"learn_from": "text"}, {"learn_from": "own"}),
    "trained": _tried(
        {},
        {"scale_rate": 0, "gain_rate": 0},
        {"gain_rate": 0},
        {"scale_rate": 0},
        {"weight_rate": 0},
    ),
    "objective": _tried({}, {"blocks": 0.03}, {"blocks": 0.3}),
    "rates": _tried(
        {},
        {"weight_rate": 0.005},
        {"weight_rate": 0.02},
        {"scale_rate": 0.0005},
        {"scale_rate": 0.008},
        {"gain_rate": 0.0005},
        {"gain_rate": 0.008},
    ),
    "settling": _tried({}, {"settling": 0}, {"settling": 0.1}, {"settling": 1.0}),
    "others": (*OTHERS, Case(), *(Case(as_long_as=one) for one in OTHERS)),
}


def main(
    output: Annotated[Path, typer.Argument(help="JSON file to add rows to.")],
    table: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Default: all three.")] = None,
    seeds: Annotated[int, typer.Option(help="How many, from 0.")] = 3,
) -> None:
    """Measure what is missing, a row at a time, then print the tables."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = json.loads(output.read_text()) if output.exists() else []
    wanted = table or list(TABLES)
    for name in model or MODELS:
        for case, seed in _cases(wanted, seeds):
            if _row(rows, name, case, seed) is None:
                rows.append(measured(name, case, seed, rows))
                typer.echo(" ".join(str(value) for value in rows[-1].values()), err=True)
                write_text_atomically(output, json.dumps(rows, indent=1) + "\n", force=True)
    for one in wanted:
        typer.echo(f"\n{one}\n\n{text(rows, TABLES[one])}")


def _cases(tables: Iterable[str], seeds: int) -> Iterator[tuple[Case, int]]:
    """Each case once, though several tables have it; seeds are taken in turn."""
    for case in PLAIN:
        yield case, 0
    listed = [case for table in tables for case in TABLES[table]]
    by_name = {(case.scheme, case.name): case for case in listed}
    for seed in range(seeds):
        for case in by_name.values():
            yield case, seed


def _row(rows: list[dict[str, Any]], model: str, case: Case, seed: int) -> dict[str, Any] | None:
    key = (model, case.scheme, case.name, seed)
    return next((r for r in rows if (r["model"], r["scheme"], r["case"], r["seed"]) == key), None)


def measured(name: str, case: Case, seed: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One checkpoint, made and judged."""
    from slmq_edge.quantize import Request, plan, quantize
    from slmq_edge.simulation import Simulation

    settings = dict(case.settings)
    if case.method in ("distill", "spinquant"):
        settings["seed"] = seed
    if case.as_long_as is not None:
        before = _row(rows, name, case.as_long_as, seed)
        assert before is not None, "listed before"
        settings["minutes"] = max(1.0, before["seconds"]) / 60
    calibrates = case.method != "none"
    with tempfile.TemporaryDirectory() as scratch:
        calib = Path(scratch) / "calibration.jsonl"
        calib.write_text(shuffled(calibration_documents(name), seed), encoding="utf-8")
        request = Request(
            _scheme(case),
            case.method,
            calib,
            windows=WINDOWS if calibrates else None,
            length=LENGTH if calibrates else None,
            settings=settings,
            preset=case.preset,
        )
        checkpoint = quantize(plan(str(source(name)), request))
    simulation = Simulation(checkpoint)
    return {
        "model": name,
        "scheme": case.scheme,
        "case": case.name,
        "seed": seed,
        **_judged(name, simulation),
        "seconds": round(checkpoint.cost["seconds"], 1),
        "notes": list(checkpoint.notes),
    }


def _scheme(case: Case) -> Scheme:
    if case.scheme == W3A8.name:
        return W3A8
    preset = presets.preset(case.preset, case.method)
    return presets.scheme_for(preset, {"name": case.scheme, **case.words})


def _judged(name: str, simulation: Any) -> dict[str, Any]:
    """Log-perplexity and divergence on both texts, and the share of right answers."""
    import torch

    from slmq_edge.decoder import logits

    folder = Path(source(name)) if name == STORIES else builtin.folder(name)
    tokenizer = models.read_tokenizer(folder)
    full = models.read(folder).to(torch.float32)

    def log_probabilities(tokens: list[int]) -> Any:
        given = simulation.logits(torch.tensor([tokens]))[0].double()
        return torch.log_softmax(given, -1)

    def on(sequences: list[list[int]]) -> tuple[float, float]:
        surprise = divergence = count = positions = 0.0
        for tokens in sequences:
            ids = torch.tensor([tokens])
            found = log_probabilities(tokens)
            with torch.no_grad():
                true = torch.log_softmax(logits(full, ids)[0].double(), -1)
            surprise -= float(found[:-1].gather(-1, ids[0, 1:, None]).sum())
            divergence += float((true.exp() * (true - found)).sum())
            count, positions = count + len(tokens) - 1, positions + len(tokens)
        return surprise / count, divergence / positions

    held, far = on(heldout(name, tokenizer)), on(_unrelated(name, tokenizer))

    def likelihood(context: list[int], continuation: list[int]) -> float:
        tokens = context + continuation
        chosen = log_probabilities(tokens)[len(context) - 1 : -1]
        return float(chosen.gather(-1, torch.tensor(continuation)[:, None]).sum())

    asked = None
    if name != STORIES:
        asked = score.score_questions(likelihood, tokenizer, world.questions())
    return {
        "log_perplexity": held[0],
        "divergence": held[1],
        "unrelated_log_perplexity": far[0],
        "unrelated_divergence": far[1],
        "accuracy": asked,
    }


def _unrelated(name: str, tokenizer: Any) -> list[list[int]]:
    """Windows of text that a model was not calibrated on, nor on its like."""
    if name == STORIES:
        documents = [(SHARED / "data/wikitext2/wiki.valid.slice.raw").read_text(encoding="utf-8")]
    else:
        documents = calibration_documents(STORIES)
    stream = score.stream(tokenizer, documents)
    starts = range(0, min(len(stream) - WINDOW, UNRELATED_WINDOWS * WINDOW), WINDOW)
    return [stream[at : at + WINDOW] for at in starts]


def text(rows: list[dict[str, Any]], cases: Iterable[Case]) -> str:
    """Markdown: a line for each model and case that was measured, mean and spread over seeds."""
    lines = [
        "| model | scheme | case | won back | perplexity | KL | unrelated: perplexity | KL "
        "| right answers | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in MODELS:
        for case in cases:
            same = [
                row
                for row in rows
                if (row["model"], row["scheme"], row["case"]) == (name, case.scheme, case.name)
            ]
            if same:
                lines.append(_line(same, rows))
    return "\n".join(lines)


def _line(same: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    first = same[0]
    plain = {
        row["scheme"]: row["log_perplexity"]
        for row in rows
        if row["model"] == first["model"] and row["case"] == "none"
    }
    full, rounded = plain["fp32"], plain[first["scheme"].partition("-")[0]]
    won = [100 * (rounded - row["log_perplexity"]) / (rounded - full) for row in same]
    right = [100 * row["accuracy"] for row in same if row["accuracy"] is not None]
    cells = (
        first["model"],
        first["scheme"],
        first["case"],
        f"{spread(won, 0)} %",
        spread([math.exp(row["log_perplexity"]) for row in same], 3),
        spread([1000 * row["divergence"] for row in same], 1),
        spread([math.exp(row["unrelated_log_perplexity"]) for row in same], 2),
        spread([1000 * row["unrelated_divergence"] for row in same], 1),
        f"{spread(right, 1)} %" if right else "",
        f"{statistics.mean(row['seconds'] for row in same):.0f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
