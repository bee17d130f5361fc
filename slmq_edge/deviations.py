"""Where a run is not what the released code would have done, a line each (METHODS 1 to 3, 5.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slmq_edge.presets import UPSTREAM
from slmq_edge.scheme import WORDS, Scheme, words_of


@dataclass(frozen=True)
class Run:
    """What decides which deviations there are. text: the calibration text's name."""

    method: str
    scheme: Scheme
    settings: Mapping[str, Any]
    text: str | None
    windows: int | None
    length: int | None


def _always(run: Run) -> bool:
    return True


def _attention_is_float(run: Run) -> bool:
    return run.scheme.query is None


def _inputs_are_asymmetric(run: Run) -> bool:
    return run.scheme.activations is not None and not run.scheme.activations.symmetric


def _is_set(name: str, value: Any) -> Callable[[Run], bool]:
    return lambda run: run.settings.get(name) == value


ARITHMETIC = "arithmetic of rounding is float32; released: bfloat16"
# By method: when, and what. The first part of a line is what was done here.
KNOWN: dict[str, tuple[tuple[Callable[[Run], bool], str], ...]] = {
    "none": (),
    "smoothquant": (
        (_always, "windows are cut from the joined text; released: 512 documents, each alone"),
        (_always, "a channel that no token used keeps scale 1; released: 1e-5"),
        (
            lambda run: run.scheme.weights is not None and run.scheme.weights.bits == 4,
            "4-bit weights; released: 8-bit alone",
        ),
        (_always, ARITHMETIC),
        (_is_set("alpha", "auto"), "alpha is searched; released: 0.85 for a Llama"),
    ),
    "gptq": (),
    "omniquant": (
        (_attention_is_float, "operands of attention stay float; released: 8 bits, asymmetric"),
        (_inputs_are_asymmetric, "ranges of inputs hold 0; released: they need not"),
        (
            lambda run: run.scheme.weights is not None and not run.scheme.weights.symmetric,
            "ranges of weights hold 0; released: they need not",
        ),
        (
            _is_set("gqa", "shared"),
            "scales of v, o, q, k are shared by a group of queries and tied by rotary pair; "
            "released: none where queries are grouped",
        ),
        (_always, "folded in float32; released: float16"),
    ),
    "spinquant": (
        (
            lambda run: run.scheme.activations is not None and run.scheme.mixed is None,
            "o_proj's input has one scale a token; released: one a token and head",
        ),
        (
            _is_set("online", "auto"),
            "down_proj's input is rotated where a Hadamard matrix has its order; released: always",
        ),
        (_is_set("online", False), "down_proj's input is not rotated; released: it is"),
        (_is_set("rounding", "nearest"), "weights are rounded to nearest; released: by GPTQ"),
        (_always, ARITHMETIC),
        (_always, "the embedding's mean is kept, b_v is rotated; released: neither"),
        (_always, "a tied table stays one table; released: a copy is made"),
        (_always, "no random retraction while learning, rotations made orthogonal at the end"),
    ),
}
WINDOWS = "windows are spread evenly over the text; released: drawn or taken from its start"
TEXTS = {"smoothquant": "the Pile's validation set"}


def deviations(run: Run) -> tuple[str, ...]:
    """All lines that hold for a run; none for plain rounding, which no release stands behind."""
    lines = [text for applies, text in KNOWN.get(run.method, ()) if applies(run)]
    if run.method == "none" or run.method not in UPSTREAM:
        return tuple(lines)
    lines += [*_of_text(run), *_changed(run)]
    return tuple(lines)


def _of_text(run: Run) -> list[str]:
    released = TEXTS.get(run.method, "WikiText-2 train")
    text = [] if run.text == released else [f"calibrated on {run.text}; released: {released}"]
    return [*text, *([] if run.method == "smoothquant" else [WINDOWS])]


def _changed(run: Run) -> list[str]:
    """What was chosen otherwise than the released code's defaults, value by value."""
    upstream = UPSTREAM[run.method]
    # Of what no words say, the released code has as much: it is no change.
    sayable = dataclasses.replace(run.scheme, query=None, mixed=None)
    if run.scheme.query is not None:
        sayable = dataclasses.replace(sayable, kv=None)
    words = words_of(sayable) or {}
    bits = run.scheme.weights.bits if run.scheme.weights else 8
    released: dict[str, tuple[Any, Any]] = {
        "symmetry of weights": (words.get("weights"), upstream.weights),
        "symmetry of activations": (words.get("activations"), upstream.activations),
        "windows": (run.windows, upstream.windows),
        "length": (run.length, upstream.length),
    }
    for word in ("activation_scale", "kv", "lm_head", "embedding"):
        released[word.replace("_", " ")] = (words.get(word), WORDS[word][0])
    released["group of weights"] = (run.scheme.weights and run.scheme.weights.group, "the row")
    values = upstream.values(bits)
    released |= {name: (run.settings.get(name), value) for name, value in values.items()}
    return [
        f"{name} {ours}; released: {theirs}"
        for name, (ours, theirs) in released.items()
        if ours is not None and str(ours) != str(theirs)
    ]
