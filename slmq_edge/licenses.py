"""Licences: what a model's folder says of its own, and the texts that must travel with it.

A model card of the hub, ``README.md``, starts with YAML between two lines of ``---``; its
``license`` is one of the hub's short names, or ``other`` with ``license_name`` and
``license_link``. Where nothing is said the licence is unknown: none is ever guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = "README.md"
# Files with these names, whatever follows, are licence texts and notices.
STEMS = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
PATTERNS = (CARD, *(f"{stem}*" for stem in STEMS))
# No text is as long: what is, is something else by that name.
MOST_BYTES = 1_000_000


def is_text(name: str) -> bool:
    """Whether a file in a model's folder is a licence or a notice, by its name."""
    return "/" not in name and name.upper().startswith(STEMS)


def texts(folder: Path) -> dict[str, bytes]:
    """Licence texts and notices of a model's folder, by file name."""
    files = sorted(file for file in folder.glob("*") if is_text(file.name) and file.is_file())
    return {file.name: file.read_bytes() for file in files if file.stat().st_size <= MOST_BYTES}


def named(folder: Path) -> str | None:
    """The licence that the folder's model card names; ``None``: it names none, or is damaged."""
    card = folder / CARD
    if not card.is_file():
        return None
    try:
        from huggingface_hub.repocard import metadata_load
        from yaml import YAMLError
    except ImportError:
        return None
    try:
        front = metadata_load(card)
    except (ValueError, OSError, YAMLError):
        return None
    return None if front is None else in_words(front)


def in_words(front: Mapping[str, Any]) -> str | None:
    """The licence of a card's front matter: ``apache-2.0``, or ``other: its name (its link)``."""
    said = front.get("license")
    listed = said if isinstance(said, list) else [said]
    names = [str(one).strip() for one in listed if one]
    if not names:
        return None
    own, link = front.get("license_name"), front.get("license_link")
    described = f"{', '.join(names)}: {own}" if own else ", ".join(names)
    is_known = not own and names != ["other"]
    return described if is_known or not link else f"{described} ({link})"
