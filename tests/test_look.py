"""What a machine says of itself, read below a root: a Jetson's tree, and a machine of nothing."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import devices, profiles
from slmq_edge.runner.look import look

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
CONF = """\
# comment
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
< PM_CONFIG DEFAULT=1 >
"""
DPKG = """\
Package: nvidia-l4t-configs
Version: 1.2.3

Package: nvidia-l4t-core
Status: install ok installed
Description: NVIDIA Core Package
 of several lines
Version: 36.4.7-20250918154033

Package: other
Version: 9
"""
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0"
    "nvidia,tegra234\0",
    "etc/nv_tegra_release": RELEASE,
    "etc/nv_boot_control.conf": "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-\n"
    "COMPATIBLE_SPEC 3767--0005--1--jetson-orin-nano-devkit-super-\nTEGRA_CHIPID 0x23\nALONE\n",
    "etc/nvpmodel.conf": CONF,
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "proc/meminfo": "MemTotal:        7802880 kB\n",
    "proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd42\nFeatures\t: fp asimddp sve2\n",
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "proc/sys/kernel/hostname": "orin\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
}


def plant(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return str(root)


def test_all_that_a_jetson_says(tmp_path: Path) -> None:
    seen = look(plant(tmp_path, ORIN_NANO))
    assert seen == {
        "machine": platform.machine(),
        "kernel": "5.15.148-tegra",
        "os": "Ubuntu 22.04.5 LTS",
        "hostname": "orin",
        "memory_total_bytes": 7802880 * 1024,
        "cpu_model": "Arm implementer 0x41 part 0xd42",
        "cpu_features": ["asimddp"],
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "compatible": [
            "nvidia,p3768-0000+p3767-0005-super",
            "nvidia,p3767-0005",
            "nvidia,tegra234",
        ],
        "nv_tegra_release": RELEASE.splitlines()[0],
        "l4t_core": None,
        "boot_spec": {
            "TNSPEC": "3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-",
            "COMPATIBLE_SPEC": "3767--0005--1--jetson-orin-nano-devkit-super-",
        },
        "nvpmodel": {
            "modes": [
                {"id": 0, "name": "15W"},
                {"id": 1, "name": "25W"},
                {"id": 2, "name": "MAXN_SUPER"},
                {"id": 3, "name": "7W"},
            ],
            "current": 2,
        },
        "gpus": [],
        "cache_bytes": None,
    }
    assert json.loads(json.dumps(seen)) == seen


def test_a_jetson_s_tree_is_detected(tmp_path: Path) -> None:
    found = devices.detect_here(plant(tmp_path, ORIN_NANO), "aarch64")
    assert (found.name, found.mode) == ("jetson-orin-nano-8gb", "MAXN_SUPER")
    assert devices.board(found).maximum_modes == ("MAXN_SUPER",)


@pytest.mark.parametrize("missing", sorted(ORIN_NANO))
def test_what_is_not_there_is_none(tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in ORIN_NANO.items() if name != missing}
    full, seen = look(plant(tmp_path / "full", ORIN_NANO)), look(plant(tmp_path / "less", files))
    changed = {name for name in full if full[name] != seen[name]}
    assert changed
    assert all(seen[name] in (None, []) or name == "nvpmodel" for name in changed)


def test_an_unreadable_status_leaves_the_modes(tmp_path: Path) -> None:
    files = {name: text for name, text in ORIN_NANO.items() if "status" not in name}
    seen = look(plant(tmp_path, files))["nvpmodel"]
    assert seen["current"] is None
    assert len(seen["modes"]) == 4


def test_a_device_tree_where_only_sysfs_has_it(tmp_path: Path) -> None:
    moved = {
        name.replace("proc/device-tree", "sys/firmware/devicetree/base"): text
        for name, text in ORIN_NANO.items()
    }
    seen = look(plant(tmp_path, moved))
    assert seen["model"] == ORIN_NANO["proc/device-tree/model"].strip("\0")
    assert len(seen["compatible"]) == 3


def test_without_the_release_file_its_package_tells(tmp_path: Path) -> None:
    """As in a container, or where an image was trimmed."""
    seen = look(plant(tmp_path, {"var/lib/dpkg/status": DPKG}))
    assert seen["nv_tegra_release"] is None
    assert seen["l4t_core"] == "36.4.7-20250918154033"
    assert str(devices.release(seen)) == "L4T 36.4.7 (JetPack 6.2.1)"
    for other in (
        DPKG.replace("nvidia-l4t-core", "nvidia-l4t-core-dev"),
        DPKG.replace("Version: 36.4.7-20250918154033\n", ""),  # the next package's is not its
    ):
        assert look(plant(tmp_path, {"var/lib/dpkg/status": other}))["l4t_core"] is None


def test_a_machine_of_nothing(tmp_path: Path) -> None:
    seen = look(str(tmp_path))
    assert {name for name, value in seen.items() if value} == {"machine"}
    assert look(str(tmp_path / "nowhere")) == seen


def test_files_of_garbage_and_folders_in_their_place(tmp_path: Path) -> None:
    for name in ORIN_NANO:
        path = tmp_path / "bytes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xfe\0 \x00\n\n< POWER_MODEL ID=x >")
        (tmp_path / "folders" / name).mkdir(parents=True)
    json.dumps(look(str(tmp_path / "bytes")))
    assert look(str(tmp_path / "folders"))["model"] is None


def test_this_machine_alone_is_looked_at_with_nvml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {"name": "NVIDIA H200", "compute_capability": "9.0", "memory_bytes": 143771 * 2**20}

    class Nvml:
        @staticmethod
        def gpus() -> list[dict[str, Any]]:
            return [gpu]

    monkeypatch.setattr(profiles, "nvml", Nvml, raising=False)
    seen = look()
    assert seen["gpus"] == [gpu]
    assert look(str(tmp_path))["gpus"] == []
    assert seen["memory_total_bytes"]
    assert [sheet and sheet.name for _, sheet in devices.gpus(seen)] == ["h200"]
    assert devices.detect(seen).kind != "cuda"
