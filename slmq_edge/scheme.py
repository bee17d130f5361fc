"""Schemes: precision as vocabulary, not flags.

A scheme says how the linears of the decoder blocks are stored and multiplied, and what else is
rounded. What it does not name stays in float: norms, rotary embedding, softmax; and embedding, head
and the operands of attention, unless they have a grid of their own (METHODS 1.3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from slmq_edge.anatomy import HEAD, Anatomy, O
from slmq_edge.errors import Unsupported, UsageError, did_you_mean, unknown

Per = Literal["channel", "token", "tensor"]
Range = Literal["absmax", "percentile", "mse"]


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor may take, and what shares a scale.

    bits: 2..8. per: ``channel``: one scale per row of a weight [out, in]; ``token``: one per row of
    an activation, found at run time; ``tensor``: one for all rows of an activation, found by
    calibration. group: how many neighbours of the last dimension share a scale, ``None`` for all;
    the last group may be shorter. symmetric: levels -Q..Q with Q = 2^(bits-1) - 1, zero at 0;
    otherwise all 2^bits levels and a zero point. lowest: a symmetric grid also has level -Q - 1,
    which only a clipped range ever reaches. zero: the range of an asymmetric grid holds 0.
    """

    bits: int
    per: Per
    symmetric: bool = True
    group: int | None = None
    lowest: bool = False
    zero: bool = True

    @property
    def top(self) -> int:
        """The largest level, Q: 127 for 8 bits, 7 for 4."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def bottom(self) -> int:
        """The smallest level: -Q, or -Q - 1."""
        return -self.top if self.symmetric and not self.lowest else -self.top - 1

    def groups(self, width: int) -> int:
        """How many scales a row of ``width`` values has."""
        return 1 if self.group is None else -(-width // self.group)

    def described(self, by_head: bool = False) -> str:
        """In words. by_head: of what attention multiplies, where each head has its own scale."""
        head = " and head" if by_head else ""
        shared = "" if self.group is None else f" and group of {self.group}"
        kind = "symmetric" if self.symmetric else "asymmetric"
        static = ", static" if self.per == "tensor" else ""
        free = "" if self.symmetric or self.zero else ", range need not hold 0"
        return f"int{self.bits} per {self.per}{head}{shared}, {kind}{static}{free}"

    def __str__(self) -> str:
        return self.described()


@dataclass(frozen=True)
class Scheme:
    """What is rounded to what; ``None`` means float.

    weights, activations: of the blocks' linears and their inputs. head: of the lm_head's weights
    (its input is rounded like the others). embedding: of the lookup table; on a tied model head and
    embedding are one tensor, and either names both; where both are named and differ, each is stored
    for itself. kv: of keys, after rotary embedding, and of values, by token and head. query: of
    queries, likewise. mixed: of o_proj's input, where it is not ``activations``. range: how the
    ranges of static activations are found. protected: the blocks' linears whose weights keep 8
    bits, by full name; or how many, as long as it is not known which (``slmq_edge.analysis``).
    """

    name: str
    weights: Grid | None
    activations: Grid | None
    head: Grid | None = None
    embedding: Grid | None = None
    kv: Grid | None = None
    query: Grid | None = None
    mixed: Grid | None = None
    range: Range = "absmax"
    protected: int | tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name, and how many linears are not as it says: ``w4a8-p3``."""
        return f"{self.name}-p{self.protects}" if self.protects else self.name

    @property
    def is_open(self) -> bool:
        """Whether some linears are to be protected, and it is not known yet which."""
        return isinstance(self.protected, int) and self.protected > 0

    @property
    def protects(self) -> int:
        """How many linears keep 8-bit weights."""
        return self.protected if isinstance(self.protected, int) else len(self.protected)

    def weight_grid(self, linear: str) -> Grid | None:
        """The grid of the weights of one of the blocks' linears, by its full name."""
        if not self.protected:
            return self.weights
        assert not isinstance(self.protected, int), "which are protected is found before rounding"
        return self.protected_grid if linear in self.protected else self.weights

    @property
    def protected_grid(self) -> Grid | None:
        """The grid of weights that keep 8 bits."""
        return self.weights and dataclasses.replace(self.weights, bits=8)

    @property
    def is_static(self) -> bool:
        """Whether ranges of activations come from calibration."""
        return self.activations is not None and self.activations.per == "tensor"

    def input_grid(self, linear: str) -> Grid | None:
        """The grid of a linear's input, by the linear's name.

        Where a row of the head has one scale, its input has one a token, whatever blocks have.
        """
        head = self.head or self.embedding
        if linear == HEAD and (head is None or head.group is None):
            return self.activations and dataclasses.replace(self.activations, group=None)
        return self.mixed if self.mixed is not None and linear.endswith(O) else self.activations

    def table(self, tied: bool) -> Grid | None:
        """The grid of the lookup table."""
        return self.embedding or (self.head if tied else None)

    def lm_head(self, tied: bool) -> Grid | None:
        """The grid of the head's weights."""
        return self.head or (self.embedding if tied else None)

    def as_json(self) -> dict[str, Any]:
        """By field; ``protected`` only where something is."""
        found = dataclasses.asdict(self)
        return {name: part for name, part in found.items() if name != "protected" or part}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Scheme:
        grids = {part: Grid(**value[part]) if value[part] is not None else None for part in PARTS}
        kept = value.get("protected", ())
        protected = kept if isinstance(kept, int) else tuple(map(str, kept))
        return Scheme(name=value["name"], range=value["range"], protected=protected, **grids)


