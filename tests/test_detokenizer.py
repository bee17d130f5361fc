"""The pieces are the whole: no character is torn, no space is lost, whatever the tokens are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge import builtin, models
from slmq_edge.builtin import world
from slmq_edge.detokenizer import LONGEST, REPLACEMENT, TAIL, Detokenizer, decoder_of
from tests.shared import shared

# Byte-level BPE, and one of SentencePiece's kind: bytes in 256 tokens, a space dropped in front.
SENTENCEPIECE = "models/stories260K"
FOLDERS = ("tokenizers/smollm2", "tokenizers/qwen2.5", SENTENCEPIECE)
TEXTS = (
    "Once upon a time,  two spaces\n\n\tand a tab .  ",
    "東京は日本の首都です。北京是中国的首都。서울",
    "😀👍🏽👨‍👩‍👧 naïve café Ω≈ç√ 🇩🇪 q\u0301",
    "a\nb\n😀\n",
    " leading",
    "",
)
SETTINGS = settings(max_examples=60, deadline=None)


@functools.cache
def tokenizer(folder: str) -> Any:
    return models.read_tokenizer(shared(folder))


def pieces(folder: str, tokens: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    made = Detokenizer(decoder_of(tokenizer(folder)), prompt)
    return [*map(made.add, tokens), made.finish()]


def ids(folder: str, text: str) -> list[int]:
    found: list[int] = tokenizer(folder)(text, add_special_tokens=False).input_ids
    return found


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text(folder: str, text: str) -> None:
    decode = decoder_of(tokenizer(folder))
    tokens = ids(folder, text)
    assert decode(tokens) == text
    shown = pieces(folder, tokens)
    assert "".join(shown) == text
    assert not any(REPLACEMENT in piece for piece in shown)


@pytest.mark.parametrize("folder", FOLDERS)
@SETTINGS
@given(before=st.text(max_size=20), text=st.text(max_size=150))
def test_any_text_after_any_prompt(folder: str, before: str, text: str) -> None:
    decode = decoder_of(tokenizer(folder))
    prompt, tokens = ids(folder, before), ids(folder, text)
    whole = decode([*prompt, *tokens])
    assert decode(prompt) + "".join(pieces(folder, tokens, prompt)) == whole


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name != SENTENCEPIECE])
@SETTINGS
@given(data=st.data())
def test_any_tokens_at_all(folder: str, data: st.DataObject) -> None:
    """Torn characters, special tokens, tokens of one byte: what a broken model says."""
    one = st.integers(0, 255) | st.integers(0, len(tokenizer(folder)) - 1)
    tokens = data.draw(st.lists(one, max_size=2 * LONGEST + TAIL))
    assert "".join(pieces(folder, tokens)) == decoder_of(tokenizer(folder))(tokens)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_character_comes_whole_and_at_once(folder: str) -> None:
    tokens = ids(folder, "a𓀀")
    assert len(tokens) >= 4
    shown = [piece for piece in pieces(folder, tokens) if piece]
    assert shown == ["a", "𓀀"]


def test_what_was_never_completed_is_shown_at_the_end() -> None:
    tokens = ids(FOLDERS[0], "ok 東")[:-1]
    shown = pieces(FOLDERS[0], tokens)
    assert "".join(shown[:-1]).strip(" ") == "ok"
    assert shown[-1] == REPLACEMENT
    made = Detokenizer(decoder_of(tokenizer(FOLDERS[0])))
    assert "".join(map(made.add, tokens)) + made.finish() + made.finish() == "".join(shown)


def test_the_space_before_the_first_new_word_is_kept() -> None:
    assert pieces(SENTENCEPIECE, ids(SENTENCEPIECE, "upon"), ids(SENTENCEPIECE, "Once"))[0] != ""
    whole = "".join(pieces(SENTENCEPIECE, ids(SENTENCEPIECE, "upon"), ids(SENTENCEPIECE, "Once")))
    assert whole == " upon"
    assert "".join(pieces(SENTENCEPIECE, ids(SENTENCEPIECE, "upon"))) == "upon"


def test_the_space_behind_special_tokens_is_kept() -> None:
    """A window that holds no text must not be cut: its decoder would drop the space again."""
    special = [tokenizer(SENTENCEPIECE).bos_token_id] * (LONGEST + TAIL)
    word = ids(SENTENCEPIECE, "upon")
    prompt = ids(SENTENCEPIECE, "Once")
    assert "".join(pieces(SENTENCEPIECE, [*special, *word], prompt)) == " upon"
    assert "".join(pieces(SENTENCEPIECE, word, [*prompt, *special])) == " upon"


def test_long_text_is_decoded_in_short_windows() -> None:
    demo = models.read_tokenizer(builtin.folder("demo-llama"))
    decode = decoder_of(demo)
    lengths: list[int] = []

    def counted(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return decode(tokens)

    tokens = demo(" ".join(world.heldout_documents()[:20])).input_ids
    assert len(tokens) > 10 * LONGEST
    made = Detokenizer(counted, tokens)
    lengths.clear()
    assert "".join(map(made.add, tokens)) + made.finish() == decode(tokens)
    assert max(lengths) == LONGEST + 1
