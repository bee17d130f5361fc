"""Presets: what the released code, the paper, or a short evening would have chosen (METHODS 5).

upstream         the released code's symmetry, calibration size and hyper-parameters
upstream-exact   the same, and what it rounds that no graph of ours can (simulation only)
paper            the symmetry that section 4.1 of the SLMQuant paper states
fast             upstream on few short windows: minutes on a CPU
best             GPTQ, alone or after rotations, with asymmetric weights and what is added to it
                 here: drift made up for, columns polished (docs/decisions/0011); distill with
                 asymmetric weights, for twice as long

A preset is a row per method. Whatever is said explicitly is said over it; where our upstream is not
the released code, ``deviations`` says so in the checkpoint. Behind distill there is no released
code and no paper: upstream and paper are its own defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmq_edge.errors import Unsupported, UsageError, unknown
from slmq_edge.quantization import METHODS
from slmq_edge.scheme import Grid, Scheme, in_words, meaningless, named, spoken

if TYPE_CHECKING:
    from slmq_edge.anatomy import Anatomy

DEFAULT = "upstream"
EXACT = "upstream-exact"


@dataclass(frozen=True)
class Preset:
    """What one preset says of one method.

    windows, length: of the calibration, ``None`` leaves them to the method. settings: by name, a
    value, or a value for each number of weight bits; a method takes those that it knows. What a
    method derives from scheme and other settings (let, learn_weights) is left to it.
    """

    weights: str = "symmetric"
    activations: str = "symmetric"
    windows: int | None = None
    length: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Preset:
        """The same with other fields; settings are added to its own."""
        settings = {**self.settings, **changes.pop("settings", {})}
        return dataclasses.replace(self, settings=settings, **changes)

    def values(self, weight_bits: int) -> dict[str, Any]:
        """The settings for weights of so many bits; without a value of their own, 8-bit's."""
        return {
            name: value.get(weight_bits, value[8]) if isinstance(value, Mapping) else value
            for name, value in self.settings.items()
        }


SYMMETRIC, ASYMMETRIC = "symmetric", "asymmetric"
# A Llama's, and what does not move outliers into 4-bit weights (METHODS 1.4, 5.4).
ALPHA = {8: 0.85, 4: 0.5}

GPTQ = {
    "damping": 0.01,
    "clip_search": True,
    "act_order": False,
    "drift": 0.0,
    "polish": 0,
}
BEST = {"drift": 0.5, "polish": 2}

UPSTREAM: dict[str, Preset] = {
    "none": Preset(),
    "smoothquant": Preset(windows=512, length=512, settings={"alpha": ALPHA}),
    "gptq": Preset(
        activations=ASYMMETRIC,
        windows=128,
        length=2048,
        settings=GPTQ,
    ),
    "omniquant": Preset(
        weights=ASYMMETRIC,
        activations=ASYMMETRIC,
        windows=128,
        length=2048,
        settings={
            "epochs": 20,
            "lwc": True,
            "let_rate": 5e-3,
            "lwc_rate": 1e-2,
            "alpha": 0.5,
            "gqa": "shared",
            "augmented": False,
        },
    ),
    "spinquant": Preset(
        activations=ASYMMETRIC,
        windows=128,
        length=2048,
        settings={
            "steps": 100,
            "rate": 1.5,
            "clip": 1.0,
            "online": "auto",
            "rounding": "gptq",
            **GPTQ,
        },
    ),
    "distill": Preset(),
}
# What no released code stands behind: their rows are ours.
OURS = ("none", "distill")
PRESETS: dict[str, dict[str, Preset]] = {
    DEFAULT: UPSTREAM,
    EXACT: UPSTREAM,
    "paper": UPSTREAM
    | {
        "omniquant": UPSTREAM["omniquant"].but(activations=SYMMETRIC),
        "spinquant": UPSTREAM["spinquant"].but(weights=ASYMMETRIC),
    },
    "fast": UPSTREAM
    | {
        "smoothquant": UPSTREAM["smoothquant"].but(windows=64, length=512),
        "gptq": UPSTREAM["gptq"].but(windows=32, length=512),
        "omniquant": UPSTREAM["omniquant"].but(windows=32, length=512, settings={"epochs": 5}),
        "spinquant": UPSTREAM["spinquant"].but(windows=32, length=512, settings={"steps": 30}),
        "distill": UPSTREAM["distill"].but(windows=64, length=256, settings={"epochs": 3}),
    },
    "best": UPSTREAM
    | {
        "gptq": UPSTREAM["gptq"].but(weights=ASYMMETRIC, settings=BEST),
        "spinquant": UPSTREAM["spinquant"].but(weights=ASYMMETRIC, settings=BEST),
        "distill": UPSTREAM["distill"].but(weights=ASYMMETRIC, settings={"epochs": 24}),
    },
}
# What the released code rounds besides, which no graph of ours can: with upstream-exact only.
ATTENTION_8 = Grid(8, "token", symmetric=False, zero=False)


