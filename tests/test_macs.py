"""Multiply-adds, counted three ways that know nothing of each other."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from slmq_edge import anatomy as names
from slmq_edge import builtin, checkpoint, macs, models
from slmq_edge.anatomy import Anatomy, Online
from slmq_edge.commands import macs as command
from slmq_edge.errors import Damaged, NotFound, Unsupported, UsageError
from slmq_edge.export import export
from slmq_edge.exporters import onnx
from slmq_edge.macs import Product, count, masked, of_anatomy, paper
from slmq_edge.reports.macs import EXPLANATION, WRITERS, terminal
from slmq_edge.scheme import SCHEMES, Scheme, scheme
from tests import executed
from tests.decoders import DECODERS, rounded
from tests.shared import shared
from tests.test_onnx_schemes import ALL_ONLINE, FORMS, form_of, rotated

CONFIGS = ("SmolLM-135M", "Qwen2.5-0.5B", "Qwen3-0.6B", "SmolLM2-360M")
APP = typer.Typer()
APP.command()(command.macs)


def by_weights(products: tuple[Product, ...]) -> int:
    return sum(one.macs for one in products if one.part != "attention")


def attention(products: tuple[Product, ...]) -> int:
    return sum(one.macs for one in products if one.part == "attention")


def all_of(
    shape: Anatomy, tokens: int, past: int, asked: Scheme, **online: Any
) -> tuple[Product, ...]:
    return tuple(of_anatomy(shape, tokens, past, asked, **online))


# --- against torch


class Angles(torch.nn.Module):
    """Rotary angles without values: autocast, which theirs enter, knows no meta device."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self._head_dim = head_dim

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = (*positions.shape, self._head_dim)
        return torch.empty(sizes, device="meta"), torch.empty(sizes, device="meta")  # cos, sin


@pytest.mark.parametrize("name", [*CONFIGS, "demo-llama", "demo-qwen2"])
@pytest.mark.parametrize("tokens", [1, 128])
def test_torch_counts_the_same(name: str, tokens: int) -> None:
    """transformers' own model, on shapes alone."""
    is_demo = name in builtin.MODELS
    folder = builtin.folder(name) if is_demo else shared(f"configs/{name}")
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    shape = models.read_anatomy(folder)
    model.model.rotary_emb = Angles(shape.head_dim)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.int64, device="meta"), use_cache=False)
    assert counter.get_total_flops() == 2 * count(str(folder), tokens).total


# --- against the graph


@pytest.mark.parametrize("name", list(SCHEMES))
def test_the_graph_of_every_scheme_multiplies_as_counted(name: str, tmp_path: Path) -> None:
    """demo-qwen2's widths are whole groups of 128, so that nothing is filled up."""
    found = rounded(DECODERS["demo-qwen2"](), scheme(name))
    graph, report = onnx.write(found)
    expected = [
        all_of(found.anatomy, 24, 0, found.scheme),
        all_of(found.anatomy, 1, 24, found.scheme),
    ]
    assert executed.macs(graph, 24, tmp_path) == {
        "weights": sum(map(by_weights, expected)),
        "attention": sum(map(attention, expected)),
    }
    assert sum(row.macs_per_token for row in report.linears) == by_weights(expected[1])


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("random Qwen2", "w8a8 asymmetric"),
        ("random Qwen2", "w8a8 kv 8"),
        ("random Qwen3", "w8a8 static asymmetric"),
        ("random untied Llama", "w8a8 asymmetric"),
        ("stories260K", "w4a8-b32 int4 head"),
        ("demo-llama", "w4a8-b128 int4 head, int8 table"),
    ],
)
def test_other_heads_and_odd_sizes_too(model: str, form: str, tmp_path: Path) -> None:
    found = form_of(DECODERS[model](), FORMS[form])
    expected = [
        all_of(found.anatomy, 9, 0, found.scheme),
        all_of(found.anatomy, 1, 9, found.scheme),
    ]
    assert executed.macs(onnx.write(found)[0], 9, tmp_path) == {
        "weights": sum(map(by_weights, expected)),
        "attention": sum(map(attention, expected)),
    }


