"""Fake trees of /proc, /sys and /etc: what a board of each kind and release shows, as files.

Made after what boards were seen to print (device-tree models, L4T releases, labels of rails, the
figures of tegrastats lines); voltages, currents and clocks are chosen so that they make up such
figures. None of it was copied off a board, so a test on it says that our reading of the interfaces
holds together, and nothing about hardware.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

Files = dict[str, str]
HERE = Path(__file__).parent
HWMON = "sys/class/hwmon"
DEVFREQ = "sys/class/devfreq"
CPU = "sys/devices/system/cpu"
# Files that must not even be opened on Thor; `plant` makes pipes of them, which block a reader.
FORBIDDEN = [
    f"{DEVFREQ}/{unit}/{file}"
    for unit in ("gpu-gpc-0", "gpu-nvd-0")
    for file in ("cur_freq", "min_freq", "max_freq", "available_frequencies", "trans_stat")
]

LINES = {  # whole lines that its tegrastats prints: names in tests/data/tegrastats.txt
    "jetson-nano-jp4": "S06",
    "jetson-xavier-nx-jp5": "S11",
    "jetson-orin-nano-jp6": "S16",
    "jetson-agx-orin-jp6": "S14",
    "jetson-agx-orin-jp7": "C03",
    "jetson-agx-thor-jp7": "S21",
}


def plant(root: Path, board: str) -> Path:
    """Write the files of a board below a folder, and return the folder."""
    for path, text in BOARDS[board].items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if board == "jetson-agx-thor-jp7":
        for path in FORBIDDEN:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(root / path)
    return root


def stand_in(folder: Path, name: str, answers: dict[str, str], code: int = 0) -> list[str]:
    """Return the command of a program that answers these words with these texts, and no others."""
    file = folder / name
    file.write_text(
        "import sys\n"
        f"answers = {answers!r}\n"
        "words = ' '.join(sys.argv[1:])\n"
        "if words not in answers:\n"
        "    sys.exit(f'{words}: unknown')\n"
        "sys.stdout.write(answers[words])\n"
        f"sys.exit({code})\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return [sys.executable, str(file)]


def replay(board: str) -> list[str]:
    """Return the command of a tegrastats that prints this board's lines."""
    return [sys.executable, str(HERE / "tegrastats_replay.py"), LINES[board]]


# --- parts


def tree(model: str, *compatible: str) -> Files:
    return {
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": "".join(f"{one}\0" for one in compatible),
    }


def release(major: int, revision: str, board: str, code: str = "t186ref") -> Files:
    line = f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: {code}, EABI: aarch64, "
    return {
        "etc/nv_tegra_release": f"{line}DATE: Wed Jan  1 00:00:00 UTC 2025\n",
        "etc/nv_boot_control.conf": f"TNSPEC {board}\nCOMPATIBLE_SPEC {board}\n",
    }


def memory(total_kb: int, available_kb: int, nvmap_kb: int | None, *free: int) -> Files:
    """free: blocks of orders 0 to 10 in the one zone there is."""
    meminfo = {
        "MemTotal": total_kb,
        "MemAvailable": available_kb,
        "SwapTotal": 2_000_000,
        "SwapFree": 1_900_000,
    }
    if nvmap_kb is not None:
        meminfo["NvMapMemUsed"] = nvmap_kb
    blocks = " ".join(f"{one:6d}" for one in free or (1,) * 11)
    return {
        "proc/meminfo": "".join(f"{key}:{value:>12} kB\n" for key, value in meminfo.items()),
        "proc/buddyinfo": f"Node 0, zone      DMA {blocks}\n",
        "proc/loadavg": "0.42 0.30 0.20 1/300 1234\n",
        "proc/self/comm": "python3\n",
        "proc/self/status": "VmHWM:\t 2000 kB\nRssAnon:\t 1000 kB\nRssFile:\t 500 kB\n",
        "proc/self/clear_refs": "",
    }


