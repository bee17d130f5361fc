"""Licences: read from a card, carried as texts, never invented; and the card of a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slmq_edge import builtin, licenses, models
from slmq_edge import checkpoint as checkpoints
from slmq_edge.checkpoint import extras_of
from slmq_edge.export import export
from slmq_edge.reports.card import FILE, card
from slmq_edge.scheme import scheme
from tests.decoders import random_qwen2, rounded, write_folder

TEXT = b"Do as you please."


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n", "mit"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://x.org/l\n---\n",
            "other: own (https://x.org/l)",
        ),
        ("---\nlicense: other\nlicense_link: LICENSE\n---\n", "other (LICENSE)"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("# Model\n\nlicense: mit\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: [\n---\n", None),
    ],
)
def test_the_licence_is_what_the_card_names(card: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licenses.named(tmp_path) == said


def test_a_card_that_is_no_text_names_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert licenses.named(tmp_path) is None


def test_texts_are_found_by_name_and_size(tmp_path: Path) -> None:
    for name in ("LICENSE", "License.txt", "NOTICE", "COPYING.md", "unlicensed", "model.py"):
        (tmp_path / name).write_bytes(TEXT)
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "LICENSE-huge").write_bytes(bytes(licenses.MOST_BYTES + 1))
    assert set(licenses.texts(tmp_path)) == {"LICENSE", "License.txt", "NOTICE", "COPYING.md"}
    assert not licenses.is_text("ort/LICENSE")


@pytest.mark.parametrize("name", builtin.MODELS)
def test_built_in_models_have_the_projects_licence(name: str) -> None:
    source = models.find(name)
    assert source.as_json()["license"] == "apache-2.0"
    text = (Path(__file__).resolve().parents[1] / "LICENSE").read_bytes()
    assert extras_of(source.folder)["LICENSE"] == text


def made(folder: Path, card_text: str | None) -> dict[str, Any]:
    """A bundle of a model whose folder has a licence text and perhaps a card, by a checkpoint."""
    source = write_folder(random_qwen2(), folder / "model")
    (source / "LICENSE.txt").write_bytes(TEXT)
    if card_text is not None:
        (source / "README.md").write_text(card_text)
    found = models.find(str(source))
    checkpoint = replace(
        rounded(random_qwen2(), scheme("w8a8")), source=found.as_json(), extras=extras_of(source)
    )
    checkpoints.save(checkpoint, folder / "checkpoint")
    return export(checkpoints.load(folder / "checkpoint"), folder / "bundle")


def test_licence_and_card_travel_in_the_bundle(tmp_path: Path) -> None:
    manifest = made(tmp_path, "---\nlicense: mit\n---\n")
    assert json.loads((tmp_path / "bundle/bundle.json").read_text()) == json.loads(
        json.dumps(manifest)
    )
    assert manifest["model"]["license"] == "mit"
    assert (tmp_path / "bundle/LICENSE.txt").read_bytes() == TEXT
    assert {"LICENSE.txt", FILE} <= set(manifest["files"])
    text = (tmp_path / "bundle" / FILE).read_text()
    assert text == card(manifest, ("LICENSE.txt",))
    assert "`model`, a local folder." in text
    assert "Licence: mit (LICENSE.txt)." in text
    assert "w8a8 asked, w8a8 executed" in text
    assert f"mean KL {manifest['verified']['mean_kl']:.1e}" in text


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path: Path) -> None:
    manifest = made(tmp_path, None)
    assert manifest["model"]["license"] is None
    assert "Licence: unknown, the source names none (LICENSE.txt)." in card(
        manifest, ("LICENSE.txt",)
    )


def test_the_card_says_how_to_make_it_again(tmp_path: Path) -> None:
    manifest = made(tmp_path, None)
    assert "No words of the command line describe it" in card(manifest)
    recipe = {"method": "none", "calibration": {"file": "text.txt"}}
    calibration = {"text": "text.txt", "sha256": "ab12", "windows": 8, "length": 64}
    said = card(manifest | {"recipe": recipe, "calibration": calibration, "verified": None})
    assert "slmq-edge export --config recipe.toml" in said
    assert "Needed, and not in here: the model's folder `model` and its calibration text" in said
    assert "`text.txt`." in said
    assert "Calibrated on text.txt (sha256 ab12), 8 windows of 64 tokens." in said
    assert "no onnxruntime was there" in said
    hub = {"name": "a/b", "origin": "hub", "revision": "0123abcd", "license": "mit"}
    said = card(manifest | {"model": hub})
    assert "`a/b` at revision 0123abcd, from the Hugging Face hub." in said
