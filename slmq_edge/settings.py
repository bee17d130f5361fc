"""A method's settings, said as words: options of the command line, ``--set``, or a recipe.

The types are those of the method's own ``Settings``; a setting that is common enough has an option
by its name, which is a line in ``OPTIONS``.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union

from slmq_edge.errors import UsageError, did_you_mean
from slmq_edge.scheme import spoken

# Settings with an option of their own: what is shown for the value (None: a pair of flags), help.
OPTIONS: dict[str, tuple[str | None, str]] = {
    "alpha": (
        "SHARE",
        "smoothquant: share of the difficulty moved (upstream: 0.85 at 8-bit weights, 0.5 at 4), "
        "or auto; "
        "omniquant: of the first scales (0.5).",
    ),
    "steps": (
        "N",
        "spinquant: steps of learning (upstream: 100, fast: 30); 0 keeps random rotations.",
    ),
    "rate": ("RATE", "spinquant: learning rate of the first step (1.5)."),
    "seed": (
        "N",
        "spinquant: seed of the first rotations; distill: of the order of windows, and of the text "
        "that the model writes (0).",
    ),
    "learn_weights": (
        "BITS",
        "spinquant: weights while learning: 16, or target: the scheme's. Default: 16 before GPTQ.",
    ),
    "online": (None, "spinquant: rotate down_proj's input at run time. Default: where it can be."),
    "rounding": ("NAME", "spinquant: gptq or nearest, once rotated (gptq)."),
    "epochs": (
        "N",
        "omniquant: passes over the windows, block by block (upstream: 20, fast: 5); distill: over "
        "those it learns from, the whole model at once (upstream: 12, fast: 3, best: 24).",
    ),
    "minutes": (
        "N",
        "distill: learn for so long, in the place of --epochs. How far that comes is the machine's "
        "matter: what must be made again to the last bit is said in epochs.",
    ),
    "start": (
        "NAME",
        "distill: the rounding to begin with: clipped (to nearest, in searched ranges), gptq, "
        "smoothquant, omniquant or spinquant (smoothquant; clipped where activations stay float).",
    ),
    "learn_from": (
        "NAME",
        "distill: text, own (what the model itself writes) or both (half and half; both).",
    ),
    "weight_rate": ("RATE", "distill: learning rate of the weights, in levels a step (0.01)."),
    "let_rate": ("RATE", "omniquant: learning rate of the channels' scales (0.005)."),
    "lwc_rate": ("RATE", "omniquant: learning rate of the weights' clips (0.01)."),
    "let": (None, "omniquant: scale channels. Default: where activations are rounded."),
    "lwc": (None, "omniquant: clip weights. Default: yes."),
    "gqa": ("NAME", "omniquant: shared or skip: scales of v, o, q, k under grouped queries."),
    "damping": ("SHARE", "gptq, spinquant: added to the Hessian's diagonal (0.01)."),
    "act_order": (None, "gptq, spinquant: round columns by falling activation."),
    "drift": (
        "SHARE",
        "gptq, spinquant: of the rounded stream's drift to make up for (upstream: 0, best: 0.5).",
    ),
    "polish": (
        "N",
        "gptq, spinquant: passes over the columns after the first (upstream: 0, best: 2).",
    ),
}
# Words that say the same in different ways: of these a command says one.
EITHER = ("epochs", "minutes")
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def pairs(given: Iterable[str], named: Mapping[str, Any]) -> dict[str, Any]:
    """``NAME=VALUE`` of every ``--set``, together with the options ``named``.

    Raises:
        UsageError: no NAME=VALUE, a name that was given before, or both of ``EITHER``.
    """
    found = dict(named)
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not '{text}'")
        if name in found:
            raise UsageError(f"{name} is set twice: {found[name]}, and --set {text}")
        found[name] = value.strip()
    if all(says(found, name) for name in EITHER):
        raise UsageError(f"{' and '.join(map(option, EITHER))} say the same twice: leave one out")
    return found


def says(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a setting has a value there, and not that there be none."""
    return str(settings.get(name, "none")).lower() != "none"


def settings_of(
    kind: type[Any], method: str, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Any:
    """A method's ``Settings`` from what was given, and from ``defaults`` where they have a field.

    Raises:
        UsageError: a setting that the method lacks, or a value of the wrong type.
    """
    types = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            listed = ", ".join(map(option, known)) or "none"
            raise UsageError(
                f"method {method} has no setting {option(name)}{did_you_mean(name, known)}; "
                f"its settings: {listed}"
            )
    said = {name: value for name, value in defaults.items() if name in known} | dict(given)
    return kind(**{name: coerced(option(name), types[name], x) for name, x in said.items()})


def option(name: str) -> str:
    """How a setting is given: ``--let-rate``, or ``--set damping``."""
    return f"--{spoken(name)}" if name in OPTIONS else f"--set {name}"


def coerced(said: str, kind: Any, value: Any) -> Any:
    """``value``, or what its text says, as one of the types that ``kind`` joins.

    Raises:
        UsageError: it is none of them; names the option ``said`` and what it takes.
    """
    for one in _alternatives(kind):
        found = _as(one, value)
        if found is not _NO_MATCH:
            return found
    takes = list(dict.fromkeys(_described(one) for one in _alternatives(kind)))
    words = [one for one in takes if one not in _NAMES.values()]
    meant = did_you_mean(str(value), words)
    raise UsageError(f"{said} takes {' or '.join(takes)}, not '{value}'{meant}")


_NO_MATCH = object()
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _alternatives(kind: Any) -> list[Any]:
    """The types or literals that a type joins, the exact ones first."""
    if typing.get_origin(kind) in (Union, UnionType):
        found = [one for part in typing.get_args(kind) for one in _alternatives(part)]
    elif typing.get_origin(kind) is Literal:
        found = [Literal[one] for one in typing.get_args(kind)]
    else:
        found = [kind]
    order = [Literal, NoneType, bool, int, float, str]
    return sorted(found, key=lambda one: order.index(typing.get_origin(one) or one))


def _as(kind: Any, value: Any) -> Any:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if typing.get_origin(kind) is Literal:
        (literal,) = typing.get_args(kind)
        if isinstance(literal, bool):
            return _as(bool, value) if _as(bool, value) is literal else _NO_MATCH
        return literal if text == str(literal) else _NO_MATCH
    if kind is NoneType:
        return None if text.lower() == "none" else _NO_MATCH
    if kind is bool:
        return text.lower() in YES if text.lower() in YES + NO else _NO_MATCH
    if kind is str:
        return text
    if isinstance(value, bool):
        return _NO_MATCH
    try:
        return kind(text)
    except ValueError:
        return _NO_MATCH


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return str(typing.get_args(kind)[0])
    return "none" if kind is NoneType else _NAMES[kind]
