"""What real machines say of themselves, as `runner.look.look` returns it, from public printouts.

Device trees, nv_tegra_release, TNSPEC and nvpmodel.conf as their owners posted them; memory from
tegrastats lines (RAM used/total). Where no printout was found a line says so.
"""

from __future__ import annotations

from typing import Any

MIB = 2**20


def machine(**seen: Any) -> dict[str, Any]:
    """What a 64-bit Arm machine says that says nothing else."""
    silent = dict.fromkeys(("model", "nv_tegra_release", "l4t_core", "boot_spec", "nvpmodel"))
    return {"machine": "aarch64", "kernel": "6.1.0", "compatible": [], "gpus": []} | silent | seen


def release(major: int, revision: str) -> str:
    return f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: t186ref, EABI: aarch64"


def nvpmodel(current: int | None, *names: str) -> dict[str, Any]:
    return {"modes": [{"id": id, "name": name} for id, name in enumerate(names)]} | {
        "current": current
    }


def tree(*compatible: str) -> list[str]:
    return [f"nvidia,{entry}" for entry in compatible]


SUPER = nvpmodel(2, "15W", "25W", "MAXN_SUPER", "7W")
NVGPU = {"name": "Orin (nvgpu)", "compute_capability": "8.7", "memory_bytes": None}

