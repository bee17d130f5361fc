"""Track 3 on a GPU: memories beside each other, the board's energy, and where NVML is silent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from slmq_edge import checkpoint as checkpoints
from slmq_edge import cost as costs
from slmq_edge.cost import Meter
from slmq_edge.errors import SlmqError
from slmq_edge.profiles.cuda import Cuda
from slmq_edge.profiles.fake import Fake
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.reports.cost import SAMPLED_NOTE, WRITERS, markdown, terminal
from slmq_edge.reports.made import cost_text
from slmq_edge.sampled import BOARD, PROCESS, Sampled
from slmq_edge.scheme import scheme
from slmq_edge.tracks.cost import Table, read, table
from tests.decoders import random_qwen2, rounded
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.test_cost import cost, written

MINE = os.getpid()
GIB = 2**30


def wait_for(reached: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "the thread never looked"
        time.sleep(0.005)


def test_the_most_that_was_seen_is_kept_kind_by_kind() -> None:
    told = iter([(1, 10), (5, None), (3, 40), (None, 20)])
    sampled = Sampled(
        lambda: dict(zip(("gpu_process", "gpu_board"), next(told), strict=True)), every=3600
    )
    for _ in range(3):
        sampled.look()
    assert sampled.peaks() == {PROCESS: 5, BOARD: 40}
    assert sampled.as_json() == {
        "every_seconds": 3600,
        "readings": 4,
        "before": {"gpu_process": 1, "gpu_board": 10},
    }
    sampled.close()


def test_a_thread_looks_while_nobody_asks_and_ends() -> None:
    held = {"gpu_process": 1, "gpu_board": 2}
    threads = threading.active_count()
    sampled = Sampled(lambda: dict(held), every=0.005)
    held["gpu_process"] = 9
    wait_for(lambda: sampled.peaks()[PROCESS] == 9)
    held["gpu_process"] = 4
    sampled.close()
    assert sampled.peaks() == {PROCESS: 9, BOARD: 2}
    assert threading.active_count() == threads


def test_what_nobody_tells_is_none_and_not_0() -> None:
    sampled = Sampled(lambda: {"gpu_process": None, "gpu_board": None}, every=3600)
    assert sampled.peaks() == {PROCESS: None, BOARD: None}
    sampled.close()


@dataclasses.dataclass
class Torch:
    """CUDA as a meter asks for it. waits: how often it was waited for."""

    allocated: int = 3 * GIB
    reserved: int = 4 * GIB
    uuid: str = "11111111-2222-3333-4444-555555555555"
    waits: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        def synchronize(device: str) -> None:
            self.waits += 1

        for name, value in {
            "reset_peak_memory_stats": lambda device=None: None,
            "max_memory_allocated": lambda device=None: self.allocated,
            "max_memory_reserved": lambda device=None: self.reserved,
            "synchronize": synchronize,
            "get_device_name": lambda device=None: "NVIDIA A800 80GB PCIe",
            "get_device_properties": lambda device: types.SimpleNamespace(uuid=self.uuid),
        }.items():
            patch.setattr(torch.cuda, name, value)


def metered(gpu: FakeGpu, patch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Torch]:
    """What a meter says of two stages, in which the process came to hold more and less."""
    there = Torch()
    there.install(patch)
    profile = Cuda("/", FakeNvml([gpu]).library(), {})
    with contextlib.closing(Meter("cuda:0", "starting", profile)) as meter:
        report = meter.watched(lambda share, what: None)
        report(0.0, "calibrating")
        gpu.processes, gpu.used = [(MINE, 6 * GIB), (1, GIB)], 9 * GIB
        gpu.millijoules += 120_000
        report(0.5, "calibrating, still")
        report(0.0, "rounding")
        gpu.processes, gpu.used = [(MINE, 2 * GIB), (1, GIB)], 5 * GIB
        found = meter.read()
    return found, there


def test_three_memories_stand_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found, there = metered(FakeGpu(processes=[(MINE, GIB)]), monkeypatch)
    memory = found["memory"]
    assert memory.pop("cpu_peak_rss")
    assert memory == {
        "torch_peak_allocated": 3 * GIB,
        "torch_peak_reserved": 4 * GIB,
        PROCESS: 6 * GIB,
        BOARD: 9 * GIB,
    }
    assert found["sampled"]["before"] == {"gpu_process": GIB, "gpu_board": 5 * GIB}
    assert found["sampled"]["readings"] >= 4
    assert (found["energy_joules"], found["energy_of"]) == (120.0, "the GPU board")
    assert found["gpu"]["driver"] == "550.54.15"
    # At the end of each of three stages: not at every report.
    assert there.waits == 3
    json.dumps(found)


def test_what_nvml_does_not_tell_is_none_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _ = metered(FakeGpu(refuses={"nvmlDeviceGetTotalEnergyConsumption": 3}), monkeypatch)
    assert found["memory"][PROCESS] == 6 * GIB
    silent = FakeGpu(refuses={"nvmlDeviceGetComputeRunningProcesses_v3": 4})
    quiet, _ = metered(silent, monkeypatch)
    assert quiet["memory"][PROCESS] is None
    assert quiet["memory"][BOARD] == 9 * GIB
    assert "Insufficient Permissions" in quiet["memory_reasons"]["gpu_process_used"]
    assert found["energy_joules"] is None
    assert "Not Supported" in found["energy_reason"]


def test_the_gpu_is_the_one_that_torch_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch numbers the fastest first and what is visible; NVML by the bus: a UUID is one GPU."""
    Torch(uuid="bbbb2222").install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    seen = costs._seen_by_torch("cuda:1")
    gpus = [FakeGpu(uuid="GPU-aaaa1111", used=1), FakeGpu(uuid="GPU-bbbb2222", used=2)]
    assert Cuda("/", FakeNvml(gpus).library(), seen).held()["gpu_board"] == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cccc")
    assert costs._seen_by_torch("cuda:0") is os.environ


