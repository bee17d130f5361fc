"""What a measured prompt is cut from: a file, or the text that the protocol's paper took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmq_edge import calibration
from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.prompts import bundle_tokenizer
from slmq_edge.runner.measure import Text
from slmq_edge.runner.scoring import limits

# Of a long document so much is tokenized first, for each token that is wanted: words are shorter.
CHARACTERS = 64


def reading(folder: Path, bundle: Mapping[str, Any], count: int, file: Path | None) -> Text:
    """The first ``count`` tokens of a text, by the bundle's own tokenizer.

    Args:
        folder: of the bundle.
        bundle: its manifest.
        count: of tokens, the one that starts a text included where the tokenizer sets one.
        file: plain text, or JSONL of documents; None: WikiText-2, or a built-in model's own world.

    Raises:
        SlmqError: the text cannot be had, or is too short, or the bundle has no tokenizer.
    """
    text = _usual(bundle) if file is None else calibration.read_text(file, "--text")
    tokenizer = bundle_tokenizer(folder, bundle)
    tokens: list[int] = []
    for document in text.documents:
        tokens += _first(tokenizer, document, count - len(tokens))
        if len(tokens) >= count:
            break
    if len(tokens) < count:
        raise SlmqError(
            f"'{text.name}' has {len(tokens)} tokens, and {count} are to be read: "
            "give a longer --text, or a smaller -p"
        )
    found = tuple(tokens[:count])
    _, vocabulary = limits(bundle)
    if vocabulary is not None and max(found) >= vocabulary:
        raise UsageError(
            f"'{text.name}' has token {max(found)}, and the model only {vocabulary}: "
            "give a --text without special tokens"
        )
    return Text(text.name, text.sha256, found)


def _usual(bundle: Mapping[str, Any]) -> calibration.Text:
    model = bundle.get("model")
    origin = model.get("origin") if isinstance(model, dict) else None
    try:
        return calibration.usual_text(str(origin))
    except NotFound as error:
        raise NotFound(f"{error} Give the text to read with --text FILE.") from error


def _first(tokenizer: Any, document: str, count: int) -> list[int]:
    """At least ``count`` tokens of a document, or all of them."""
    for part in (document[: CHARACTERS * count], document):
        # verbose: transformers would warn of a text that is longer than the model's context.
        found: list[int] = tokenizer(part, verbose=False)["input_ids"]
        if len(found) >= count or len(part) == len(document):
            break
    return found
