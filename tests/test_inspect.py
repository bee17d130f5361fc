"""inspect: what it says of bundles and checkpoints, new, old and damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import checkpoint as checkpoints
from slmq_edge import parts
from slmq_edge.errors import Damaged, NotFound, UsageError
from slmq_edge.export import export
from slmq_edge.inspection import Inspected, changed, inspect
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.reports.inspect import WRITERS, seen, terminal
from slmq_edge.scheme import scheme
from tests.decoders import random_llama, rounded
from tests.test_cli import assert_one_line, slmq


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``checkpoint`` and ``bundle`` of a built-in model."""
    folder = tmp_path_factory.mktemp("inspect")
    wanted = scheme("w4a8", "int8")
    request = Request(wanted, "smoothquant", windows=8, length=64, settings={"alpha": 0.6})
    checkpoint = quantize(plan("demo-llama", replace(request, preset="upstream")))
    checkpoint = replace(checkpoint, notes=("a remark",))
    checkpoints.save(checkpoint, folder / "checkpoint")
    export(checkpoint, folder / "bundle")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def told(found: Inspected) -> dict[str, str]:
    """The first table of the terminal's text, by name."""
    lines = terminal(found).split("\n\n")[0].splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    return {name: text.strip() for name, text in pairs}


def test_a_bundle_tells_everything(made: Path) -> None:
    found = inspect(made / "bundle")
    said = told(found)
    assert said["model"] == "demo-llama (built-in)"
    assert said["licence"] == "apache-2.0 (LICENSE)"
    assert said["method"] == "smoothquant, preset upstream; not as upstream: alpha 0.6"
    assert said["scheme"] == "w4a8 asked, w4a8 executed"
    assert said["integer GEMM"].startswith("100.0 %")
    assert said["bits on disk"] == "linears 4, lm_head 8, embedding 8"
    assert said["runtime"].startswith("ort, portable, ONNX Runtime 1.19 or later, context of ")
    sha256 = found.manifest["calibration"]["sha256"]
    assert said["calibration"] == f"built-in world, 8 windows of 64 tokens, sha256 {sha256}"
    assert said["files"] == f"{len(found.manifest['files'])}, every sha256 verified"
    assert "mean KL" in said["golden check"]
    assert said["of graphs"].startswith("ort/model.onnx")
    assert said["golden limits"].startswith("mean KL")
    text = terminal(found)
    assert "note: a remark" in text
    assert "deviation: windows 8; released: 512" in text
    (row,) = (line for line in text.splitlines() if "mlp.down_proj" in line)
    for word in ("4      int4 per channel", "w4a8", "MatMulIntegerToFloat", "4, 8", "yes"):
        assert word in row


def test_sizes_are_those_of_the_files(made: Path) -> None:
    for kind in ("bundle", "checkpoint"):
        found = inspect(made / kind)
        listed = sum(entry["bytes"] for entry in found.manifest["files"].values())
        assert sum(found.sizes.values()) == pytest.approx(listed, rel=0.01)
        shape = found.manifest["anatomy"]
        assert found.sizes["embedding"] == shape["vocab"] * shape["hidden"]
        linears = 4 * shape["layers"] * 98304  # of the built-in model, halved by packing
        assert found.sizes["linears"] == linears / 2
        assert "lm_head" not in found.sizes
        assert found.sizes["golden prompts" if kind == "bundle" else "steps"] > 1000


def test_an_untied_head_is_a_part_of_its_own(tmp_path: Path) -> None:
    checkpoints.save(rounded(random_llama(), scheme("w8a8", "int8")), tmp_path / "c")
    shape = random_llama().anatomy
    sizes = inspect(tmp_path / "c").sizes
    assert sizes["lm_head"] == shape.vocab * shape.hidden
    assert sizes["embedding"] == 4 * shape.vocab * shape.hidden


def test_a_checkpoint_tells_its_grids(made: Path) -> None:
    said = told(inspect(made / "checkpoint", check=False))
    assert said["scheme"] == "w4a8"
    assert said["weights"] == "int4 per channel, symmetric"
    assert said["lm_head"] == "int8 per channel, symmetric"
    assert said["files"].endswith("not verified")
    assert "runtime" not in said


def test_what_ran_is_told_beside_what_was_counted(made: Path) -> None:
    found = inspect(made / "bundle", threads=1)
    said = seen(found)
    assert said is not None
    assert ", as counted" in said
    text = terminal(found)
    assert "Prefill of ort/" in text
    assert "Decode of ort/" in text
    assert "CPUExecutionProvider" in text
    lowering = {**found.manifest["lowering"], "int8_gemm_share": 0.5}
    said = seen(replace(found, manifest={**found.manifest, "lowering": lowering}))
    assert said is not None
    assert "NOT as counted (50.0 %)" in said


