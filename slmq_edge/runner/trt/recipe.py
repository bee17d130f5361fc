"""``trt/recipe.json``: what a bundle's graph asks of the machine that builds its engine.

The graph is a decoder for one prompt at a time, whose caches are rooms for a number of positions::

    input_ids, position_ids          int64 [1, new]      positions count from 0, and rise by 1
    logits_positions                 int64 [kept]        which of the new ones get logits
    past_key_values.N.key|value      floats [1, kv_heads, room, head_dim]
    logits                           float32 [1, kept, vocab]
    present.N.key|value              as the past, with the new positions written in

A token sees the slots up to its own position, and no others: what lies behind them in a room may
be anything finite. ``room`` is at least the last position plus one. Past and present may not be
the same memory; the next step reads what this one wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from slmq_edge.errors import Damaged
from slmq_edge.runner.manifest import TRT_RECIPE, read_manifest

FORMAT, VERSION = "slmq-edge-trt-recipe", 1
NEW, ROOM, KEPT = "new", "room", "kept"
DIMENSIONS = (NEW, ROOM, KEPT)


class Port(NamedTuple):
    """An input or output: of ``dtype`` as numpy names it; of ``shape`` numbers and `DIMENSIONS`."""

    name: str
    dtype: str
    shape: tuple[Any, ...]


class Recipe(NamedTuple):
    """What to build, and what must come of it.

    activations: ``pertoken``, ``static``, or ``float`` where none are rounded. int8: names of the
    MatMul nodes that must become products of int8 by int8. weight_only: of those whose weights
    stay integers in memory and are multiplied as floats. tensorrt: the oldest that parses it.
    """

    opset: int
    tensorrt: str
    floats: str
    activations: str
    layers: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    int8: tuple[str, ...]
    weight_only: tuple[str, ...]
    weight_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The document of ``trt/recipe.json``."""
        fields = self._asdict()
        for kind in ("inputs", "outputs"):
            fields[kind] = [port._asdict() for port in fields[kind]]
        return {"format": FORMAT, "version": VERSION, **fields}

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of all layers' keys and values for one position."""
        width = {"float16": 2, "float32": 4}[self.floats]
        return 2 * self.layers * self.kv_heads * self.head_dim * width


def read(folder: Path) -> Recipe:
    """Read a bundle's recipe.

    Raises:
        NotFound: there is none.
        Damaged: it is not JSON, or a field is missing, unknown or of the wrong type.
        Unsupported: another format or version.
    """
    document = read_manifest(folder, TRT_RECIPE, FORMAT, VERSION)
    fields = {key: value for key, value in document.items() if key not in ("format", "version")}
    try:
        return _checked(Recipe(**{name: _typed(name, value) for name, value in fields.items()}))
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder / TRT_RECIPE} is damaged: {error}") from error


NUMBERS = ("opset", "layers", "kv_heads", "head_dim", "vocab", "context_length", "weight_bytes")


def _typed(name: str, value: Any) -> Any:
    if name in ("inputs", "outputs"):
        ports = [Port(port["name"], port["dtype"], tuple(port["shape"])) for port in value]
        if not all(type(dim) is int or dim in DIMENSIONS for port in ports for dim in port.shape):
            raise ValueError(f"{name} has a dimension that is none of {', '.join(DIMENSIONS)}")
        return tuple(ports)
    if name in ("int8", "weight_only"):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is no list of names")
        return tuple(value)
    expected = int if name in NUMBERS else str
    if type(value) is not expected:
        raise ValueError(f"{name} is {type(value).__name__}, expected {expected.__name__}")
    return value


def _checked(recipe: Recipe) -> Recipe:
    if recipe.floats not in ("float16", "float32"):
        raise ValueError(f"floats are {recipe.floats!r}")
    if min(getattr(recipe, name) for name in NUMBERS if name != "weight_bytes") < 1:
        raise ValueError("a number is not positive")
    return recipe


def find(ports: tuple[Port, ...], name: str) -> Port | None:
    """The port of that name."""
    return next((port for port in ports if port.name == name), None)
