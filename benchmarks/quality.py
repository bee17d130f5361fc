"""What each method keeps: exported artifacts on held-out text, against full precision and rounding.

Every row is a bundle, scored through the runner on text and questions that the models never saw and
that chose no setting. A seed shuffles the calibration documents, starts SpinQuant's rotations, and
draws the lessons of distill.

    python benchmarks/quality.py results.json [--model stories260K] [--seeds 3]

Rows that results.json already holds are not measured again. The share won back is what a method
keeps of the log-perplexity that plain rounding to the same scheme loses; where there are groups, of
what rounding per channel loses.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from slmq_edge import builtin, models
from slmq_edge.builtin import score, world
from slmq_edge.files import write_text_atomically

STORIES = "stories260K"
MODELS = (STORIES, *builtin.MODELS)
WINDOW = 512
SHARED = Path(os.environ.get("SLMQ_EDGE_SHARED") or Path(__file__).parents[2] / "shared")


@dataclass(frozen=True)
class Case:
    """A method in a scheme by a preset, and what differs from the preset: words and settings."""

    scheme: str
    method: str
    preset: str = "upstream"
    words: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        said = {**self.words, **self.settings}
        preset = [] if self.preset == "upstream" else [self.preset]
        return " ".join([self.method, *preset, *(f"{key} {value}" for key, value in said.items())])


# Windows and their length, and epochs where there are any: what a model of a million parameters can
# use, and a benchmark of three seeds can wait for.
BUDGET = {
    "none": (None, None),
    "smoothquant": (128, 512),
    "gptq": (128, 512),
    "omniquant": (32, 256),
    "spinquant": (128, 512),
    "distill": (128, 512),
}
EPOCHS = 10
METHODS = ("smoothquant", "gptq", "omniquant", "spinquant", "distill")

CASES = (
    Case("fp32", "none"),
    *(Case(scheme, "none") for scheme in ("w8a8", "w4a8", "w4a8-g32")),
    Case("w4a8", "none", words={"weights": "asymmetric", "activations": "asymmetric"}),
    *(Case("w8a8", name) for name in METHODS),
    *(Case("w4a8", name) for name in METHODS),
    *(Case("w4a8", name, "best") for name in ("gptq", "spinquant", "distill")),
    *(Case("w4a8-g32", name, "best") for name in ("gptq", "spinquant", "distill")),
    Case("w4a8", "spinquant", settings={"learn_weights": "target"}),
    Case("w4a8", "spinquant", settings={"rounding": "nearest"}),
    Case("w4a8-g32", "spinquant"),
    Case("w4a8-g32", "distill"),
    Case("w4a8", "omniquant", words={"weights": "symmetric"}),
)


def main(
    output: Annotated[Path, typer.Argument(help="JSON file to add rows to.")],
    model: Annotated[list[str] | None, typer.Option(help="Default: all three.")] = None,
    seeds: Annotated[int, typer.Option(help="How many, from 0.")] = 3,
) -> None:
    """Measure what is missing, a row at a time, then print the table."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = json.loads(output.read_text()) if output.exists() else []
    known = {(row["model"], row["scheme"], row["case"], row["seed"]) for row in rows}
    for name, case, seed in _wanted(model or MODELS, seeds):
        if (name, case.scheme, case.name, seed) in known:
            continue
        rows.append(measured(name, case, seed))
        typer.echo(" ".join(str(value) for value in rows[-1].values()), err=True)
        write_text_atomically(output, json.dumps(rows, indent=1) + "\n", force=True)
    typer.echo(table(rows))


def _wanted(names: Iterable[str], seeds: int) -> Iterator[tuple[str, Case, int]]:
    for name in names:
        for case in CASES:
            # Plain rounding has nothing to choose.
            for seed in range(1 if case.method == "none" else seeds):
                yield name, case, seed


def measured(name: str, case: Case, seed: int = 0) -> dict[str, Any]:
    """Quality of one bundle, and the seconds that quantizing took."""
    from slmq_edge import presets
    from slmq_edge.export import export
    from slmq_edge.quantize import Request, plan, quantize
    from slmq_edge.runner import manifest
    from slmq_edge.runner.ort import open_bundle

    settings = dict(case.settings)
    if case.method in ("spinquant", "distill"):
        settings["seed"] = seed
    if case.method == "omniquant":
        settings.setdefault("epochs", EPOCHS)
    preset = presets.preset(case.preset, case.method)
    windows, length = BUDGET[case.method]
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "calibration.jsonl"
        text.write_text(shuffled(calibration_documents(name), seed), encoding="utf-8")
        request = Request(
            presets.scheme_for(preset, {"name": case.scheme, **case.words}),
            case.method,
            text,
            windows=windows,
            length=length,
            settings=settings,
            preset=case.preset,
        )
        checkpoint = quantize(plan(str(source(name)), request))
        folder = Path(scratch) / "bundle"
        document = export(checkpoint, folder)
        session = open_bundle(folder, manifest.read_bundle(folder), threads=1)
        tokenizer = models.read_tokenizer(folder)
        asked = None if name == STORIES else accuracy(session, tokenizer)
        return {
            "model": name,
            "scheme": case.scheme,
            "case": case.name,
            "seed": seed,
            "ran": document["lowering"]["scheme_ran"],
            "activations": document["lowering"]["activation_mode"],
            "log_perplexity": log_perplexity(session, heldout(name, tokenizer)),
            "accuracy": asked,
            "quantize_seconds": round(checkpoint.cost["seconds"], 1),
        }


