"""Multiply-adds of a forward pass, matrix by matrix: counted, not profiled.

For t tokens behind p others, with the logits of all t:

    linear, rotation   t in out                                   head      t hidden vocab
    attention          2 t (p + t) heads head_dim  a block        Q K^T, and the mix of V

Attention is counted as it is computed: kernels multiply whole rows and mask what lies ahead, so
that of t (p + t) pairs t (t - 1) / 2 are computed for nothing. Norms, rotary angles, softmax and
the rounding of inputs are no products, and are not counted.

The paper's column (``--convention paper``) is something else; see `paper`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slmq_edge import anatomy as names
from slmq_edge import metrics, models
from slmq_edge.anatomy import NOTHING_ONLINE, Anatomy, Online
from slmq_edge.errors import Damaged, Unsupported, UsageError
from slmq_edge.files import CHECKPOINT_FILE, manifest_of
from slmq_edge.runner.manifest import BUNDLE_FILE, described
from slmq_edge.scheme import Grid, Scheme

Part = Literal["linear", "head", "rotation", "attention"]
PARTS: tuple[Part, ...] = ("linear", "head", "rotation", "attention")
FLOAT = "float"  # the precision of what no graph has been written for
INTEGER_WEIGHTS = re.compile(r"w(\d+)a\d+")
CONFIG_ALONE = ("config.json",)  # of a hub model: nothing else is looked at


@dataclass(frozen=True)
class Product:
    """A matrix that is multiplied by, or the two products of a block's attention.

    scheme: in what, as schemes are named. integer: integers by integers. macs: of all tokens.
    """

    name: str
    part: Part
    scheme: str
    integer: bool
    macs: int

    @property
    def weight_bits(self) -> int | None:
        """See `bits_of`."""
        return bits_of(self.scheme)


@dataclass(frozen=True)
class Group:
    """Products of one part that are multiplied alike."""

    part: Part
    scheme: str
    integer: bool
    macs: int

    @property
    def weight_bits(self) -> int | None:
        """See `bits_of`."""
        return bits_of(self.scheme)


@dataclass(frozen=True)
class Counted:
    """A model's products. source: what says in which precision: config, checkpoint or bundle.

    masked: of the attention's, those that the causal mask throws away. quantized: whether the
    linears are, which is all that the paper's column depends on.
    """

    model: str
    source: str
    tokens: int
    past: int
    parameters: int
    products: tuple[Product, ...]
    masked: int
    quantized: bool

    @property
    def total(self) -> int:
        return sum(one.macs for one in self.products)

    @property
    def integer(self) -> int:
        """By integers."""
        return sum(one.macs for one in self.products if one.integer)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Part by part, the largest of each first."""
        found: dict[tuple[Part, str, bool], int] = {}
        for one in self.products:
            key = (one.part, one.scheme, one.integer)
            found[key] = found.get(key, 0) + one.macs
        groups = [Group(*key, macs) for key, macs in found.items()]
        return tuple(sorted(groups, key=lambda one: (PARTS.index(one.part), -one.macs)))

    def of(self, part: Part) -> int:
        return sum(one.macs for one in self.products if one.part == part)

    def by_bits(self) -> dict[int | None, int]:
        """Bits of weights -> multiply-adds by them; ``None``: floats, and attention."""
        found: dict[int | None, int] = {}
        for one in self.products:
            found[one.weight_bits] = found.get(one.weight_bits, 0) + one.macs
        return dict(sorted(found.items(), key=lambda pair: pair[0] or 99))


@dataclass(frozen=True)
class Paper:
    """The MACs column of Table 3: what it has for full precision, and for any quantized model."""

    full: int
    quantized: int


def bits_of(scheme: str) -> int | None:
    """The bits of the weights' grid: 4 of ``w4a8-b32``; ``None`` of floats."""
    found = INTEGER_WEIGHTS.match(scheme)
    return None if found is None else int(found.group(1))


def count(what: str, tokens: int, past: int = 0) -> Counted:
    """The products of a model, a folder with a config, a checkpoint or a bundle.

    Args:
        what: a name, a hub id or a folder.
        tokens: of the pass, each with logits.
        past: tokens whose keys and values are there already.

    Raises:
        NotFound, Damaged, Unsupported: it is none of these, or its manifest is not whole.
        UsageError: no tokens, or more than the context holds.
    """
    folder = Path(what)
    if (folder / BUNDLE_FILE).is_file() or (folder / CHECKPOINT_FILE).is_file():
        kind, file, manifest = manifest_of(folder)
        read = _of_bundle if kind == "bundle" else _of_checkpoint
        try:
            return read(folder, manifest, tokens, past)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"{folder / file} does not say what is multiplied: {error}") from error
    source = models.find(what, files=CONFIG_ALONE)
    shape = models.read_anatomy(source.folder)
    _check_length(shape, tokens, past)
    products = tuple(of_anatomy(shape, tokens, past))
    return _counted(source.name, "config", shape, tokens, past, products, quantized=False)


def paper(counted: Counted) -> Paper:
    """What the paper's Table 3 has in place of tokens/s (METHODS 5.2).

    Full precision: the blocks' linears and the head, without attention. Quantized, by whatever
    method: the head alone, because its profiler did not see the linears that had been replaced.
    """
    macs = metrics.Macs(
        counted.of("linear") // counted.tokens, counted.of("head") // counted.tokens
    )
    full, quantized = (
        metrics.paper_macs(macs, quantized=is_quantized, tokens=counted.tokens)
        for is_quantized in (False, True)
    )
    return Paper(full, quantized)