def preset(name: str, method: str) -> Preset:
    """What preset ``name`` says of ``method``; of a method without a row, nothing.

    Raises:
        UsageError: no such preset or method.
    """
    if name not in PRESETS:
        raise UsageError(unknown("preset", name, tuple(PRESETS)))
    if method not in METHODS:
        raise UsageError(unknown("method", method, tuple(METHODS)))
    return PRESETS[name].get(method, Preset())


def scheme_for(chosen: Preset, words: Mapping[str, Any]) -> Scheme:
    """The scheme that ``words`` describe, with the preset's symmetry where they say nothing.

    Raises:
        UsageError: an unknown name or word, or words that contradict each other.
    """
    symmetry = {"weights": chosen.weights, "activations": chosen.activations}
    named(words["name"])
    fitting = {
        word: value
        for word, value in symmetry.items()
        if meaningless(word, {**words, word: value}) is None
    }
    return in_words({**fitting, **words})


def check_words(name: str, method: str, words: Mapping[str, Any]) -> None:
    """Refuse words of a scheme that upstream-exact would go over.

    Raises:
        UsageError: a word that ``method``'s released code decides.
    """
    if name != EXACT or "name" not in words or named(words["name"]).activations is None:
        return
    decided = {
        ("omniquant", "kv"): "keys and values to 8 bits",
        ("spinquant", "activation_scale"): "o_proj's input by token and head",
    }
    for (whose, word), rounded in decided.items():
        value = words.get(word)
        if method == whose and value not in (None, "token"):
            raise UsageError(
                f"--preset {EXACT} rounds {rounded}: leave --{spoken(word)} {value} out, "
                f"or use --preset {DEFAULT}"
            )


def as_released(scheme: Scheme, method: str, shape: Anatomy) -> Scheme:
    """The scheme with all that the released code of ``method`` rounds (METHODS 2.4, 3.4)."""
    if scheme.activations is None:
        return scheme
    if method == "omniquant":
        return dataclasses.replace(scheme, query=ATTENTION_8, kv=ATTENTION_8)
    if method == "spinquant":
        symmetric = scheme.activations.symmetric
        by_head = dataclasses.replace(ATTENTION_8, symmetric=symmetric, group=shape.head_dim)
        return dataclasses.replace(scheme, mixed=by_head)
    return scheme


def check_exportable(name: str, method: str) -> None:
    """Refuse a preset whose roundings no graph of ours can express, before any work starts.

    Raises:
        Unsupported: upstream-exact, with a method for which it rounds more than upstream does.
    """
    rounded = {"omniquant": "queries, keys and values", "spinquant": "o_proj's input head by head"}
    if name == EXACT and method in rounded:
        raise Unsupported(
            f"--preset {EXACT} rounds {rounded[method]}, which no exporter expresses: it is for "
            f"quantize and the simulation alone; export with --preset {DEFAULT}"
        )
