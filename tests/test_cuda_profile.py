"""The adapter of NVIDIA GPUs: what it tells with NVML, without, and with parts of it."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import profiles
from slmq_edge.profiles import Board, Mode, nvml
from slmq_edge.profiles.cuda import Cuda
from tests.fake_nvml import PROTOTYPES, FakeGpu, FakeNvml, silent, two_kinds

MINE = os.getpid()
GPU_KEYS = {  # method -> what is of the GPU there
    "memory": {"gpu_process_used"},
    "system": {"gpu_memory_used_bytes", "gpu_processes"},
    "power": {"gpu_board"},
    "clocks": {"gpu", "gpu_memory"},
    "temperatures": {"gpu"},
}


def _cuda(gpu: FakeGpu | None = None, root: str = "/", **environment: str) -> Cuda:
    fake = FakeNvml([gpu or FakeGpu()])
    return Cuda(root, fake.library(), environment)


def _of_gpu(cuda: Cuda) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method, keys in GPU_KEYS.items():
        values = getattr(cuda, method)()
        found.update({f"{method}.{key}": values[key] for key in keys})
    found.update({k: v for k, v in cuda.throttling().items() if k.startswith("gpu")})
    return {**found, "energy": cuda.energy(), "mode": cuda.mode()}


def test_a_gpu_at_work() -> None:
    gpu = FakeGpu(processes=[(MINE, 2 << 30), (1, 1 << 30)])
    assert _of_gpu(_cuda(gpu)) == {
        "memory.gpu_process_used": 2 << 30,
        "system.gpu_memory_used_bytes": 5 << 30,
        "system.gpu_processes": 1,
        "power.gpu_board": 250.0,
        "clocks.gpu": 1.41e9,
        "clocks.gpu_memory": 1.512e9,
        "temperatures.gpu": 61.0,
        "gpu_power_cap_now": 0,
        "gpu_hardware_now": 0,
        "gpu_sync_boost_now": 0,
        "gpu_software_thermal_now": 0,
        "gpu_hardware_thermal_now": 0,
        "gpu_power_brake_now": 0,
        "gpu_other_now": 0,
        "gpu_power_ms": 4000,
        "gpu_thermal_ms": 0,
        "gpu_board_limit_ms": 0,
        "energy": 0.0,
        "mode": Mode("300 W limit"),
    }


def test_the_machine_is_told_of_too() -> None:
    cuda = _cuda()
    assert {"cpu_peak_rss", "cpu_rss_anon", "cpu_rss_file"} <= set(cuda.memory())
    assert {"memory_available_bytes", "load_average"} <= set(cuda.system())
    assert "cpu" in cuda.clocks()


def test_facts_say_which_gpu_it_is_and_how_its_power_is_read() -> None:
    facts = _cuda(FakeGpu(processes=[(MINE, 1)])).facts()
    assert facts["kind"] == "cuda"
    assert facts["total_rails"] == ["gpu_board"]
    assert facts["energy_of"] == "the GPU board"
    assert facts["gpu"] == {
        "name": "NVIDIA A800 80GB PCIe",
        "uuid": "GPU-11111111-2222-3333-4444-555555555555",
        "index": 0,
        "compute_capability": "8.0",
        "memory_bytes": 80 << 30,
        "driver": "550.54.15",
        "power_source": "NVML_FI_DEV_POWER_INSTANT",
        "default_limit_watts": 300.0,
    }
    assert facts["reasons"] == {}


def test_without_nvml_all_of_the_gpu_is_none_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARIES", ("libno-such-thing.so.1",))
    cuda = Cuda.of(Board())
    assert set(_of_gpu(cuda).values()) == {None}
    assert cuda.memory()["cpu_rss_anon"] is not None
    facts = cuda.facts()
    assert facts["total_rails"] == []
    assert {"gpu_process_used", "gpu_memory_used_bytes", "gpu_processes", "power", "energy",
            "gpu_clock", "gpu_memory_clock", "gpu_temperature", "gpu_throttling", "gpu_power_ms",
            "mode"} <= set(facts["reasons"])  # fmt: skip
    assert "it comes with NVIDIA's driver" in facts["reasons"]["gpu_process_used"]
    cuda.close()


def test_a_jetson_tells_next_to_nothing_and_nothing_is_0() -> None:
    assert set(_of_gpu(_cuda(silent())).values()) == {None}


# With the older function in place of the newer, a reading differs and is right.
OTHERWISE: dict[str, dict[str, Any]] = {
    "nvmlDeviceGetMemoryInfo_v2": {"system.gpu_memory_used_bytes": (5 << 30) + (600 << 20)},
    "nvmlDeviceGetFieldValues": {"power.gpu_board": 240.0},
}


@pytest.mark.parametrize("refused", sorted(PROTOTYPES))
def test_no_refusal_raises_or_becomes_a_number(refused: str) -> None:
    gpu = FakeGpu(processes=[(MINE, 1 << 30)])
    whole = {**_of_gpu(_cuda(gpu)), **OTHERWISE.get(refused, {})}
    cuda = Cuda("/", FakeNvml([gpu], refuses={refused: 3}).library(), {})
    found = _of_gpu(cuda)
    assert {key: value for key, value in found.items() if value not in (None, whole[key])} == {}
    lost = [key for key, value in found.items() if value is None]
    assert bool(cuda.facts()["reasons"]) >= bool(lost)
    cuda.close()


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x0, []),
        (0x1, []),  # idle
        (0x2, []),  # application clocks are a setting
        (0x100, []),  # display clocks too
        (0x4, ["gpu_power_cap_now"]),
        (0x48, ["gpu_hardware_now", "gpu_hardware_thermal_now"]),
        (0x21, ["gpu_software_thermal_now"]),
        (0x80, ["gpu_power_brake_now"]),
        (0x10, ["gpu_sync_boost_now"]),
        (0x8000000000000000, ["gpu_other_now"]),
        (0x400, ["gpu_other_now"]),  # a bit that nvml.h had not when this was written
    ],
)
def test_reasons_for_low_clocks(bits: int, names: Sequence[str]) -> None:
    found = _cuda(FakeGpu(bits=bits)).throttling()
    assert [name for name, value in found.items() if name.endswith("_now") and value] == names


def test_energy_counts_from_the_first_call() -> None:
    fake = FakeNvml()
    cuda = Cuda("/", fake.library(), {})
    assert cuda.energy() == 0.0
    fake.gpus[0].millijoules += 12_500
    assert cuda.energy() == pytest.approx(12.5)
    fake.gpus[0].millijoules = 3
    assert cuda.energy() is None
    assert "began anew" in cuda.facts()["reasons"]["energy"]


def test_a_process_that_is_not_listed_has_no_memory_told() -> None:
    cuda = _cuda()
    assert cuda.memory()["gpu_process_used"] is None
    assert cuda.system()["gpu_processes"] == 0
    assert "not among those" in cuda.facts()["reasons"]["gpu_process_used"]


def test_memory_appears_once_the_process_computes() -> None:
    fake = FakeNvml()
    cuda = Cuda("/", fake.library(), {})
    cuda.memory()
    fake.gpus[0].processes = [(MINE, 77)]
    assert cuda.memory()["gpu_process_used"] == 77
    assert "gpu_process_used" not in cuda.facts()["reasons"]
    fake.gpus[0].processes = [(MINE, (1 << 64) - 1)]
    assert cuda.memory()["gpu_process_used"] is None


def test_process_numbers_of_another_namespace_are_of_no_use(tmp_path: Path) -> None:
    """In a container NVML may list the host's numbers: we cannot tell which of them is ours."""
    (tmp_path / "proc/41").mkdir(parents=True)
    foreign = _cuda(FakeGpu(processes=[(41, 1), (42, 2)]), root=str(tmp_path))
    assert foreign.system()["gpu_processes"] is None
    assert "namespace" in foreign.facts()["reasons"]["gpu_processes"]
    ours = _cuda(FakeGpu(processes=[(41, 1), (42, 2), (MINE, 3)]), root=str(tmp_path))
    assert ours.system()["gpu_processes"] == 2
    known = _cuda(FakeGpu(processes=[(41, 1)]), root=str(tmp_path))
    assert known.system()["gpu_processes"] == 1


