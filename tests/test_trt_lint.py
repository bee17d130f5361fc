"""What TensorRT would refuse in a graph: for every rule one that breaks it, and one that holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge.errors import Damaged, NotFound, Unsupported, UsageError
from slmq_edge.exporters.trt.lint import RULES, TARGETS, Finding, check, lint, load
from slmq_edge.exporters.trt.lint.profiles import Profiles, Range, profiles
from slmq_edge.exporters.trt.lint.targets import MINORS, OPERATORS, since, target
from slmq_edge.reports import lint as report
from slmq_edge.runner import manifest
from tests.test_cli import assert_one_line, slmq
from tests.toy_graph import write_bundle
from tests.trt_cases import ROWS, Row
from tests.trt_graphs import decoder, linear, recipe_of

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = [f"{major}.{minor}" for major, minors in MINORS.items() for minor in minors]


def rules_of(findings: list[Finding], level: str | None = None) -> set[int]:
    return {one.rule for one in findings if level in (None, one.level)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.rule}-{row.level}-{row.node}")
def test_a_rule_finds_what_breaks_it_and_nothing_else(row: Row) -> None:
    good = lint(row.good(), row.target, row.recipes[0])
    assert row.rule not in rules_of(good)
    bad = lint(row.bad(), row.target, row.recipes[1], row.ranges)
    found = [one for one in bad if one.rule == row.rule]
    assert (row.level, row.node) in [(one.level, one.node) for one in found]
    assert rules_of(bad, "error") <= {row.rule, *row.also}
    assert all(one.what and one.advice and one.name == RULES[one.rule][0] for one in bad)


def test_every_rule_is_broken_once() -> None:
    assert {row.rule for row in ROWS} == set(RULES) == set(range(1, 25))


@pytest.mark.parametrize("mode", ["static", "pertoken"])
@pytest.mark.parametrize("version", TARGETS)
def test_a_decoder_in_the_form_of_the_target_is_clean(mode: str, version: str) -> None:
    """But for integers of 64 bits, which TensorRT 8 makes 32 of, and says so."""
    model = decoder(17 if version.startswith("8") else 19, mode)
    found = lint(model, version, recipe_of(model))
    ports = ["input_ids", "position_ids", "logits_positions"]
    expected = [(14, "warning", name) for name in ports] if version.startswith("8") else []
    assert [(one.rule, one.level, one.node) for one in found] == expected


def test_a_graph_is_left_as_it_is() -> None:
    model = decoder()
    before = model.SerializeToString(deterministic=True)
    as_ir = ir.from_proto(model)
    names = [value.name for value in as_ir.graph.inputs]
    assert lint(as_ir, "10.3") == lint(model, "10.3") == lint(load(model), "10.3")
    assert model.SerializeToString(deterministic=True) == before
    assert [value.name for value in as_ir.graph.inputs] == names
    assert all(value.shape is None for node in as_ir.graph for value in node.outputs[:1]
               if value.name == "norm.squares")  # fmt: skip


def test_a_check_names_the_first_error_and_counts_the_others() -> None:
    with pytest.raises(Unsupported, match=r"TensorRT 10\.3: rule 3.*x\.quantize.*and 1 more"):
        check(linear_with_zero(3), "10.3")
    assert rules_of(check(decoder(17), "8.5")) == {14}


def linear_with_zero(zero: int) -> Any:
    net = linear()
    net.constant("x.zero", np.int8(zero))
    return net.model()


@given(st.integers(-128, 127), st.integers(0, 47))
@settings(max_examples=20, deadline=None)
def test_one_zero_point_of_all_is_found(zero: int, channel: int) -> None:
    zeros = np.zeros(48, np.int8)
    zeros[channel] = zero
    found = lint(linear(weight_zeros=zeros).model(), "10.3")
    assert rules_of(found, "error") == ({3} if zero else set())


@given(st.sampled_from([16, 32, 48, 64, 80]), st.sampled_from([8, 16, 24, 32, 64]))
@settings(max_examples=20, deadline=None)
def test_sizes_are_those_of_inputs_and_of_outputs(inputs: int, outputs: int) -> None:
    found = lint(linear(inputs=inputs, outputs=outputs).model(), "10.3")
    fits = inputs % 32 == 0 and outputs % 16 == 0
    assert rules_of(found) == (set() if fits else {20})


@given(st.sampled_from(VERSIONS), st.sampled_from(VERSIONS))
def test_a_later_version_takes_no_less(one: str, other: str) -> None:
    older, newer = sorted((target(one), target(other)), key=lambda found: found.version)
    assert older.opset <= newer.opset
    assert all(newer.knows(name) for name in OPERATORS if older.knows(name))
    for name in OPERATORS:
        assert older.constant_input(name) is not None or newer.constant_input(name) is None


@pytest.mark.parametrize(
    ("name", "version"),
    [("8.5", (8, 5)), ("8.5.2", (8, 5)), ("10.3.0.26", (10, 3)), ("10", (10, 0)), ("11.x", (11, 0)),
     ("11", (11, 0)), ("11.4.1", (11, 4)), ("10.13", (10, 13))],
)  # fmt: skip
def test_a_version_is_read_as_it_is_written(name: str, version: tuple[int, int]) -> None:
    assert target(name).version == version
    assert target(name).name == name


@pytest.mark.parametrize("name", ["8.4", "10.33", "12", "7.2", "", "ten", "10.3b", "10.x.3.y"])
def test_a_version_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=re.escape("known: 8.5, 8.6, 10.3, 10.16, 11.x")):
        target(name)


def test_a_version_that_is_nearly_one_is_guessed() -> None:
    with pytest.raises(UsageError, match=r"did you mean 10\.3"):
        lint(decoder(), "10,3")
    assert since("10.3") == ("10.3", "10.16", "11.x")
    assert since("8.5.2") == TARGETS


@pytest.mark.parametrize(
    ("dimension", "bounds", "what"),
    [("new", Range(2, 1, 512), "new from 2 by 1"), ("room", Range(1, 64, 256), "room only to 256"),
     ("kept", Range(1, 1, 600), "kept up to 600")],
)  # fmt: skip
def test_profiles_fit_together(dimension: str, bounds: Range, what: str) -> None:
    shapes: Profiles = {"prefill": {**profiles()["prefill"], dimension: bounds}}
    (found,) = lint(decoder(), "10.3", shapes=shapes)
    assert (found.rule, found.node) == (21, "prefill")
    assert what in found.what


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_profiles_of_any_size_fit_together(context: int, prompt: int, kept: int) -> None:
    for one in profiles(context, prompt, kept).values():
        assert all(1 <= bounds.least <= bounds.typical <= bounds.most for bounds in one.values())
        assert one["kept"].most <= one["new"].most <= one["room"].most <= context


def test_weights_are_not_read(tmp_path: Path) -> None:
    """Of a file of 3 GB, of which only holes are on the disk, nothing but scales comes into memory.

    Scales and zero points lie in the file too.
    """
    model = onnx.ModelProto()
    model.CopyFrom(linear(inputs=64, outputs=512).model())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data",
              size_threshold=256)  # fmt: skip
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    (weight,) = (one for one in model.graph.initializer if one.name == "fc.weight")
    weight.dims[0] = 3 * 2**30 // 512
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = weight.dims[0]
    entries = {entry.key: entry for entry in weight.external_data}
    end = (tmp_path / "m.data").stat().st_size
    entries["offset"].value, entries["length"].value = str(end), str(3 * 2**30)
    with (tmp_path / "m.data").open("r+b") as stream:
        stream.truncate(end + 3 * 2**30)
    onnx.save(model, tmp_path / "m.onnx")
    # Not ru_maxrss, which a process inherits from the one that starts it.
    program = (
        "import re\nfrom pathlib import Path\n"
        "from slmq_edge.exporters.trt.lint import lint\n"
        "print(lint(Path('m.onnx'), '10.3'))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found, peak_kib = done.stdout.splitlines()
    assert found == "[]"
    assert int(peak_kib) < 2**20


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        lint(tmp_path / "none.onnx", "10.3")
    (tmp_path / "no.onnx").write_bytes(b"\x08\xff not one")
    with pytest.raises(Damaged, match="is no ONNX model"):
        lint(tmp_path / "no.onnx", "10.3")
    net = linear()
    net.nodes.reverse()
    with pytest.raises(Damaged, match=r"y reads fc\.matmul\.out before it is made"):
        lint(net.model(), "10.3")
    with (tmp_path / "big.onnx").open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(Unsupported, match="external data"):
        lint(tmp_path / "big.onnx", "10.3")


def test_scales_in_a_file_that_is_gone_are_one_line(tmp_path: Path) -> None:
    onnx.save(linear(outputs=512).model(), tmp_path / "m.onnx", save_as_external_data=True,
              location="m.data", size_threshold=256)  # fmt: skip
    assert lint(tmp_path / "m.onnx", "10.3") == []
    (tmp_path / "m.data").unlink()
    with pytest.raises(Damaged, match=r"fc\.weight_zeros cannot be read"):
        lint(tmp_path / "m.onnx", "10.3")


FOUND = {
    "8.6": [],
    "10.3": [
        Finding(20, "sizes", "warning", "a", "8 inputs", "leave it"),
        Finding(3, "zero points", "error", "", "zero point 3", "recalibrate"),
        Finding(20, "sizes", "warning", "b", "4 inputs", "leave it"),
    ],
}


def test_a_report_tells_each_rule_by_its_first_node() -> None:
    assert report.terminal("m.onnx", FOUND) == (
        "m.onnx\n"
        "\n"
        "TensorRT 8.6: nothing found\n"
        "\n"
        "TensorRT 10.3: 1 error, 2 warnings\n"
        "  level    rule  name         nodes  first of them\n"
        "  error       3  zero points      1  zero point 3; recalibrate\n"
        "  warning    20  sizes            2  a: 8 inputs; leave it\n"
    )


def test_a_report_as_json_holds_every_node() -> None:
    document = json.loads(report.to_json("m.onnx", FOUND))
    assert document["tensorrt"]["8.6"] == []
    assert [one["node"] for one in document["tensorrt"]["10.3"]] == ["a", "", "b"]
    assert (document["format"], document["version"]) == ("slmq-edge-lint", 1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Of a decoder for TensorRT, with its recipe."""
    folder = tmp_path / "bundle"
    (folder / manifest.TRT).mkdir(parents=True)
    model = decoder()
    onnx.save(model, folder / manifest.TRT_GRAPH)
    (folder / manifest.TRT_RECIPE).write_text(json.dumps(recipe_of(model).as_json()))
    files = {name: {"bytes": (folder / name).stat().st_size,
                    "sha256": manifest.sha256(folder / name)}
             for name in (manifest.TRT_GRAPH, manifest.TRT_RECIPE)}  # fmt: skip
    document = {"format": manifest.BUNDLE_FORMAT, "version": manifest.BUNDLE_VERSION,
                "runtime": {"kind": manifest.TRT}, "files": files}  # fmt: skip
    (folder / manifest.BUNDLE_FILE).write_text(json.dumps(document))
    return folder


