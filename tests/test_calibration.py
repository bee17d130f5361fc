"""Text -> windows -> statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from slmq_edge import calibration as calibrations
from slmq_edge.calibration import Size, Text, cut, feed_absmax, read_parquet_text, read_text
from slmq_edge.errors import NotFound, SlmqError
from slmq_edge.models import Source
from tests.decoders import random_llama, tokens_for


class Letters:
    """A tokenizer of single letters, with or without a BOS of 0 before each text."""

    def __init__(self, bos: bool) -> None:
        self.start = [0] if bos else []
        self.deprecation_warnings: dict[str, bool] = {}

    def __call__(self, text: str | list[str]) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [*self.start, *(ord(letter) for letter in text)]}


def test_windows_start_where_documents_do() -> None:
    text = Text("many", tuple(f"{letter}bcdef" for letter in "ACEGIKMOQS"))
    found = cut(text, Letters(bos=True), Size(windows=9, length=6)).tokens
    assert found.shape == (9, 6)
    assert set(found[:, 0].tolist()) == {0}
    assert all(chr(int(token)).isupper() for token in found[:, 1])


def test_one_long_document_is_cut_evenly() -> None:
    text = Text("one", ("abcdefghij" * 20,))
    plain = cut(text, Letters(bos=False), Size(windows=4, length=20)).tokens
    assert plain[:, 0].tolist() == [ord("a")] * 4
    started = cut(text, Letters(bos=True), Size(windows=4, length=20)).tokens
    assert started[:, 0].tolist() == [0] * 4
    assert 0 not in started[:, 1:]


@given(
    st.lists(st.text("abc", max_size=40), max_size=30),
    st.integers(2, 12),
    st.integers(1, 40),
    st.booleans(),
)
def test_windows_are_pieces_of_the_text_or_a_refusal(
    documents: list[str], length: int, windows: int, bos: bool
) -> None:
    tokenizer = Letters(bos)
    stream = "".join(("\0" if bos else "") + d for d in documents)
    text, size = Text("t", tuple(documents)), Size(windows, length)
    if len(stream) // length < calibrations.FEWEST_WINDOWS:
        with pytest.raises(SlmqError, match="too short"):
            cut(text, tokenizer, size)
        return
    found = cut(text, tokenizer, size).tokens
    assert 1 <= len(found) <= windows
    assert torch.equal(cut(text, tokenizer, Size(len(found), length)).tokens, found)
    for window in found.tolist():
        piece = "".join(map(chr, window))
        assert piece in stream or (bos and piece[1:] in stream and piece[0] == "\0")


def test_golden_prompts_do_not_depend_on_the_size_of_the_windows() -> None:
    text = Text("many", tuple("abcdefgh" * (50 + n) for n in range(80)))
    few, many = (cut(text, Letters(bos=True), Size(*size)).prompts for size in ((8, 4), (70, 300)))
    assert few is not None
    assert many is not None
    assert few.shape == (calibrations.PROMPTS.windows, calibrations.PROMPTS.length)
    assert torch.equal(few, many)


def test_a_short_text_has_the_windows_for_prompts() -> None:
    found = cut(Text("short", ("abcdefgh" * 10,)), Letters(bos=True), Size(8, 10))
    assert found.prompts is not None
    assert torch.equal(found.prompts, found.tokens)


def test_plain_text_and_jsonl_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "line\u2028separator"}\n')
    assert read_text(tmp_path / "b.jsonl").documents == ("line\u2028separator",)
    assert read_text(tmp_path / "a.txt").documents == ("one\n\ntwo",)
    assert read_text(tmp_path / "a.jsonl").documents == ("one", "two")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SlmqError, match="not UTF-8"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(NotFound, match="is a folder"):
        read_text(tmp_path)


def test_parquet_rows_are_joined_as_they_were_cut_apart(tmp_path: Path) -> None:
    rows = [" = Title = \n", "", " Text . \n"]
    parquet.write_table(pa.table({"text": rows}), tmp_path / "train.parquet")
    assert read_parquet_text(tmp_path / "train.parquet") == [" = Title = \n Text . \n"]


def test_without_a_network_the_built_in_world_stands_in_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable() -> list[str]:
        raise NotFound("cannot fetch WikiText-2 from the hub: no network.")

    monkeypatch.setattr(calibrations, "_wikitext2", unreachable)
    text = calibrations.default_text(Source("m", "local", tmp_path))
    assert text.name == "built-in world"
    assert text.note is not None
    assert "cannot fetch WikiText-2" in text.note
    monkeypatch.setattr(calibrations, "_wikitext2", lambda: ["real text"])
    text = calibrations.default_text(Source("m", "local", tmp_path))
    assert (text.name, text.documents, text.note) == ("WikiText-2 train", ("real text",), None)


def test_the_hash_is_of_the_documents() -> None:
    assert Text("a", ("x", "y")).sha256 == Text("b", ("x", "y")).sha256
    assert Text("a", ("x", "y")).sha256 != Text("a", ("xy",)).sha256


def test_absmax_is_of_every_token_whatever_the_batch() -> None:
    model = random_llama()
    tokens = tokens_for(model, 5, 16)
    together = feed_absmax(model, tokens, batch=5)
    one_by_one = feed_absmax(model, tokens, batch=1)
    assert set(together) == {
        f"model.layers.{layer}.{norm}"
        for layer in range(2)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    for norm, absmax in together.items():
        torch.testing.assert_close(absmax, one_by_one[norm])
        assert absmax.shape == (36,)
