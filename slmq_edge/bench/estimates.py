"""How long a cell will take: a law, and what cells of its kind have taken since.

    quantize       process + tokens x parameters x seconds of the method (PER_TOKEN)
                   distill: of its start, + tokens learned from x parameters x LEARNED, and WRITTEN
                   of those that the model writes, or its minutes
    export         process + parameters x EXPORT
    profile        process + windows of power + rounds x (prompt + steps that read the weights)
    eval           process + tokens of its questions x parameters x FORWARD
    analyze        as quantize, + 15 passes of each block's model over what is held out
    distributions  as quantize

The constants are of two cores of an x86-64 server (benchmarks/results/quantize-SmolLM-135M.json,
and the built-in models for the processes). They are estimates: on another machine the first cells
of a kind correct those that follow.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slmq_edge.bench import verbs
from slmq_edge.bench.cells import Cell
from slmq_edge.bench.feasible import Made
from slmq_edge.presets import UPSTREAM
from slmq_edge.settings import says

# Seconds of a verb on a model of no size: Python, libraries, golden prompts.
PROCESS = {
    "quantize": 3.0,
    "export": 9.0,
    "build": 30.0,
    "profile": 3.0,
    "eval": 6.0,
    "analyze": 6.0,
    "distributions": 6.0,
}
# Seconds for a calibration token and a parameter, on one thread.
PER_TOKEN = {"none": 0.0, "smoothquant": 2.2e-11, "gptq": 8.3e-11}
EPOCH, STEP, ROTATED = 1.2e-10, 6.2e-8, 8.3e-11  # OmniQuant's pass; SpinQuant's step, and rounding
# Distill's step for each token that it learns from, each that it writes, each that it is judged by.
LEARNED, WRITTEN, JUDGED = 1.5e-10, 7e-11, 9e-11
DISTILL, CLIPPED = "distill", "clipped"
OWN = {"text": 0.0, "own": 1.0, "both": 0.5}  # of its batches
EXPORT = 2e-7
READ_BYTES, PREFILL_RATE = 1e10, 1e11  # of weights; of tokens x parameters
TOKEN_SECONDS = 3e-4  # of a decoding step that reads nothing
POWER_WINDOWS = 3
FORWARD = 2e-11  # seconds for a token and a parameter, scored
DEFAULT_PARAMETERS = 135e6  # of a model that is not here yet
# Questions of a task, and tokens that one of them costs, all choices together.
QUESTIONS = {
    "mmlu": (14042, 400),
    "arc_easy": (2376, 130),
    "arc_challenge": (1172, 150),
    "piqa": (1838, 80),
    "hellaswag": (10042, 400),
    "wikitext2_documents": (62, 5500),
    "wikitext2_windows": (165, 2048),
}
# Of a tokenizer with so few words a text has more tokens.
FEW_WORDS, MORE_TOKENS = 8192, 2
SCORED_SECONDS = 2e-5  # for a token of a model of no size
SUBJECTS = {"mmlu": 57}  # --limit is of each
SLICED = {"mmlu": 570, "wikitext2_documents": 10, "wikitext2_windows": 30}
SLICE = 200


def seconds(cell: Cell, made: Made | None) -> float:
    """What a cell will take by the law."""
    parameters = DEFAULT_PARAMETERS
    if made is not None and made.shape is not None:
        parameters = float(made.shape.parameters)
    words = verbs.parsed(cell.command, cell.id)
    law = LAWS.get(cell.kind)
    return PROCESS[cell.kind] + (law(words, made, parameters) if law else 0.0)


def _quantize(words: Mapping[str, Any], made: Made | None, parameters: float) -> float:
    tokens = 32768 if made is None or made.shape is None else made.tokens
    settings = {} if made is None else made.settings
    each = _each(words["method"], tokens, settings) * parameters
    if words["method"] == DISTILL and says(settings, "minutes"):
        each += 60 * float(settings["minutes"])
    return each


def _each(method: str, tokens: int, settings: Mapping[str, Any]) -> float:
    """Seconds for a parameter; those by the clock aside."""
    if method == DISTILL:
        # Not said: smoothquant, or clipped, which costs as little.
        start = str(settings["start"]) if says(settings, "start") else CLIPPED
        begun = 0.0 if start == CLIPPED else _each(start, tokens, UPSTREAM[start].values(4))
        return begun + FORWARD * tokens + _distilled(tokens, settings)
    if method == "omniquant":
        return EPOCH * tokens * float(settings.get("epochs", 20))
    if method == "spinquant":
        return ROTATED * tokens + STEP * float(settings.get("steps", 100))
    return PER_TOKEN.get(method, PER_TOKEN["gptq"]) * tokens


def _distilled(tokens: int, settings: Mapping[str, Any]) -> float:
    """Seconds of learning for a parameter, by epochs: each sees what is not held out once."""
    if says(settings, "minutes"):
        return 0.0
    share, held = OWN.get(str(settings.get("learn_from")), 0.5), settings.get("held_out", 0.1)
    held = tokens * float(held)
    # Half of a batch of both is the text's: an epoch then learns from as much again.
    learned = (tokens - held) / (1.0 if share == 1.0 else 1.0 - share)
    epochs = float(settings.get("epochs", 12))
    return epochs * (learned * (LEARNED + share * WRITTEN) + held * JUDGED)


def _export(words: Mapping[str, Any], made: Made | None, parameters: float) -> float:
    return EXPORT * parameters


def _profile(words: Mapping[str, Any], made: Made | None, parameters: float) -> float:
    rounds = words["repetitions"] + words["warmups"]
    prompt = words["prompt_tokens"] * parameters / PREFILL_RATE
    step = TOKEN_SECONDS + 4 * parameters / READ_BYTES
    return float(
        rounds * (prompt + words["new_tokens"] * step) + POWER_WINDOWS * words["power_seconds"]
    )


def _eval(words: Mapping[str, Any], made: Made | None, parameters: float) -> float:
    from slmq_edge.tracks.accuracy import tasks

    tokens = 0.0
    for name in tasks.named(words["names"]):
        count, each = QUESTIONS.get(name, (SLICE, 100))
        if words["slices"]:
            count = min(count, SLICED.get(name, SLICE))
        if words["limit"] is not None:
            count = min(count, words["limit"] * SUBJECTS.get(name, 1))
        tokens += count * each
    if made is not None and made.shape is not None and made.shape.vocab < FEW_WORDS:
        tokens *= MORE_TOKENS
    return tokens * (FORWARD * parameters + SCORED_SECONDS)


def _analyze(words: Mapping[str, Any], made: Made | None, parameters: float) -> float:
    layers = 30 if made is None or made.shape is None else made.shape.layers
    held_out = words.get("held_out") or 16
    passes = 15 * layers * held_out * 128 * FORWARD * parameters
    return _quantize(words, made, parameters) + passes


LAWS: dict[str, Callable[[Mapping[str, Any], Made | None, float], float]] = {
    "quantize": _quantize,
    "export": _export,
    "profile": _profile,
    "eval": _eval,
    "analyze": _analyze,
    "distributions": _quantize,
}


def learned(
    cells: Sequence[Cell], law: Mapping[str, float], taken: Mapping[str, float]
) -> dict[str, float]:
    """The law's seconds, corrected by what cells of the same kind and model have taken.

    Where none of that model has been done, those of that kind correct it. law, taken: by cell;
    those without a law are left out.
    """
    by_model: dict[tuple[str, str], list[float]] = {}
    by_kind: dict[str, list[float]] = {}
    for cell in cells:
        if cell.id in taken and law.get(cell.id):
            ratio = taken[cell.id] / law[cell.id]
            by_model.setdefault((cell.kind, cell.of.get("model", "")), []).append(ratio)
            by_kind.setdefault(cell.kind, []).append(ratio)
    found = {}
    for cell in cells:
        if cell.id in law:
            seen = by_model.get((cell.kind, cell.of.get("model", ""))) or by_kind.get(cell.kind)
            found[cell.id] = law[cell.id] * (statistics.median(seen) if seen else 1.0)
    return found


def left(cells: Sequence[Cell], expected: Mapping[str, float], jobs: int) -> float:
    """Seconds for all of these: what may run side by side here does, boards work beside it."""
    from slmq_edge.bench.schedule import is_quiet, works_here

    alone = sum(expected.get(cell.id, 0.0) for cell in cells if is_quiet(cell))
    shared = sum(
        expected.get(cell.id, 0.0) for cell in cells if works_here(cell) and not is_quiet(cell)
    )
    boards: dict[str, float] = {}
    for cell in cells:
        if cell.is_remote:
            boards[cell.address] = boards.get(cell.address, 0.0) + expected.get(cell.id, 0.0)
    return max([alone + shared / jobs, *boards.values()])
