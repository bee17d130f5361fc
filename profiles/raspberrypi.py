"""A Raspberry Pi, by what its firmware tells: vcgencmd, which whoever is in group video may ask.

A Pi 5's power chip tells current and voltage of the rails that it makes, not of the 5 V that come
in: no sum of them is the device, and USB and whatever hangs on 5 V are in none. A Pi 4 has no power
sensor. The kernel's idea of the clock is what it asked for; the firmware throttles on its own, so
the firmware is asked first. Sources: Raspberry Pi's documentation of vcgencmd; raspberrypi/linux
2367 and 2986. A call is a process of some milliseconds. No Raspberry Pi has run this file.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any, Mapping, Sequence

from slmq_edge.profiles.board import STATE, Board
from slmq_edge.profiles.linux import Linux
from slmq_edge.profiles.rails import total

ASK_SECONDS = 2.0
THROTTLED = "sys/devices/platform/soc*/soc*firmware/get_throttled"
CAUSES = {0: "under_voltage", 1: "clock_capped", 2: "throttled", 3: "soft_temperature_limit"}
SINCE_BOOT = 16  # bits from here on: the same causes, at any time since boot
ADC = re.compile(
    r"^\s*(\S+)_([AV])\s+(?:current|volt)\([0-9]+\)=(-?[0-9]{1,9}(?:\.[0-9]{1,12})?)\2\s*$",
    re.MULTILINE,
)
NO_TOTAL = "the power chip does not tell the current of the 5 V input: its rails are parts of it"


class RaspberryPi(Linux):
    """vcgencmd: the command, for tests."""

    kind = "raspberrypi"

    def __init__(
        self,
        root: str = "/",
        board: Board = Board(),  # noqa: B008  a Board is immutable
        vcgencmd: Sequence[str] = ("vcgencmd",),
    ) -> None:
        super().__init__(root)
        self._board = board
        self._command = tuple(vcgencmd)
        self._rails: tuple[str, ...] | None = None
        self._missing: str | None = None

    @classmethod
    def of(cls, board: Board) -> RaspberryPi:
        return cls(board.root, board=board)

    def power(self) -> Mapping[str, float | None]:
        """Watts by rail of a Pi 5's power chip; empty, for good, where the first call gets none."""
        if self._rails == ():
            return {}
        output, why = self._ask("pmic_read_adc")
        found = pmic(output)
        if self._rails is None:
            self._rails = tuple(found)
            if not found:
                self._reasons["power"] = self._missing or f"{why}; a Pi before 5 has no sensor"
        for name in set(self._rails) - set(found):
            self._reasons[name] = why
        return {name: found.get(name) for name in self._rails}

    def clocks(self) -> Mapping[str, float | None]:
        """cpu: as the firmware measures it, else what the kernel asked for."""
        output, why = self._ask("measure_clock", "arm")
        found = re.search(r"^frequency\([0-9]+\)=([0-9]{1,12})$", output, re.MULTILINE)
        if found is not None:
            self._reasons.pop("measured cpu clock", None)
            return {"cpu": float(found.group(1))}
        self._reasons["measured cpu clock"] = why
        return super().clocks()

    def throttling(self) -> Mapping[str, int | None]:
        """By cause: whether it is now, and (0 or 1) whether it was at any time since boot.

        A cause that was there before a run hides that it came again within it.
        """
        bits = self._throttled()
        names = {**{bit: f"{cause}{STATE}" for bit, cause in CAUSES.items()}}
        names.update({bit + SINCE_BOOT: cause for bit, cause in CAUSES.items()})
        return {name: None if bits is None else bits >> bit & 1 for bit, name in names.items()}

    def facts(self) -> Mapping[str, Any]:
        if self._rails is None:
            self.power()
        rails = total(self._rails or (), self._board.total_rails)
        if self._rails and not rails:
            self._reasons["total_rails"] = NO_TOTAL
        self._reasons.setdefault("mode", "a Raspberry Pi has no power modes")
        return {**super().facts(), "total_rails": list(rails)}

    def _throttled(self) -> int | None:
        """The firmware's word of bits: the kernel's file (no process), else vcgencmd."""
        for file in sorted(self._root.glob(THROTTLED)):
            text = self._text(file)
            if text is not None and re.fullmatch("(?:0x)?[0-9a-fA-F]{1,8}", text):
                return int(text, 16)
        output, why = self._ask("get_throttled")
        found = re.search(r"^throttled=0x([0-9a-fA-F]{1,8})$", output, re.MULTILINE)
        if found is None:
            self._reasons["throttling"] = why
            return None
        self._reasons.pop("throttling", None)
        return int(found.group(1), 16)

    def _ask(self, *words: str) -> tuple[str, str]:
        """What vcgencmd prints, empty where it cannot be asked; and why it may be of no use."""
        if self._missing is not None:
            return "", self._missing
        try:
            done = subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, LC_ALL="C"),
                timeout=ASK_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            self._missing = "vcgencmd is not installed (Raspberry Pi OS: apt install raspi-utils)"
            return "", self._missing
        except OSError as error:
            return "", f"vcgencmd: {error.strerror}"
        except subprocess.TimeoutExpired:
            return "", f"vcgencmd did not answer within {ASK_SECONDS:g} s"
        said = done.stdout.decode("ascii", errors="replace")
        hint = ""
        if "VCHI" in said or "vcio" in said:
            hint = " (may this user ask? sudo usermod -aG video USER)"
        return said, f"vcgencmd {words[0]} says: {' '.join(said.split())[:200] or 'nothing'}{hint}"


def pmic(output: str) -> dict[str, float]:
    """Return watts by rail: of the rails for which there is a current and a voltage."""
    told: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for name, unit, value in ADC.findall(output):
        told[unit][name] = float(value)
    return {
        name: amperes * told["V"][name] for name, amperes in told["A"].items() if name in told["V"]
    }
