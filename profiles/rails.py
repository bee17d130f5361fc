"""Power rails of a Jetson, read from sysfs by their labels: no process and no privilege needed.

JetPack 5 and later use the kernel's own hwmon drivers (Documentation/hwmon/ina3221, ina238): per
channel millivolts and milliamperes, and for Thor's input microwatts. JetPack 4 has NVIDIA's
ina3221x under iio, in milliwatts. The files are found once; a reading is one read of each, whose
time on a board is that of the I2C transfers behind it. Nothing here has met a board.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

HWMON = "sys/class/hwmon"
IIO = "sys/bus/i2c/drivers/ina3221x"
INPUT = "VIN"  # Thor's ina238 measures the whole input, and its driver need not label it
# A channel that leads nowhere, and the driver's sum of shunt voltages, which is no rail.
NO_RAIL = re.compile(r"NC|sum of shunt voltages.*", re.IGNORECASE)


class Sensor(NamedTuple):
    """Files whose numbers, multiplied with each other and with the scale, are watts."""

    files: tuple[Path, ...]
    scale: float


class Rails:
    """The rails below a root. A negative reading stays: current does flow back into a supply."""

    name = "sysfs"

    def __init__(self, root: Path) -> None:
        self.reasons: dict[str, str] = {}
        self._sensors: dict[str, Sensor] = {}
        for label, sensor in (*_hwmon(root / HWMON), *_iio(root / IIO)):
            free = label if label not in self._sensors else f"{label}-{sensor.files[0].parent.name}"
            self._sensors[free] = sensor

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sensors)

    def watts(self) -> dict[str, float | None]:
        return {name: self._watts(name, sensor) for name, sensor in self._sensors.items()}

    def close(self) -> None:
        pass

    def _watts(self, name: str, sensor: Sensor) -> float | None:
        product = 1
        try:
            for file in sensor.files:
                with open(file, "rb", buffering=0) as opened:
                    product *= int(opened.read())
        except OSError as error:
            self.reasons[name] = f"{error.filename}: {error.strerror}"
            return None
        except ValueError:
            self.reasons[name] = f"{sensor.files[0].parent}: a reading that is no number"
            return None
        return product * sensor.scale


def total(names: Sequence[str], sets: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the first of the sets whose rails are all there: together they are the device."""
    return next((tuple(one) for one in sets if one and set(one) <= set(names)), ())


def hwmon(root: Path, *names: str) -> list[Path]:
    """Return the folders of the hwmon devices with one of these names, in the kernel's order."""
    found = [folder for folder in root.glob("hwmon[0-9]*") if _text(folder / "name") in names]
    return sorted(found, key=lambda folder: int(folder.name[len("hwmon") :]))


def _hwmon(root: Path) -> Iterator[tuple[str, Sensor]]:
    for folder in hwmon(root, "ina3221"):
        for file in sorted(folder.glob("in[0-9]_label")):
            channel = file.name[2]
            label = _text(file)
            files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
            if label and not NO_RAIL.fullmatch(label) and all(one.exists() for one in files):
                yield label, Sensor(files, 1e-6)
    for folder in hwmon(root, "ina238"):
        label = _text(folder / "label") or _text(folder / "power1_label") or INPUT
        if (folder / "power1_input").exists():
            yield label, Sensor((folder / "power1_input",), 1e-6)


def _iio(root: Path) -> Iterator[tuple[str, Sensor]]:
    for folder in sorted(root.glob("*/iio:device*")):
        for file in sorted(folder.glob("rail_name_*")):
            channel = file.name[len("rail_name_") :]
            label = _text(file)
            milliwatts = folder / f"in_power{channel}_input"
            files = tuple(folder / f"in_{kind}{channel}_input" for kind in ("voltage", "current"))
            if not label or NO_RAIL.fullmatch(label):
                continue
            if milliwatts.exists():
                yield label, Sensor((milliwatts,), 1e-3)
            elif all(one.exists() for one in files):
                yield label, Sensor(files, 1e-6)


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None
