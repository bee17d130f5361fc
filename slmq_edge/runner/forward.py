"""Protocols: how else a bundle is timed besides prefill and decoding.

``paper`` times what Track 2 of SLMQuant (arXiv 2511.13023, section 4.1) does: batch 1, one forward
pass of 128 tokens with the logits of every position, nothing kept for a next one; 10 times to warm
up, then 100 times. Tokens/s are then 128 / seconds. It is no prefill, of which only the last
position's logits are wanted, and says nothing of decoding, which takes most of an answer's time.
A pass ends when its logits are computed: torch leaves them on the GPU, as the call that the paper
timed does; other runtimes hand them to the host, and that is in the time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Mapping, NamedTuple, Sequence

from slmq_edge.errors import UsageError
from slmq_edge.profiles import Profile
from slmq_edge.runner import around

if TYPE_CHECKING:  # it needs numpy, which a report of a run does not
    from slmq_edge.runner.golden import Decoder

PASS, WARMUP = "forward", "forward_warmup"  # events
LOGITS = "forward_logits"  # in a run's environment: of how many positions a pass had logits
STATE_EVERY = 10  # passes: clocks and heat change slowly, and are no part of a pass

Emit = Callable[["dict[str, Any]"], object]


class Passes(NamedTuple):
    """How many tokens a forward pass reads, and how many passes there are."""

    tokens: int
    warmups: int
    passes: int

    @property
    def rounds(self) -> int:
        return self.warmups + self.passes


class Together(NamedTuple):
    """What a session takes at once: tokens of a prompt, and positions that have logits."""

    tokens: int
    logits: int


NONE = Passes(0, 0, 0)
PROTOCOLS = {"paper": Passes(tokens=128, warmups=10, passes=100)}


def of(protocol: str | None) -> Passes:
    """The passes of a protocol; `NONE` without one."""
    return NONE if protocol is None else PROTOCOLS[protocol]


def check(protocol: str | None, together: Together | None) -> None:
    """Refuse an engine that would read the prompt in pieces: that is no single pass."""
    needed = of(protocol).tokens
    if together is not None and together.tokens < needed:
        raise UsageError(
            f"--protocol {protocol} is one pass of {needed} tokens: this engine takes "
            f"{together.tokens} at once; slmq-edge build BUNDLE --prompt {needed}"
        )


def missing(events: Sequence[Mapping[str, Any]], protocol: str | None) -> tuple[int, ...]:
    """Indices of the passes that a journal lacks."""
    done = taken(events)
    return tuple(index for index in range(of(protocol).passes) if index not in done)


def taken(events: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Those that a journal has, by index."""
    return {event["index"]: event for event in events if event["event"] == PASS}


def take(
    session: Decoder,
    prompt: Any,
    protocol: str,
    emit: Emit,
    profile: Profile,
    wanted: Sequence[int],
    together: Together | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Warm up, then take the passes that are wanted; each is an event before the next begins.

    Args:
        session: the loaded graph.
        prompt: int64 [tokens of the protocol].
        protocol: which one.
        emit: takes the events ``forward_warmup`` and ``forward`` of `journal`.
        profile: reads the memory behind every pass.
        wanted: indices of the passes to take.
        together: what the session takes at once; None: whatever it is given.
        clock: seconds, monotonic.
    """
    tokens = prompt.reshape(1, -1)
    keep = None if together is None else min(together.logits, tokens.shape[1])
    rounds = [(WARMUP, index) for index in range(of(protocol).warmups)]
    rounds += [(PASS, index) for index in wanted]
    for name, index in rounds:
        profile.reset_peak()
        started = clock()
        logits = session.forward(tokens, keep)
        seconds = clock() - started
        event = {
            "event": name,
            "index": index,
            "seconds": seconds,
            "logits": logits,
            "memory": {PASS: dict(profile.memory())},
        }
        if index % STATE_EVERY == STATE_EVERY - 1:
            event["state"] = around.snapshot(profile)
        emit(event)
