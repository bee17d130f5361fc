"""A `Run`: what was measured, on what, and how much it can be trusted. Saved as run.json.

Raw values are stored, statistics are derived. The format is numbered; a document of another
format or version, or with a field that is missing, unknown or of the wrong type, is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.caveats import Caveat
from slmq_edge.energy import Window
from slmq_edge.errors import Damaged, NotFound, Unsupported
from slmq_edge.files import write_text_atomically
from slmq_edge.runner.manifest import read_manifest

FORMAT = "slmq-edge-run"
VERSION = 1
ORIGINS = ("measured", "projected", "published")

Memory = Mapping[str, Mapping[str, int | None]]


@dataclass(frozen=True)
class Series:
    """Raw values in the order in which they were taken."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Interquartile range, in ``unit``: one outlier does not move it. 0 for one value."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return high - low

    def rate(self, count: int, unit: str) -> Series:
        """Turn the seconds that ``count`` things took into things per second."""
        return Series(unit, tuple(count / seconds for seconds in self.values))


@dataclass(frozen=True)
class Counts:
    parameters: int
    linear_macs_per_token: int
    head_macs_per_token: int


@dataclass(frozen=True)
class Artifact:
    """What ran, by its true names.

    model: name, and ``@revision`` where it has one. bundle_sha256: that of bundle.json.
    bundle_bytes: all files that it lists. weights_bytes: the graph with its external data.
    weights, kv_cache: grids, in the words of the lowering; read_bytes: of weights for one decoded
    token, as they lie at run time. recipe: how it was made, see `slmq_edge.record`. ``None`` in
    older runs and bundles.
    """

    model: str
    method: str
    scheme_requested: str
    scheme_ran: str
    int8_gemm_share: float
    weight_storage_bits: Mapping[str, int]
    activation_mode: str
    lm_head: str
    runtime: Mapping[str, Any]
    bundle_sha256: str
    bundle_bytes: int
    weights_bytes: int
    kv_bytes_per_token: int
    counts: Counts
    context_length: int
    weights: str | None = None
    kv_cache: str | None = None
    read_bytes: int | None = None
    recipe: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Device:
    name: str
    kind: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """What prompts were cut from. sha256: of its documents, as `calibration.Text` has it."""

    source: str
    sha256: str


@dataclass(frozen=True)
class Workload:
    """Batch 1: ``prompt_tokens`` in, ``new_tokens`` decoding steps, so many times.

    protocol: what was timed besides, a key of `runner.forward.PROTOCOLS`. text: ``None``: the
    bundle's golden prompts.
    """

    prompt_tokens: int
    new_tokens: int
    repetitions: int
    warmups: int
    threads: int
    protocol: str | None = None
    text: Text | None = None


@dataclass(frozen=True)
class Run:
    """device_memory: at most, by part. environment's ``session``: what it said of itself.

    power: by phase, raw. states: what the machine was like before each loading and behind every
    round, in the order of time, as `runner.around.snapshot` has it, and ``event``. options: how it
    was measured, besides its workload: `tracks.inference.Options`; ``None`` in older runs.
    """

    created: str
    artifact: Artifact
    device: Device
    environment: Mapping[str, Any]
    workload: Workload
    golden: Mapping[str, Any]
    probe: Mapping[str, Any] | None
    series: Mapping[str, Series]
    memory: Memory
    origin: str
    caveats: tuple[Caveat, ...]
    device_memory: Mapping[str, int] | None = None
    power: Mapping[str, Window] | None = None
    states: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] | None = None

    @property
    def prefill_rate(self) -> Series:
        return self.series["prefill_seconds"].rate(self.workload.prompt_tokens, "tokens/s")

    @property
    def decode_rate(self) -> Series:
        return self.series["decode_seconds"].rate(self.workload.new_tokens, "tokens/s")

    @property
    def forward_rate(self) -> Series | None:
        """Tokens/s as the paper times them: of whole forward passes; ``None`` without them."""
        seconds = self.series.get("forward_seconds")
        return None if seconds is None else seconds.rate(self.workload.prompt_tokens, "tokens/s")


