"""A Jetson: rails and clocks from sysfs, GPU memory from nvmap, the mode by its name.

Power comes from sysfs where all the rails are that make up the device, else from a tegrastats of
ours, from jtop only where the board's sheet asks for it (`Board.power_source`). No clock is worth a
second process beside a measurement: tegrastats runs while power is asked for, not while repetitions
are timed, and tells of clocks only where it runs.

On Thor a JetPack 7.2 report has the kernel lock up over the frequency files of gpu-gpc-0 and
gpu-nvd-0 in devfreq. So only files named in here are opened, no pattern is tried, none on Thor.

No Jetson has run this file: it is tested on trees made after what boards were seen to print.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any, Mapping, Sequence

from slmq_edge.errors import NotFound, unknown
from slmq_edge.profiles import nvmap, nvpmodel
from slmq_edge.profiles.board import Board, Mode
from slmq_edge.profiles.jtop import Jtop
from slmq_edge.profiles.linux import Linux
from slmq_edge.profiles.rails import HWMON, Rails, hwmon, total
from slmq_edge.profiles.tegrastats import Reading, Tegrastats

SOURCES = ("sysfs", "tegrastats", "jtop")
COMMANDS: Mapping[str, Sequence[str]] = {"tegrastats": ("tegrastats",), "nvpmodel": ("nvpmodel",)}
THOR = "nvidia,tegra264"
ORIN = "nvidia,tegra234"
DEVFREQ = "sys/class/devfreq"
GPUS = (  # the GPU's device by generation; Thor's are not in here, see above
    "17000000.gpu",  # Orin, JetPack 6 and 7
    "17000000.ga10b",  # Orin, JetPack 5
    "17000000.gv11b",  # Xavier
    "17000000.gp10b",  # TX2
    "57000000.gpu",  # Nano, TX1
)
EMC = "sys/kernel/debug/bpmp/debug/clk/emc/rate"
# The alarms of Orin's driver; what another generation's stand for is not written down.
ALARMS = {
    "oc1": "oc1_under_voltage",
    "oc2": "oc2_average_current",
    "oc3": "oc3_peak_current",  # counts up in MAXN_SUPER on the developer kit's own supply
}
ASK_SECONDS = 5.0


class Jetson(Linux):
    """commands: what to start for tegrastats and nvpmodel. Raises NotFound: unknown source."""

    kind = "jetson"

    def __init__(
        self,
        root: str = "/",
        board: Board = Board(),  # noqa: B008  a Board is immutable
        commands: Mapping[str, Sequence[str]] = COMMANDS,
    ) -> None:
        super().__init__(root)
        if board.power_source not in (None, *SOURCES):
            raise NotFound(unknown("source of power readings", str(board.power_source), SOURCES))
        self._board = board
        self._commands = commands
        self._chip = self._text("proc/device-tree/compatible") or ""
        self._source: Rails | Tegrastats | Jtop | None = None
        self._chosen = self._resting = False

    @classmethod
    def of(cls, board: Board) -> Jetson:
        return cls(board.root, board=board)

    def memory(self) -> dict[str, int | None]:
        """nvmap_process: what this process has of the GPU's memory, which no resident size has."""
        found = super().memory()
        found["nvmap_process"] = self._told("nvmap_process", *self._nvmap_process())
        return found

    def system(self) -> dict[str, float | None]:
        """As everywhere, and nvmap_used_bytes, gpu_processes, and the largest free block.

        largest_free_block_bytes is what tegrastats calls lfb, largest_free_blocks how many.
        """
        found = super().system()
        used, why = self._meminfo("NvMapMemUsed"), "/proc/meminfo has no NvMapMemUsed"
        if self._is(THOR):
            used, why = None, "Thor's GPU memory does not go through nvmap"
        found["nvmap_used_bytes"] = self._told("nvmap_used_bytes", used, why)
        blocks = (
            nvmap.largest_free(self._text("proc/buddyinfo") or "", os.sysconf("SC_PAGE_SIZE"))
            or self._lfb()
        )
        for key, value in (
            ("largest_free_block_bytes", blocks and blocks.block_bytes),
            ("largest_free_blocks", blocks and blocks.number),
        ):
            found[key] = self._told(key, value, "/proc/buddyinfo cannot be read")
        found["gpu_processes"] = self._told("gpu_processes", *self._gpu_processes())
        return found

    def power(self) -> Mapping[str, float | None]:
        """Watts by rail, from one source for good. The first call looks for it."""
        source = self._power_source()
        if self._resting and isinstance(source, (Tegrastats, Jtop)):
            self._resting = False
            source = self._source = self._begun_anew(source)
        if source is None:
            return {}
        found = source.watts()
        for name, value in found.items():
            why = source.reasons.get(name, f"{source.name} does not tell it")
            self._told(name, value, why)
        return found

    def rest(self) -> None:
        if isinstance(self._source, (Tegrastats, Jtop)):
            self._source.close()
            self._resting = True

    def clocks(self) -> Mapping[str, float | None]:
        """cpu, gpu, and emc, the memory's."""
        found = dict(super().clocks())
        found["gpu"] = self._told("gpu clock", *self._gpu_clock())
        found["emc"] = self._told("emc clock", *self._emc_clock())
        return found

    def temperatures(self) -> Mapping[str, float | None]:
        """By zone. The PMIC's is None: it always reads 100 or 50, a placeholder of NVIDIA's."""
        found = dict(super().temperatures())
        reading = self._reading()
        if not found and reading is not None:
            found = {one.zone: one.celsius for one in reading.temperatures}
        for zone, celsius in found.items():
            known = None if zone.upper().startswith("PMIC") else celsius
            why = "a placeholder" if celsius is not None else "that part of the chip has no power"
            found[zone] = self._told(f"{zone} temperature", known, why)
        return found

    def throttling(self) -> Mapping[str, int | None]:
        """Over-current and under-voltage alarms of soctherm, by line."""
        found = dict(super().throttling())
        for folder in hwmon(self._root / HWMON, "soctherm_oc"):
            for file in sorted(folder.glob("oc[0-9]*_event_cnt")):
                line = file.name[: -len("_event_cnt")]
                name = ALARMS.get(line, line) if self._is(ORIN) else line
                count = self._number(file)
                found[name] = self._told(name, None if count is None else int(count), "unreadable")
        if not found:
            self._reasons["throttling"] = "no soctherm_oc in /sys/class/hwmon"
        return found

    def mode(self) -> Mode | None:
        """From nvpmodel's own files, else asked of it: as a plain user it may not answer."""
        known = {one.id: one for one in nvpmodel.modes(self._text(nvpmodel.CONFIGURATION) or "")}
        number = nvpmodel.current(self._text(nvpmodel.STATUS) or "")
        found = known.get(number) if number is not None else None
        why = ""
        if found is None:
            found, why = self._queried()
        self._told("mode", found, why)
        return found

    def facts(self) -> Mapping[str, Any]:
        """power_source, and unknown_tokens of tegrastats by count, beside what all facts have."""
        looked = self._chosen
        source = self._power_source()
        if not looked:
            self.rest()
        rails = total(source.names, self._board.total_rails) if source else ()
        if source is not None and not rails:
            there = ", ".join(source.names)
            self._reasons["total_rails"] = f"no rails of the board's sheet add up here: {there}"
        found = dict(super().facts(), total_rails=list(rails))
        found["power_source"] = source.name if source else None
        found["unknown_tokens"] = dict(source.unknown) if isinstance(source, Tegrastats) else {}
        return found

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _power_source(self) -> Rails | Tegrastats | Jtop | None:
        if not self._chosen:
            self._chosen = True
            self._source = self._choose()
        return self._source

    def _begun_anew(self, source: Tegrastats | Jtop) -> Tegrastats | Jtop:
        """Another of the same kind; its rails are those of before, should it not come up."""
        new = self._follower(source.name)
        new.names = source.names
        if isinstance(new, Tegrastats) and isinstance(source, Tegrastats):
            new.unknown = source.unknown
        new.start()
        return new

    def _follower(self, name: str | None) -> Tegrastats | Jtop:
        return Jtop() if name == Jtop.name else Tegrastats(self._commands["tegrastats"])

    def _choose(self) -> Rails | Tegrastats | Jtop | None:
        asked, sets = self._board.power_source, self._board.total_rails
        rails = Rails(self._root)
        whole = bool(rails.names) and (not sets or bool(total(rails.names, sets)))
        if asked == "sysfs" or (asked is None and whole):
            if not rails.names:
                self._reasons["power"] = "no ina3221 or ina238 in /sys"
            return rails if rails.names else None
        other = self._follower(asked)
        other.start()
        better = bool(total(other.names, sets)) or asked is not None or not rails.names
        if other.names and better:
            return other
        why = other.reason or f"{other.name} names no rail"
        other.close()
        if asked is None and rails.names:
            return rails
        sysfs = "" if asked else "no ina3221 or ina238 in /sys, and "
        self._reasons["power"] = sysfs + why
        return None

    def _reading(self) -> Reading | None:
        return self._source.latest() if isinstance(self._source, Tegrastats) else None

    def _gpu_clock(self) -> tuple[float | None, str]:
        reading = self._reading()
        engine = reading.engine("GR3D") if reading is not None else None
        if engine is not None and engine.hertz:
            return max(engine.hertz), ""
        if self._is(THOR):
            return None, "not read on Thor, where these files can lock up the kernel"
        for name in GPUS:
            hertz = self._number(f"{DEVFREQ}/{name}/cur_freq")
            if hertz is not None:
                return hertz, ""
        return None, f"none of {', '.join(GPUS)} in /{DEVFREQ}"

    def _emc_clock(self) -> tuple[float | None, str]:
        text, why = self._private(EMC)
        if text is not None and re.fullmatch("[0-9]{1,15}", text):
            return float(text), ""
        reading = self._reading()
        engine = reading.engine("EMC") if reading is not None else None
        if engine is not None and engine.hertz:
            return max(engine.hertz), ""
        return None, why or f"/{EMC}: no number"

    def _nvmap_process(self) -> tuple[int | None, str]:
        found, why = self._clients()
        if found is None:
            return None, why
        # In a container the list has other numbers than we know: the name must be ours as well.
        name = self._text("proc/self/comm")
        ours = [one.size_bytes for one in found if one.pid == os.getpid() and one.process == name]
        return (sum(ours) or None), "this process is no client of nvmap, as far as it can tell"

    def _gpu_processes(self) -> tuple[int | None, str]:
        found, why = self._clients()
        if found is None:
            return None, why
        names = {one.pid: one.process for one in found if one.size_bytes}
        if any(self._text(f"proc/{pid}/comm") != name for pid, name in names.items()):
            return None, "nvmap lists processes of another namespace (container)"
        return len(set(names) - {os.getpid()}), ""

    def _clients(self) -> tuple[list[nvmap.Client] | None, str]:
        if self._is(THOR):
            return None, "Thor's GPU memory does not go through nvmap"
        text, why = self._private(nvmap.CLIENTS)
        return (None, why) if text is None else (nvmap.clients(text), "")

    def _lfb(self) -> nvmap.Blocks | None:
        reading = self._reading()
        ram = reading.ram if reading is not None else None
        return None if ram is None else nvmap.Blocks(ram.free_blocks, ram.block_bytes)

    def _queried(self) -> tuple[Mode | None, str]:
        try:
            done = subprocess.run(
                [*self._commands["nvpmodel"], "-q"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, LC_ALL="C"),
                timeout=ASK_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            files = f"no mode in /{nvpmodel.CONFIGURATION} and /{nvpmodel.STATUS}"
            return None, f"{files}; nvpmodel -q: {getattr(error, 'strerror', None) or error}"
        said = done.stdout.decode("ascii", errors="replace")
        return nvpmodel.queried(said), f"nvpmodel -q says: {' '.join(said.split())[:200]}"

    def _is(self, chip: str) -> bool:
        return chip in self._chip

    def _private(self, path: str) -> tuple[str | None, str]:
        """A file's text, or why not: debugfs is root's own."""
        try:
            text = (self._root / path).read_text(encoding="utf-8", errors="replace")
        except PermissionError:
            return None, f"/{path} is readable by root alone"
        except OSError as error:
            return None, f"/{path}: {error.strerror}"
        return text.strip("\0\n\t "), ""

    def _told(self, name: str, value: Any, why: str) -> Any:
        """Keep why a value is None, for as long as it is."""
        if value is None:
            self._reasons[name] = why
        else:
            self._reasons.pop(name, None)
        return value
