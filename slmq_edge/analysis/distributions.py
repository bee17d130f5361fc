"""distributions.json: how a model's weights and what its linears read are distributed.

Before: as the model was released. After: as a method has prepared it, before anything is rounded;
what a method does for rounding is the difference. Reading such a file needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import Damaged
from slmq_edge.results import read_as

FORMAT, VERSION = "slmq-edge-distributions", 1
# Bins of |x| that double it.
PER_OCTAVE = 4
# Shares of |x|, and of the channels' absmax, that are kept.
SHARES = ("0.5", "0.9", "0.99", "0.999", "0.9999")
CHANNEL_SHARES = ("0", "0.25", "0.5", "0.75", "0.9", "0.99", "1")


@dataclass(frozen=True)
class Spread:
    """How the values of a tensor are distributed.

    kurtosis: E (x - mean)^4 / variance^2, 3 of a normal distribution; ``None`` of constants.
    quantiles: of |x| by share, to 2 %. channels: quantiles of the channels' max |x|; a channel is
    an input of a linear. counts: values with 2^(k/4) <= |x| < 2^((k+1)/4), for k from ``first`` on;
    below: those nearer to 0.
    """

    count: int
    min: float
    max: float
    mean: float
    kurtosis: float | None
    quantiles: Mapping[str, float]
    channels: Mapping[str, float]
    below: int
    first: int
    counts: tuple[int, ...]

    @property
    def absmax(self) -> float:
        return max(abs(self.min), abs(self.max))

    @property
    def absmax_over_median(self) -> float | None:
        """How far the largest stands out; ``None`` where the median is 0."""
        median = self.quantiles["0.5"]
        return self.absmax / median if median else None


@dataclass(frozen=True)
class Change:
    """after: ``None`` where nothing was prepared."""

    before: Spread
    after: Spread | None


@dataclass(frozen=True)
class Linear:
    """A linear of a block.

    name: full. kind: within its block. reads: the first linear of the block that reads the same
    input, itself if it is that.
    """

    name: str
    kind: str
    layer: int
    reads: str
    weights: Change
    inputs: Change


@dataclass(frozen=True)
class Distributions:
    """Of every linear of the blocks, in the order in which they run.

    text, windows, length: what the inputs are of, held out of what the method was calibrated on.
    settings: the method's. notes: what it had to say.
    """

    model: str
    revision: str | None
    method: str
    scheme: str
    settings: Mapping[str, Any]
    text: str
    text_sha256: str
    windows: int
    length: int
    linears: tuple[Linear, ...]
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return 1 + max((one.layer for one in self.linears), default=-1)

    @property
    def is_prepared(self) -> bool:
        return any(one.inputs.after is not None for one in self.linears)


def to_json(found: Distributions) -> str:
    """All of it, a linear to a line."""
    head = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(found)}
    linears = [json.dumps(one, allow_nan=False) for one in head.pop("linears")]
    fields = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{fields},\n "linears": [\n  ' + ",\n  ".join(linears) + "\n ]\n}\n"


def load(path: Path) -> Distributions:
    """Read a distributions.json.

    Raises:
        NotFound: there is no such file.
        Damaged: it is truncated, not JSON, or a field is not what it should be.
        Unsupported: another format, or a version that this release does not know.
    """
    found: Distributions = read_as(Distributions, path, FORMAT, VERSION)
    for linear in found.linears:
        _check(linear, f"{path}: {linear.name}")
    return found


def _check(linear: Linear, where: str) -> None:
    for change in (linear.weights, linear.inputs):
        for spread in (change.before, change.after):
            if spread is None:
                continue
            missing = {*SHARES} - {*spread.quantiles} or {*CHANNEL_SHARES} - {*spread.channels}
            if missing:
                raise Damaged(f"{where} has no quantile {min(missing)}")
            if spread.below + sum(spread.counts) != spread.count:
                raise Damaged(f"{where}: its histogram does not have its {spread.count} values")
