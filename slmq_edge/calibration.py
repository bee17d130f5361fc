"""Calibration: the text a method looks at, as token windows, and what it learns from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge.anatomy import FEEDS
from slmq_edge.builtin import world
from slmq_edge.errors import Damaged, MissingExtra, NotFound, SlmqError
from slmq_edge.files import existing

if TYPE_CHECKING:
    from torch import Tensor

    from slmq_edge.decoder import Decoder
    from slmq_edge.models import Source

# The fewest windows that say anything about a model's activations.
FEWEST_WINDOWS = 8

# Of a text, what is held out where a method calibrates on it and is to be judged.
HELD_OUT_ONE_IN = 5

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1/train-00000-of-00001.parquet")
BUILTIN_WORLD, WIKITEXT_TRAIN = "built-in world", "WikiText-2 train"


@dataclass(frozen=True)
class Size:
    """How many token windows, and how many tokens each."""

    windows: int
    length: int


# Of a text, for golden prompts and for the noise that they are judged by.
PROMPTS = Size(windows=64, length=128)


@dataclass(frozen=True)
class Text:
    """Documents, and where they came from. ``note`` says why it is not what one would expect."""

    name: str
    documents: tuple[str, ...]
    note: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\x00".join(self.documents).encode()).hexdigest()


@dataclass(frozen=True)
class Calibration:
    """Token windows int64 [windows, length], and the text they were cut from.

    prompts: int64, of the same text as many and as long as ``PROMPTS`` says, whatever the windows'
    size: golden prompts have to show the noise of the model, not of the calibration.
    """

    text: Text
    tokens: Tensor
    prompts: Tensor | None = None

    def as_json(self) -> dict[str, Any]:
        windows, length = self.tokens.shape
        return {
            "text": self.text.name,
            "sha256": self.text.sha256,
            "note": self.text.note,
            "windows": windows,
            "length": length,
        }


def default_text(source: Source) -> Text:
    """The text where none is given: a built-in model's own world, else WikiText-2.

    Without a network the built-in world stands in for WikiText-2, and the note says so.
    """
    try:
        return usual_text(source.origin)
    except NotFound as error:
        note = f"{error} The built-in world's text was used: give --calib FILE for a real one."
        return Text(BUILTIN_WORLD, tuple(world.calibration_text()), note)


def usual_text(origin: str) -> Text:
    """The text of a model of that origin (`models.Source`), with no other in its place.

    Raises:
        NotFound: WikiText-2 cannot be fetched.
        MissingExtra: what fetches or reads it is not installed.
    """
    if origin == "built-in":
        return Text(BUILTIN_WORLD, tuple(world.calibration_text()))
    return Text(WIKITEXT_TRAIN, tuple(_wikitext2()))


def split(text: Text) -> tuple[Text, Text]:
    """What to calibrate on, and what is held out of it to measure on: about a fifth.

    Every fifth document, where there are enough; otherwise the end of each, cut at a blank.
    """
    documents = text.documents
    if len(documents) >= HELD_OUT_ONE_IN * FEWEST_WINDOWS:
        held = documents[HELD_OUT_ONE_IN - 1 :: HELD_OUT_ONE_IN]
        kept = tuple(one for place, one in enumerate(documents, 1) if place % HELD_OUT_ONE_IN != 0)
    else:
        places = [_cut_at(one) for one in documents]
        kept = tuple(one[:place] for one, place in zip(documents, places, strict=True))
        held = tuple(one[place:] for one, place in zip(documents, places, strict=True))
    return dataclasses.replace(text, documents=kept), dataclasses.replace(text, documents=held)


def _cut_at(document: str) -> int:
    """Where its last fifth starts, behind a blank if there is one."""
    place = len(document) - len(document) // HELD_OUT_ONE_IN
    return document.rfind(" ", 0, place) + 1 or place


def read_text(path: Path, option: str = "--calib") -> Text:
    """Plain text (one document), or JSONL whose rows have a ``text`` field (a document each).

    option: by which it was given, for the error.

    Raises:
        NotFound, Damaged: no such file; not UTF-8; a row that is not JSON or has no text.
    """
    existing(path, "calibration text" if option == "--calib" else "text")
    if path.is_dir():
        raise NotFound(f"{path} is a folder: {option} takes a text or JSONL file")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is not UTF-8 text: {error.reason}") from error
    if path.suffix != ".jsonl":
        return Text(path.name, (content,))
    return Text(path.name, tuple(_rows(path, content.split("\n"))))


def _rows(path: Path, lines: Iterable[str]) -> Iterable[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Damaged(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise Damaged(f"{path}, line {number}: no 'text' field")
        yield row["text"]


def _wikitext2() -> list[str]:
    """WikiText-2's raw training lines from the hub, joined as one document."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "quantize") from error
    from slmq_edge.models import hub_errors_as

    repository, file = WIKITEXT
    # A snapshot, because without a network it fails at once; a single file is tried for 25 s.
    with hub_errors_as("WikiText-2"):
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=[file])
    return read_parquet_text(Path(folder) / file)


