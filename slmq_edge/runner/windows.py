"""Windows of energy: the same work over and over while a thread reads the power.

Timed repetitions are not watched: a reading costs time. And they are short: a small model reads a
prompt in less than a sensor's averaging time. So energy has windows of its own, of at least some
seconds each: ``idle`` before the model is loaded, ``prefill`` of the prompt again and again, and
``decode`` of the same steps again and again, from the cache that the prompt left. Readings are kept
raw with the time of their arrival; `slmq_edge.energy` integrates them.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, NamedTuple

from slmq_edge.profiles import Profile

if TYPE_CHECKING:  # they need numpy, which a report of a run does not
    from slmq_edge.runner.golden import Decoder
    from slmq_edge.runner.measure import Workload

PHASES = ("idle", "prefill", "decode")
INTERVAL = 0.08  # seconds between readings: sensors average over tens of milliseconds
Clock = Callable[[], float]


class Window(NamedTuple):
    """stamps: seconds since the window began. watts: by rail, a value a stamp; None: nothing new.

    tokens: that were read or made in ``rounds`` rounds. counter_joules: where a counter tells; the
    profile says of what. total_rails: which rails add up to the device.
    """

    phase: str
    seconds: float
    rounds: int
    tokens: int
    stamps: tuple[float, ...]
    watts: dict[str, tuple[float | None, ...]]
    counter_joules: float | None
    total_rails: tuple[str, ...]


def has_meter(profile: Profile) -> bool:
    """Whether this machine tells any power or energy."""
    told = any(watts is not None for watts in profile.power().values())
    profile.rest()
    return told or profile.energy() is not None


class Sampler:
    """Reads the power of a profile at intervals, in a thread of its own."""

    def __init__(self, profile: Profile, clock: Clock, interval: float = INTERVAL) -> None:
        self._profile, self._clock, self._interval = profile, clock, interval
        self._ended = threading.Event()
        self._readings: list[tuple[float, dict[str, float | None]]] = []
        self._joules: list[float | None] = []
        self._told: Mapping[str, float | None] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self.sample()  # the first reading is the window's beginning
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.sample()
        self._profile.rest()  # what is timed next has the machine for itself

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.sample()

    def sample(self) -> None:
        """Take one reading. A counter is read each time, or it might run over unseen.

        A source that comes in its own time has not always a new reading: the old one counts once.
        """
        told = self._profile.power()
        watts = dict.fromkeys(told) if told is self._told else dict(told)
        self._told = told
        self._readings.append((self._clock(), watts))
        self._joules.append(self._profile.energy())

    def window(self, phase: str, rounds: int, tokens: int) -> Window:
        """What was read between entering and leaving."""
        began = self._readings[0][0]
        rails = sorted({rail for _, watts in self._readings for rail in watts})
        first, last = self._joules[0], self._joules[-1]
        return Window(
            phase,
            self._readings[-1][0] - began,
            rounds,
            tokens,
            tuple(stamp - began for stamp, _ in self._readings),
            {rail: tuple(watts.get(rail) for _, watts in self._readings) for rail in rails},
            None if first is None or last is None else last - first,
            tuple(self._profile.facts().get("total_rails", ())),
        )


def idle(
    profile: Profile,
    seconds: float,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Window:
    """Watch the machine do nothing."""
    sampler = Sampler(profile, clock)
    with sampler:
        sleep(seconds)
    return sampler.window("idle", 0, 0)


def of_work(
    session: Decoder,
    prompt: Any,
    workload: Workload,
    profile: Profile,
    seconds: float,
    wanted: tuple[str, ...] = PHASES[1:],
    clock: Clock = time.monotonic,
) -> Iterator[Window]:
    """Watch prompts being read, then tokens being made: windows of at least ``seconds`` each."""
    tokens, new = prompt.reshape(1, -1), workload.new_tokens

    def read() -> int:
        session.first(tokens, new)
        return workload.prompt_tokens

    if "prefill" in wanted:
        yield _repeated("prefill", read, profile, seconds, clock)
    if "decode" not in wanted:
        return
    first, begun = session.first(tokens, new)

    def decode() -> int:
        token, cache = first, begun
        for _ in range(new):
            token, cache = session.next(token, cache)
        return new

    yield _repeated("decode", decode, profile, seconds, clock)


def _repeated(
    phase: str, work: Callable[[], int], profile: Profile, seconds: float, clock: Clock
) -> Window:
    """Whole rounds of work, until so much time has passed."""
    rounds = tokens = 0
    sampler = Sampler(profile, clock)
    with sampler:
        started = clock()
        while rounds == 0 or clock() - started < seconds:
            tokens += work()
            rounds += 1
    return sampler.window(phase, rounds, tokens)