@pytest.mark.parametrize("form", ["w8a8 asymmetric", "w4a8-b32"])
def test_rotations_at_run_time_are_counted(form: str, tmp_path: Path) -> None:
    found = form_of(rotated(DECODERS["random Qwen2"](), ALL_ONLINE), FORMS[form])
    sides = [
        all_of(found.anatomy, *lengths, found.scheme, online=found.online)
        for lengths in ((9, 0), (1, 9))
    ]
    assert any(one.part == "rotation" for one in sides[0])
    ran = executed.macs(onnx.write(found)[0], 9, tmp_path)
    assert ran["weights"] == sum(map(by_weights, sides))


def test_groups_that_are_filled_up_cost_more_than_is_counted(tmp_path: Path) -> None:
    """Of 48 and 80 inputs in groups of 32, the last half of a group multiplies zeros."""
    found = rounded(DECODERS["random Qwen2"](), scheme("w4a8-g32"))
    shape = found.anatomy
    assert (shape.hidden, shape.ffn, shape.query_width) == (48, 80, 48)
    outputs = sum(shape.shape(name)[0] for name in names.LINEARS)
    expected = [all_of(shape, *lengths, found.scheme) for lengths in ((9, 0), (1, 9))]
    filled = shape.layers * 16 * outputs * (9 + 1)
    ran = executed.macs(onnx.write(found)[0], 9, tmp_path)
    assert ran["weights"] == sum(map(by_weights, expected)) + filled


# --- artifacts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a bundle of one model, its linears in 4 bits, its head in 8."""
    home = tmp_path_factory.mktemp("macs")
    model = rotated(DECODERS["demo-qwen2"](), Online(down=True))
    found = rounded(model, scheme("w4a8", "int8"))
    checkpoint.save(found, home / "checkpoint")
    export(found, home / "bundle")
    return home


def test_a_checkpoint_and_its_bundle_count_the_same(made: Path) -> None:
    asked, ran = (count(str(made / kind), 64, 32) for kind in ("checkpoint", "bundle"))
    assert (asked.source, ran.source) == ("checkpoint", "bundle")
    assert asked.total == ran.total
    spoken = {"float": "fp32"}
    assert [(one.part, spoken.get(one.scheme, one.scheme), one.macs) for one in asked.groups] == [
        (one.part, one.scheme, one.macs) for one in ran.groups
    ]
    assert [(one.part, one.weight_bits, one.integer) for one in ran.groups] == [
        ("linear", 4, True),
        ("head", 8, True),
        ("rotation", None, False),
        ("attention", None, False),
    ]
    assert ran.by_bits() == {
        4: ran.of("linear"),
        8: ran.of("head"),
        None: ran.of("rotation") + ran.of("attention"),
    }
    assert ran.integer == ran.of("linear") + ran.of("head")
    assert (asked.quantized, ran.quantized) == (True, True)


def test_protected_linears_are_told_apart() -> None:
    shape = models.read_anatomy(builtin.folder("demo-llama"))
    kept = tuple(shape.linears())[:3]
    asked = Scheme(**{**vars(SCHEMES["w4a8"]), "protected": kept})
    found = [one for one in of_anatomy(shape, 1, 0, asked) if one.part == "linear"]
    assert [one.name for one in found if one.scheme == "w8a8"] == list(kept)
    assert {one.scheme for one in found if one.name not in kept} == {"w4a8"}


def test_attention_is_what_it_is_by_hand() -> None:
    """One block of demo-llama's: 6 heads of 32; 5 tokens that see 7 and themselves."""
    shape = models.read_anatomy(builtin.folder("demo-llama"))
    found = [one.macs for one in of_anatomy(shape, 5, 7) if one.part == "attention"]
    assert found == [2 * 5 * 12 * 6 * 32] * shape.layers
    assert masked(shape, 5) == shape.layers * 2 * 6 * 32 * (4 + 3 + 2 + 1)
    assert masked(shape, 1) == 0


# --- the paper's column