def source(name: str) -> str | Path:
    return SHARED / "models" / name if name == STORIES else name


def calibration_documents(name: str) -> list[str]:
    """What the model was trained on, or text of the same kind."""
    if name == STORIES:
        return _texts(SHARED / "data/tinystories/train_head290.jsonl")
    return list(world.calibration_text())


def shuffled(documents: list[str], seed: int) -> str:
    """The documents as JSONL, in an order of the seed's own (0: as they are)."""
    order = list(documents)
    if seed:
        random.Random(seed).shuffle(order)
    return "".join(json.dumps({"text": text}) + "\n" for text in order)


def heldout(name: str, tokenizer: Any) -> list[list[int]]:
    """Held-out token sequences: stories, each alone; or windows of 512, the tail dropped."""
    if name == STORIES:
        texts = _texts(SHARED / "data/tinystories/valid_head14.jsonl")
        return [tokenizer(text, truncation=True, max_length=WINDOW)["input_ids"] for text in texts]
    stream = score.stream(tokenizer, world.heldout_documents())
    return [stream[at : at + WINDOW] for at in range(0, len(stream) - WINDOW + 1, WINDOW)]


def _texts(file: Path) -> list[str]:
    rows = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["text"] for row in rows]


def log_probabilities(session: Any, tokens: list[int]) -> NDArray[np.float64]:
    """Log-probability of every token but the first, [length - 1]."""
    logits = session.prefill(np.array([tokens]))[0][0, :-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    found: NDArray[np.float64] = logits[np.arange(len(logits)), tokens[1:]]
    return found


def log_perplexity(session: Any, sequences: list[list[int]]) -> float:
    """Mean negative log-probability in nats, over all tokens but each sequence's first."""
    scored = [log_probabilities(session, tokens) for tokens in sequences]
    return -float(np.concatenate(scored).mean())


def accuracy(session: Any, tokenizer: Any) -> float:
    """Share of questions whose right choice has the highest log-probability."""

    def likelihood(context: list[int], continuation: list[int]) -> float:
        return float(log_probabilities(session, context + continuation)[-len(continuation) :].sum())

    return score.score_questions(likelihood, tokenizer, world.questions())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each model, scheme and case, mean and spread over the seeds."""
    lines = [
        "| model | scheme | method | perplexity | against rounding | won back | accuracy | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key in dict.fromkeys((row["model"], row["scheme"], row["case"]) for row in rows):
        same = [row for row in rows if (row["model"], row["scheme"], row["case"]) == key]
        lines.append(_line(*key, same, _references(rows, *key[:2])))
    return "\n".join(lines)


def _references(rows: list[dict[str, Any]], name: str, scheme: str) -> tuple[float, float] | None:
    """Log-perplexity in full precision, and rounded per channel; ``None`` where not measured."""
    plain = {
        row["scheme"]: row["log_perplexity"]
        for row in rows
        if row["model"] == name and row["case"] == "none"
    }
    rounded = scheme.partition("-")[0]
    if scheme == "fp32" or not {"fp32", rounded} <= set(plain):
        return None
    return plain["fp32"], plain[rounded]


def _line(
    name: str,
    scheme: str,
    case: str,
    rows: list[dict[str, Any]],
    references: tuple[float, float] | None,
) -> str:
    found = [row["log_perplexity"] for row in rows]
    perplexities = [math.exp(one) for one in found]
    against = shares = ""
    if references is not None:
        full, rounded = references
        against = f"{100 * (math.exp(statistics.mean(found) - rounded) - 1):+.2f} %"
        shares = spread([100 * (rounded - one) / (rounded - full) for one in found], 0) + " %"
    right = [100 * row["accuracy"] for row in rows if row["accuracy"] is not None]
    seconds = statistics.mean(row["quantize_seconds"] for row in rows)
    answers = f"{spread(right, 1)} %" if right else ""
    cells = (
        name,
        scheme,
        case,
        spread(perplexities, 3),
        against,
        shares,
        answers,
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], digits: int) -> str:
    """Mean, and half of the distance between the largest and the smallest."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


if __name__ == "__main__":
    typer.run(main)