def test_a_meter_on_a_cpu_has_neither_thread_nor_gpu() -> None:
    threads = threading.active_count()
    with contextlib.closing(Meter("cpu")) as meter:
        assert threading.active_count() == threads
        found = meter.read()
    assert not {"sampled", "gpu", "memory_reasons"} & set(found)
    assert list(found["memory"]) == ["cpu_peak_rss"]
    assert found["energy_of"] == "the processor packages"


def test_a_run_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Meter] = []
    monkeypatch.setattr(Meter, "close", lambda meter: closed.append(meter))
    planned = plan("demo-llama", Request(scheme("w8a8"), "none"))

    def fail(*arguments: Any) -> Iterator[Any]:
        raise SlmqError("no")

    monkeypatch.setattr("slmq_edge.quantize._made", fail)
    with pytest.raises(SlmqError, match="no"):
        quantize(planned)
    assert len(closed) == 1


def on_gpu(seconds: float, allocated: int, **more: Any) -> dict[str, Any]:
    spent = cost(seconds, 10**9, device="cuda:0", device_name="NVIDIA A800", **more)
    spent["memory"] |= {
        "torch_peak_allocated": allocated,
        "torch_peak_reserved": allocated + 10**9,
        PROCESS: allocated + 2 * 10**9,
        BOARD: None,
    }
    return spent


def both(folder: Path) -> Table:
    spent = {"smooth": on_gpu(10, 10**9), "omni": on_gpu(40, 2 * 10**9)}
    return table([written(folder / name, name, one) for name, one in spent.items()])


def test_the_table_has_them_beside_the_peak_that_is_scored(tmp_path: Path) -> None:
    found = both(tmp_path)
    lines = terminal(found).splitlines()
    cells = [re.split(r"\s{2,}", line) for line in lines]
    of_gpu = ["peak memory", "torch reserved", "process (NVML)", "board (NVML)"]
    assert cells[0][4:] == [*of_gpu, "time", "SLMQ_quant"]
    assert cells[1][4:] == ["1.00 GB", "2.00 GB", "3.00 GB", "n/a", "10.0 s", "316.2"]
    assert SAMPLED_NOTE in lines
    assert "every 0.1 s" in SAMPLED_NOTE
    assert "| 1.00 GB | 2.00 GB | 3.00 GB |" in markdown(found)
    header, first, *_ = WRITERS["csv"](found).splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert (row["memory_kind"], row["memory_bytes"]) == ("torch_peak_allocated", "1000000000")
    assert row["torch_reserved_bytes"] == "2000000000"
    assert row["gpu_process_bytes"] == "3000000000"
    assert row["gpu_board_bytes"] == ""


def test_costs_of_before_are_read_as_they_were(tmp_path: Path) -> None:
    old = cost(20, 10**9, device="cuda:0", energy_joules=7.0)
    old["memory"]["torch_peak_allocated"] = 10**9
    row = read(written(tmp_path / "old", "x", old))
    assert (row.memory_bytes, row.energy_of) == (10**9, None)
    found = table([tmp_path / "old"])
    assert "NVML" not in terminal(found)
    assert cost_text(old).endswith("7 J (all processors)")
    made = dataclasses.replace(rounded(random_qwen2(), scheme("w8a8")), cost=old)
    checkpoints.save(made, tmp_path / "c")
    assert checkpoints.load(tmp_path / "c").cost == old


def test_what_was_spent_on_a_gpu_is_told_in_full() -> None:
    spent = on_gpu(10, 10**9, energy_joules=123.4, energy_of="the GPU board")
    assert cost_text(spent) == (
        "10.0 s on cuda:0, cpu_peak_rss 1.00 GB, torch_peak_allocated 1.00 GB, "
        "torch_peak_reserved 2.00 GB, gpu_process_peak_sampled 3.00 GB, "
        "gpu_board_peak_sampled n/a, 123 J (the GPU board)"
    )


def test_a_profile_that_knows_no_gpu_is_not_sampled() -> None:
    with contextlib.closing(Meter("cpu", "starting", Fake())) as meter:
        assert "sampled" not in meter.read()
