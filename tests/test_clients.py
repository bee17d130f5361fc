"""Clients that are not ours generate, from a bundle as it lies there, the tokens of our runner.

Also plain onnxruntime, as the docs show it. Left-padded batches are documented as unsupported.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slmq_edge import builtin, export
from slmq_edge.anatomy import Anatomy
from slmq_edge.errors import Unsupported
from slmq_edge.exporters import genai
from slmq_edge.exporters.bundle import SESSION_OPTIONS
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.runner import asked, manifest, ort
from slmq_edge.scheme import scheme
from tests.artifacts import greedy
from tests.decoders import DECODERS, LLAMA, QWEN2, write_folder
from tests.shared import shared

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("demo-llama", "demo-qwen2", "stories260K")
CASES = [(model, precision) for model in MODELS for precision in ("fp32", "w8a8")]
NEW = 24
TEXT = "the river is"

Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a bundle of a model in a precision, once; each is a folder named ``bundle``."""

    @functools.cache
    def make(model: str, precision: str) -> Path:
        source, folder = model, tmp_path_factory.mktemp(f"{model}-{precision}")
        if model.startswith("random"):
            source = str(write_folder(DECODERS[model](), folder / "model"))
        elif model not in builtin.MODELS:
            source = str(shared(f"models/{model}"))
        checkpoint = quantize(plan(source, Request(scheme(precision), "none")))
        export.export(checkpoint, folder / "bundle")
        return folder / "bundle"

    return make


def tokens_of(folder: Path, text: str = TEXT) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text).input_ids
    return ids


def continued(folder: Path, prompt: Sequence[int], count: int) -> list[int]:
    """What the runner's session generates greedily."""
    session = ort.open_bundle(folder, manifest.read_bundle(folder), threads=1)
    return greedy(session, np.array([prompt], np.int64), count)


@pytest.mark.parametrize(("model", "precision"), CASES)
@pytest.mark.parametrize("binding", [None, False, True])
def test_optimum_generates_the_same_tokens(
    bundle: Make, model: str, precision: str, binding: bool | None
) -> None:
    """None: as optimum chooses. It passes the past, and gets the present in buffers of its own."""
    from optimum.onnxruntime import ORTModelForCausalLM

    folder = bundle(model, precision)
    prompt = torch.tensor([tokens_of(folder)])
    options = {} if binding is None else {"use_io_binding": binding}
    theirs = ORTModelForCausalLM.from_pretrained(folder / "ort", **options)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert theirs.generation_config.eos_token_id == ends
    generated = theirs.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=0,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert generated[0, prompt.shape[1] :].tolist() == continued(folder, prompt[0].tolist(), NEW)