PARTS = ("weights", "activations", "head", "embedding", "kv", "query", "mixed")

WEIGHTS_8, WEIGHTS_4 = Grid(8, "channel"), Grid(4, "channel")
TOKENS_8 = Grid(8, "token")
GROUPS = (32, 64, 128)


def _blocked(bits: int) -> dict[str, Scheme]:
    """Weights and activations that share their groups of inputs."""
    return {
        f"w{bits}a8-b{group}": Scheme(
            f"w{bits}a8-b{group}",
            Grid(bits, "channel", group=group),
            Grid(8, "token", group=group),
        )
        for group in GROUPS
    }


def _grouped(name: str, activations: Grid | None) -> dict[str, Scheme]:
    return {
        f"{name}-g{group}": Scheme(f"{name}-g{group}", Grid(4, "channel", group=group), activations)
        for group in GROUPS
    }


SCHEMES: dict[str, Scheme] = {
    "w8a8": Scheme("w8a8", WEIGHTS_8, TOKENS_8),
    "w4a8": Scheme("w4a8", WEIGHTS_4, TOKENS_8),
    **_grouped("w4a8", TOKENS_8),
    **_blocked(8),
    **_blocked(4),
    "w8a16": Scheme("w8a16", WEIGHTS_8, None),
    "w4a16": Scheme("w4a16", WEIGHTS_4, None),
    **_grouped("w4a16", None),
    "fp32": Scheme("fp32", None, None),
}
ALIASES = {"fp": "fp32"}

# Of lookup table and lm_head: what a row with one scale is rounded to.
TABLES: dict[str, Grid | None] = {"float": None, "int8": WEIGHTS_8}
# A head of 4 bits has the groups that the scheme gives to the linears.
HEADS: dict[str, Grid | None] = {**TABLES, "int4": WEIGHTS_4}
# Of attention's keys and values, and of its queries: by token and head.
OPERANDS_8 = Grid(8, "token", symmetric=False)