def cores(*kilohertz: int) -> Files:
    return {f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": f"{one}\n" for n, one in enumerate(kilohertz)}


def zones(**millidegrees: int) -> Files:
    found: Files = {}
    for n, (name, value) in enumerate(millidegrees.items()):
        folder = f"sys/class/thermal/thermal_zone{n}"
        found[f"{folder}/type"] = f"{name.replace('_', '-')}\n"
        found[f"{folder}/temp"] = f"{value}\n"
    return found


def ina3221(number: int, *rails: tuple[str, int, int]) -> Files:
    """rails: label, millivolts, milliamperes by channel. Plus the driver's own sums."""
    folder = f"{HWMON}/hwmon{number}"
    found = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for channel, (label, millivolts, milliamperes) in enumerate(rails, 1):
        found[f"{folder}/in{channel}_label"] = f"{label}\n"
        found[f"{folder}/in{channel}_input"] = f"{millivolts}\n"
        found[f"{folder}/curr{channel}_input"] = f"{milliamperes}\n"
        found[f"{folder}/in{channel + 3}_input"] = "1\n"
    found[f"{folder}/in7_input"] = "3\n"
    found[f"{folder}/curr4_input"] = "9\n"
    return found


def ina238(number: int, microwatts: int) -> Files:
    folder = f"{HWMON}/hwmon{number}"
    return {
        f"{folder}/name": "ina238\n",
        f"{folder}/in1_input": "20000\n",
        f"{folder}/curr1_input": "989\n",
        f"{folder}/power1_input": f"{microwatts}\n",
    }


def iio(address: str, *rails: tuple[str, int]) -> Files:
    """rails: label and milliwatts by channel."""
    folder = f"sys/bus/i2c/drivers/ina3221x/{address}/iio:device0"
    found: Files = {}
    for channel, (label, milliwatts) in enumerate(rails):
        found[f"{folder}/rail_name_{channel}"] = f"{label}\n"
        found[f"{folder}/in_power{channel}_input"] = f"{milliwatts}\n"
        found[f"{folder}/in_voltage{channel}_input"] = "5000\n"
        found[f"{folder}/in_current{channel}_input"] = f"{milliwatts // 5}\n"
    return found


def alarms(number: int, *counts: int) -> Files:
    folder = f"{HWMON}/hwmon{number}"
    found = {f"{folder}/name": "soctherm_oc\n"}
    for line, count in enumerate(counts, 1):
        found[f"{folder}/oc{line}_event_cnt"] = f"{count}\n"
    return found


def power_modes(current: int, *names: str) -> Files:
    conf = "".join(
        f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n"
        for n, name in enumerate(names)
    )
    return {
        "etc/nvpmodel.conf": f"# POWER_MODEL DEFINITIONS\n{conf}< PM_CONFIG DEFAULT=0 >\n",
        "var/lib/nvpmodel/status": f"pmode:{current:04d} fmode:quiet\n",
    }


def gpu(device: str, hertz: int) -> Files:
    return {f"{DEVFREQ}/{device}/cur_freq": f"{hertz}\n"}


def nvmap_clients(*clients: tuple[str, str, int, str]) -> Files:
    """clients: kind (user, or a kernel client's name), process, pid, size."""
    rows = [f"{'CLIENT':18} {'PROCESS':>18} {'PID':>8} {'SIZE':>11}"]
    rows += [f"{kind:18} {name:>18} {pid:8} {size:>11}" for kind, name, pid, size in clients]
    rows += [f"{'total':18} {'':>18} {'':>8} {'999K':>11}", ""]
    users = {f"proc/{pid}/comm": f"{name}\n" for kind, name, pid, _ in clients if kind == "user"}
    return {"sys/kernel/debug/nvmap/iovmm/clients": "\n".join(rows), **users}


def emc(hertz: int) -> Files:
    return {"sys/kernel/debug/bpmp/debug/clk/emc/rate": f"{hertz}\n"}


# --- boards

AGX_ORIN = {
    **tree(
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005",
        "nvidia,p3701-0005",
        "nvidia,tegra234",
    ),
    **memory(64_348_160, 50_000_000, 120_000, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 35),
    **cores(*[729_600] * 8, *[1_497_600] * 4),
    **ina3221(
        3, ("VDD_GPU_SOC", 20_000, 156), ("VDD_CPU_CV", 20_000, 36), ("VIN_SYS_5V0", 5_000, 1_028)
    ),
    **ina3221(2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5_000, 60), ("NC", 0, 0)),
    **alarms(4, 0, 2, 11),
    **gpu("17000000.gpu", 306_000_000),
    **power_modes(2, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
}

BOARDS: dict[str, Files] = {
    "jetson-nano-jp4": {
        **tree("NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,tegra210"),
        **release(32, "7.1", "jetson-nano-devkit", "t210ref"),
        **memory(4_059_136, 2_000_000, 300_000, 9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 0),
        **cores(1_224_000, 1_224_000, 1_224_000, 1_224_000),
        **zones(AO_therm=45_000, CPU_therm=40_000, GPU_therm=40_000, PMIC_Die=50_000),
        **iio("6-0040", ("POM_5V_IN", 1_750), ("POM_5V_GPU", 0), ("POM_5V_CPU", 366)),
        **gpu("57000000.gpu", 76_800_000),
        **power_modes(0, "MAXN", "5W"),
    },
    "jetson-xavier-nx-jp5": {
        **tree("NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3668-0000", "nvidia,tegra194"),
        **release(35, "4.1", "jetson-xavier-nx-devkit"),
        **memory(7_015_424, 3_500_000, 150_000),
        **cores(1_397_760, 1_190_400),
        **zones(CPU_therm=46_500, GPU_therm=45_500, PMIC_Die=50_000),
        **ina3221(
            5, ("VDD_IN", 4_935, 560), ("VDD_CPU_GPU_CV", 4_935, 132), ("VDD_SOC", 4_935, 132)
        ),
        **alarms(6, 0, 0, 0),
        **gpu("17000000.gv11b", 114_750_000),
        **power_modes(
            8,
            "MODE_15W_2CORE",
            "MODE_15W_4CORE",
            "MODE_15W_6CORE",
            "MODE_10W_2CORE",
            "MODE_10W_4CORE",
            "MODE_10W_DESKTOP",
            "MODE_20W_2CORE",
            "MODE_20W_4CORE",
            "MODE_20W_6CORE",
        ),
    },
    "jetson-orin-nano-jp6": {
        **tree(
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "nvidia,p3768-0000+p3767-0005-super",
            "nvidia,p3767-0005",
            "nvidia,tegra234",
        ),
        **release(36, "4.3", "jetson-orin-nano-devkit", "generic"),
        **memory(7_802_880, 900_000, 2_600_000, 90, 80, 70, 60, 50, 40, 30, 20, 10, 5, 12),
        **cores(1_497_600, *[729_600] * 5),
        **zones(
            cpu_thermal=57_125, gpu_thermal=58_625, cv0_thermal=-256_000, soc0_thermal=56_625
        ),
        **ina3221(
            1, ("VDD_IN", 5_016, 3_254), ("VDD_CPU_GPU_CV", 5_016, 1_416), ("VDD_SOC", 5_016, 622)
        ),
        **alarms(2, 0, 0, 7),
        **gpu("17000000.gpu", 612_000_000),
        **emc(2_133_000_000),
        **power_modes(0, "15W", "25W", "MAXN_SUPER", "7W"),
        **nvmap_clients(
            ("user", "gnome-shell", 2001, "30848K"),
            ("user", "Web Content", 2002, "16M"),
            ("vic", "kernel", 0, "64K"),
            ("user", "idle", 2003, "0K"),
        ),
    },
    "jetson-agx-orin-jp6": {
        **AGX_ORIN,
        **release(36, "4.7", "jetson-agx-orin-devkit", "generic"),
        **zones(cpu_thermal=49_968, gpu_thermal=-256_000, tj_thermal=49_812),
    },
    "jetson-agx-orin-jp7": {
        **AGX_ORIN,
        **release(39, "2.0", "jetson-agx-orin-devkit", "generic"),
        **zones(cpu_thermal=52_968, gpu_thermal=47_625, tj_thermal=53_000),
    },
    "jetson-agx-thor-jp7": {
        **tree(
            "NVIDIA Jetson AGX Thor Developer Kit",
            "nvidia,p4071-0000+p3834-0008",
            "nvidia,p3834-0008",
            "nvidia,tegra264",
        ),
        **release(38, "4.0", "jetson-agx-thor-devkit", "generic"),
        **memory(128_790_528, 20_000_000, 0, 900, 800, 700, 600, 500, 400, 300, 200, 100, 50, 34),
        **cores(*[972_000] * 14),
        **zones(cpu_thermal=37_343, tj_thermal=38_875, gpu_thermal=38_875),
        **ina3221(
            1,
            ("VDD_GPU", 20_000, -20),
            ("VDD_CPU_SOC_MSS", 20_000, 294),
            ("VIN_SYS_5V0", 4_900, 1_150),
        ),
        **ina238(2, 19_780_000),
        **alarms(3, 0, 0, 0),
        **power_modes(1, "MAXN", "120W", "90W", "70W"),
        **nvmap_clients(("user", "python3", 4001, "0K")),
    },
    "raspberry-pi-4": {
        **tree("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b", "brcm,bcm2711"),
        **memory(3_885_396, 3_000_000, None),
        **cores(*[1_800_000] * 4),
        **zones(cpu_thermal=55_017),
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    },
    "raspberry-pi-5": {
        **tree("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712"),
        **memory(8_244_976, 6_000_000, None),
        **cores(*[2_400_000] * 4),
        **zones(cpu_thermal=50_700),
    },
}  # fmt: skip

# What a Pi 5's firmware answers: names and form as printed by one, figures ours.
PMIC = """\
 3V7_WL_SW_A current(0)=0.01000000A
   3V3_SYS_A current(1)=0.10000000A
  DDR_VDDQ_A current(4)=0.00000000A
  VDD_CORE_A current(7)=2.50000000A
      HDMI_A current(22)=0.02000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  DDR_VDDQ_V volt(12)=0.60000000V
  VDD_CORE_V volt(15)=0.80000000V
      HDMI_V volt(23)=5.00000000V
     EXT5V_V volt(24)=5.10000000V
      BATT_V volt(25)=0.00000000V
"""
PI_5 = {
    "pmic_read_adc": PMIC,
    "measure_clock arm": "frequency(0)=1500019456\n",
    "get_throttled": "throttled=0xe0008\n",
}
PI_4 = {
    "pmic_read_adc": 'error=1 error_msg="Command not registered"\n',
    "measure_clock arm": "frequency(48)=600117184\n",
    "get_throttled": "throttled=0x0\n",
}
