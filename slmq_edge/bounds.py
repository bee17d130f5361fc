"""What no device can exceed: bytes over bandwidth, operations over peak, known before measuring.

    decode    bytes = weights read + KV per token * mean depth        seconds >= bytes / bandwidth
              seconds >= 2 (integer multiply-adds / int8 peak + float ones / float16 peak)
    prefill   weights once, all linears for every token, the head for the last

Of the bytes, what fits into the last-level cache may never come from memory, and counts as if it
did not. Attention's own products, activations and written keys are left out: a bound is too high
rather than too low. A memory-bandwidth utilization (MBU) counts all bytes, cached or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from slmq_edge.errors import Damaged
from slmq_edge.runner.manifest import TORCH, TRT, described, graph_of, kind_of

if TYPE_CHECKING:  # results asks here what is implausible
    from slmq_edge.results import Run

BANDWIDTH, INT8, FP16, CACHE = (
    "bandwidth_bytes_per_second",
    "int8_dense_ops",
    "fp16_dense_flops",
    "cache_bytes",
)
GPU_KINDS = ("cuda", "jetson")  # of sheets whose peaks and caches are a GPU's
TOLERANCE = 1.05  # a clock may run above what a sheet says
# A cache of which nothing is known is taken to be larger than any device's that has a sheet: an RTX
# 4090 has 72 MB, server CPUs have up to some hundreds. What it could hold condemns nobody.
UNKNOWN_CACHE = 512 * 10**6
# Without pages to spare, mapped weights come and go, and no peak shows all of them.
ROOMY = 2
FLOAT_BITS = {"float32": 32, "float16": 16}
LEVELS, STEPS = "stored as int8", 5  # of a cache, and bytes of a head's scale and zero point
UNPACKED = {"ort": 32, "ort-cuda": 16}  # bits of the floats of each target


class Lengths(Protocol):
    """How many tokens go in and come out; both kinds of Workload are such."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def new_tokens(self) -> int: ...


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one token: as integers, and as floats."""

    integer: float
    floats: float


@dataclass(frozen=True)
class Card:
    """What a bundle asks of a machine, by its manifest and the workload.

    weights_bytes: graph and external data on disk. read_bytes: of weights, for one decoded token,
    as they lie at run time; a tied table counts once, of a lookup table nothing. steps_bytes: of
    these, scales and zero points. table_bytes: of a lookup table that the head does not share.
    largest_bytes: of one matrix. kv_bytes_per_token: of one position. depth: mean number of
    positions that a decoding step reads. layers, table_bytes: ``None`` without an anatomy, as of a
    run. on_gpu: what the bundle is for.
    """

    weights_bytes: int
    read_bytes: int
    steps_bytes: int
    table_bytes: int | None
    largest_bytes: int
    kv_bytes_per_token: int
    prompt_tokens: int
    depth: float
    linears: Work
    head: Work
    layers: int | None
    on_gpu: bool

    @property
    def kv_bytes(self) -> float:
        """Of keys and values, for one decoded token at the mean depth."""
        return self.kv_bytes_per_token * self.depth

    @property
    def bytes_per_token(self) -> float:
        return self.read_bytes + self.kv_bytes

    @property
    def macs_per_token(self) -> float:
        """Of a decoded token."""
        return sum((self.linears.integer, self.linears.floats, self.head.integer, self.head.floats))


@dataclass(frozen=True)
class Ceiling:
    """Tokens/s that cannot be exceeded; ``None`` with the reason. certain: no fact is doubtful."""

    limit: str
    per_second: float | None
    reason: str | None = None
    certain: bool = True


@dataclass(frozen=True)
class Ceilings:
    """By memory bandwidth, then by arithmetic."""

    decode: tuple[Ceiling, ...]
    prefill: tuple[Ceiling, ...]


def card(bundle: Mapping[str, Any], work: Lengths, device_kind: str | None = None) -> Card:
    """The card of a bundle, from its bundle.json, before anything runs.

    device_kind: the adapter's of where it is to run, which decides where torch computes.

    Raises:
        Damaged: bundle.json lacks a field, or has one of another type.
    """
    try:
        return _card(described(bundle), bundle, work, device_kind in GPU_KINDS)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"bundle.json is damaged: no card can be made of it ({error})") from error


def _card(
    about: Mapping[str, Any], bundle: Mapping[str, Any], work: Lengths, torch_on_gpu: bool
) -> Card:
    rows = about.get("linears") or []
    counts, shape = about["counts"], bundle.get("anatomy")
    bits, parts = about["weight_storage_bits"], bundle.get("weight_bytes") or {}
    kind, ran = kind_of(bundle), str(about["scheme_ran"])
    files = bundle["files"].items()
    on_disk = sum(entry["bytes"] for name, entry in files if name.startswith(graph_of(bundle)))
    # Rotations are left out: a small one is multiplied by many times for a token.
    products = [row for row in rows if row["part"] in ("linear", "head")]
    if products:
        sizes = [row["macs_per_token"] * row["memory_bits"] / 8 for row in products]
        steps = int(parts.get("steps", 0))
        read = sum(sizes) + steps
        linears, head = (_work(products, part) for part in ("linear", "head"))
    else:
        head_bits = _head_bits(kind, str(about["lm_head"]), bits)
        head_bytes = counts["head_macs_per_token"] * head_bits / 8
        read = _linear_bits(kind, ran, bits) * counts["linear_macs_per_token"] / 8 + head_bytes
        sizes, steps = [head_bytes], 0
        linears, head = _by_share(counts, about["int8_gemm_share"], str(about["lm_head"]))
    table = None
    if shape is not None:
        # Of a tied table the head's copy has been counted, unless the two have other bits.
        apart = not shape["tied"] or bits["embedding"] != bits["lm_head"]
        table = int(shape["vocab"] * shape["hidden"] * bits["embedding"] / 8) if apart else 0
    return Card(
        weights_bytes=on_disk,
        read_bytes=round(read),
        steps_bytes=steps,
        table_bytes=table,
        largest_bytes=round(max(sizes)),
        kv_bytes_per_token=_kv(shape, about),
        prompt_tokens=work.prompt_tokens,
        depth=_depth(work),
        linears=linears,
        head=head,
        layers=None if shape is None else shape["layers"],
        on_gpu=_on_gpu(bundle.get("runtime") or {}, torch_on_gpu),
    )


def card_of(run: Run) -> Card:
    """The card of what was measured, as far as run.json tells.

    Older runs do not tell what is read of weights: it is made up of bits, without scales.
    """
    ran = run.artifact
    counts = {
        "linear_macs_per_token": ran.counts.linear_macs_per_token,
        "head_macs_per_token": ran.counts.head_macs_per_token,
    }
    linears, head = _by_share(counts, ran.int8_gemm_share, ran.lm_head)
    kind = kind_of({"runtime": ran.runtime})
    bits = ran.weight_storage_bits
    head_bytes = ran.counts.head_macs_per_token * _head_bits(kind, ran.lm_head, bits) / 8
    blocks = ran.counts.linear_macs_per_token * _linear_bits(kind, ran.scheme_ran, bits) / 8
    return Card(
        weights_bytes=ran.weights_bytes,
        read_bytes=round(blocks + head_bytes) if ran.read_bytes is None else ran.read_bytes,
        steps_bytes=0,
        table_bytes=None,
        largest_bytes=round(head_bytes),
        kv_bytes_per_token=ran.kv_bytes_per_token,
        prompt_tokens=run.workload.prompt_tokens,
        depth=_depth(run.workload),
        linears=linears,
        head=head,
        layers=None,
        on_gpu=_on_gpu(ran.runtime, bool(run.environment.get("gpu"))),
    )


def ceilings(
    asked: Card, facts: Mapping[str, Any], kind: str, cache_bytes: float | None = None
) -> Ceilings:
    """What a device's facts allow.

    Args:
        asked: a card.
        facts: as in run.json, name -> {value, source, and perhaps uncertain}.
        kind: the adapter's, which tells whether the peaks are a GPU's.
        cache_bytes: all last-level caches of what runs; None: every byte comes from memory.
    """
    if kind == "cuda" and not asked.on_gpu:
        reason = "the sheet is a GPU's, and this runs on the CPU beside it"
        none = (Ceiling("memory bandwidth", None, reason), Ceiling("arithmetic", None, reason))
        return Ceilings(none, none)
    cached = cache_bytes or 0.0
    tokens = asked.prompt_tokens
    once = Work(asked.linears.integer * tokens, asked.linears.floats * tokens)
    return Ceilings(
        decode=(
            _memory(asked.bytes_per_token - cached, 1, facts),
            _arithmetic([asked.linears, asked.head], 1, facts, kind, asked.on_gpu),
        ),
        prefill=(
            _memory(asked.read_bytes - cached, tokens, facts),
            _arithmetic([once, asked.head], tokens, facts, kind, asked.on_gpu),
        ),
    )


def lowest(bounds: Iterable[Ceiling]) -> Ceiling | None:
    """The one that binds; None where no bound is known."""
    known = [one for one in bounds if one.per_second is not None]
    return min(known, key=lambda one: one.per_second or 0.0) if known else None


def cache_of(
    asked: Card, facts: Mapping[str, Any], kind: str, environment: Mapping[str, Any]
) -> float | None:
    """Bytes of the last-level caches of what ran: a CPU's as the system tells, else the sheet's."""
    told = environment.get("cache_bytes")
    if not asked.on_gpu and isinstance(told, int | float) and told > 0:
        return float(told)
    # A sheet's is that of what the sheet is about.
    return fact(facts, CACHE)[0] if asked.on_gpu == (kind in GPU_KINDS) else None


def utilization(asked: Card, facts: Mapping[str, Any], per_second: float) -> float | None:
    """MBU: the share of the memory bandwidth that so many decoded tokens/s would need."""
    bandwidth, _ = fact(facts, BANDWIDTH)
    return None if bandwidth is None else asked.bytes_per_token * per_second / bandwidth


def implausible(run: Run) -> tuple[str, ...]:
    """What cannot be, a line each; empty for all that may be true, and for what is not measured.

    Memory condemns only beyond any cache (``UNKNOWN_CACHE``), facts marked uncertain condemn
    nothing, and ``TOLERANCE`` is allowed everywhere.
    """
    if run.origin != "measured":
        return ()
    asked, facts, kind = card_of(run), run.device.facts, run.device.kind
    cache = cache_of(asked, facts, kind, run.environment)
    allowed = ceilings(asked, facts, kind, UNKNOWN_CACHE if cache is None else cache)
    found = []
    rates = [("decode", run.decode_rate, allowed.decode)]
    rates.append(("prefill", run.prefill_rate, allowed.prefill))
    if run.forward_rate is not None:  # which does what a prefill does, and more of the head
        rates.append(("forward pass", run.forward_rate, allowed.prefill))
    for phase, series, bounds in rates:
        rate = series.median
        for bound in bounds:
            if bound.per_second is None or not bound.certain:
                continue
            if rate > TOLERANCE * bound.per_second:
                found.append(
                    f"{phase}: {rate:.4g} tokens/s is {rate / bound.per_second:.3g} times what "
                    f"{bound.limit} allows ({bound.per_second:.4g})"
                )
    return (*found, *_too_small(run, asked))


def _too_small(run: Run, asked: Card) -> list[str]:
    """A process that computed with weights had them in memory, as anonymous or as file pages."""
    total = run.environment.get("memory_total_bytes")
    if asked.on_gpu or not isinstance(total, int) or total < ROOMY * asked.read_bytes:
        return []
    peaks = [run.memory.get(phase, {}).get("cpu_peak_rss") for phase in ("prefill", "decode")]
    known = [peak for peak in peaks if peak is not None]
    if not known or max(known) * TOLERANCE >= asked.read_bytes:
        return []
    return [
        f"memory: a peak of {max(known) / 1e6:.4g} MB resident is less than the "
        f"{asked.read_bytes / 1e6:.4g} MB of weights that every token reads"
    ]


def fact(facts: Mapping[str, Any], name: str) -> tuple[float | None, bool]:
    """A positive number of a sheet, and whether it is certain."""
    found = facts.get(name)
    value = found.get("value") if isinstance(found, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None, False
    return float(value), not (isinstance(found, Mapping) and found.get("uncertain"))


def _memory(count: float, tokens: int, facts: Mapping[str, Any]) -> Ceiling:
    limit = "memory bandwidth"
    bandwidth, certain = fact(facts, BANDWIDTH)
    if bandwidth is None:
        return Ceiling(limit, None, f"the sheet has no {BANDWIDTH}")
    if count <= 0:
        return Ceiling(limit, None, "all of it fits into the last-level cache")
    return Ceiling(limit, tokens * bandwidth / count, certain=certain)


def _arithmetic(
    works: Iterable[Work], tokens: int, facts: Mapping[str, Any], kind: str, on_gpu: bool
) -> Ceiling:
    limit = "arithmetic"
    if kind in GPU_KINDS and not on_gpu:
        return Ceiling(limit, None, "the sheet's peaks are the GPU's, and this runs on the CPU")
    listed = list(works)
    seconds, all_certain = 0.0, True
    for name, macs in (
        (INT8, sum(one.integer for one in listed)),
        (FP16, sum(one.floats for one in listed)),
    ):
        peak, certain = fact(facts, name)
        if macs and peak is None:
            return Ceiling(limit, None, f"the sheet has no {name}")
        if macs and peak is not None:
            seconds += 2 * macs / peak
            all_certain = all_certain and certain
    if not seconds:
        return Ceiling(limit, None, "no multiply-adds were counted")
    return Ceiling(limit, tokens / seconds, certain=all_certain)


def _work(rows: Iterable[Mapping[str, Any]], part: str) -> Work:
    macs = {True: 0, False: 0}
    for row in rows:
        if row["part"] == part:
            macs[bool(row["integer"])] += row["macs_per_token"]
    return Work(macs[True], macs[False])


def _by_share(counts: Mapping[str, Any], share: float, head: str) -> tuple[Work, Work]:
    """Of linears and head, where only the share of integers in all of them is known."""
    linears, last = counts["linear_macs_per_token"], counts["head_macs_per_token"]
    as_integers = head.startswith("int") and "float" not in head
    whole = share * (linears + last) - (last if as_integers else 0)
    integer = min(max(whole, 0.0), linears)
    return Work(integer, linears - integer), Work(last, 0) if as_integers else Work(0, last)


def _linear_bits(kind: str, ran: str, bits: Mapping[str, int]) -> int:
    """In memory, where no row tells: onnxruntime unpacks what none of its kernels reads packed."""
    stored = bits.get("linears", 0)
    if kind == TRT:
        return stored
    if ran == "w8a16":
        return UNPACKED.get(kind, stored)
    in_blocks = "-b" in ran or "a16" in ran
    return max(8, stored) if ran.startswith("w4a8") and not in_blocks else stored


def _head_bits(kind: str, words: str, bits: Mapping[str, int]) -> int:
    """In memory, by the words of the lowering: an 8-bit head that is multiplied as floats is so."""
    stored = bits.get("lm_head", 0)
    unpacked = words.startswith("int8") and words.endswith("float multiplied")
    return UNPACKED.get(kind, stored) if unpacked else stored


def _kv(shape: Mapping[str, Any] | None, about: Mapping[str, Any]) -> int:
    if shape is None:
        return 0
    cache = str(about.get("kv_cache") or "float32")
    width = next((bits for name, bits in FLOAT_BITS.items() if name in cache), 32) // 8
    head = shape["head_dim"] + STEPS if LEVELS in cache else shape["head_dim"] * width
    return int(2 * shape["layers"] * shape["kv_heads"] * head)


def _depth(work: Lengths) -> float:
    """Step i of n, from 0, reads the prompt and i tokens more."""
    return work.prompt_tokens + (work.new_tokens - 1) / 2


def _on_gpu(runtime: Mapping[str, Any], torch_on_gpu: bool) -> bool:
    provider, kind = str(runtime.get("provider", "")), runtime.get("kind")
    return torch_on_gpu if kind == TORCH else kind == TRT or provider.startswith("CUDA")
