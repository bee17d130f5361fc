"""Rows of a card: what a bundle asks for and what that allows, and after measuring, what it got."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from slmq_edge import bounds
from slmq_edge.bounds import Card, Ceiling, Ceilings
from slmq_edge.reports.format import UNKNOWN, bytes_text, count_text, rate_text, share_text

Rows = list[tuple[str, str]]


def asked(card: Card) -> Rows:
    """What every decoded token costs, whatever runs it."""
    kv = f"weights {bytes_text(card.read_bytes)}, KV {bytes_text(card.kv_bytes)}"
    return [
        ("read per token", f"{bytes_text(card.bytes_per_token)} ({kv} at depth {card.depth:.0f})"),
        ("work per token", f"{count_text(card.macs_per_token)} multiply-adds"),
    ]


def allowed(limits: Ceilings) -> Rows:
    """The lowest ceiling of each phase; or why there is none."""
    decode, prefill = _binding(limits.decode), _binding(limits.prefill)
    if decode == prefill:
        return [("speed at most", decode)]
    return [("decode at most", decode), ("prefill at most", prefill)]


def reached(card: Card, limits: Ceilings, facts: Mapping[str, Any], rates: Rates) -> Rows:
    """Shares of what is possible. rates: measured tokens/s, of prefill and decode."""
    rows = []
    used = bounds.utilization(card, facts, rates["decode"])
    if used is not None:
        # Above 1 where weights come out of a cache.
        rows.append(("memory bandwidth used", f"{share_text(used)} (MBU of decode)"))
    for phase, known in (("decode", limits.decode), ("prefill", limits.prefill)):
        bound = bounds.lowest(known)
        if bound is not None and bound.per_second:
            share = share_text(rates[phase] / bound.per_second)
            rows.append((f"{phase} of the most", f"{share} ({_said(bound)})"))
    return rows


Rates = Mapping[str, float]


def _binding(known: Iterable[Ceiling]) -> str:
    listed = list(known)
    bound = bounds.lowest(listed)
    if bound is None:
        reasons = dict.fromkeys(one.reason for one in listed if one.reason)
        return f"{UNKNOWN}: {'; '.join(reasons)}"
    return _said(bound)


def _said(bound: Ceiling) -> str:
    doubt = "" if bound.certain else ", by an uncertain fact"
    return f"{rate_text(bound.per_second)} by {bound.limit}{doubt}"
