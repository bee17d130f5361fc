"""Engines on disk: their keys, and which of them is for this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.runner import manifest
from slmq_edge.runner.trt import cache, cuda
from slmq_edge.runner.trt.cache import Identity
from tests import trt_bundle
from tests.fake_builder import Fake

TEXTS = st.text(max_size=12)
SIZES = st.integers(1, 1 << 16)
IDENTITIES = st.builds(
    Identity, TEXTS, SIZES, SIZES, SIZES, precision=TEXTS, tensorrt=TEXTS, cuda=TEXTS, sm=TEXTS,
    gpu=TEXTS,
)  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle on an Orin with TensorRT 10.3."""
    monkeypatch.setitem(sys.modules, "tensorrt", Fake("10.3.0", ()).module)
    trt_bundle.pretend(monkeypatch)
    return trt_bundle.write(tmp_path / "bundle")


def put(folder: Path, home: Path | None = None, /, **fields: Any) -> dict[str, Any]:
    """Write an engine of a bundle as if it had been built here, but for some fields."""
    home = home or folder / cache.ENGINES
    home.mkdir(exist_ok=True)
    more = {"golden_error": fields.pop("golden_error", None)}
    usual = Identity(
        content=cache.content(manifest.read_bundle(folder)),
        prompt=512,
        context=512,
        kept=64,
        precision="",
        tensorrt="10.3.0",
        cuda="12.6",
        sm="87",
        gpu="Orin",
    )
    identity = Identity(**{**usual._asdict(), **fields})
    plan = home / f"{cache.key(identity)}.plan"
    plan.write_bytes(b"plan of " + plan.stem.encode())
    sidecar = {
        "format": cache.FORMAT,
        "version": cache.VERSION,
        "key": cache.key(identity),
        "identity": identity._asdict(),
        "plan_bytes": plan.stat().st_size,
        "plan_sha256": manifest.sha256(plan),
        **more,
    }
    cache.save(home, sidecar)
    return sidecar


def found(folder: Path, engines: Path | None = None) -> cache.Engine:
    return cache.find(folder, manifest.read_bundle(folder), engines)


@given(IDENTITIES, IDENTITIES)
def test_a_key_is_an_identity(one: Identity, other: Identity) -> None:
    assert (cache.key(one) == cache.key(other)) == (one == other)


@given(IDENTITIES, st.sampled_from(Identity._fields), st.data())
def test_any_changed_field_changes_the_key(
    identity: Identity, field: str, data: st.DataObject
) -> None:
    before = getattr(identity, field)
    other = data.draw((SIZES if isinstance(before, int) else TEXTS).filter(lambda v: v != before))
    changed = Identity(**{**identity._asdict(), field: other})
    assert cache.key(identity) != cache.key(changed)


def test_an_engine_is_found(bundle: Path) -> None:
    sidecar = put(bundle)
    engine = found(bundle)
    assert engine.key == sidecar["key"]
    assert engine.plan.read_bytes() == b"plan of " + engine.key.encode()
    assert engine.sidecar == sidecar
    assert engine.recipe == trt_bundle.recipe()


def test_engines_may_lie_elsewhere(bundle: Path, tmp_path: Path) -> None:
    put(bundle, tmp_path / "fast-disk")
    with pytest.raises(NotFound, match="no engine"):
        found(bundle)
    assert found(bundle, tmp_path / "fast-disk").key


def test_the_largest_room_is_taken(bundle: Path) -> None:
    for context in (256, 512, 300):
        put(bundle, context=context)
    assert found(bundle).sidecar["identity"]["context"] == 512


def test_without_an_engine_the_command_is_named(bundle: Path) -> None:
    with pytest.raises(NotFound, match=r"no engine for .*: slmq-edge build .*bundle"):
        found(bundle)


@pytest.mark.parametrize(
    ("fields", "there", "here"),
    [
        (
            {"gpu": "NVIDIA H200", "sm": "90", "cuda": "12.9", "tensorrt": "10.16.2"},
            "TensorRT 10.16.2, CUDA 12.9, GPU NVIDIA H200, compute capability 90",
            "TensorRT 10.3.0, CUDA 12.6, GPU Orin, compute capability 87",
        ),
        ({"tensorrt": "10.3.1"}, "TensorRT 10.3.1;", "TensorRT 10.3.0:"),
        ({"cuda": "12.2"}, "CUDA 12.2;", "CUDA 12.6:"),
        ({"gpu": "Orin (nvgpu)"}, "GPU Orin (nvgpu);", "GPU Orin:"),
    ],
)
def test_a_copied_engine_is_refused_with_the_fields_that_differ(
    bundle: Path, fields: dict[str, str], there: str, here: str
) -> None:
    put(bundle, **fields)
    with pytest.raises(SlmqError) as caught:
        found(bundle)
    message = str(caught.value)
    assert f"built with {there}" in message
    assert f"this machine has {here}" in message
    assert message.endswith(f"slmq-edge build {bundle}")
    assert "\n" not in message