# What can be said of a scheme besides its name, and how; what is said first is the default.
WORDS: dict[str, tuple[str, ...]] = {
    "weights": ("symmetric", "asymmetric"),
    "activations": ("symmetric", "asymmetric"),
    "activation_scale": ("token", "tensor"),
    "range": ("absmax", "percentile", "mse"),
    "kv": ("16", "8"),
    "lm_head": tuple(HEADS),
    "embedding": tuple(TABLES),
}
# Linears that keep 8-bit weights: how many of the worst, or their full names.
PROTECT = "protect"


def scheme(name: str, head: str = "float", embedding: str = "float") -> Scheme:
    """Look a scheme up by name, with lm_head and lookup table in the precisions named.

    Raises:
        UsageError: unknown scheme or precision, or an integer head on a float scheme.
    """
    return in_words({"name": name, "lm_head": head, "embedding": embedding})


def in_words(words: Mapping[str, Any]) -> Scheme:
    """The scheme that ``words`` describe: its ``name``, any of ``WORDS``, and ``PROTECT``.

    Raises:
        UsageError: an unknown name or word, or words that contradict each other.
    """
    base = named(words["name"])
    said = {word: str(value) for word, value in words.items() if word not in ("name", PROTECT)}
    for word, value in said.items():
        if word not in WORDS:
            raise UsageError(unknown("word of a scheme", word, (*WORDS, PROTECT)))
        if value not in WORDS[word]:
            raise UsageError(unknown(spoken(word), value, WORDS[word]))
        reason = meaningless(word, {**words, **said})
        if reason:
            raise UsageError(reason)
    full = {word: values[0] for word, values in WORDS.items()} | said

    def signed(grid: Grid | None, word: str) -> Grid | None:
        symmetric = full[word] == "symmetric"
        return grid and dataclasses.replace(grid, symmetric=symmetric)

    activations = signed(base.activations, "activations")
    if activations is not None and full["activation_scale"] == "tensor":
        activations = dataclasses.replace(activations, per="tensor")
    return dataclasses.replace(
        base,
        weights=signed(base.weights, "weights"),
        activations=activations,
        head=_head(full["lm_head"], base),
        embedding=TABLES[full["embedding"]],
        kv=OPERANDS_8 if full["kv"] == "8" else None,
        range=cast("Range", full["range"]),
        protected=_protected(words),
    )


def _protected(words: Mapping[str, Any]) -> int | tuple[str, ...]:
    value = words.get(PROTECT, 0)
    if isinstance(value, int) and value < 0:
        raise UsageError(f"--protect counts linears, and cannot be {value}")
    reason = meaningless(PROTECT, words) if value else None
    if reason:
        raise UsageError(reason)
    return (value or ()) if isinstance(value, int) else tuple(dict.fromkeys(map(str, value)))


def _head(word: str, base: Scheme) -> Grid | None:
    grid = HEADS[word]
    if grid != WEIGHTS_4 or base.weights is None:
        return grid
    return dataclasses.replace(WEIGHTS_4, group=base.weights.group)


def named(name: str) -> Scheme:
    """The scheme of that name, as it is in the table.

    Raises:
        UsageError: there is none.
    """
    name = ALIASES.get(name, name)
    if name not in SCHEMES:
        raise UsageError(unknown("scheme", name, tuple(SCHEMES)))
    return SCHEMES[name]


def meaningless(word: str, words: Mapping[str, Any]) -> str | None:
    """Why ``word`` says nothing beside the other ``words``; ``None`` where it does."""
    base, value = named(words["name"]), words[word]
    if word == PROTECT:
        return _unprotectable(base, value)
    said = f"--{spoken(word)} {value}"
    if base.weights is None and word in ("lm_head", "embedding", "kv"):
        lacks = f"{value} {word}" if word != "kv" else "8-bit keys and values"
        is_float = str(value) == WORDS[word][0]
        reason = f"scheme {base.name} keeps everything in float: it has no {lacks}"
        return None if is_float else reason
    if base.weights is None and word == "weights":
        return f"scheme {base.name} keeps everything in float: leave {said} out"
    if base.activations is None and word in ("activations", "activation_scale"):
        return f"scheme {base.name} leaves activations in float: leave {said} out"
    if base.activations is not None and base.activations.group is not None:
        if word == "activation_scale" and str(value) == "tensor":
            return f"scheme {base.name} has a scale for every group of a token: leave {said} out"
        if word == "activations" and str(value) == "asymmetric":
            return f"scheme {base.name} rounds activations symmetrically: leave {said} out"
    if word == "range" and words.get("activation_scale") != "tensor":
        return f"{said} is how static ranges are found: it needs --activation-scale tensor"
    return None