ALIKE = [FakeGpu(uuid="GPU-aa11"), FakeGpu(uuid="GPU-aa22"), FakeGpu(uuid="MIG-7")]


@pytest.mark.parametrize(
    ("visible", "uuid"),
    [
        (None, "GPU-aa11"),
        ("0", "GPU-aa11"),
        ("1", "GPU-aa22"),
        ("1,0", "GPU-aa22"),
        (" 1 , 0", "GPU-aa22"),
        ("GPU-aa22", "GPU-aa22"),
        ("GPU-aa2", "GPU-aa22"),
        ("MIG-7", "MIG-7"),
    ],
)
def test_the_gpu_is_the_first_that_cuda_may_use(visible: str | None, uuid: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    cuda = Cuda("/", FakeNvml(ALIKE).library(), environment)
    assert cuda.facts()["gpu"]["uuid"] == uuid


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("", "CUDA_VISIBLE_DEVICES='' names no GPU, of 3 here"),
        ("-1", "names no GPU"),
        ("3", "'3' names no GPU"),
        ("GPU-zz", "names no GPU"),
        ("GPU-aa", "names several GPUs"),
        ("MIG-8", "nvmlDeviceGetHandleByUUID: Not Found"),
    ],
)
def test_no_gpu_is_measured_in_place_of_another(visible: str, words: str) -> None:
    cuda = Cuda("/", FakeNvml(ALIKE).library(), {"CUDA_VISIBLE_DEVICES": visible})
    assert set(_of_gpu(cuda).values()) == {None}
    assert words in cuda.facts()["reasons"]["power"]