def read_parquet_text(path: Path) -> list[str]:
    """The ``text`` column of a parquet file, joined to one document as it was cut apart."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "quantize") from error
    rows: list[str] = parquet.read_table(path, columns=["text"])["text"].to_pylist()
    return ["".join(rows)]


def cut(text: Text, tokenizer: Any, size: Size, fewest: int = FEWEST_WINDOWS) -> Calibration:
    """Tokenize the documents, join them, and cut at most ``size.windows`` windows from the stream.

    Every window starts where a document does, if there are enough documents; otherwise the stream
    is cut evenly, and a BOS is put before each window where the tokenizer starts texts with one.
    Where fewer windows are found than asked for, asking for so many finds the same.

    Raises:
        SlmqError: the text is too short for ``fewest`` windows.
    """
    import torch

    # Long documents are tokenized in one piece: the warning about their length is not for us.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    encoded = [row for row in tokenizer(list(text.documents))["input_ids"] if row]
    stream = torch.tensor([token for row in encoded for token in row], dtype=torch.int64)
    whole = len(stream) // size.length
    if whole < fewest:
        raise SlmqError(
            f"calibration text '{text.name}' is too short: {len(stream)} tokens make {whole} "
            f"windows of {size.length}; at least {fewest} are needed "
            "(give a longer text, or a smaller --length)"
        )
    offsets = torch.tensor([0, *(len(row) for row in encoded[:-1])]).cumsum(0)
    bos = torch.tensor(tokenizer("")["input_ids"][:1], dtype=torch.int64)
    tokens = _cut(stream, offsets, bos, size)
    enough = len(stream) // PROMPTS.length >= FEWEST_WINDOWS
    prompts = _cut(stream, offsets, bos, PROMPTS) if enough else tokens
    return Calibration(text, tokens, prompts[: PROMPTS.windows, : PROMPTS.length])


def _cut(stream: Tensor, offsets: Tensor, bos: Tensor, size: Size) -> Tensor:
    """Windows int64 [windows, length]; offsets: where documents start in the stream."""
    import torch

    starts = offsets[offsets + size.length <= len(stream)]
    body = size.length - len(bos)
    even = torch.arange((len(stream) - len(bos)) // body) * body
    if len(starts) >= min(size.windows, len(even)):
        return _windows(stream, _spread(starts, size.windows), size.length)
    stream = stream[len(bos) :]  # the first window gets its BOS like the others
    windows = _windows(stream, _spread(even, size.windows), body)
    return torch.cat([bos.expand(len(windows), -1), windows], dim=1)


def _spread(starts: Tensor, count: int) -> Tensor:
    """At most ``count`` of ``starts``, evenly spaced."""
    import torch

    chosen = torch.linspace(0, len(starts) - 1, min(count, len(starts)), dtype=torch.float64)
    return starts[chosen.round().long()]


def _windows(stream: Tensor, starts: Tensor, length: int) -> Tensor:
    import torch

    return stream[starts[:, None] + torch.arange(length)]


def feed_absmax(
    model: Decoder,
    tokens: Tensor,
    batch: int | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Largest magnitude of every channel that the norms feed to linears: name of norm -> [hidden].

    METHODS 1.1: running maxima over all tokens, kept on the device, in the model's dtype. Only the
    inputs that smoothing can use are watched: two of seven, and no head (METHODS 4.3). tokens:
    int64 [windows, length], anywhere. batch: windows that run together, ``None`` for as many as
    suit a cache.
    """
    import torch

    from slmq_edge.decoder import hidden_states
    from slmq_edge.quantization.streams import BATCH_TOKENS

    size = batch or max(1, BATCH_TOKENS // tokens.shape[1])
    weight = next(iter(model.weights.values()))
    dtype, device = weight.dtype, weight.device
    norms = [
        (model.anatomy.block(layer, feed.linears[0]), model.anatomy.block(layer, feed.norm))
        for layer in range(model.anatomy.layers)
        for feed in FEEDS
    ]
    # Made before the first batch: a small tensor that outlives a batch pins the heap above which
    # that batch's freed buffers lie, and the process then grows by one of them at every norm.
    table = torch.zeros(len(norms), model.anatomy.hidden, dtype=dtype, device=device)
    rows = {linear: row for (linear, _), row in zip(norms, table, strict=True)}

    def watch(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        row = rows.get(linears[0])
        if row is not None:
            torch.maximum(row, inputs.abs().amax(dim=(0, 1)), out=row)
        return model.project(inputs, linears)

    progress(0.0)
    tokens = tokens.to(device)
    with torch.no_grad():
        for start in range(0, len(tokens), size):
            hidden_states(model, tokens[start : start + size], watch)
            progress(min(1.0, (start + size) / len(tokens)))
    return {norm: row for (_, norm), row in zip(norms, table, strict=True)}
