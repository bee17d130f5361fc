"""Where a run is not what the released code would have done, a line each (METHODS 1 to 3, 5.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slmq_edge.presets import GPTQ, OURS, UPSTREAM
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


def _rounds_activations(run: Run) -> bool:
    return run.scheme.activations is not None


def _inputs_are_asymmetric(run: Run) -> bool:
    return run.scheme.activations is not None and not run.scheme.activations.symmetric


def _weights_are_4_bits(run: Run) -> bool:
    return run.scheme.weights is not None and run.scheme.weights.bits == 4


def _scales_channels(run: Run) -> bool:
    """omniquant's LET, which by default is on where activations are rounded."""
    let = run.settings.get("let")
    return _rounds_activations(run) if let is None else bool(let)


def _is_set(name: str, value: Any) -> Callable[[Run], bool]:
    return lambda run: run.settings.get(name) == value


ARITHMETIC = "arithmetic of rounding is float32; released: bfloat16"
# By method: when, and what. The first part of a line is what was done here.
KNOWN: dict[str, tuple[tuple[Callable[[Run], bool], str], ...]] = {
    "none": (),
    "smoothquant": (
        (_always, "windows are cut from the joined text; released: 512 documents, each alone"),
        (_always, "a channel that no token used keeps scale 1; released: 1e-5"),
        (_weights_are_4_bits, "4-bit weights; released: 8-bit alone"),
        (_always, ARITHMETIC),
        (_is_set("alpha", "auto"), "alpha is searched; released: 0.85 for a Llama"),
    ),
    "gptq": (),
    "omniquant": (
        (
            lambda run: _rounds_activations(run) and run.scheme.kv is None,
            "operands of attention stay float; released: 8 bits, asymmetric",
        ),
        (
            lambda run: (
                _rounds_activations(run) and run.scheme.kv is not None and run.scheme.query is None
            ),
            "queries stay float, ranges of keys and values hold 0; released: 8 bits, asymmetric, "
            "ranges need not",
        ),
        (_inputs_are_asymmetric, "ranges of inputs hold 0; released: they need not"),
        (
            lambda run: run.scheme.weights is not None and not run.scheme.weights.symmetric,
            "ranges of weights hold 0; released: they need not",
        ),
        (
            lambda run: _scales_channels(run) and run.settings.get("gqa") == "shared",
            "scales of v, o, q, k are shared by a group of queries and tied by rotary pair; "
            "released: none where queries are grouped",
        ),
        (_scales_channels, "folded in float32; released: float16"),
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
        (
            lambda run: run.settings.get("steps") != 0,
            "no random retraction while learning, rotations made orthogonal at the end",
        ),
    ),
}
WINDOWS = "windows are spread evenly over the text; released: drawn or taken from its start"
TEXTS = {"smoothquant": "the Pile's validation set"}


def deviations(run: Run) -> tuple[str, ...]:
    """All lines that hold for a run; none where no release stands behind its method."""
    lines = [text for applies, text in KNOWN.get(run.method, ()) if applies(run)]
    if run.method in OURS or run.method not in UPSTREAM:
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
    if run.scheme.query is not None or (run.method == "omniquant" and _rounds_activations(run)):
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
    released["linears with 8-bit weights"] = (run.scheme.protects or None, 0)
    values = upstream.values(bits)
    unused = _unused(run)
    released |= {
        name: (run.settings.get(name), value)
        for name, value in values.items()
        if name not in unused
    }
    return [
        f"{name} {ours}; released: {theirs}"
        for name, (ours, theirs) in released.items()
        if ours is not None and str(ours) != str(theirs)
    ]


def _unused(run: Run) -> set[str]:
    """Settings that did nothing in this run, or of which there is no released value."""
    unused: set[str] = set()
    if run.method == "spinquant" and run.settings.get("rounding") != "gptq":
        unused |= set(GPTQ)
    if run.method == "omniquant" and not _scales_channels(run):
        unused |= {"alpha", "let_rate", "gqa"}
    if run.method == "smoothquant" and _weights_are_4_bits(run):
        unused.add("alpha")
    return unused
