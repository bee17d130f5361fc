"""An engine by trtexec: a script of that name stands in for NVIDIA's program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.errors import NotFound, SlmqError, Unsupported
from slmq_edge.runner import manifest
from slmq_edge.runner.trt import build, cache, commands, memory, shapes, trtexec, versions
from tests import fake_builder, trt_bundle

NAMES = trt_bundle.recipe().int8


def program(folder: Path, release: str = "v100300", body: str = "") -> Path:
    """A trtexec of that release: writes what it was told to, after ``body``."""
    layers = fake_builder.layer_information(0, NAMES)
    path = folder / "trtexec"
    path.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent(
            f"""
            import json, os, sys, time
            print("&&&& RUNNING TensorRT.trtexec [TensorRT {release}] #", *sys.argv)
            if "--help" in sys.argv:
                sys.exit(0)
            options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
            print("[11/21/2026-17:00:00] [W] [TRT] a warning")
            """
        )
        + textwrap.dedent(body)
        + textwrap.dedent(
            f"""
            open(options["saveEngine"], "w").write(json.dumps(sys.argv[1:]))
            open(options["exportLayerInfo"], "w").write({layers!r})
            open(options["timingCacheFile"], "a").write("timed")
            """
        )
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle on a machine whose Python has no TensorRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(memory, "free", lambda device: None)
    trt_bundle.pretend(monkeypatch)
    return trt_bundle.write(tmp_path / "bundle")


def _build(bundle: Path, told: list[str] | None = None, **fields: Any) -> cache.Engine:
    tell = [] if told is None else told
    return build.build(build.Request(bundle, **fields), tell.append)


def _names(bundle: Path) -> set[str]:
    home = bundle / cache.ENGINES
    return {path.name for path in home.iterdir()} if home.exists() else set()


def test_trtexec_builds_where_python_cannot(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, body='print("[11/21/2026-17:00:00] [I] done")')
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []
    engine = _build(bundle, told)
    line = json.loads(engine.plan.read_text(encoding="utf-8"))
    given = {name: word for word in line for name in [word.partition("=")[0]]}
    files = commands.Files(
        str(bundle / manifest.TRT_GRAPH),
        given["--saveEngine"].partition("=")[2],
        given["--exportLayerInfo"].partition("=")[2],
        str(bundle / cache.ENGINES / "timing.cache"),
    )
    of = trt_bundle.recipe()
    expected = commands.build("trtexec", files, of, shapes.of(of), versions.parse("10.3"))
    assert line == expected[1:]
    assert engine.sidecar["builder"] == "trtexec"
    assert engine.sidecar["warnings"] == ["a warning"]
    assert engine.sidecar["golden"] is None
    assert engine.sidecar["golden_error"] is None
    assert told[-1] == "not checked here: this Python has no tensorrt"
    assert _names(bundle) == {
        f"{engine.key}.{ending}" for ending in ("plan", "json", "layers.json")
    } | {"timing.cache"}


def test_layers_of_one_profile_say_nothing_of_the_other(bundle: Path, tmp_path: Path) -> None:
    """What the script writes bears no mark of a second profile."""
    sidecar = _build(bundle, trtexec=program(tmp_path)).sidecar
    assert sidecar["profiles"] == ["prefill", "decode"]
    assert sidecar["int8_missing"] == sorted(NAMES)
    assert sidecar["int8_reasons"][NAMES[0]] == "decode: no layer of that name multiplies"


@pytest.mark.parametrize("release", ["v8502", "v8601", "v100001"])
def test_older_releases_build_one_profile(bundle: Path, tmp_path: Path, release: str) -> None:
    engine = _build(bundle, trtexec=program(tmp_path, release))
    assert engine.sidecar["profiles"] == ["prefill"]
    assert engine.sidecar["int8"] == list(NAMES)
    assert engine.sidecar["scheme_ran"] == "w8a8"


def test_an_engine_without_layer_information_has_no_label(bundle: Path, tmp_path: Path) -> None:
    body = "options['exportLayerInfo'] = os.devnull"
    sidecar = _build(bundle, trtexec=program(tmp_path, body=body)).sidecar
    assert sidecar["int8_reasons"][NAMES[0]] == "no layer information"
    assert sidecar["scheme_ran"] == "w8a16"


FAILURE = """
print("[11/21/2026-17:00:00] [E] [TRT] ModelImporter.cpp:785: While parsing node number 3")
print("[11/21/2026-17:00:00] [E] Engine set up failed")
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (FAILURE, "trtexec failed: ModelImporter.cpp:785: While parsing node number 3"),
        ("os.kill(os.getpid(), 9)", r"ended by signal 9 \(out of memory\?\)"),
        ("sys.exit(3)", "it ended with 3 and said nothing"),
        ("sys.exit(0)", "ended well and wrote no engine"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    bundle: Path, tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(SlmqError, match=message) as caught:
        _build(bundle, trtexec=program(tmp_path, body=body))
    assert "\n" not in str(caught.value)
    assert _names(bundle) == set()


def test_ctrl_c_ends_the_program_too(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    slow = program(tmp_path, body=body)
    sleep = time.sleep

    def interrupted(seconds: float) -> None:
        if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _build(bundle, trtexec=slow)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert _names(bundle) == set()


def test_a_program_that_will_not_end_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal, time\n"
         "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    trtexec.end(process, 0.2)
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_time_is_told(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trtexec, "LONG_AGO", 0.1)
    told: list[str] = []
    _build(bundle, told, trtexec=program(tmp_path, body="time.sleep(0.5)"))
    assert any(text.startswith("building: ") for text in told)


def test_other_programs_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(NotFound, match="is no program"):
        _build(bundle, trtexec=other)
    other.chmod(0o755)
    with pytest.raises(Unsupported, match="does not say of which TensorRT"):
        _build(bundle, trtexec=other)
    with pytest.raises(Unsupported, match="is too old"):
        _build(bundle, trtexec=program(tmp_path, "v8401"))