def test_optimum_is_told_the_size_of_a_head_that_is_no_share_of_the_hidden_size(
    bundle: Make,
) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    folder = bundle("random Qwen3", "w8a8")
    prompt = [5, 9, 2, 44, 17]
    theirs = ORTModelForCausalLM.from_pretrained(folder / "ort")
    theirs.embed_size_per_head = theirs.config.head_dim  # as docs/clients.md says
    asked = torch.tensor([prompt])
    mask = torch.ones_like(asked)
    found = theirs.generate(asked, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    generated = found[0, len(prompt) :].tolist()
    assert generated == continued(folder, prompt, NEW)[: len(generated)]


@pytest.mark.parametrize("model", builtin.MODELS)
def test_optimum_takes_what_the_tokenizer_gives(bundle: Make, model: str) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    folder = bundle(model, "w8a8")
    asked = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")
    theirs = ORTModelForCausalLM.from_pretrained(folder / "ort")
    found = theirs.generate(**asked, max_new_tokens=NEW)[0, asked.input_ids.shape[1] :].tolist()
    assert found == continued(folder, asked.input_ids[0].tolist(), len(found))


@pytest.mark.parametrize("model", ["demo-qwen2", "stories260K"])
def test_padding_on_the_right_changes_nothing_for_optimum(bundle: Make, model: str) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    folder = bundle(model, "fp32")
    theirs = ORTModelForCausalLM.from_pretrained(folder / "ort")
    long, short = tokens_of(folder, "the river is by the town"), tokens_of(folder, "the dog")
    padded = short + [0] * (len(long) - len(short))
    mask = torch.tensor([[1] * len(long), [1] * len(short) + [0] * (len(long) - len(short))])
    both = theirs(input_ids=torch.tensor([long, padded]), attention_mask=mask).logits
    alone = theirs(input_ids=torch.tensor([short]), attention_mask=mask[1:, : len(short)]).logits
    torch.testing.assert_close(both[1:, : len(short)], alone, rtol=0, atol=1e-4)


def test_the_docs_program_generates_the_same_tokens(
    bundle: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "plain-onnxruntime.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    for model, precision in CASES:
        folder = bundle(model, precision)
        monkeypatch.chdir(folder.parent)
        names: dict[str, Any] = {}
        exec(compile(program, "docs/plain-onnxruntime.md", "exec"), names)
        prompt, generated = tokens_of(folder), names["new_tokens"]
        assert names["tokens"] == prompt + continued(folder, prompt, generated)
        assert names["tokenizer"].decode(names["tokens"]) in capsys.readouterr().out


def test_the_runs_settings_are_those_of_the_manifest(bundle: Make, tmp_path: Path) -> None:
    """They are in bundle.json, the runner sets them, and the run shows them."""
    from slmq_edge.assembly import artifact_of

    document = manifest.read_bundle(bundle("stories260K", "w8a8"))
    options = document["runtime"]["session_options"]
    assert options == SESSION_OPTIONS
    assert asked.session_settings(document) == options
    graph = bundle("stories260K", "w8a8") / "ort" / "model.onnx"
    used = ort.open_session(graph, 1, options).get_session_options()
    assert used.graph_optimization_level.name == options[ort.LEVEL]
    for name, value in options.items():
        assert name == ort.LEVEL or used.get_session_config_entry(name) == value
    assert artifact_of(document, "0" * 64, 1).runtime["session_options"] == options
    with pytest.raises(Unsupported, match="no graph_optimization_level EVERYTHING"):
        ort.open_session(graph, 1, {ort.LEVEL: "EVERYTHING"})


@pytest.mark.parametrize(("shape", "shared_buffer"), [(QWEN2, True), (LLAMA, False)])
def test_genai_is_told_what_the_graph_is(shape: Anatomy, shared_buffer: bool) -> None:
    special = ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [3, 2], "pad_token_id": 7})
    found = genai.config(shape, "ort/model.onnx", {"session.x": "1"}, special)
    assert found is not None
    model, decoder = found["model"], found["model"]["decoder"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 3], 7)
    assert model["type"] == shape.family
    assert found["search"]["past_present_share_buffer"] == shared_buffer
    assert decoder["head_size"] * decoder["num_attention_heads"] == shape.query_width
    assert decoder["session_options"] == {"session.x": "1"}


def test_genai_gets_no_config_where_no_token_ends_a_text() -> None:
    assert genai.config(QWEN2, "ort/model.onnx", {}, ({"eos_token_id": None}, {})) is None


@pytest.mark.peers
@pytest.mark.parametrize(
    ("model", "precision"),
    [*CASES, ("random untied Llama", "w8a8"), ("random Qwen3", "w8a8")],
)
def test_genai_generates_the_same_tokens(bundle: Make, model: str, precision: str) -> None:
    """In one turn, and in two: there, several tokens follow a past that is not empty."""
    folder = bundle(model, precision)
    prompt, more = (
        ([5, 9, 2, 44, 17], [8, 31, 6])
        if model.startswith("random")
        else (tokens_of(folder), tokens_of(folder, " and the dog"))
    )
    keep = genai_config(folder)["search"]["past_present_share_buffer"]
    asked = {"prompt": prompt, "more": more, "new": NEW, "keep": keep}
    text = TEXT if model in builtin.MODELS else None
    found = genai_answers(folder, {**asked, "text": text})
    assert text is None or found["encoded"] == prompt
    assert found["version"] == genai.MADE_FOR
    first = continued(folder, prompt, NEW)
    assert found["first"] == first[: len(found["first"])]
    second = continued(folder, prompt + found["first"] + more, NEW)
    assert found["second"] == second[: len(found["second"])]
    assert len(found["first"]) == NEW or found["ended"]


def genai_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / genai.FILE).read_text(encoding="utf-8"))
    return found


def genai_answers(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    python = os.environ.get("SLMQ_EDGE_PEERS_PYTHON")
    if python is None:
        pytest.skip("SLMQ_EDGE_PEERS_PYTHON names no Python with onnxruntime-genai")
    driver = Path(__file__).with_name("genai_driver.py")
    done = subprocess.run(
        [python, driver, folder],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'onnxruntime_genai'" in done.stderr:
        pytest.skip(f"{python} has no onnxruntime-genai")
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