def to_json(run: Run) -> str:
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(run)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def save(run: Run, path: Path, force: bool = False) -> None:
    """Write run.json: the whole of it, or nothing."""
    write_text_atomically(path, to_json(run), force)


def load(path: Path) -> Run:
    """Read a run.json.

    Raises:
        NotFound: there is no such file.
        Damaged: it is truncated, not JSON, or a field is not what it should be.
        Unsupported: another format, or a version that this release does not know.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    try:
        document = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    try:
        return from_document(document, str(path))
    except RecursionError as error:
        raise Damaged(f"{path} is damaged: nested too deeply") from error


def from_document(document: object, name: str) -> Run:
    """Turn a parsed run.json into a `Run`; ``name`` is how errors call it."""
    if not isinstance(document, dict):
        raise Damaged(f"{name} is damaged: not a JSON object")
    if document.get("format") != FORMAT:
        raise Unsupported(f"{name} is {document.get('format')!r}, expected {FORMAT!r}")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        found = document.get("version")
        raise Unsupported(f"{name} has version {found!r}; this release reads {VERSION}")
    fields = {k: v for k, v in document.items() if k not in ("format", "version")}
    run: Run = decode(Run, fields, f"{name}:")
    passes = [name for name in ("forward_seconds",) if name in run.series]
    for series in ("load_seconds", "prefill_seconds", "decode_seconds", *passes):
        found_series = run.series.get(series)
        if found_series is None or not found_series.values or min(found_series.values) <= 0:
            raise Damaged(f"{name}: series.{series} is missing, empty or not positive")
    if run.origin not in ORIGINS:
        raise Damaged(f"{name}: origin is {run.origin!r}, expected one of {ORIGINS}")
    return run


def read_as(kind: Any, path: Path, format: str, version: int) -> Any:
    """Read a JSON document of ``format`` as a dataclass, whose fields are all that it has besides.

    Raises:
        NotFound: there is no such file.
        Damaged: it is truncated, not JSON, or a field is not what it should be.
        Unsupported: another format, or a version that this release does not know.
    """
    document = read_manifest(path.parent, path.name, format, version)
    fields = {name: value for name, value in document.items() if name not in ("format", "version")}
    try:
        return decode(kind, fields, f"{path}:")
    except RecursionError as error:
        raise Damaged(f"{path} is damaged: nested too deeply") from error


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON into ``kind``: a dataclass, a tuple, a mapping, a union or a plain type.

    Raises:
        Damaged: the value is of another type, or a field is missing or unknown.
    """
    origin = typing.get_origin(kind)
    if kind is Any:
        return _finite(value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _decode_record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        (item, _) = typing.get_args(kind)
        return tuple(decode(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        (_, item) = typing.get_args(kind)
        return {k: decode(item, v, f"{where}.{k}") for k, v in value.items()}
    if origin is types.UnionType:
        (item,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return None if value is None else decode(item, value, where)
    if kind is float and type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    if type(value) is kind:
        return value
    raise Damaged(f"{where} is {type(value).__name__}, expected {_name(kind)}")


def _decode_record(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    may_lack = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    wrong = sorted((set(hints) ^ set(value)) - (may_lack - set(value)))
    if wrong:
        problem = "is missing" if wrong[0] in hints else "is unknown"
        raise Damaged(f"{where}.{wrong[0]} {problem}".replace(":.", ": "))
    found = {k: decode(hints[k], value[k], f"{where}.{k}".replace(":.", ": ")) for k in value}
    return kind(**found)


def _finite(value: Any, where: str) -> Any:
    """Return any JSON value unchanged, unless 1e999 made a number infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Damaged(f"{where} is not a finite number")
    if isinstance(value, dict):
        return {k: _finite(v, f"{where}.{k}") for k, v in value.items()}
    return [_finite(v, where) for v in value] if isinstance(value, list) else value


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
