"""How an end is told from what is left of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmq_edge.runner.agent import outcome
from slmq_edge.runner.agent.outcome import Evidence

NVMAP = "NvMapMemAllocInternalTagged: 1075072515 error 12\nNvMapMemHandleAlloc: error 0\n"
BAD_ALLOC = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  x\n"
ORT = "BFCArena::Extend Failed to allocate memory for requested buffer of size 1048576"
REFUSAL = {"error": "Damaged", "text": "model.onnx is truncated"}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (Evidence(0), "done"),
        (Evidence(0, words="MemoryError"), "done"),
        (Evidence(-9, kernel_killed=True), "oom_killed"),
        (Evidence(137, kernel_killed=True), "oom_killed"),
        (Evidence(-9), "killed"),
        (Evidence(-6, words=BAD_ALLOC), "oom_error"),
        (Evidence(1, words="numpy._ArrayMemoryError: Unable to allocate 9 GiB"), "oom_error"),
        (Evidence(1, words="CUDA failure 2: out of memory"), "oom_error"),
        (Evidence(1, refusal={"error": "SlmqError", "text": ORT}), "oom_error"),
        (Evidence(1, words=NVMAP + "CUDA error: out of memory"), "device_oom_fragmented"),
        (Evidence(-9, kernel_killed=True, words=NVMAP), "device_oom_fragmented"),
        (Evidence(1, refusal=REFUSAL), "failed"),
        (Evidence(-11, words="Segmentation fault"), "failed"),
        (Evidence(1, words="Traceback ...\nKeyError: 'x'"), "failed"),
        (Evidence(-15), "lost"),
        (Evidence(1, kernel_killed=True, words="it died of something else"), "failed"),
    ],
)
def test_every_end_has_its_name(found: Evidence, state: str) -> None:
    name, text = outcome.classify(found)
    assert name == state
    assert bool(text) == (state != "done")
    assert "\n" not in text


def test_a_failure_says_which_signal_and_what_was_said_last() -> None:
    words = "one\ntwo\nthree\nfour\n"
    assert outcome.classify(Evidence(-11, words=words))[1] == (
        "it was ended by SIGSEGV: two | three | four"
    )
    assert outcome.classify(Evidence(3))[1] == "it ended with exit code 3: it said nothing"
    assert "signal 40" in outcome.classify(Evidence(-40))[1]
    assert "reboot" in outcome.classify(Evidence(1, words=NVMAP))[1]


def _tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


V1, V2 = "sys/fs/cgroup/memory/a/b/memory.oom_control", "sys/fs/cgroup/user/memory.events"
HYBRID = "sys/fs/cgroup/unified/memory.events"


@pytest.mark.parametrize(
    ("cgroup", "name", "text"),
    [
        ("9:name=systemd:/\n4:memory:/a/b\n0::/\n", V1, "under_oom 0\noom_kill {}\n"),
        ("4:cpu,memory:/a/b\n", V1, "oom_kill {}\n"),
        ("0::/user\n", V2, "max 7\noom 3\noom_kill {}\noom_group_kill 9\n"),
        ("0::/\n", HYBRID, "oom_kill {}\n"),
        ("", "proc/vmstat", "pgfault 12\noom_kill {}\nthp_fault 3\n"),
    ],
)
def test_the_kernels_counters(cgroup: str, name: str, text: str, tmp_path: Path) -> None:
    root = _tree(tmp_path, {"proc/self/cgroup": cgroup, name: text.format(4)})
    before = outcome.kills(root)
    assert before == {str(tmp_path / name): 4}
    assert not outcome.rose(before, outcome.kills(root))
    _tree(tmp_path, {name: text.format(5)})
    assert outcome.rose(before, outcome.kills(root))


def test_no_counter_is_no_evidence(tmp_path: Path) -> None:
    root = _tree(tmp_path, {"proc/self/cgroup": "garbage\n", "proc/vmstat": "pgfault 1\n"})
    assert outcome.kills(root) == {}
    assert outcome.kills(str(tmp_path / "none")) == {}
    assert not outcome.rose({}, {"new": 3})  # it may have been there all along
