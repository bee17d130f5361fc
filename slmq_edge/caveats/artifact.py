"""Doubts about what ran: its integers, its products, its golden prompts."""

from __future__ import annotations

from slmq_edge.caveats.evidence import Caveat, Evidence

CLEAR_SHARE = 0.5  # of golden positions


def golden_mostly_unclear(seen: Evidence) -> Caveat | None:
    compared = seen.golden.get("positions_compared", 0)
    below = seen.golden.get("positions_below_margin", 0)
    if below <= (1 - CLEAR_SHARE) * compared:
        return None
    return Caveat(
        "golden-mostly-unclear",
        f"at {below} of {compared} golden positions the simulation's choice is within its own "
        "noise, so the choice of token was hardly checked: use golden prompts the model knows",
        {"positions_compared": compared, "positions_below_margin": below},
    )


def inexact_integers(seen: Evidence) -> Caveat | None:
    if seen.probe is None or seen.probe.get("exact"):
        return None
    return Caveat(
        "inexact-integers",
        f"{seen.probe.get('operator')} is not exact on this CPU (off by up to "
        f"{seen.probe.get('largest_error')}): its speed is that of wrong numbers",
        {"largest_error": seen.probe.get("largest_error")},
    )


def products_left_floats(seen: Evidence) -> Caveat | None:
    said = seen.environment.get("session") or {}
    missing, asked = said.get("int8_missing"), said.get("int8_asked")
    if not missing:
        return None
    return Caveat(
        "int8-missing",
        f"{len(missing)} of the {asked} products that were to be int8 are not, in this engine: "
        "slmq-edge build says which, and why",
        {"missing": len(missing), "asked": asked},
    )


def steps_not_replayed(seen: Evidence) -> Caveat | None:
    fact = (seen.environment.get("session") or {}).get("cuda_graph")
    if fact is None or not fact.startswith("not used"):
        return None
    return Caveat(
        "no-cuda-graph",
        f"decoding launched its kernels one by one, which takes longer (CUDA graph {fact})",
        {"cuda_graph": fact},
    )
