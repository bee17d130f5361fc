"""What a session gives back: pages of its data file, and none that were written to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from slmq_edge.exporters import onnx
from slmq_edge.profiles.cpu import Cpu
from slmq_edge.runner.memory import Mapping, let_go, of_addresses, of_folder
from slmq_edge.scheme import scheme
from tests.artifacts import session
from tests.decoders import DECODERS, rounded

SMAPS = """\
7f0000000000-7f0000002000 rw-p 00000000 fe:00 42                         {folder}/model.onnx.data
Size:                  8 kB
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd wr mr mw me ac sd
7f0000010000-7f0000011000 rw-p 00002000 fe:00 42                         {folder}/model.onnx.data
Anonymous:             4 kB
7f0000020000-7f0000030000 r-xp 00000000 fe:00 43                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000040000-7f0000050000 rw-p 00000000 00:00 0
Anonymous:            64 kB
7f0000060000-7f0000061000 rw-p 00000000 fe:00 44                         {folder}/other file
Anonymous:             0 kB
7f0000070000-7f0000071000 rw-p 00000000 fe:00 45                         {folder}/deeper/file
Anonymous:             0 kB
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")


def test_mappings_are_those_of_the_folder_that_nobody_wrote_to(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    listing = tmp_path / "smaps"
    listing.write_text(SMAPS.format(folder=folder))
    found = of_folder(folder, listing)
    assert found == [Mapping(0x7F0000000000, 0x2000), Mapping(0x7F0000060000, 0x1000)]
    assert of_folder(folder, tmp_path / "nothing") == []
    inside, written, beside = 0x7F0000001FFF, 0x7F0000010000, 0x7F0000002000
    assert of_addresses([beside, inside, written], listing) == found[:1]


@linux
def test_pages_of_a_file_go_and_come_back(tmp_path: Path) -> None:
    content = np.arange(1 << 20, dtype=np.int64)
    (tmp_path / "read").write_bytes(content.tobytes())
    (tmp_path / "written").write_bytes(content.tobytes())
    read, written = (np.memmap(tmp_path / name, np.int64, mode="c") for name in ("read", "written"))
    written[:] = -1
    assert int(read.sum()) == int(content.sum())
    found = of_folder(tmp_path)
    assert found == of_addresses([read.ctypes.data + 8, written.ctypes.data])
    assert [one.size for one in found] == [content.nbytes]
    before = resident_bytes()
    let_go(found)
    assert before - resident_bytes() >= 0.9 * content.nbytes
    np.testing.assert_array_equal(read, content)
    assert (written == -1).all()


@linux
@pytest.mark.parametrize("words", [("w8a8", "int8"), ("w4a8-b32", "int4"), ("fp32", "float")])
def test_a_session_computes_the_same_when_its_file_is_let_go_of(
    words: tuple[str, str], tmp_path: Path
) -> None:
    running = session(onnx.write(rounded(DECODERS["demo-llama"](), scheme(*words)))[0], tmp_path)
    assert running._mapped
    tokens = np.arange(3, 35)[None]
    first, cache = running.prefill(tokens, room=1)
    step, _ = running.step(np.array([[7]]), cache)
    let_go(running._mapped)
    again, cache = running.prefill(tokens, room=1)
    np.testing.assert_array_equal(first, again)
    let_go(running._mapped)
    np.testing.assert_array_equal(step, running.step(np.array([[7]]), cache)[0])


def resident_bytes() -> int:
    found = Cpu().memory()["cpu_rss_file"]
    assert found is not None
    return found