@pytest.mark.parametrize(
    ("name", "full", "quantized"),
    [("SmolLM-135M", 17.213, 3.62), ("Qwen2.5-0.5B", 63.227, 17.43)],
)
def test_the_papers_column_is_reproduced(name: str, full: float, quantized: float) -> None:
    column = paper(count(str(shared(f"configs/{name}")), 128))
    assert round(column.full / 1e9, 3) == full
    assert column.quantized / 1e9 == pytest.approx(quantized, abs=0.0055)  # as it was rounded


def test_a_bundle_has_its_models_column(made: Path) -> None:
    assert paper(count(str(made / "bundle"), 128)) == paper(count("demo-qwen2", 128))


def test_the_convention_is_explained_and_says_which_row_is_meant(made: Path) -> None:
    shown = terminal(count(str(made / "bundle"), 128), "paper")
    assert " ".join(shown.split()).endswith(EXPLANATION)
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines if "<- this one" in line] == ["quantized"]
    of_model = terminal(count("demo-qwen2", 128), "paper").splitlines()
    assert [line.split()[0] for line in of_model if "<- this one" in line] == ["full"]


# --- the command


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def test_every_format_tells_the_same(made: Path, tmp_path: Path) -> None:
    counted = count(str(made / "bundle"), 128)
    document = json.loads(_call(made / "bundle", "--format", "json").stdout)
    assert document["format"] == "slmq-edge-macs"
    assert document["total"] == counted.total == sum(one["macs"] for one in document["products"])
    assert document["by_weight_bits"].keys() == {"4", "8", "float"}
    rows = list(csv.DictReader(io.StringIO(_call(made / "bundle", "--format", "csv").stdout)))
    assert sum(int(row["macs"]) for row in rows) == counted.total
    assert [row["weight_bits"] for row in rows] == ["4", "8", "", ""]
    shown = _call(made / "bundle", "--format", "md").stdout
    assert shown.count("\n| ") == 1 + 4 + 1
    two = _call("demo-qwen2", "--convention", "paper", "--format", "csv").stdout.splitlines()
    column = paper(count("demo-qwen2", 128))
    assert two[1:] == [
        f"demo-qwen2,128,full,{column.full}",
        f"demo-qwen2,128,quantized,{column.quantized}",
    ]
    file = tmp_path / "macs.md"
    assert _call("demo-qwen2", "--format", "md", "-o", file).stdout == ""
    assert file.read_text() == WRITERS["md"](count("demo-qwen2", 128), "ours")


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (("demo-lama",), NotFound, "did you mean demo-llama"),
        (("demo-llama", "--format", "mdd"), UsageError, "did you mean md"),
        (("demo-llama", "--convention", "papr"), UsageError, "did you mean paper"),
        (("demo-llama", "--convention", "paper", "--past", 1), UsageError, "--past says nothing"),
        (("demo-llama", "--tokens", 500, "--past", 100), UsageError, "the context holds 512"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    arguments: tuple[object, ...], kind: type[Exception], says: str
) -> None:
    done = _call(*arguments)
    assert isinstance(done.exception, kind)
    assert says in str(done.exception)


def test_a_manifest_that_does_not_tell_is_refused(made: Path, tmp_path: Path) -> None:
    document = json.loads((made / "bundle" / "bundle.json").read_text())
    older = {**document, "lowering": {**document["lowering"], "linears": []}}
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "bundle.json").write_text(json.dumps(older))
    with pytest.raises(Unsupported, match="export it again"):
        count(str(tmp_path / "older"), 1)
    for row in document["lowering"]["linears"]:
        del row["macs_per_token"]
    (tmp_path / "older" / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(Damaged, match="does not say what is multiplied"):
        count(str(tmp_path / "older"), 1)


def test_of_a_hub_model_the_config_alone_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetched(model: str, revision: str | None, files: Any) -> models.Source:
        asked.append(tuple(files))
        return models.Source(model, "hub", builtin.folder("demo-llama"), "abc")

    monkeypatch.setattr(models, "_download", fetched)
    assert count("some/model", 1).model == "some/model"
    assert asked == [macs.CONFIG_ALONE]