def of_anatomy(
    shape: Anatomy,
    tokens: int,
    past: int = 0,
    scheme: Scheme | None = None,
    online: Online = NOTHING_ONLINE,
    rotations: tuple[str, ...] = (),
) -> Iterator[Product]:
    """All products, from an architecture's sizes.

    Args:
        shape: the architecture.
        tokens: of the pass.
        past: before it.
        scheme: what the linears are rounded to; ``None``: nothing.
        online: Hadamard rotations that are taken at run time.
        rotations: of the stream, `names.EMBED_ROTATION` and `names.HEAD_ROTATION`, those that are.
    """
    asked = scheme or Scheme(FLOAT, None, None)

    def product(name: str, part: Part, macs: int, grid: Grid | None = None) -> Product:
        named, integer = _precision(grid, asked.input_grid(name) if grid else None)
        return Product(name, part, named, integer, tokens * macs)

    square = shape.hidden**2
    if names.EMBED_ROTATION in rotations:
        yield product(names.EMBED_ROTATION, "rotation", square)
    for layer in range(shape.layers):
        for name in names.LINEARS:
            full, (out, width) = shape.block(layer, name), shape.shape(name)
            yield product(full, "linear", out * width, asked.weight_grid(full))
        for name, macs in _turned(shape, online).items():
            yield product(shape.block(layer, name), "rotation", macs)
        pairs = shape.heads * shape.head_dim * (past + tokens)
        yield product(shape.block(layer, "self_attn"), "attention", 2 * pairs)
    if names.HEAD_ROTATION in rotations:
        yield product(names.HEAD_ROTATION, "rotation", square)
    yield product(names.HEAD, "head", shape.head_macs_per_token, asked.lm_head(shape.tied))


def masked(shape: Anatomy, tokens: int) -> int:
    """Multiply-adds of attention that the causal mask throws away: a token's with those behind."""
    return shape.layers * 2 * shape.heads * shape.head_dim * (tokens * (tokens - 1) // 2)


def _precision(weights: Grid | None, inputs: Grid | None) -> tuple[str, bool]:
    """As schemes are named, and whether integers are multiplied by integers."""
    if weights is None:
        return FLOAT, False
    shared = inputs is not None and inputs.group is not None
    group = "" if weights.group is None else f"-{'b' if shared else 'g'}{weights.group}"
    return f"w{weights.bits}a{16 if inputs is None else inputs.bits}{group}", inputs is not None


def _turned(shape: Anatomy, online: Online) -> dict[str, int]:
    """Of one token and block: R3 for each head of queries and keys, R4 in its two factors."""
    found = {}
    if online.keys:
        found["self_attn.rotation"] = (shape.heads + shape.kv_heads) * shape.head_dim**2
    if online.down:
        from slmq_edge.quantization.hadamard import factors

        pair = factors(shape.ffn)
        if pair is None:
            raise ValueError(f"no Hadamard matrix of {shape.ffn} is known")
        found[f"{names.DOWN}.rotation"] = shape.ffn * sum(map(len, pair))
    return found


def _of_checkpoint(folder: Path, manifest: Mapping[str, Any], tokens: int, past: int) -> Counted:
    from slmq_edge.checkpoint import WEIGHTS
    from slmq_edge.parts import of_safetensors

    shape, scheme = Anatomy.from_json(manifest["anatomy"]), Scheme.from_json(manifest["scheme"])
    _check_length(shape, tokens, past)
    stored = of_safetensors(folder / WEIGHTS)
    both = (names.EMBED_ROTATION, names.HEAD_ROTATION)
    rotations = tuple(name for name in both if f"{name}.weight" in stored)
    online = Online(**manifest["online"])
    products = tuple(of_anatomy(shape, tokens, past, scheme, online, rotations))
    name, quantized = str(manifest["source"]["name"]), scheme.weights is not None
    return _counted(name, "checkpoint", shape, tokens, past, products, quantized)


def _of_bundle(folder: Path, manifest: Mapping[str, Any], tokens: int, past: int) -> Counted:
    """By the rows of the lowering, which count what was written; attention by the anatomy."""
    about = described(manifest)
    if not about.get("linears") or not about.get("anatomy"):
        raise Unsupported(f"{folder} is of an older release: export it again to have it counted")
    shape = Anatomy.from_json(about["anatomy"])
    _check_length(shape, tokens, past)
    floats = "fp16" if "float16" in str(about["kv_cache"]) else "fp32"
    products = [
        Product(
            str(row["name"]),
            row["part"],
            str(row["scheme"]),
            bool(row["integer"]),
            tokens * int(row["macs_per_token"]),
        )
        for row in about["linears"]
    ]
    attention = (one for one in of_anatomy(shape, tokens, past) if one.part == "attention")
    products += [Product(one.name, one.part, floats, False, one.macs) for one in attention]
    linears = [one for one in products if one.part == "linear"]
    quantized = any(one.weight_bits is not None for one in linears)
    name = str(about["model"]["name"])
    return _counted(name, "bundle", shape, tokens, past, tuple(products), quantized)


def _counted(
    model: str,
    source: str,
    shape: Anatomy,
    tokens: int,
    past: int,
    products: tuple[Product, ...],
    quantized: bool,
) -> Counted:
    unseen = masked(shape, tokens)
    return Counted(model, source, tokens, past, shape.parameters, products, unseen, quantized)


def _check_length(shape: Anatomy, tokens: int, past: int) -> None:
    if tokens < 1 or past < 0:
        raise UsageError(f"no pass has {tokens} tokens behind {past}: --tokens 1 --past 0 is least")
    if tokens + past > shape.max_positions:
        raise UsageError(
            f"{tokens} tokens behind {past} are {tokens + past}: the context holds "
            f"{shape.max_positions}"
        )
