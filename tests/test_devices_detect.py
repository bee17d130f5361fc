"""Which device a machine is, by what it says of itself; nothing is guessed."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge import devices
from slmq_edge.errors import NotFound
from tests.seen import BOARDS, MIB, NVGPU, SUPER, machine, nvpmodel, release, tree

CASES = [(name, seen) for name, all_seen in BOARDS.items() for seen in all_seen]
SHEETS = [devices.load(name) for name in devices.known()]
JETSONS = [sheet for sheet in SHEETS if sheet.kind == "jetson"]


@pytest.mark.parametrize(("name", "seen"), CASES, ids=[name for name, _ in CASES])
def test_every_board_is_known_by_its_own_words(name: str, seen: dict[str, Any]) -> None:
    assert devices.detect(seen).name == name


def test_every_sheet_of_a_machine_has_a_machine_here() -> None:
    of_machines = {sheet.name for sheet in SHEETS if sheet.kind != "cuda"}
    assert of_machines == set(BOARDS)


def test_no_two_sheets_fit_the_same_words() -> None:
    """Where two share a part number or a name of a board, the memory of one is none of another."""
    for one, other in combinations(JETSONS, 2):
        assert not set(one.detect.specs) & set(other.detect.specs)
        sizes = one.number("memory_bytes"), other.number("memory_bytes")
        for board in set(one.detect.boards) & set(other.detect.boards):
            for total in sizes:
                assert total is not None
                for share in (0.71, 0.85, 1.0):
                    seen = machine(compatible=tree(board), memory_total_bytes=total * share)
                    found = devices.detect({**seen, "kernel": "5.10.120-tegra"})
                    assert found.number("memory_bytes") == total
                    assert found in (one, other)


def test_no_two_other_sheets_have_the_same_sign() -> None:
    others = [sheet.detect for sheet in SHEETS if sheet.kind != "jetson"]
    for sign in ("models", "nvml"):
        said = [name for signs in others for name in getattr(signs, sign)]
        assert len(set(said)) == len(said)
    said = [signs.architecture for signs in others if signs.architecture]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("part", sorted({b for sheet in JETSONS for b in sheet.detect.boards}))
@pytest.mark.parametrize("gib", [2, 4, 8, 16, 32, 64, 128, None])
def test_a_part_number_is_never_taken_for_another(part: str, gib: int | None) -> None:
    memory = None if gib is None else 0.93 * gib * 2**30
    found = devices.detect(machine(compatible=tree(part, "tegra999"), memory_total_bytes=memory))
    if found.name == devices.UNKNOWN_JETSON:
        assert part in found.title
    else:
        assert part in found.detect.boards
        assert gib is None or found.number("memory_bytes") == gib * 2**30


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (  # as AGX Orin 64GB, with other clocks
            machine(
                model="NVIDIA Jetson AGX Orin Developer Kit",
                compatible=tree("p3740-0002+p3701-0008", "p3701-0008", "tegra234"),
                memory_total_bytes=62840 * MIB,
            ),
            ["model 'NVIDIA Jetson AGX Orin Developer Kit'", "p3701-0008", "61.4 GiB of memory"],
        ),
        (
            machine(
                model="NVIDIA Jetson Nano 2GB Developer Kit",
                compatible=tree("p3541-0000", "p3450-0000", "tegra210"),
                memory_total_bytes=1972 * MIB,
            ),
            ["Nano 2GB", "1.9 GiB", "its memory is not that of jetson-nano-4gb"],
        ),
        (
            machine(
                model="NVIDIA Jetson TX2 NX Developer Kit",
                compatible=tree("p3509-0000+p3636-0001", "tegra186"),
                memory_total_bytes=3800 * MIB,
            ),
            ["p3636-0001", "not that of jetson-tx2"],
        ),
        (
            machine(
                model="quill",
                compatible=tree("p2597-0000+p3489-1000", "tegra186"),
                memory_total_bytes=7829 * MIB,
            ),
            ["model 'quill'", "p3489-1000"],
        ),
        (  # its name alone does not tell the module from the first kit
            machine(model="NVIDIA Jetson AGX Orin", memory_total_bytes=30536 * MIB),
            ["no part number", "could be jetson-agx-orin-32gb, jetson-agx-orin-devkit-32gb"],
        ),
        (machine(model="NVIDIA Jetson Orin NX"), ["memory unknown", "jetson-orin-nx-16gb"]),
        (  # the memory refutes the part number
            machine(
                model="NVIDIA Jetson Orin NX",
                compatible=tree("p3768-0000+p3767-0000", "tegra234"),
                memory_total_bytes=7620 * MIB,
            ),
            ["p3767-0000", "its memory is not that of jetson-orin-nx-16gb"],
        ),
        # A container that hides the device tree: one sign is left, and it names no board.
        (machine(nv_tegra_release=release(36, "4.3")), ["no model in its device tree"]),
        (machine(l4t_core="36.4.7-20250918154033"), ["no part number"]),
        (machine(kernel="5.15.148-tegra", memory_total_bytes=7620 * MIB), ["7.4 GiB"]),
        (machine(gpus=[NVGPU]), ["memory unknown"]),
        (machine(compatible=["nintendo,odin", "nvidia,tegra210"]), ["no part number"]),
    ],
)
def test_a_jetson_without_a_sheet_says_what_it_is(seen: dict[str, Any], words: list[str]) -> None:
    found = devices.detect(seen)
    assert found.name == devices.UNKNOWN_JETSON
    assert found.kind == "jetson"
    assert found.facts == {}
    assert found.power.total_rails == ()
    for word in words:
        assert word in found.title
    assert devices.UNKNOWN_JETSON not in devices.known()


def test_a_container_without_nv_tegra_release_is_the_board_all_the_same() -> None:
    seen = {**BOARDS["jetson-orin-nano-8gb"][0], "nv_tegra_release": None, "boot_spec": None}
    assert devices.detect(seen).name == "jetson-orin-nano-8gb"
    assert devices.release(seen) is None
    assert str(devices.release({**seen, "l4t_core": "36.4.7-20250918154033"})) == (
        "L4T 36.4.7 (JetPack 6.2.1)"
    )


def test_facts_are_those_of_the_mode_of_now() -> None:
    seen = BOARDS["jetson-orin-nano-8gb"][0]
    best = devices.detect(seen)
    assert best.mode == "MAXN_SUPER"
    assert best.number("bandwidth_bytes_per_second") == 102.4e9
    slow = devices.detect({**seen, "nvpmodel": SUPER | {"current": 0}})
    assert slow.mode == "15W"
    assert slow.number("bandwidth_bytes_per_second") == pytest.approx(68.3e9, rel=0.001)
    unknown = devices.detect({**seen, "nvpmodel": SUPER | {"current": 9}})
    assert unknown.mode is None
    assert unknown.number("bandwidth_bytes_per_second") == 102.4e9


@pytest.mark.parametrize(
    ("modes", "mode", "maximum"),
    [
        # The number 0 is the best mode of one board, and one of the slow ones of another.
        (nvpmodel(0, "15W", "25W", "MAXN_SUPER", "7W"), "15W", ("MAXN_SUPER",)),
        (nvpmodel(0, "15W", "7W"), "15W", ("15W",)),  # before Super
        (nvpmodel(0, "MODE_15W", "MODE_7W"), "15W", ("MODE_15W",)),
        (nvpmodel(1, "MINE", "OURS"), None, ()),  # a configuration of somebody's own
        (None, None, ("MAXN_SUPER", "15W")),
    ],
)
def test_the_mode_without_limit_is_one_that_is_there(
    modes: dict[str, Any] | None, mode: str | None, maximum: tuple[str, ...]
) -> None:
    seen = {**BOARDS["jetson-orin-nano-8gb"][0], "nvpmodel": modes}
    found = devices.detect(seen)
    assert found.mode == mode
    assert devices.board(found).maximum_modes == maximum
    assert devices.board(found).total_rails == (("VDD_IN",),)


def test_an_unknown_jetson_is_at_its_best_in_maxn() -> None:
    seen = machine(nv_tegra_release=release(36, "4.3"), nvpmodel=nvpmodel(0, "MAXN", "15W"))
    found = devices.detect(seen)
    assert devices.board(found) == ("unknown-jetson", (), ("MAXN",), None, "/")
    assert devices.mode_name(seen) == "MAXN"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA A800 80GB PCIe", "a800-80gb-pcie"),
        ("NVIDIA A800-SXM4-80GB", "a800-80gb-sxm"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-sxm"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Orin (nvgpu)", None),
        ("", None),
    ],
)
def test_gpus_by_their_own_name(said: str, name: str | None) -> None:
    found = devices.of_gpu(said)
    assert (found and found.name) == name


def test_a_gpu_whose_other_words_do_not_fit_is_not_it() -> None:
    name = "NVIDIA A800 80GB PCIe"
    assert devices.of_gpu(name, "8.0", 81920 * MIB) is not None
    assert devices.of_gpu(name, "8.6", None) is None
    assert devices.of_gpu(name, "8.0", 40960 * MIB) is None
    # Drivers keep a little for themselves.
    assert devices.of_gpu(name, None, 81251 * MIB) is not None


def test_gpus_of_a_machine_are_those_with_a_board_of_their_own() -> None:
    said = [
        {"name": "NVIDIA A800 80GB PCIe", "compute_capability": "8.0", "memory_bytes": 85899345920},
        {"name": "NVIDIA GeForce GTX 1080", "compute_capability": "6.1", "memory_bytes": None},
        {"name": None, "compute_capability": None, "memory_bytes": None},
    ]
    found = devices.gpus(machine(machine="x86_64", gpus=said))
    assert [(name, sheet and sheet.name) for name, sheet in found] == [
        ("NVIDIA A800 80GB PCIe", "a800-80gb-pcie"),
        ("NVIDIA GeForce GTX 1080", None),
    ]
    assert devices.gpus(BOARDS["jetson-orin-nano-8gb"][0]) == ()
    assert devices.gpus(BOARDS["jetson-agx-thor"][0]) == ()
    assert not devices.is_integrated("NVIDIA GB10")


def test_an_unknown_architecture_is_an_error() -> None:
    with pytest.raises(NotFound, match="unknown architecture 'vax'; known: aarch64, x86_64"):
        devices.detect(machine(machine="vax"))
    with pytest.raises(NotFound, match=r"unknown architecture 'x86_46'.*did you mean x86_64"):
        devices.detect({"machine": "x86_46"})


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_every_field_may_be_missing(name: str) -> None:
    """Whatever a machine does not tell: an answer, or an unknown Jetson, and never an exception."""
    for seen in BOARDS[name]:
        for field in seen:
            if field != "machine":
                found = devices.detect({key: seen[key] for key in seen if key != field})
                allowed = {name, devices.UNKNOWN_JETSON, "generic-aarch64"}
                assert found.name in allowed, field


WORDS = st.sampled_from(
    ["p3767-0005", "p3767-0000", "p3701-0008", "p2888-0001", "tegra234", "Orin Nano", "Thor"]
)


@given(
    st.lists(WORDS, max_size=4),
    st.none() | st.text(max_size=20) | WORDS,
    st.none() | st.integers(0, 2**38),
    st.none() | st.dictionaries(st.sampled_from(["TNSPEC", "COMPATIBLE_SPEC"]), st.text() | WORDS),
)
def test_no_words_break_detection(
    compatible: list[str], model: str | None, memory: int | None, spec: dict[str, str] | None
) -> None:
    seen = machine(
        compatible=tree(*compatible), model=model, memory_total_bytes=memory, boot_spec=spec
    )
    found = devices.detect(seen)
    assert found.name in {*devices.known(), devices.UNKNOWN_JETSON}
    total = found.number("memory_bytes")
    if memory is not None and total is not None:
        assert 0.7 <= memory / total <= 1
    assert dataclasses.asdict(found)
