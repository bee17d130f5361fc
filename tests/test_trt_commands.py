"""Releases of TensorRT, and what trtexec is told on each of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.errors import Unsupported, UsageError
from slmq_edge.runner.trt import commands, shapes, versions
from slmq_edge.runner.trt.recipe import Port
from slmq_edge.runner.trt.shapes import Shapes, Sizes
from slmq_edge.runner.trt.versions import Version
from tests import trt_bundle

FILES = commands.Files("g.onnx", "e.plan", "l.json", "t.cache")
PORTS = (Port("ids", "int64", (1, "new")), Port("past", "float16", (1, 2, "room", 4)))
LIMITS = Shapes(prompt=256, context=1024, kept=64)
PREFILL = ["--minShapes=ids:1x1,past:1x2x1x4", "--optShapes=ids:1x128,past:1x2x512x4"]
PREFILL += ["--maxShapes=ids:1x256,past:1x2x1024x4"]
DECODE = ["--minShapes=ids:1x1,past:1x2x1x4", "--optShapes=ids:1x1,past:1x2x512x4"]
DECODE += ["--maxShapes=ids:1x1,past:1x2x1024x4"]
LAST = ["--memPoolSize=workspace:512", "--timingCacheFile=t.cache"]
LAST += ["--profilingVerbosity=detailed", "--exportLayerInfo=l.json"]
FIRST = ["trtexec", "--onnx=g.onnx", "--saveEngine=e.plan"]
TWO = ["--profile=0", *PREFILL, "--profile=1", *DECODE]
WEAK = ["--fp16", "--int8"]
SHARING = "--preview=+profileSharing0806"


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("8.5.2.2", [*FIRST, *WEAK, "--noTF32", *PREFILL, *LAST, "--buildOnly"]),
        (
            "8.6.1",
            [*FIRST, *WEAK, SHARING, "--noTF32", *PREFILL, *LAST, "--skipInference"],
        ),
        (
            "10.0.1",
            [*FIRST, "--stronglyTyped", "--noTF32", *PREFILL, *LAST, "--skipInference"],
        ),
        (
            "10.3.0",
            [*FIRST, "--stronglyTyped", "--noTF32", *TWO, *LAST, "--skipInference"],
        ),
        (
            "10.16.2",
            [*FIRST, "--stronglyTyped", "--noTF32", *TWO, *LAST, "--skipInference"],
        ),
        ("11.4.1", [*FIRST, "--noTF32", *TWO, *LAST, "--skipInference"]),
    ],
)
def test_the_line_that_builds(release: str, expected: list[str]) -> None:
    of = trt_bundle.recipe(inputs=PORTS)
    line = commands.build("trtexec", FILES, of, LIMITS, versions.parse(release), 512)
    assert line == expected


def test_floats_ask_for_no_int8() -> None:
    baseline = trt_bundle.recipe(inputs=PORTS, int8=(), activations="float")
    line = commands.build("trtexec", FILES, baseline, LIMITS, versions.parse("8.5"), 512)
    assert "--fp16" in line
    assert "--int8" not in line
    weights = baseline._replace(weight_only=("a.matmul",))
    line = commands.build("trtexec", FILES, weights, LIMITS, versions.parse("8.5"), 512)
    assert "--int8" in line
    single = baseline._replace(floats="float32")
    line = commands.build("trtexec", FILES, single, LIMITS, versions.parse("8.5"), 512)
    assert "--fp16" not in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.3.0.26", (10, 3, 0)),
        ("8.5.2.2", (8, 5, 2)),
        ("11.4", (11, 4, 0)),
        ("10.13.0.35.post1", (10, 13, 0)),
    ],
)
def test_versions_are_read(text: str, expected: tuple[int, int, int]) -> None:
    assert versions.parse(text) == expected


@pytest.mark.parametrize(
    ("banner", "expected"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help", "8.5.2"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --help", "8.6.1"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", "10.3.0"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b8] # trtexec", "10.16.2"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b1] # trtexec", "11.4.1"),
    ],
)
def test_trtexec_names_its_release(banner: str, expected: str) -> None:
    assert str(versions.of_banner(f"{banner}\n=== Model Options ===")) == expected


@pytest.mark.parametrize("text", ["", "ten", "v10"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(Unsupported):
        versions.parse(text)
    with pytest.raises(Unsupported):
        versions.of_banner(text)


def test_old_releases_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"8\.4\.0 is too old: 8\.5 or later"):
        versions.traits(versions.parse("8.4"))


# --- shapes


@given(
    length=st.integers(1, 10**5),
    prompt=st.none() | st.integers(1, 4096),
    context=st.none() | st.integers(1, 10**5),
)
def test_profiles_hold_together(length: int, prompt: int | None, context: int | None) -> None:
    of = trt_bundle.recipe(context_length=length)
    try:
        limits = shapes.of(of, prompt, context)
    except UsageError:
        assert (context or 1) > length or (prompt or 1) > (context or length)
        return
    prefill, decode = shapes.profiles(limits)
    for profile in (prefill, decode):
        for low, usual, high in zip(*profile[1:], strict=True):
            assert 1 <= low <= usual <= high
        assert profile.most.new <= profile.most.room <= length
        assert profile.usual.new <= profile.usual.room
        assert profile.most.kept <= profile.most.new
    assert {sizes.new for sizes in decode[1:]} == {1}
    assert shapes.profiles(limits, several=False) == (prefill,)
    for decoded, filled in zip(decode.most, prefill.most, strict=True):
        assert decoded <= filled  # where there is but one profile, it is enough


def test_usual_limits() -> None:
    assert shapes.of(trt_bundle.recipe(context_length=32768)) == (512, 2048, 64)
    assert shapes.of(trt_bundle.recipe(context_length=300)) == (300, 300, 64)


@pytest.mark.parametrize(
    ("prompt", "context", "message"),
    [(None, 600, "the graph takes 1 to 512"), (400, 300, "between 1 and the context, 300")],
)
def test_limits_that_do_not_fit_are_refused(prompt: int | None, context: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shapes.of(trt_bundle.recipe(context_length=512), prompt, context)


def test_a_ports_shape() -> None:
    assert shapes.shape(PORTS[1], Sizes(3, 5, 1)) == (1, 2, 5, 4)


# --- build.sh


def _run_script(folder: Path, banner: str, of: str = "8.5") -> subprocess.CompletedProcess[str]:
    """Run build.sh with a trtexec that prints its arguments."""
    script = folder / "build.sh"
    script.write_text(commands.script(trt_bundle.recipe(inputs=PORTS, tensorrt=of)))
    fake = folder / "trtexec"
    fake.write_text(
        '#!/bin/sh\nif [ "$1" = --help ]; then\n'
        f'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{banner}] # trtexec --help"; echo more\n'
        'else for word in "$@"; do echo "$word"; done; fi\n'
    )
    fake.chmod(0o755)
    command = [shutil.which("sh") or "sh", str(script)]
    return subprocess.run(command, capture_output=True, text=True, env={"TRTEXEC": str(fake)})


@pytest.mark.parametrize(
    ("banner", "release"),
    [
        ("8502", "8.5"),
        ("8601", "8.6"),
        ("100001", "10.0"),
        ("100300", "10.3"),
        ("101602", "10.16"),
        ("110401", "11.4"),
    ],
)
def test_the_script_gives_trtexec_the_same_line(tmp_path: Path, banner: str, release: str) -> None:
    done = _run_script(tmp_path, banner)
    assert done.returncode == 0, done.stderr
    of = trt_bundle.recipe(inputs=PORTS)
    files = commands.Files("model.onnx", "model.plan", "layers.json", "timing.cache")
    line = commands.build("trtexec", files, of, shapes.of(of), versions.parse(release))
    assert done.stdout.splitlines() == line[1:]


@pytest.mark.parametrize("banner", ["8502", "8601", "100100"])
def test_the_script_refuses_what_is_too_old_for_the_graph(tmp_path: Path, banner: str) -> None:
    done = _run_script(tmp_path, banner, of="10.3")
    assert done.returncode == 1
    assert done.stderr == "this graph needs TensorRT 10.3 or later\n"


def test_the_script_refuses_another_program(tmp_path: Path) -> None:
    done = _run_script(tmp_path, "what")
    assert done.returncode == 1
    assert "is no trtexec" in done.stderr


def test_a_version_is_text_and_order() -> None:
    assert str(Version(10, 3, 0)) == "10.3.0"
    assert Version(10, 16, 2).is_at_least("10.3")
    assert not Version(10, 2, 9).is_at_least("10.3")
