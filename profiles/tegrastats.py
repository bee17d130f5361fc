"""tegrastats: the grammar of its lines from JetPack 3 to 7, and a process that is followed.

Its glossary changes between minor releases, so a token that is not in this grammar is kept and
counted, never guessed at and never fatal. What it calls MB are MiB. A rail's second value is the
mean since tegrastats began, not over any window of ours; the third, and a zone's second
temperature (both from R39 on), have no meaning that is written down anywhere: they are kept.
Whoever is not root is told less: an EMC or GPU load of "0%" without a clock is unknown, not 0.

The grammar is that of lines which boards printed. No board has run this file.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Iterator, Match, NamedTuple, Sequence

from slmq_edge.profiles.follower import Follower

UNITS = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
OFF_CELSIUS = -255.0  # a zone whose part of the chip has no power reads -256
ROOT_ALONE = ("EMC", "GR3D", "GR3D2")  # "0%" of these may mean that nobody looked
MOST_TOKENS = 64  # unknown ones that are counted by name
INTERVAL_MS = 100

N = "[0-9]{1,12}"
D = rf"-?{N}(?:\.[0-9]{{1,9}})?"
UNIT = "[kMG]B"
CORE = rf"(?:off|{N}%(?:@{N})?)"
CLOCKS = rf"(?:{N}|\[{N}(?:,{N})*\])"
ENGINE = "(?:EMC|GR3D|NVENC|NVDEC|NVJPG|NVDLA|MSENC|PVA|VIC|OFA|APE|SE)[0-9]*"
MW = f"(-?{N})(?:mW)?"
# By order: an engine's "APE 150" is no rail, and a rail "GPU 0/16" no engine.
GRAMMAR = tuple(
    (kind, re.compile(pattern + r"(?!\S)"))
    for kind, pattern in (
        ("printed", r"[0-9]{2}-[0-9]{2}-[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}"),
        ("ram", rf"RAM ({N})/({N})({UNIT}) ?\(lfb ({N})x({N})({UNIT})\)"),
        ("swap", rf"SWAP ({N})/({N})({UNIT}) ?\(cached ({N})({UNIT})\)"),
        ("iram", rf"IRAM ({N})/({N})({UNIT}) ?\(lfb ({N})({UNIT})\)"),
        ("cores", rf"CPU \[({CORE}(?:,{CORE})*)\](?:@({N}))?"),
        ("mts", rf"MTS fg ({N})% bg ({N})%"),
        ("temperatures", rf"([A-Za-z][A-Za-z0-9_.-]*)@({D})C(?:/({D})C)?"),
        (
            "engines",
            rf"({ENGINE})(?:_FREQ)? (?:(off)|({N})%(?:@({CLOCKS}))?|@({CLOCKS})|({N}))",
        ),
        (
            "rails",
            rf"(?!(?:RAM|SWAP|IRAM) )([A-Za-z][A-Za-z0-9_.+-]*) {MW}/{MW}(?:/{MW})?",
        ),
    )
)
SPACES = re.compile(r"\s*")
WORD = re.compile(r"\S+")
SEVERAL = ("temperatures", "engines", "rails")


class Ram(NamedTuple):
    """free_blocks: how many of the largest free block there are, of block_bytes each (lfb)."""

    used_bytes: int
    total_bytes: int
    free_blocks: int
    block_bytes: int


class Swap(NamedTuple):
    used_bytes: int
    total_bytes: int
    cached_bytes: int


class Iram(NamedTuple):
    used_bytes: int
    total_bytes: int
    block_bytes: int


class Core(NamedTuple):
    percent: float
    hertz: float | None


class Microcode(NamedTuple):
    """MTS: what the cores' own code translator takes, in per cent."""

    foreground: float
    background: float


class Engine(NamedTuple):
    """hertz: by unit, empty where none is told. percent: None where it is off or not told."""

    name: str
    percent: float | None
    hertz: tuple[float, ...]
    off: bool


class Temperature(NamedTuple):
    zone: str
    celsius: float | None
    second: float | None


class Rail(NamedTuple):
    """mean: since tegrastats began. third: without a known meaning."""

    name: str
    watts: float
    mean: float
    third: float | None


class Reading(NamedTuple):
    """One line. printed: its own stamp, local time without a zone. cores: None for one that is off.

    Engines, zones and rails as they were printed, in order: a name may come twice (NC does).
    """

    printed: str | None = None
    ram: Ram | None = None
    swap: Swap | None = None
    iram: Iram | None = None
    cores: tuple[Core | None, ...] | None = None
    mts: Microcode | None = None
    temperatures: tuple[Temperature, ...] = ()
    engines: tuple[Engine, ...] = ()
    rails: tuple[Rail, ...] = ()
    unknown: tuple[str, ...] = ()

    def engine(self, name: str) -> Engine | None:
        return next((one for one in self.engines if one.name == name), None)

    def watts(self) -> dict[str, float | None]:
        """Return watts by rail, without channels that lead nowhere (NC)."""
        found: dict[str, float | None] = {}
        for rail in self.rails:
            if rail.name != "NC":
                found.setdefault(rail.name, rail.watts)
        return found


def parse(line: str) -> Reading:
    """Read a line, or what is left of one. Never raises; `Reading.unknown` has what is not known.

    What can be there only once and comes again is unknown the second time.
    """
    once = {}
    several: dict[str, list[object]] = {kind: [] for kind in SEVERAL}
    unknown: list[str] = []
    for kind, match in pieces(line):
        if kind is None or kind in once:
            unknown.append(match.group())
        elif kind in several:
            several[kind].append(READ[kind](match))
        else:
            once[kind] = READ[kind](match)
    lists = {kind: tuple(found) for kind, found in several.items()}
    return Reading(unknown=tuple(unknown), **once, **lists)  # type: ignore[arg-type]