def test_a_bundle_is_linted_for_all_that_it_is_for(bundle: Path) -> None:
    done = slmq("lint", bundle.name, cwd=bundle.parent)
    assert done.returncode == 0, done.stderr
    for version in ("10.3", "10.16", "11.x"):
        assert f"TensorRT {version}: nothing found" in done.stdout
    assert "8.6" not in done.stdout
    old = slmq("lint", bundle.name, "--tensorrt", "8.6", "--json", cwd=bundle.parent)
    assert_one_line(old, 1, "not a graph for TensorRT 8.6", "rule 1", "opset 19")
    found = json.loads(old.stdout)["tensorrt"]["8.6"]
    assert {(one["rule"], one["level"]) for one in found} == {(1, "error"), (14, "warning")}


def test_a_file_is_linted_for_every_version(tmp_path: Path) -> None:
    onnx.save(decoder(17), tmp_path / "m.onnx")
    done = slmq("lint", "m.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("TensorRT ") - done.stdout.count("engine of TensorRT") == len(TARGETS)
    assert "TensorRT 8.5: 3 warnings" in done.stdout
    onnx.save(linear_with_zero(3), tmp_path / "bad.onnx")
    done = slmq("lint", "bad.onnx", "--tensorrt", "10.3", "--tensorrt", "11.x", cwd=tmp_path)
    assert_one_line(done, 1, "TensorRT 10.3", "rule 3", "recalibrate", "and 1 more")
    assert done.stdout.count("2 errors") == 2


def test_what_cannot_be_linted_is_one_line(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    onnx.save(decoder(), tmp_path / "m.onnx")
    for arguments, code, words in (
        (("m.onnx", "--tensorrt", "10,3"), 2, ("did you mean 10.3",)),
        (("none.onnx",), 1, ("there is no none.onnx",)),
        (("bundle",), 1, ("a bundle for ort", "--target trt")),
        ((".",), 1, ("bundle.json",)),
    ):
        assert_one_line(slmq("lint", *arguments, cwd=tmp_path), code, *words)


def test_every_rule_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "tensorrt-lint.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE))
    assert rows == {str(number): name for number, (name, _) in RULES.items()}


def test_without_nvidias_compiler_nothing_is_read_first(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "tensorrt_rtx.py").write_text("raise ImportError('not installed')")
    paths = os.pathsep.join(map(str, (tmp_path / "path", ROOT)))
    done = slmq("lint", bundle.name, "--compile", cwd=bundle.parent, PYTHONPATH=paths)
    assert_one_line(done, 1, "tensorrt_rtx is not installed", "slmq-edge[trt-check]")
    assert done.stdout == ""


def test_without_onnx_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "onnx_ir.py").write_text("raise ImportError('not installed')")
    paths = os.pathsep.join(map(str, (tmp_path / "path", ROOT)))
    done = slmq("lint", "m.onnx", cwd=tmp_path, PYTHONPATH=paths)
    assert_one_line(done, 1, "onnx-ir is not installed", "slmq-edge[onnx]")