# name of the sheet -> machines that are it
BOARDS: dict[str, list[dict[str, Any]]] = {
    "jetson-nano-4gb": [
        machine(
            model="NVIDIA Jetson Nano Developer Kit",
            compatible=tree("p3450-0000", "jetson-nano", "tegra210"),
            nv_tegra_release=release(32, "7.1"),
            memory_total_bytes=3964 * MIB,
            nvpmodel=nvpmodel(0, "MAXN", "5W"),
        ),
        machine(  # a carrier board of another maker
            model="NVIDIA Jetson Nano on a custom carrier",
            compatible=tree("jetson-nano", "tegra210"),
            memory_total_bytes=3956 * MIB,
        ),
    ],
    "jetson-tx2": [
        machine(  # upstream's device tree
            model="NVIDIA Jetson TX2 Developer Kit",
            compatible=tree("p2771-0000", "tegra186"),
            memory_total_bytes=7829 * MIB,
        ),
        machine(  # NVIDIA's: the model is a code name
            model="quill",
            compatible=tree("p2597-0000+p3310-1000", "quill", "tegra186"),
            nv_tegra_release=release(32, "5.0"),
            memory_total_bytes=7844 * MIB,
        ),
    ],
    "jetson-xavier-nx-8gb": [
        machine(
            model="NVIDIA Jetson Xavier NX Developer Kit",
            compatible=tree("p3449-0000+p3668-0000", "p3509-0000+p3668-0000", "tegra194"),
            nv_tegra_release=release(35, "4.1"),
            memory_total_bytes=6854 * MIB,
        ),
        machine(
            model="Lenovo ThinkEdge SE70",
            compatible=["lenovo,thinkedge-se70", "nvidia,p3668-0001", "nvidia,tegra194"],
            memory_total_bytes=7771 * MIB,
        ),
    ],
    "jetson-xavier-nx-16gb": [
        machine(  # no printout found; the eMMC modules share their device tree
            model="NVIDIA Jetson Xavier NX (eMMC)",
            compatible=tree("p3509-0000+p3668-0001", "tegra194"),
            memory_total_bytes=15000 * MIB,
        ),
        machine(compatible=tree("p3668-0003", "tegra194"), memory_total_bytes=15000 * MIB),
    ],
    "jetson-agx-xavier-16gb": [
        machine(
            model="Jetson-AGX",
            compatible=tree("galen", "jetson-xavier", "p2822-0000+p2888-0001", "tegra194"),
            memory_total_bytes=15823 * MIB,
        ),
        machine(model="NVIDIA Jetson AGX Xavier", memory_total_bytes=15823 * MIB),
        machine(model="Jetson-AGX", compatible=tree("tegra194"), memory_total_bytes=15823 * MIB),
    ],
    "jetson-agx-xavier-32gb": [
        machine(
            model="NVIDIA Jetson AGX Xavier Developer Kit",
            compatible=tree("p2972-0000", "tegra194"),
            memory_total_bytes=31919 * MIB,
        ),
        machine(
            model="Jetson-AGX",
            compatible=tree("p2822-0000+p2888-0001", "tegra194"),
            boot_spec={"TNSPEC": "2888-400-0004-L.0-1-2-jetson-agx-xavier-devkit-mmcblk0p1"},
            memory_total_bytes=31919 * MIB,
        ),
    ],
    "jetson-agx-xavier-64gb": [
        machine(  # no printout found
            compatible=tree("p2972-0000", "tegra194"), memory_total_bytes=63000 * MIB
        ),
    ],
    "jetson-orin-nano-4gb": [
        machine(  # no printout of its memory found
            model="NVIDIA Jetson Orin Nano Developer Kit",
            compatible=tree("p3768-0000+p3767-0004", "p3767-0004", "tegra234"),
            memory_total_bytes=3400 * MIB,
        ),
    ],
    "jetson-orin-nano-8gb": [
        machine(
            model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            compatible=tree("p3768-0000+p3767-0005-super", "p3767-0005", "tegra234"),
            nv_tegra_release=release(36, "4.7"),
            boot_spec={"TNSPEC": "3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-"},
            memory_total_bytes=7620 * MIB,
            nvpmodel=SUPER,
            gpus=[NVGPU],
        ),
        machine(  # an overlay's own entry first
            compatible=["oe4t,p3768-0000+p3767-0005+tegrademo", *tree("p3767-0005", "tegra234")],
            memory_total_bytes=7620 * MIB,
        ),
        machine(model="NVIDIA Orin Nano Developer Kit", memory_total_bytes=7620 * MIB),
    ],
    "jetson-orin-nx-8gb": [
        machine(
            model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            compatible=tree("p3768-0000+p3767-0001", "p3767-0001", "tegra234"),
            memory_total_bytes=7620 * MIB,
        ),
    ],
    "jetson-orin-nx-16gb": [
        machine(  # the model is NVIDIA's text, the carrier board another's
            model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
            compatible=tree("p3768-0000+p3767-0000-super", "p3767-0000", "tegra234"),
            boot_spec={"TNSPEC": "3767-300-0000-H.2-1-0-recomputer-orin-j401-"},
            memory_total_bytes=15656 * MIB,
            nvpmodel=nvpmodel(3, "MAXN_SUPER", "10W", "15W", "25W", "40W"),
        ),
        machine(  # flashed as what it is, with the device tree of the kit
            model="NVIDIA Jetson Orin Nano Developer Kit",
            compatible=tree("p3768-0000+p3767-0005", "tegra234"),
            boot_spec={"TNSPEC": "3767-ES1-0000-A.3-1-0-jetson-orin-nx-xavier-nx-devkit-nvme0n1p1"},
            memory_total_bytes=15656 * MIB,
        ),
    ],
    "jetson-agx-orin-32gb": [
        machine(
            model="NVIDIA Jetson AGX Orin Developer Kit",
            compatible=tree("p3737-0000+p3701-0004", "p3701-0004", "tegra234"),
            memory_total_bytes=30536 * MIB,
        ),
    ],
    "jetson-agx-orin-devkit-32gb": [
        machine(
            model="NVIDIA Jetson AGX Orin Developer Kit",
            compatible=tree("p3737-0000+p3701-0000", "p3701-0000", "tegra234"),
            memory_total_bytes=30536 * MIB,
        ),
    ],
    "jetson-agx-orin-64gb": [
        machine(
            model="NVIDIA Jetson AGX Orin Developer Kit",
            compatible=tree("p3737-0000+p3701-0005", "p3701-0005", "tegra234"),
            nv_tegra_release=release(39, "2.0"),
            memory_total_bytes=62817 * MIB,
            nvpmodel=nvpmodel(2, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
        ),
        machine(
            compatible=tree("p3737-0000+p3701-0000", "tegra234"), memory_total_bytes=62840 * MIB
        ),
        machine(model="NVIDIA Jetson AGX Orin Developer Kit", memory_total_bytes=62840 * MIB),
    ],
    "jetson-agx-thor": [
        machine(
            model="NVIDIA Jetson AGX Thor Developer Kit",
            compatible=tree("p4071-0000+p3834-0008", "p3834-0008", "tegra264"),
            nv_tegra_release=release(38, "4.0"),
            boot_spec={"TNSPEC": "3834-401-0008-M.0-1-0-jetson-agx-thor-devkit-"},
            memory_total_bytes=125772 * MIB,
            nvpmodel=nvpmodel(1, "MAXN", "120W", "90W", "70W"),
            gpus=[{"name": "NVIDIA Thor", "compute_capability": "11.0", "memory_bytes": None}],
        ),
        machine(
            model="NVIDIA Jetson Thor Developer Kit",
            boot_spec={"COMPATIBLE_SPEC": "3834--0008--1--jetson-agx-thor-devkit-"},
            memory_total_bytes=125772 * MIB,
        ),
    ],
    "jetson-t4000": [  # no printout of its memory found
        machine(
            model="NVIDIA Jetson Thor Developer Kit",
            compatible=tree("p4071-0000+p3834-0000", "p3834-0000", "tegra264"),
            memory_total_bytes=62000 * MIB,
        ),
        machine(  # the device tree is the other module's: what was flashed counts
            model="NVIDIA Jetson AGX Thor Developer Kit",
            compatible=tree("p4071-0000+p3834-0008", "tegra264"),
            boot_spec={"COMPATIBLE_SPEC": "3834--0000--1--jetson-agx-thor-t4000-"},
            memory_total_bytes=62000 * MIB,
        ),
        machine(
            model="NVIDIA Jetson Thor Developer Kit",
            boot_spec={"TNSPEC": "3834-000-0000-A.0-1-0-jetson-agx-thor-t4000-"},
            memory_total_bytes=62000 * MIB,
        ),
    ],
    "raspberry-pi-4": [
        machine(
            model="Raspberry Pi 4 Model B Rev 1.5",
            compatible=["raspberrypi,4-model-b", "brcm,bcm2711"],
            memory_total_bytes=3793 * MIB,
        ),
    ],
    "raspberry-pi-5": [
        machine(
            model="Raspberry Pi 5 Model B Rev 1.0",
            compatible=["raspberrypi,5-model-b", "brcm,bcm2712"],
            memory_total_bytes=8063 * MIB,
        ),
    ],
    "generic-aarch64": [
        machine(),
        machine(model="Raspberry Pi 500 Rev 1.0"),
        machine(model="Raspberry Pi Compute Module 4 Rev 1.0"),
        machine(machine="arm64"),  # another system's name
        machine(model="Raspberry Pi 400 Rev 1.0", compatible=["raspberrypi,400", "brcm,bcm2711"]),
        machine(gpus=[{"name": "NVIDIA GB10", "compute_capability": "12.1"}]),
    ],
    "generic-x86_64": [
        machine(machine="x86_64"),
        machine(machine="AMD64"),
        # A machine is not its GPU: a bundle may run on either.
        machine(machine="x86_64", gpus=[{"name": "NVIDIA A800 80GB PCIe"}]),
        # Jetsons are flashed from such hosts.
        machine(machine="x86_64", l4t_core="36.4.7-20250918154033"),
    ],
}
