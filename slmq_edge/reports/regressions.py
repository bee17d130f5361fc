"""What a candidate loses, held to a limit, as a line."""

from __future__ import annotations

from slmq_edge.regressions import Check
from slmq_edge.reports.compare import INTERVAL, short_name

WORDS = {
    "decode": "decode tokens/s",
    "prefill": "prefill tokens/s",
    "energy": "tokens per joule of decoding",
    "ttft": "time to first token",
    "load": "time to load",
    "memory": "peak memory",
    "size": "size on disk",
    "score": "SLMQ_infer against the baseline's own",
}


def told(check: Check) -> str:
    """One line: who, what, how it changed, and the limit."""
    run, sign = check.comparison.candidate.run, -100 if check.better == "higher" else 100
    much = f"{sign * check.loss:+.1f} %"
    if check.least is not None and check.most is not None:
        low, high = sorted((sign * check.least, sign * check.most))
        much += f" ({INTERVAL}: {low:+.1f} to {high:+.1f} %)"
    who = f"{short_name(run)} on {run.device.name}"
    return f"{who}: {WORDS[check.limit.what]} {much}, limit {check.limit.text}"
