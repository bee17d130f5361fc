"""What a person typed -> the tokens that a model reads; and the tokens that end its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slmq_edge.checkpoint import CONFIG
from slmq_edge.errors import Damaged, MissingExtra, NotFound, SlmqError, UsageError
from slmq_edge.models import TOKENIZER_FILES, read_tokenizer
from slmq_edge.runner.manifest import BUNDLE_FILE, described

EOS = "eos_token_id"


def read_prompt(prompt: str, stdin: BinaryIO) -> str:
    """Return the prompt, or where it is ``-`` what stdin holds, without its last newline.

    Raises:
        UsageError: it is empty, or not UTF-8.
    """
    try:
        if prompt == "-":
            text = stdin.read().decode("utf-8").removesuffix("\n")
        else:
            text = prompt.encode("utf-8").decode("utf-8")  # what the shell gave may be no text
    except UnicodeError as error:
        raise UsageError(f"the prompt is not UTF-8: {error}") from error
    if not text:
        raise UsageError("the prompt is empty: say something with --prompt")
    return text


def bundle_tokenizer(folder: Path, bundle: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a verified bundle, as transformers' fast tokenizer.

    Raises:
        NotFound: the bundle carries none.
        Damaged: the manifest does not list a file that would be read.
    """
    files = bundle.get("files", {})
    if "tokenizer.json" not in files:
        raise NotFound(
            f"{folder} carries no tokenizer, because its model had none: text cannot be generated "
            "(slmq-edge profile measures it without)"
        )
    for name in (CONFIG, *TOKENIZER_FILES):
        if (folder / name).exists() and name not in files:
            raise Damaged(f"{folder / BUNDLE_FILE} is damaged: it does not list {name}")
    return read_tokenizer(folder)


def encode(tokenizer: Any, prompt: str, system: str | None, raw: bool) -> NDArray[np.int64]:
    """Return the prompt's tokens, int64 [length].

    With a chat template, ``prompt`` is the user's turn and ``system`` the turn before it; without
    one, or with ``raw``, it is a text to continue, with the special tokens that the tokenizer adds.

    Raises:
        UsageError: nothing to read, ``system`` without a template, or a template that refuses it.
    """
    if raw or not tokenizer.chat_template:
        if system is not None:
            why = "--raw leaves it out" if raw else "this tokenizer has none"
            raise UsageError(f"--system needs a chat template: {why}")
        text, special = prompt, True
    else:
        text, special = _conversation(tokenizer, prompt, system), False  # they are in the template
    # verbose: transformers would warn of a long text, which we refuse ourselves.
    ids = tokenizer(text, add_special_tokens=special, verbose=False).input_ids
    if not ids:
        raise UsageError("the prompt has no tokens: say something with --prompt")
    return np.array(ids, np.int64)


def _conversation(tokenizer: Any, prompt: str, system: str | None) -> str:
    turns = [{"role": "user", "content": prompt}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except ImportError as error:
        raise MissingExtra("jinja2", "quantize") from error
    except Exception as error:  # a template is a program, and can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"the chat template refuses this conversation: {reason} (--raw leaves it out)"
        ) from error
    return text


def stop_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return all ids that end a text: of both configs in ``folder``, and of the tokenizer.

    Raises:
        Damaged: a config is no JSON object, or its ``eos_token_id`` neither a number nor a list.
    """
    stops = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in (CONFIG, "generation_config.json"):
        stops |= _ends(folder / name)
    return frozenset(stops)


def _ends(file: Path) -> set[int]:
    if not file.is_file():
        return set()
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get(EOS)
    except (ValueError, AttributeError) as error:
        raise Damaged(f"{file} is damaged: {error}") from error
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ids):
        raise Damaged(f"{file} is damaged: {EOS} is {found!r}")
    return set(ids)


def room(prompt: NDArray[np.int64], bundle: Mapping[str, Any], most: int | None = None) -> int:
    """Return how many new tokens the context holds besides the prompt, int64 [length].

    most: how long a text can become in what runs it; None: as long as the model's context.

    Raises:
        UsageError: none.
        SlmqError: the tokenizer knows tokens that the model has no vector for.
        Damaged: the manifest says neither.
    """
    context_length = _size(described(bundle), "context_length")
    context_length = min(context_length, most or context_length)
    vocab = _size(bundle.get("anatomy"), "vocab")
    if len(prompt) >= context_length:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and the context holds {context_length}: "
            "shorten the prompt"
        )
    if prompt.max() >= vocab:
        raise SlmqError(
            f"the tokenizer gave token {prompt.max()} and the model's vocabulary has {vocab}: "
            "the bundle's tokenizer is another model's"
        )
    return context_length - len(prompt)


def _size(section: object, name: str) -> int:
    value = section.get(name) if isinstance(section, dict) else None
    if type(value) is not int:
        raise Damaged(f"{BUNDLE_FILE} is damaged: it has no {name}")
    return value
