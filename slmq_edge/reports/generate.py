"""What was generated, in one line: how long the first token took, how fast the rest came."""

from __future__ import annotations

from slmq_edge.generation import Generated, Sampling
from slmq_edge.reports.format import rate_text, seconds_text


def line(made: Generated, how: Sampling) -> str:
    """Return the line without a newline; the seed is in it where there was one."""
    parts = [
        f"prompt {made.prompt_tokens} tokens",
        f"TTFT {seconds_text(made.first_token_seconds)}",
        f"prefill {rate_text(made.prefill_rate)}",
        f"{made.new_tokens} new tokens",
        f"decode {rate_text(made.decode_rate)}",
        *([f"seed {how.seed}"] if how.temperature else []),
        f"stopped: {made.reason}",
    ]
    return ", ".join(parts)