@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_all_formats_hold_the_same(made: Path, kind: str) -> None:
    found = inspect(made / kind, threads=1 if kind == "bundle" else None)
    document = json.loads(WRITERS["json"](found))
    assert document["kind"] == kind
    assert document["verified"] is True
    assert document["model"]["license"] == "apache-2.0"
    assert document["changed_settings"] == {"alpha": 0.6}
    assert document["manifest"] == json.loads(json.dumps(found.manifest))
    markdown = WRITERS["md"](found)
    assert "| model | demo-llama (built-in) |" in markdown
    assert ("## Linears" in markdown) == (kind == "bundle")
    assert (document["ran"] is not None) == ("## Decode" in markdown) == (kind == "bundle")


def edited(folder: Path, change: Any) -> None:
    document = json.loads((folder / "bundle.json").read_text())
    change(document)
    (folder / "bundle.json").write_text(json.dumps(document))


def test_an_older_bundle_is_inspected_too(copy: Path) -> None:
    def older(document: dict[str, Any]) -> None:
        del document["lowering"]["linears"], document["weight_bytes"], document["model"]["license"]
        del document["notes"], document["recipe"]

    edited(copy / "bundle", older)
    found = inspect(copy / "bundle")
    said = told(found)
    assert said["linears"] == "not recorded one by one (an older bundle)"
    assert said["licence"].startswith("unknown, an older version did not record it")
    assert "weights" in found.sizes
    assert "Linears" not in terminal(found)


@pytest.mark.parametrize("rows", [[1, 2], [{"name": "lm_head"}], {"a": 1}])
def test_rows_that_are_none_are_damage(copy: Path, rows: Any) -> None:
    file = copy / "bundle" / "bundle.json"
    document = json.loads(file.read_text())
    document["lowering"]["linears"] = rows
    file.write_text(json.dumps(document))
    with pytest.raises(Damaged, match="does not describe a bundle"):
        inspect(copy / "bundle")


def test_damage_is_told_and_is_an_error(copy: Path) -> None:
    data = copy / "bundle/ort/model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    found = inspect(copy / "bundle")
    assert found.verified is False
    assert "ort/model.onnx.data is truncated" in told(found)["files"]
    with pytest.raises(Damaged, match="truncated"):
        inspect(copy / "bundle", threads=1)
    done = slmq("inspect", "bundle", cwd=copy)
    assert "NOT as they were written" in done.stdout
    assert_one_line(done, 1, "ort/model.onnx.data is truncated")
    done = slmq("inspect", "bundle", "--no-verify", cwd=copy)
    assert done.returncode == 0
    assert "not verified" in done.stdout


def test_what_cannot_be_inspected_is_said(copy: Path) -> None:
    with pytest.raises(NotFound, match="neither a bundle nor a checkpoint"):
        inspect(copy)
    with pytest.raises(NotFound, match="did you mean bundle"):
        inspect(copy / "bundel")
    with pytest.raises(UsageError, match="export it first"):
        inspect(copy / "checkpoint", threads=1)
    edited(copy / "bundle", lambda document: document.pop("lowering"))
    with pytest.raises(Damaged, match="it lacks lowering"):
        inspect(copy / "bundle")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("inspect", "bundle", "--format", "jsn"), 2, ("did you mean json",)),
        (("inspect", "bundle", "--threads", 2), 2, ("--threads is of --run",)),
        (("inspect", "checkpoint", "--run"), 2, ("export it first",)),
        (("inspect", "nothing"), 1, ("no bundle or checkpoint at nothing",)),
        (("inspect", "bundle", "-o", "bundle"), 1, ("without --force",)),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[object, ...], code: int, words: tuple[str, ...], made: Path
) -> None:
    assert_one_line(slmq(*arguments, cwd=made), code, *words)


def test_settings_of_which_the_preset_is_silent_show_when_set() -> None:
    manifest = {
        "method": "spinquant",
        "scheme_requested": "w8a8",
        "settings": {"steps": 100, "seed": 0, "learn_weights": None, "rate": 1.5},
    }
    assert changed(manifest) == {}
    manifest["settings"] = {"steps": 30, "seed": 3, "learn_weights": "target", "rate": 1.5}
    assert changed(manifest) == {"steps": 30, "seed": 3, "learn_weights": "target"}


def test_a_header_that_is_none_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"\x04\0\0\0\0\0\0\0abcd", b"\xff" * 40):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(Damaged, match="no header of safetensors"):
            parts.of_safetensors(tmp_path / "w.safetensors")