def test_numbers_of_several_kinds_are_taken_by_bus_order_alone() -> None:
    """CUDA calls its fastest GPU 0, NVML the first on the bus."""
    library = FakeNvml(list(two_kinds())).library()
    unsure = Cuda("/", library, {})
    assert unsure.power() == {"gpu_board": None}
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in unsure.facts()["reasons"]["power"]
    by_bus = Cuda("/", library, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"})
    assert by_bus.facts()["gpu"]["uuid"] == "GPU-bbbb2222"
    named = Cuda("/", library, {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"})
    assert named.facts()["gpu"]["uuid"] == "GPU-bbbb2222"


def test_torch_is_asked_where_it_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"initialized": False, "reset": 0}
    cuda_of_torch = types.SimpleNamespace(
        is_initialized=lambda: state["initialized"],
        max_memory_allocated=lambda: 100,
        max_memory_reserved=lambda: 200,
        reset_peak_memory_stats=lambda: state.update(reset=state["reset"] + 1),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda_of_torch))
    cuda = _cuda()
    cuda.reset_peak()
    assert "torch_peak_allocated" not in cuda.memory()
    state["initialized"] = True
    cuda.reset_peak()
    found = cuda.memory()
    assert (found["torch_peak_allocated"], found["torch_peak_reserved"]) == (100, 200)
    assert state["reset"] == 1


def test_torch_is_not_imported_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert "torch_peak_allocated" not in _cuda().memory()
    assert "torch" not in sys.modules


def test_total_rails_come_from_the_board_where_it_names_some() -> None:
    cuda = Cuda("/", FakeNvml().library(), {}, total_rails=(("module",), ("gpu_board",)))
    assert cuda.facts()["total_rails"] == ["gpu_board"]
    other = Cuda("/", FakeNvml().library(), {}, total_rails=(("module",),))
    assert other.facts()["total_rails"] == []


def test_closing_lets_go_of_the_library() -> None:
    fake = FakeNvml()
    cuda = Cuda("/", fake.library(), {})
    assert fake.opened == 1
    cuda.close()
    assert fake.opened == 0


def test_it_is_an_adapter_by_its_name() -> None:
    assert isinstance(profiles.load("cuda"), Cuda)
