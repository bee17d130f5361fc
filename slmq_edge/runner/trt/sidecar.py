"""What an engine's sidecar says: what it was built of and on, and what came of it.

``int8_missing`` names the products that were to be int8 by int8 and are not, or of which TensorRT
does not tell; ``int8_reasons`` says why; ``with_shapes``, whether it was asked with shapes, without
which it tells no types. ``scheme_ran`` is what is left, by the rule of every bundle: a scheme gives
its name to an engine that runs at least 95 % of the multiply-adds of the blocks' linears by it;
otherwise it is ``mixed``. ``golden`` is the report of the check that followed, ``golden_error`` why
it failed; both are null where it has not been made.
"""

from __future__ import annotations

import re
import time
from typing import Any, Mapping, NamedTuple, Sequence

import slmq_edge
from slmq_edge.errors import Damaged
from slmq_edge.runner.trt import cache, layers, log
from slmq_edge.runner.trt.cache import Identity
from slmq_edge.runner.trt.recipe import Recipe

# As slmq_edge.exporters.lowering has it, which is not on the device.
NAMED_SHARE = 0.95
MATMUL = ".matmul"
PEAK = "cpu_peak_rss"  # the kind, as profiles call it
WARNINGS_KEPT = 20


class Made(NamedTuple):
    """What a build left. layers: see `layers.informations`. seconds: of the build alone.

    peak_rss: bytes of the host's memory that it took at most; None where the system does not tell.
    """

    layers: Mapping[str, str]
    profiles: Sequence[str]
    activation_bytes: int | None
    seconds: float
    tail: Sequence[str]
    peak_rss: int | None = None


def describe(
    made: Made,
    bundle: Mapping[str, Any],
    recipe: Recipe,
    identity: Identity,
) -> dict[str, Any]:
    """The document of ``<key>.json``, but for the plan's size and digest."""
    return {
        "format": cache.FORMAT,
        "version": cache.VERSION,
        "key": cache.key(identity),
        "identity": identity._asdict(),
        "slmq_edge": slmq_edge.__version__,
        "built_at": time.time(),
        "profiles": list(made.profiles),
        "seconds": made.seconds,
        "memory": {PEAK: made.peak_rss},
        **seen(made, bundle, recipe),
        "warnings": list(log.LINES.warnings)[:WARNINGS_KEPT],
        "log": list(made.tail),
        "golden": None,
        "golden_error": None,
    }


def seen(made: Made, bundle: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The fields that say what TensorRT made of the products, by its layer information."""
    found = layers.informations(made.layers, made.profiles)
    verdict = layers.verify(found, recipe.int8)
    ran = scheme_ran(bundle, verdict.missing)
    return {
        "with_shapes": layers.ENGINE not in made.layers,
        "activation_bytes": made.activation_bytes,
        "layers": {one.profile: one.layers for one in found},
        "products": {one.profile: layers.types(one) for one in found},
        "int8": list(verdict.int8),
        "int8_missing": sorted(verdict.missing),
        "int8_reasons": dict(verdict.missing),
        "scheme_ran": ran.scheme,
        "int8_gemm_share": ran.int8_share,
    }


class Ran(NamedTuple):
    """scheme: name, or ``mixed``. int8_share: of all multiply-adds by weights and rotations."""

    scheme: str
    int8_share: float


def scheme_ran(bundle: Mapping[str, Any], missing: Mapping[str, str]) -> Ran:
    """What a bundle's rows come to once the products that did not become int8 are floats'."""
    lowering = bundle.get("lowering")
    rows = lowering.get("linears", ()) if isinstance(lowering, dict) else ()
    if not rows:
        raise Damaged("bundle.json is damaged: it says nothing of its linears")
    blocks: dict[str, int] = {}
    integer = total = 0
    for row in rows:
        macs, is_missing = row["macs_per_token"], row["name"] + MATMUL in missing
        scheme = re.sub(r"a8\b", "a16", row["scheme"]) if is_missing else row["scheme"]
        integer += macs if row["integer"] and not is_missing else 0
        total += macs
        if row["part"] == "linear":
            blocks[scheme] = blocks.get(scheme, 0) + macs
    best = max(blocks, key=lambda scheme: blocks[scheme])
    named = blocks[best] >= NAMED_SHARE * sum(blocks.values())
    return Ran(best if named else "mixed", integer / total)