def _unprotectable(base: Scheme, value: int | Sequence[str]) -> str | None:
    said = f"--protect {value if isinstance(value, int) else len(value)}"
    if base.weights is None:
        return f"scheme {base.name} keeps everything in float: leave {said} out"
    if base.weights.bits == 8:
        return f"scheme {base.name} has 8-bit weights everywhere: leave {said} out"
    return None


def spoken(word: str) -> str:
    return word.replace("_", "-")


def words_of(found: Scheme) -> dict[str, Any] | None:
    """The words that describe a scheme, those left out that say nothing; ``None``: none do."""

    def symmetry(grid: Grid | None) -> str:
        return "symmetric" if grid is None or grid.symmetric else "asymmetric"

    words: dict[str, Any] = {
        "name": found.name,
        "weights": symmetry(found.weights),
        "activations": symmetry(found.activations),
        "activation_scale": "tensor" if found.is_static else "token",
        "range": found.range,
        "kv": 8 if found.kv else 16,
        "lm_head": f"int{found.head.bits}" if found.head else "float",
        "embedding": f"int{found.embedding.bits}" if found.embedding else "float",
    }
    if found.name not in SCHEMES:
        return None
    kept = {w: v for w, v in words.items() if w == "name" or not meaningless(w, words)}
    known = all(str(value) in WORDS[word] for word, value in kept.items() if word != "name")
    if found.protected:
        kept[PROTECT] = (
            found.protected if isinstance(found.protected, int) else list(found.protected)
        )
    return kept if known and in_words(kept) == found else None


def require_weights(chosen: Scheme, method: str) -> Grid:
    """The weight grid of a scheme that rounds weights.

    Raises:
        Unsupported: the scheme is float, for which ``method`` has nothing to do.
    """
    if chosen.weights is None:
        raise Unsupported(
            f"method {method} prepares a model for rounding, and {chosen.name} rounds nothing: "
            "use --method none for the full-precision baseline"
        )
    return chosen.weights


def check_protected(chosen: Scheme, shape: Anatomy) -> None:
    """Refuse to protect more linears than there are, or a name that is none of theirs.

    Raises:
        UsageError: says how many there are, or guesses the name.
    """
    known = tuple(shape.linears())
    if chosen.protects > len(known):
        raise UsageError(
            f"--protect {chosen.protects}: the model has {len(known)} linears in its blocks"
        )
    for name in () if isinstance(chosen.protected, int) else chosen.protected:
        if name not in known:
            raise UsageError(
                f"protect: the model has no linear '{name}'{did_you_mean(name, known)}"
            )


def weight_grid(chosen: Scheme, linear: str) -> Grid:
    """The grid of a linear's weights, of a scheme that ``require_weights`` has let pass."""
    found = chosen.weight_grid(linear)
    assert found is not None, "asked of schemes that round weights"
    return found


def require_integer(chosen: Scheme, method: str) -> tuple[Grid, Grid]:
    """The weight and activation grids of a scheme that rounds both.

    Raises:
        Unsupported: the scheme leaves weights or activations in float.
    """
    weights = require_weights(chosen, method)
    if chosen.activations is None:
        raise Unsupported(
            f"method {method} is about rounding activations, which {chosen.name} leaves in float: "
            "use --method gptq or omniquant for weights alone"
        )
    return weights, chosen.activations
