"""The timing loop: prefill, then greedy decoding, over and over, every repetition kept.

``prefill_seconds`` ends when the first new token is known (time to first token, tokenizer
excluded); ``decode_seconds`` is the time of the n steps after it, choosing included. Memory
is read between the timed parts, never inside them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from slmq_edge.errors import Damaged, UsageError, unknown
from slmq_edge.profiles import Profile
from slmq_edge.runner import around, forward, golden
from slmq_edge.runner.golden import Decoder
from slmq_edge.runner.manifest import described

Emit = Callable[["dict[str, Any]"], object]


class Text(NamedTuple):
    """What is read: so many tokens from the beginning of a text. sha256: of all its documents."""

    source: str
    sha256: str
    tokens: tuple[int, ...]


class Workload(NamedTuple):
    """What is measured: batch 1, p tokens in, n tokens out after the first.

    protocol: what is timed besides, a key of `forward.PROTOCOLS`. text: None: the golden prompts.
    """

    prompt_tokens: int
    new_tokens: int
    repetitions: int
    warmups: int
    threads: int
    protocol: str | None = None
    text: Text | None = None

    def asked(self) -> dict[str, Any]:
        """JSON of what decides the figures; what is not asked for has no field, as of old."""
        fields = {k: v for k, v in self._asdict().items() if v is not None}
        if self.text is not None:
            fields["text"] = {"source": self.text.source, "sha256": self.text.sha256}
        return fields

    def document(self) -> dict[str, Any]:
        """JSON of all of it, the tokens too; see `read`."""
        fields = self.asked()
        if self.text is not None:
            fields["text"] = {**fields["text"], "tokens": list(self.text.tokens)}
        return fields

    @staticmethod
    def read(document: Mapping[str, Any]) -> Workload:
        """The workload of a `document`; TypeError where it is none."""
        fields = dict(document)
        if "text" in fields:
            text = Text(**fields["text"])
            fields["text"] = text._replace(tokens=tuple(text.tokens))
        return Workload(**fields)


class Timing(NamedTuple):
    prefill_seconds: float
    decode_seconds: float
    decode_step_seconds: tuple[float, ...]
    memory: dict[str, dict[str, int | None]]  # phase -> kind -> bytes


def check_workload(workload: Workload, bundle: Mapping[str, Any]) -> None:
    """Refuse what cannot be measured on this bundle, before anything is loaded."""
    context_length = described(bundle).get("context_length")
    if type(context_length) is not int:
        raise Damaged("bundle.json is damaged: it has no context_length")
    for name, least in zip(Workload._fields, (1, 1, 1, 0, 1)):
        if getattr(workload, name) < least:
            raise UsageError(f"{name.replace('_', ' ')} must be at least {least}")
    if workload.protocol is not None:
        check_protocol(workload.protocol, workload.prompt_tokens)
    needed = workload.prompt_tokens + workload.new_tokens
    if needed > context_length:
        raise UsageError(
            f"{workload.prompt_tokens} prompt tokens and {workload.new_tokens} new ones make "
            f"{needed}: the context holds {context_length}"
        )


def check_protocol(protocol: str, prompt_tokens: int) -> None:
    """Refuse a protocol that there is not, or prompts of another length than its own."""
    if protocol not in forward.PROTOCOLS:
        raise UsageError(unknown("protocol", protocol, tuple(forward.PROTOCOLS)))
    needed = forward.of(protocol).tokens
    if prompt_tokens != needed:
        raise UsageError(
            f"--protocol {protocol} reads prompts of {needed} tokens: leave -p {prompt_tokens} out"
        )


def check_positions(workload: Workload, most: int | None) -> None:
    """Refuse a text longer than what was built takes; None: as long as the context."""
    needed = workload.prompt_tokens + workload.new_tokens
    if most is not None and needed > most:
        raise UsageError(
            f"{workload.prompt_tokens} prompt tokens and {workload.new_tokens} new ones make "
            f"{needed}: this engine holds {most}; slmq-edge build BUNDLE --context {needed}"
        )


def prompt_of(workload: Workload, golden_file: Path) -> Any:
    """The tokens to read, int64 [prompt_tokens]: of the text, or else the golden ones."""
    if workload.text is None:
        return golden.prompt_tokens(golden_file, workload.prompt_tokens)
    if len(workload.text.tokens) != workload.prompt_tokens:
        found = len(workload.text.tokens)
        raise Damaged(f"the job has {found} tokens of text, and reads {workload.prompt_tokens}")
    return np.array(workload.text.tokens, np.int64)


def measure(
    session: Decoder,
    prompt: Any,
    workload: Workload,
    emit: Emit,
    profile: Profile,
    clock: Callable[[], float] = time.perf_counter,
    missing: Sequence[int] | None = None,
    cool_down: Callable[[], float] = lambda: 0.0,
) -> None:
    """Warm up, then repeat; every warm-up and repetition is an event before the next begins.

    Args:
        session: the loaded graph.
        prompt: int64 [prompt_tokens].
        workload: how many of everything.
        emit: takes the events ``warmup`` and ``repetition`` of `journal`.
        profile: reads the memory, and what the machine is like behind every round.
        clock: seconds, monotonic.
        missing: indices of the repetitions to take; None: all of them.
        cool_down: waits before every repetition and returns the seconds of that.
    """
    todo = range(workload.repetitions) if missing is None else missing
    rounds = [("warmup", index) for index in range(workload.warmups)]
    rounds += [("repetition", index) for index in todo]
    for name, index in rounds:
        waited = cool_down() if name == "repetition" else 0.0
        timing = once(session, prompt, workload.new_tokens, profile, clock)
        state = {"cooled_seconds": waited, "state": around.snapshot(profile)}
        emit({"event": name, "index": index, **timing._asdict(), **state})


def once(
    session: Decoder,
    prompt: Any,
    new_tokens: int,
    profile: Profile,
    clock: Callable[[], float],
) -> Timing:
    """One prefill and ``new_tokens`` greedy steps."""
    tokens = prompt.reshape(1, -1)
    profile.reset_peak()
    started = clock()
    token, cache = session.first(tokens, new_tokens)
    prefill_seconds = clock() - started
    memory = {"prefill": dict(profile.memory())}

    profile.reset_peak()
    ticks = [clock()]
    for _ in range(new_tokens):
        token, cache = session.next(token, cache)
        ticks.append(clock())
    memory["decode"] = dict(profile.memory())
    steps = tuple(float(step) for step in np.diff(ticks))
    return Timing(prefill_seconds, ticks[-1] - ticks[0], steps, memory)
