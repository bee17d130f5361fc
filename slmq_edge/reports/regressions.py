"""What a candidate loses, held to a limit, as a line."""

from __future__ import annotations

from slmq_edge.regressions import Check
from slmq_edge.reports.compare import INTERVAL, short_name

WORDS = {
    "decode": "decode tokens/s are {} lower",
    "prefill": "prefill tokens/s are {} lower",
    "energy": "tokens per joule of decoding are {} lower",
    "ttft": "the first token takes {} longer",
    "load": "loading takes {} longer",
    "memory": "peak memory is {} larger",
    "size": "the size on disk is {} larger",
    "score": "SLMQ_infer is {} below the baseline's own",
}


def told(check: Check) -> str:
    """One line: who, what, how much, and the limit."""
    run = check.comparison.candidate.run
    much = f"{100 * check.loss:.1f} %"
    if check.least is not None and check.most is not None:
        much += f" ({INTERVAL}: {100 * check.least:.1f} to {100 * check.most:.1f} %)"
    words = WORDS[check.limit.what].format(much)
    return f"{short_name(run)} on {run.device.name}: {words}, limit {check.limit.text}"
