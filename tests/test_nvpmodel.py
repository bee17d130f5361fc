"""Power modes of a Jetson: the number that a board keeps, and the name that it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.profiles.board import Mode
from slmq_edge.profiles.nvpmodel import current, modes, queried

CONF = """\
#< POWER_MODEL ID=9 NAME=OLD >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
  <POWER_MODEL  NAME=MODE_30W   ID=2>
< POWER_MODEL ID=3 NAME=MODE_CPU_MAX >
< POWER_MODEL ID=x NAME=BROKEN >
< POWER_MODEL ID=10 NAME=15W_DESKTOP >
< PM_CONFIG DEFAULT=2 >
"""


def test_modes_by_name_and_number() -> None:
    assert modes(CONF) == [
        Mode("MAXN", 0), Mode("30W", 2), Mode("MODE_CPU_MAX", 3), Mode("15W_DESKTOP", 10),
    ]  # fmt: skip
    assert modes("") == []


@pytest.mark.parametrize(
    ("status", "number"),
    [
        ("pmode:0002 fmode:quiet\n", 2),
        ("pmode:0010", 10),
        ("fmode:quiet pmode:0000\n", 0),
        ("pmode: fmode:quiet", None),
        ("", None),
    ],
)
def test_the_status_file(status: str, number: int | None) -> None:
    assert current(status) == number


@pytest.mark.parametrize(
    ("output", "mode"),
    [
        ("NV Power Mode: 15W\n0\n", Mode("15W", 0)),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W\n2\n", Mode("30W", 2)),
        ("NV Power Mode: MAXN\n", Mode("MAXN")),
        (
            "NV Power Mode: 5W\n1\nNVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap: 13\n",
            Mode("5W", 1),
        ),
        ("NVPM VERB: Config file: /etc/nvpmodel.conf\nNV Power Mode: MAXN\n\n0\n", Mode("MAXN", 0)),
        ("NVPM ERROR: failed to read PARAM EMC\n", None),
        ("", None),
    ],
)
def test_what_nvpmodel_prints(output: str, mode: Mode | None) -> None:
    assert queried(output) == mode


@given(st.text(), st.sampled_from(["", "pmode:", "< POWER_MODEL ID=", "NV Power Mode: "]))
def test_any_text_is_read(text: str, start: str) -> None:
    modes(start + text)
    current(start + text)
    queried(start + text)
