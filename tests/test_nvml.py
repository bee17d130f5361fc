"""NVML by ctypes: every query on its own, and the layouts of real structures."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import NotFound
from slmq_edge.profiles import nvml
from slmq_edge.profiles.nvml import Gpu
from tests.fake_nvml import FakeGpu, FakeNvml, silent

SOURCE = Path(__file__).with_name("fake_nvml.c")
READINGS: dict[str, Callable[[Gpu], Any]] = {  # every reading of a GPU, by a name for it
    "name": Gpu.name,
    "uuid": Gpu.uuid,
    "compute_capability": Gpu.compute_capability,
    "memory_bytes": Gpu.memory_bytes,
    "memory_used": Gpu.memory_used,
    "processes": Gpu.processes,
    "watts": Gpu.watts,
    "joules": Gpu.joules,
    "hertz": lambda gpu: gpu.hertz("gpu"),
    "memory_hertz": lambda gpu: gpu.hertz("gpu_memory"),
    "celsius": Gpu.celsius,
    "throttling": Gpu.throttling,
    "held_back": lambda gpu: gpu.held_back("power"),
    "limit": Gpu.limit_watts,
    "default_limit": lambda gpu: gpu.limit_watts(default=True),
}


def _first(fake: FakeNvml) -> Gpu:
    return next(nvml.load(fake.library()).gpus())


def _all(gpu: Gpu) -> dict[str, Any]:
    return {name: read(gpu) for name, read in READINGS.items()}


def test_every_reading_in_our_units() -> None:
    gpu = _first(FakeNvml([FakeGpu(processes=[(7, 3 << 30)])]))
    assert _all(gpu) == {
        "name": "NVIDIA A800 80GB PCIe",
        "uuid": "GPU-11111111-2222-3333-4444-555555555555",
        "compute_capability": "8.0",
        "memory_bytes": 80 << 30,
        "memory_used": 5 << 30,
        "processes": {7: 3 << 30},
        "watts": 250.0,
        "joules": 7e6,
        "hertz": 1.41e9,
        "memory_hertz": 1.512e9,
        "celsius": 61.0,
        "throttling": 0,
        "held_back": 4000,
        "limit": 300.0,
        "default_limit": 300.0,
    }
    assert gpu.reasons == {}


# What a refusal of one function takes away; all the rest is still told.
ONE_BY_ONE = {
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetUUID": {"uuid"},
    "nvmlDeviceGetCudaComputeCapability": {"compute_capability"},
    "nvmlDeviceGetMemoryInfo_v2": set(),  # the older function tells it
    "nvmlDeviceGetMemoryInfo": set(),
    "nvmlDeviceGetComputeRunningProcesses_v3": {"processes"},
    "nvmlDeviceGetFieldValues": set(),
    "nvmlDeviceGetPowerUsage": set(),
    "nvmlDeviceGetTotalEnergyConsumption": {"joules"},
    "nvmlDeviceGetClockInfo": {"hertz", "memory_hertz"},
    "nvmlDeviceGetTemperature": {"celsius"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"throttling"},
    "nvmlDeviceGetViolationStatus": {"held_back"},
    "nvmlDeviceGetEnforcedPowerLimit": {"limit"},
    "nvmlDeviceGetPowerManagementDefaultLimit": {"default_limit"},
}


@pytest.mark.parametrize("code", [3, 4, 15, 999])
@pytest.mark.parametrize("function", ONE_BY_ONE)
def test_one_refusal_takes_one_reading(function: str, code: int) -> None:
    gpu = _first(FakeNvml([FakeGpu(refuses={function: code})]))
    lost = {name for name, value in _all(gpu).items() if value is None}
    assert lost == ONE_BY_ONE[function]
    assert all(function in reason for reason in gpu.reasons.values())
    assert bool(gpu.reasons) == bool(lost)


@pytest.mark.parametrize("function", ONE_BY_ONE)
def test_one_missing_function_takes_one_reading(function: str) -> None:
    gpu = _first(FakeNvml(without=[function]))
    lost = {name for name, value in _all(gpu).items() if value is None}
    assert lost == ONE_BY_ONE[function]
    assert all("this driver has no" in reason for reason in gpu.reasons.values())


def test_a_jetson_says_its_name_and_why_the_rest_is_missing() -> None:
    gpu = _first(FakeNvml([silent()]))
    found = _all(gpu)
    assert found.pop("name") == "Orin (nvgpu)"
    assert found.pop("uuid") is not None
    assert set(found.values()) == {None}
    assert "Not Supported" in gpu.reasons["power"]


def test_thor_tells_processes_but_no_memory() -> None:
    """DEVICES.md 2.2."""
    answers = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetTemperature")
    gpu = _first(FakeNvml([silent("NVIDIA Thor", answers=answers, processes=[(9, 1 << 30)])]))
    assert gpu.memory_used() is None
    assert gpu.processes() == {9: 1 << 30}
    assert gpu.celsius() == 61.0


def test_a_reading_that_comes_back_has_no_reason_any_more() -> None:
    fake = FakeNvml([FakeGpu(refuses={"nvmlDeviceGetTemperature": 15})])
    gpu = _first(fake)
    assert gpu.celsius() is None
    assert "GPU is lost" in gpu.reasons["gpu_temperature"]
    fake.gpus[0].refuses.clear()
    assert gpu.celsius() == 61.0
    assert gpu.reasons == {}


def test_an_older_driver_has_older_names() -> None:
    fake = FakeNvml([FakeGpu(processes=[(7, 5), (8, 6)])], older=True, stride=16)
    found = _all(_first(fake))
    assert None not in found.values()
    assert found["processes"] == {7: 5, 8: 6}


def test_a_function_that_the_driver_does_not_know_is_asked_by_its_older_name() -> None:
    """The symbol is there, from a library that is newer than the driver."""
    library = FakeNvml(older=True).library()
    newer = FakeNvml(refuses={"nvmlDeviceGetCurrentClocksEventReasons": 13}).library()
    name = "nvmlDeviceGetCurrentClocksEventReasons"
    setattr(library, name, getattr(newer, name))
    gpu = next(nvml.load(library).gpus())
    assert gpu.throttling() == 0
    assert gpu.throttling() == 0


@pytest.mark.parametrize("stride", [16, 24, 32])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 65, 300])
def test_processes_are_read_by_what_was_written(stride: int, count: int) -> None:
    """Drivers of one name write three layouts; and the list may be longer than there is room."""
    processes = [(1000 + index, (index << 20) + 1) for index in range(count)]
    gpu = _first(FakeNvml([FakeGpu(processes=processes)], stride=stride))
    assert gpu.processes() == dict(processes)


def test_memory_of_a_process_that_is_not_available_is_none() -> None:
    gpu = _first(FakeNvml([FakeGpu(processes=[(7, (1 << 64) - 1), (8, 0)])]))
    assert gpu.processes() == {7: None, 8: 0}


@pytest.mark.parametrize("why", ["absent", "zero", "type"])
def test_without_an_instant_reading_power_is_the_mean_and_stays_it(why: str) -> None:
    fake = FakeNvml([FakeGpu(milliwatts=0 if why == "zero" else 1)])
    library = fake.library()
    if why == "absent":
        del library.nvmlDeviceGetFieldValues
    if why == "type":
        fake.gpus[0].refuses["nvmlDeviceGetFieldValues"] = 3
    gpu = next(nvml.load(library).gpus())
    assert gpu.watts() == 240.0
    assert gpu.power_source == "nvmlDeviceGetPowerUsage"
    fake.gpus[0].milliwatts, fake.gpus[0].refuses = 9000, {}
    assert gpu.watts() == 240.0


def test_what_is_never_0_is_not_known_where_it_says_0() -> None:
    zero = FakeGpu(milliwatts=0, mean_milliwatts=0, megahertz={1: 0, 2: 0}, limit=0)
    gpu = _first(FakeNvml([zero]))
    assert [gpu.watts(), gpu.hertz("gpu"), gpu.limit_watts()] == [None] * 3
    assert "says 0" in gpu.reasons["power"]


def test_without_the_library_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARIES", ("libno-such-thing.so.1",))
    assert nvml.open_nvml() is None
    assert nvml.gpus() == []
    with pytest.raises(NotFound, match="it comes with NVIDIA's driver"):
        nvml.load()


def test_without_a_driver_the_library_cannot_start() -> None:
    fake = FakeNvml(refuses={"nvmlInit_v2": 9})
    with pytest.raises(NotFound, match="nvmlInit_v2: Driver Not Loaded"):
        nvml.load(fake.library())
    assert nvml.open_nvml(fake.library()) is None


def test_the_list_of_gpus_opens_and_closes_the_library() -> None:
    fake = FakeNvml([FakeGpu(), silent()])
    assert nvml.gpus(fake.library()) == [
        {"name": "NVIDIA A800 80GB PCIe", "compute_capability": "8.0", "memory_bytes": 80 << 30},
        {"name": "Orin (nvgpu)", "compute_capability": None, "memory_bytes": None},
    ]
    assert fake.opened == 0
    assert nvml.gpus(FakeNvml(without=["nvmlDeviceGetCount_v2"]).library()) == []


def test_a_gpu_that_has_fallen_off_the_bus_is_not_among_them() -> None:
    lost = FakeGpu(uuid="GPU-lost", refuses={"handle": 15})
    other = dataclasses.replace(FakeGpu(), uuid="GPU-here")
    found = list(nvml.load(FakeNvml([lost, other]).library()).gpus())
    assert [(gpu.index, gpu.uuid()) for gpu in found] == [(1, "GPU-here")]


def _compiled(folder: Path, *flags: str) -> Any:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    made = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-o", str(made), *flags, str(SOURCE)]
    subprocess.run(command, check=True)
    return CDLL(str(made))


@pytest.mark.parametrize("stride", [16, 24, 32])
def test_a_library_in_c_is_read_right(tmp_path: Path, stride: int) -> None:
    library = _compiled(tmp_path, f"-DSTRIDE={stride}")
    opened = nvml.load(library)
    assert opened.driver() == "550.1"
    (gpu,) = opened.gpus()
    found = _all(gpu)
    processes = found.pop("processes")
    assert found == {
        "name": "Stub 9000",
        "uuid": "GPU-stub",
        "compute_capability": "11.0",
        "memory_bytes": 80 << 30,
        "memory_used": 5 << 30,
        "watts": 123.456,
        "joules": 6000000000.123,
        "hertz": 1.41e9,
        "memory_hertz": 1.512e9,
        "celsius": 40.0,
        "throttling": 0x8000000000000005,
        "held_back": 7,
        "limit": 300.0,
        "default_limit": None,
    }
    assert processes == {1000 + i: None if i == 99 else i << 33 for i in range(100)}
    assert gpu.held_back("thermal") == 14
    assert gpu.held_back("board_limit") is None
    assert gpu.reasons["gpu_board_limit_ms"] == "nvmlDeviceGetViolationStatus: Not Supported"
    assert opened.by_uuid("MIG-stub").name() == "Stub 9000"
    opened.close()


def test_an_older_library_in_c_is_read_right(tmp_path: Path) -> None:
    (gpu,) = nvml.load(_compiled(tmp_path, "-DOLDER", "-DSTRIDE=16")).gpus()
    assert gpu.memory_used() == 6 << 30
    assert gpu.watts() == 99.0
    assert gpu.throttling() == 0x8000000000000005
    assert (gpu.processes() or {})[1098] == 98 << 33