def test_the_nearest_of_several_is_compared(bundle: Path) -> None:
    put(bundle, gpu="A", sm="80", cuda="11.4", tensorrt="8.5.2")
    put(bundle, cuda="12.2")
    with pytest.raises(SlmqError, match=r"built with CUDA 12\.2; this machine has CUDA 12\.6:"):
        found(bundle)


def test_an_engine_of_another_graph_is_refused(bundle: Path) -> None:
    put(bundle)
    (bundle / manifest.TRT_GRAPH).write_bytes(b"another graph")
    for file in (bundle / cache.ENGINES).iterdir():
        file.rename(bundle.parent / file.name)
    (bundle / cache.ENGINES).rmdir()
    trt_bundle.seal(bundle)
    (bundle / cache.ENGINES).mkdir()
    for file in bundle.parent.glob("*.*"):
        file.rename(bundle / cache.ENGINES / file.name)
    with pytest.raises(NotFound, match=r"are of another graph: slmq-edge build"):
        found(bundle)


@pytest.mark.parametrize(
    "changed", [manifest.TRT_GRAPH, manifest.TRT_RECIPE, "trt/model.onnx.data"]
)
def test_what_an_engine_is_made_of(bundle: Path, changed: str) -> None:
    before = cache.content(manifest.read_bundle(bundle))
    (bundle / changed).write_bytes(b"other bytes")
    trt_bundle.seal(bundle)
    assert cache.content(manifest.read_bundle(bundle)) != before


def test_what_an_engine_is_not_made_of(bundle: Path) -> None:
    before = cache.content(manifest.read_bundle(bundle))
    (bundle / "trt" / "build.sh").write_text("echo")
    (bundle / "README.md").write_text("card")
    trt_bundle.seal(bundle)
    assert cache.content(manifest.read_bundle(bundle)) == before


def test_a_bundle_without_a_recipe_has_no_content() -> None:
    with pytest.raises(Damaged, match=r"does not list trt/model\.onnx and trt/recipe\.json"):
        cache.content({"files": {manifest.TRT_GRAPH: {"sha256": "0" * 64}}})


def test_a_failed_engine_is_not_used(bundle: Path) -> None:
    put(bundle, golden_error="golden check failed: mean KL is 3")
    with pytest.raises(SlmqError, match="is not used: golden check failed: mean KL is 3"):
        found(bundle)


def test_an_engine_that_passed_is_not_hidden_by_a_larger_that_failed(bundle: Path) -> None:
    put(bundle, context=256)
    put(bundle, context=512, golden_error="golden check failed: mean KL is 3")
    assert found(bundle).sidecar["identity"]["context"] == 256


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_plan_is_refused(bundle: Path, damage: str) -> None:
    plan = bundle / cache.ENGINES / f"{put(bundle)['key']}.plan"
    data = plan.read_bytes()
    plan.unlink()
    if damage != "gone":
        plan.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"?")
    with pytest.raises(Damaged, match="is not what was built: slmq-edge build --force"):
        found(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"key": "0" * 16},
        {"identity": {"gpu": "Orin"}},
        {"identity": 3},
    ],
)
def test_a_sidecar_that_is_none_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    sidecar = put(bundle)
    path = bundle / cache.ENGINES / f"{sidecar['key']}.json"
    path.write_text(json.dumps({**sidecar, **change}))
    with pytest.raises(Damaged, match=r"is no engine's sidecar .*: delete it, build again"):
        found(bundle)


def test_a_field_of_the_identity_cannot_be_edited(bundle: Path) -> None:
    sidecar = put(bundle, gpu="NVIDIA H200")
    sidecar["identity"]["gpu"] = "Orin"
    path = bundle / cache.ENGINES / f"{sidecar['key']}.json"
    path.write_text(json.dumps(sidecar))
    with pytest.raises(Damaged, match="its name is not that of its identity"):
        found(bundle)


def test_what_is_no_sidecar_is_left_alone(bundle: Path) -> None:
    sidecar = put(bundle)
    home = bundle / cache.ENGINES
    (home / f"{sidecar['key']}.layers.json").write_text("{}")
    (home / "timing.cache").write_bytes(b"x")
    (home / "other.plan").write_bytes(b"x")  # a plan without a sidecar is nobody's
    assert found(bundle).key == sidecar["key"]


def test_a_missing_gpu_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> cuda.Device:
        raise NotFound("no GPU that CUDA can use is here")

    put(bundle)
    monkeypatch.setattr(cuda, "device", gone)
    with pytest.raises(NotFound, match="no GPU"):
        found(bundle)


def test_a_missing_tensorrt_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bundle)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NotFound, match="this Python has no tensorrt"):
        found(bundle)


def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / "x.plan"

    def interrupted() -> None:
        with cache.whole(target) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with cache.whole(target) as partial:
        partial.write_bytes(b"all")
    assert [path.name for path in tmp_path.iterdir()] == ["x.plan"]
    assert target.read_bytes() == b"all"