def pieces(line: str) -> Iterator[tuple[str | None, Match[str]]]:
    """Part a line into its items, with their kinds, and words of no kind: nothing is left out."""
    at = SPACES.match(line).end()  # type: ignore[union-attr]  # it matches everywhere
    while at < len(line):
        for kind, pattern in GRAMMAR:
            match = pattern.match(line, at)
            if match is not None:
                yield kind, match
                break
        else:
            match = WORD.match(line, at)
            assert match is not None
            yield None, match
        at = SPACES.match(line, match.end()).end()  # type: ignore[union-attr]


def _ram(match: Match[str]) -> Ram:
    used, size, unit, blocks, block, block_unit = match.groups()
    scale = UNITS[unit]
    return Ram(int(used) * scale, int(size) * scale, int(blocks), int(block) * UNITS[block_unit])


def _swap(match: Match[str]) -> Swap:
    used, size, unit, cached, cached_unit = match.groups()
    return Swap(int(used) * UNITS[unit], int(size) * UNITS[unit], int(cached) * UNITS[cached_unit])


def _cores(match: Match[str]) -> tuple[Core | None, ...]:
    cores, common = match.groups()  # JetPack 3 could print one clock behind the list
    return tuple(_core(one, common) for one in cores.split(","))


def _core(text: str, common: str | None) -> Core | None:
    if text == "off":
        return None
    percent, _, clock = text.partition("%")
    clock = clock[1:] or common or ""
    return Core(float(percent), float(clock) * 1e6 if clock else None)


def _engine(match: Match[str]) -> Engine:
    name, off, percent, beside, alone, plain = match.groups()
    clocks = (beside or alone or plain or "").strip("[]")
    hertz = tuple(float(one) * 1e6 for one in clocks.split(",")) if clocks else ()
    unseen = percent is None or (name in ROOT_ALONE and not hertz and float(percent) == 0)
    return Engine(name, None if unseen else float(percent), hertz, off is not None)


def _temperature(match: Match[str]) -> Temperature:
    zone, celsius, second = match.groups()
    return Temperature(zone, _celsius(celsius), _celsius(second))


def _celsius(text: str | None) -> float | None:
    return None if text is None or float(text) <= OFF_CELSIUS else float(text)


def _rail(match: Match[str]) -> Rail:
    name, watts, mean, third = match.groups()
    return Rail(
        name, int(watts) / 1e3, int(mean) / 1e3, None if third is None else int(third) / 1e3
    )


READ = {
    "printed": lambda match: match.group(),
    "ram": _ram,
    "swap": _swap,
    "iram": lambda match: Iram(*_swap(match)),
    "cores": _cores,
    "mts": lambda match: Microcode(*map(float, match.groups())),
    "temperatures": _temperature,
    "engines": _engine,
    "rails": _rail,
}


class Tegrastats(Follower[Reading]):
    """A tegrastats of ours: started when asked, stamped by arrival, and ended by its own number.

    Its own stamps have whole seconds and no zone. Should this process be killed, the next line
    that tegrastats prints meets a closed pipe, which ends it.
    """

    name = "tegrastats"

    def __init__(
        self, command: Sequence[str] = ("tegrastats",), interval_ms: int = INTERVAL_MS
    ) -> None:
        super().__init__(interval_ms / 1e3)
        self._command = [*command, "--interval", str(interval_ms)]
        self._process: subprocess.Popen[bytes] | None = None
        self._told: tuple[Reading | None, dict[str, float | None]] = None, {}
        self.unknown: dict[str, int] = {}
        self.names: tuple[str, ...] = ()

    @property
    def reasons(self) -> dict[str, str]:
        return dict.fromkeys(self.names, self.reason) if self.reason else {}

    def watts(self) -> dict[str, float | None]:
        """By rail, of the latest line; the same mapping again for the same line."""
        reading = self.latest()
        if reading is None:
            return dict.fromkeys(self.names)
        if self._told[0] is not reading:
            self._told = reading, reading.watts()
        return self._told[1]

    def _follow(self) -> str:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, LC_ALL="C"),
                start_new_session=True,  # what ends our group from a terminal does not end it first
            )
        except FileNotFoundError:
            return "tegrastats is not here (a part of JetPack; in a container it must be mounted)"
        except OSError as error:
            return f"tegrastats cannot be started: {error.strerror}"
        self._process = process
        if self._closing.is_set():
            self._stop()
        said = ""
        assert process.stdout is not None
        with process.stdout:
            for raw in iter(process.stdout.readline, b""):
                if raw.endswith(b"\n"):  # a line that was cut off may be wrong to the last digit
                    said = self._take(raw.decode("ascii", errors="replace")) or said
        code = process.wait()
        return f"tegrastats ended with exit code {code}" + (f": {said}" if said else "")

    def _take(self, line: str) -> str:
        """Keep what a line tells. Returns the line where it tells nothing: it is a message."""
        reading = parse(line)
        for token in reading.unknown:
            known = token in self.unknown or len(self.unknown) < MOST_TOKENS
            name = token if known else "others"
            self.unknown[name] = self.unknown.get(name, 0) + 1
        if reading._replace(unknown=()) == Reading():
            return line.strip()
        if reading.rails:
            self.names = tuple(reading.watts())
        self._keep(reading)
        return ""

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
