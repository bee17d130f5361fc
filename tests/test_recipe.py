"""A recipe makes the same again, and an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from slmq_edge import builtin
from slmq_edge import checkpoint as checkpoints
from slmq_edge import recipe as recipes
from slmq_edge.cli import app
from slmq_edge.commands import options
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.quantize import Request, plan
from slmq_edge.recipe import Recipe, over
from slmq_edge.scheme import WORDS, scheme
from slmq_edge.settings import OPTIONS
from tests import method_in_blocks

SMALL = ("--windows", "8", "--length", "32")
WORDS_OF_RUN = ("method", "scheme", "preset", "device", "revision", "calib", "windows", "length",
                "set", "config", "protect", *WORDS, *OPTIONS)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def slmq(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output or result.exception
    return result


def refused(result: Result, kind: type[SlmqError], *words: str) -> None:
    assert isinstance(result.exception, kind), result.exception
    for word in words:
        assert word in str(result.exception)


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def said(**words: Any) -> Mapping[str, Any]:
    """The words of a command line that says only these."""
    return {**dict.fromkeys(WORDS_OF_RUN), **words}


def test_a_recipe_makes_the_same_checkpoint_to_the_last_bit(here: Path) -> None:
    choices = ("--scheme", "w4a8", "--preset", "fast", "--steps", 2, "--kv", 8, "--seed", 3)
    done(slmq("quantize", "demo-llama", *choices, *SMALL, "-o", "first"))
    done(slmq("quantize", "--config", "first/recipe.toml", "-o", "second"))
    assert weights(here / "first") == weights(here / "second")
    texts = [(here / name / "recipe.toml").read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]
    document = tomllib.loads(texts[0])
    assert document["settings"]["steps"] == 2
    assert document["scheme"] == {
        "name": "w4a8", "weights": "symmetric", "activations": "asymmetric",
        "activation_scale": "token", "kv": 8, "lm_head": "float", "embedding": "float",
    }  # fmt: skip
    manifest = json.loads((here / "first/checkpoint.json").read_text())
    assert manifest["recipe"] == document
    done(slmq("quantize", "--config", "first", "--seed", 4, "-o", "third"))
    assert weights(here / "first") != weights(here / "third")


def test_a_recipe_travels_through_checkpoint_and_bundle(here: Path) -> None:
    (here / "text.txt").write_text("The otter lives in the river, and eats fish. " * 400)
    head = ("--scheme", "w4a8-b32", "--lm-head", "int4", "--embedding", "int8")
    flags = ("--method", "none", *head, "--calib", "text.txt", *SMALL)
    done(slmq("quantize", "demo-llama", *flags, "-o", "checkpoint"))
    loaded = checkpoints.load(here / "checkpoint")
    assert loaded.recipe is not None
    assert loaded.recipe["method"] == "none"
    assert loaded.recipe["scheme"]["lm_head"] == "int4"
    done(slmq("export", "checkpoint", "-o", "first"))
    done(slmq("export", "--config", "checkpoint/recipe.toml", "-o", "second"))
    for name in ("recipe.toml", "ort/model.onnx", "ort/model.onnx.data"):
        assert (here / "first" / name).read_bytes() == (here / "second" / name).read_bytes()


def test_another_text_than_the_recipes_is_an_error(here: Path) -> None:
    text = here / "text.txt"
    text.write_text("The otter lives in the river, and eats fish. " * 400)
    flags = ("--method", "smoothquant", *SMALL)
    done(slmq("quantize", "demo-llama", *flags, "--calib", "text.txt", "-o", "first"))
    done(slmq("quantize", "--config", "first/recipe.toml", "-o", "second"))
    text.write_text(text.read_text() + "So it does.")
    again = slmq("quantize", "--config", "first/recipe.toml", "-o", "third")
    refused(again, SlmqError, "'text.txt' is not the one of the recipe", "--calib")
    given = ("--config", "first/recipe.toml", "--calib", "text.txt")
    done(slmq("quantize", *given, "-o", "third"))
    text.unlink()
    gone = slmq("quantize", "--config", "first/recipe.toml", "-o", "fourth")
    refused(gone, NotFound, "no calibration text at text.txt")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ('model = "a', Damaged, r"r\.toml is damaged"),
        ("\udcff", Damaged, r"r\.toml is damaged"),
        ('metod = "none"', UsageError, r"unknown key metod \(did you mean method\?\)"),
        ('[scheme]\nnam = "w8a8"', UsageError, r"scheme\.nam \(did you mean name\?\)"),
        ("[scheme]\nkv = true", UsageError, r"scheme\.kv must be a whole number, not True"),
        ("[calibration]\nwindows = 1.5", UsageError, r"calibration\.windows must be a whole"),
        ("method = 3", UsageError, "method must be a string, not 3"),
        ("scheme = 3", UsageError, r"scheme must be a section, \[scheme\]"),
        ("[settings]\nsteps = [1]", UsageError, r"settings\.steps must be a single value"),
    ],
)
def test_a_broken_recipe_is_refused_by_name(
    content: str, kind: type[SlmqError], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(kind, match=message) as caught:
        recipes.read(file)
    assert str(file) in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(NotFound, match=r"did you mean recipe\.toml"):
        recipes.read(tmp_path / "recipes.toml")
    assert recipes.read(tmp_path) == Recipe()


SCALARS = st.one_of(
    st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)
)
SECTION = st.dictionaries(st.text(), SCALARS)
DOCUMENTS = st.dictionaries(st.text(), st.one_of(SCALARS, st.lists(st.text()), SECTION))


@given(DOCUMENTS)
def test_what_is_written_is_read(document: dict[str, Any]) -> None:
    assert tomllib.loads(recipes.toml(document)) == document


def test_what_is_said_goes_over_the_recipe() -> None:
    below = Recipe(
        model="demo-llama",
        method="spinquant",
        preset="upstream",
        scheme={"name": "w8a8", "activations": "asymmetric", "kv": 8},
        calibration={"file": "a.txt", "sha256": "12", "windows": 128, "length": 512},
        settings={"steps": 100, "rate": 1.5},
    )
    found = over(Recipe(settings={"steps": 5}, calibration={"windows": 9}), below)
    assert found.settings == {"steps": 5, "rate": 1.5}
    assert found.calibration == {**below.calibration, "windows": 9}
    other_text = over(Recipe(calibration={"file": "b.txt"}), below)
    assert "sha256" not in other_text.calibration
    floats = over(Recipe(scheme={"name": "w4a16"}), below)
    assert floats.scheme == {"name": "w4a16", "kv": 8}
    method = over(Recipe(method="smoothquant"), below)
    assert method.settings == {}
    assert method.scheme == {"name": "w8a8", "kv": 8}
    assert method.calibration == {"file": "a.txt", "sha256": "12"}
    assert over(Recipe(preset="fast"), below).settings == {}
    assert over(Recipe(), below) == below


def test_what_meant_something_beside_a_word_that_goes_goes_too() -> None:
    static = Recipe(
        scheme={"name": "w8a8", "activation_scale": "tensor", "range": "mse", "lm_head": "int8"}
    )
    found = over(Recipe(scheme={"name": "w4a16"}), static)
    assert found.scheme == {"name": "w4a16", "lm_head": "int8"}


def test_the_command_line_has_defaults() -> None:
    plain = options.recipe(None, said())
    assert (plain.model, plain.method, plain.preset) == (
        "HuggingFaceTB/SmolLM-135M", "spinquant", "upstream",
    )  # fmt: skip
    assert plain.scheme == {"name": "w8a8"}
    other = options.recipe("demo-qwen2", said(method="none", set=["clip=2"], steps="3", kv=8))
    assert (other.model, other.method) == ("demo-qwen2", "none")
    assert other.settings == {"steps": "3", "clip": "2"}
    assert other.scheme == {"name": "w8a8", "kv": 8}


def test_a_request_without_words_still_has_a_recipe() -> None:
    planned = plan("demo-llama", Request(scheme("w8a8"), "smoothquant"))
    assert planned.recipe is not None
    assert planned.recipe.settings == {"alpha": "none"}
    assert recipes.from_document(planned.recipe.as_json(), Path("r")) == planned.recipe


def test_a_recipe_has_the_windows_that_a_short_text_has(here: Path) -> None:
    (here / "text.txt").write_text("The otter lives in the river, and eats fish. " * 400)
    flags = ("--method", "smoothquant", "--calib", "text.txt", "--windows", 512, "--length", 64)
    result = done(slmq("quantize", "demo-llama", *flags, "-o", "first"))
    manifest = json.loads((here / "first/checkpoint.json").read_text())
    found = manifest["calibration"]["windows"]
    assert 8 <= found < 512
    assert f"has {found} windows of 64 tokens, not 512" in result.stderr
    document = tomllib.loads((here / "first/recipe.toml").read_text())
    assert document == manifest["recipe"]
    assert document["calibration"]["windows"] == found
    assert f"windows {found}; released: 512" in document["deviations"]
    again = done(slmq("quantize", "--config", "first/recipe.toml", "-o", "second"))
    assert "not 512" not in again.stderr
    bundled = done(slmq("export", "first", "-o", "bundle"))
    assert f"has {found} windows of 64 tokens, not 512" in bundled.stdout
    assert json.loads((here / "bundle/bundle.json").read_text())["recipe"] == document
    assert weights(here / "first") == weights(here / "second")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ("windows = 0", "--windows is at least 1, not 0"),
        ("length = 1", "--length is at least 2, not 1"),
        ("length = 1000000", "--length 1000000 is more than the"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_also_from_a_recipe(
    calibration: str, message: str, here: Path
) -> None:
    (here / "r.toml").write_text(f"[calibration]\n{calibration}\n")
    refused(slmq("quantize", "demo-llama", "--config", "r.toml"), UsageError, message)
    flags = f"--{calibration}".split(" = ")
    refused(slmq("quantize", "demo-llama", *flags), UsageError, message)
    assert [file.name for file in here.iterdir()] == ["r.toml"]


def test_static_ranges_need_a_text_whatever_the_method(here: Path) -> None:
    words = ("--method", "none", "--activation-scale", "tensor", *SMALL)
    done(slmq("quantize", "demo-llama", *words, "-o", "static"))
    assert checkpoints.load(here / "static").inputs


@pytest.mark.parametrize("failure", [RuntimeError("killed"), KeyboardInterrupt()])
def test_an_interrupted_run_goes_on_behind_its_last_block(
    failure: BaseException, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = method_in_blocks.install(monkeypatch)
    command = ("quantize", "demo-llama", "-m", method_in_blocks.NAME, *SMALL, "--rate", 0.25)
    done(slmq(*command, "-o", "whole"))
    last = len(script.worked) - 1
    script.worked.clear()
    script.failures[last] = failure
    broken = slmq(*command, "-o", "again")
    assert broken.exit_code != 0
    assert (here / ".again.unfinished").is_dir()
    assert not (here / "again").exists()
    result = done(slmq(*command, "-o", "again"))
    assert result.stderr.count(f"going on behind block {last} of a run that was interrupted") == 1
    assert script.worked == list(range(last + 1))
    assert weights(here / "whole") == weights(here / "again")
    assert not list(here.glob(".*"))
    manifest = json.loads((here / "again/checkpoint.json").read_text())
    assert manifest["cost"]["resumed_behind_block"] == last
    assert manifest["notes"] == [f"worked on {last + 1} blocks"]
    assert f"note: worked on {last + 1} blocks" in result.stderr


@pytest.mark.parametrize("changed", [("--fresh",), ("--rate", 0.25), ("--windows", 9)])
def test_nothing_is_gone_on_with_that_is_another_run_or_forgotten(
    changed: tuple[object, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = method_in_blocks.install(monkeypatch)
    command = ("quantize", "demo-llama", "-m", method_in_blocks.NAME, *SMALL, "-o", "c")
    script.failures[1] = RuntimeError("killed")
    assert slmq(*command).exit_code != 0
    result = done(slmq(*command, *changed))
    assert "going on" not in result.stderr
    assert script.worked[:2] == [0, 0]


def test_other_weights_under_the_same_name_are_another_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = method_in_blocks.install(monkeypatch)
    shutil.copytree(builtin.folder("demo-llama"), here / "model")
    calib = here / "text.txt"
    calib.write_text("The otter lives in the river, and eats fish. " * 400)
    command = ("quantize", "model", "-m", method_in_blocks.NAME, *SMALL, "--calib", calib)
    script.failures[1] = RuntimeError("killed")
    assert slmq(*command, "-o", "c").exit_code != 0
    assert (here / ".c.unfinished").is_dir()
    os.utime(here / "model" / "model.safetensors", ns=(1, 1))
    assert "going on" not in done(slmq(*command, "-o", "c")).stderr
    assert script.worked[:2] == [0, 0]


def test_a_folder_that_is_not_ours_is_left_alone(here: Path) -> None:
    (here / ".c.unfinished").mkdir()
    (here / ".c.unfinished" / "diary.txt").write_text("dear diary")
    refused(slmq("quantize", "demo-llama", "-m", "none", "-o", "c"), SlmqError, "not ours")
    assert (here / ".c.unfinished" / "diary.txt").read_text() == "dear diary"


def test_a_failure_before_the_first_block_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = method_in_blocks.install(monkeypatch)
    script.failures[0] = RuntimeError("killed")
    command = ("quantize", "demo-llama", "-m", method_in_blocks.NAME, *SMALL, "-o", "c")
    assert slmq(*command).exit_code != 0
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "kind", "words"),
    [
        (("--spill", "nowhere"), NotFound, ("--spill nowhere: no such folder",)),
        (("--revision", "main"), UsageError, ("demo-llama is no hub model",)),
        (("--preset", "fats"), UsageError, ("did you mean fast",)),
        (("--set", "clip"), UsageError, ("NAME=VALUE",)),
        (("--steps", "few"), UsageError, ("--steps takes a whole number, not 'few'",)),
        (("--kv", 4), UsageError, ("unknown kv '4'",)),
        (("--config", "no.toml"), NotFound, ("no recipe at no.toml",)),
        (("--device", "cudda"), UsageError, ("unknown device 'cudda'", "did you mean cuda")),
        (("--device", "cpu:1"), UsageError, ("cpu, cuda or cuda:N",)),
        (("--compile", "-m", "gptq"), UsageError, ("gptq has no step", "omniquant has")),
    ],
)
def test_a_mistake_is_found_before_any_work(
    flags: tuple[object, ...], kind: type[SlmqError], words: tuple[str, ...], here: Path
) -> None:
    refused(slmq("quantize", "demo-llama", *flags, "-o", "c"), kind, *words)
    assert list(here.iterdir()) == []


def test_upstream_exact_is_quantized_and_not_exported(here: Path) -> None:
    flags = ("--preset", "upstream-exact", "--steps", 1, *SMALL)
    refused(slmq("export", "demo-llama", *flags, "-o", "b"), SlmqError, "simulation alone")
    done(slmq("quantize", "demo-llama", *flags, "-o", "c"))
    found = checkpoints.load(here / "c").scheme
    assert found.mixed is not None
    assert found.mixed.group is not None
    done(slmq("quantize", "--config", "c", "-o", "d"))
    assert checkpoints.load(here / "d").scheme == found


def test_the_activations_of_a_run_are_spilled_where_it_says(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmq_edge.quantization import Prepared, Task, none

    seen: list[Path | None] = []
    plain: Callable[[Any, Task], Prepared] = none.prepare

    def prepare(model: Any, task: Task) -> Prepared:
        seen.append(task.spill)
        return plain(model, task)

    monkeypatch.setattr(none, "prepare", prepare)
    (here / "room").mkdir()
    done(slmq("quantize", "demo-llama", "-m", "none", "--spill", "room", "-o", "c"))
    assert seen == [Path("room")]
