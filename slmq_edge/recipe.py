"""Recipes: a request in words, as it was typed or as it was resolved, and their file.

    model = "demo-llama"
    method = "spinquant"
    preset = "upstream"
    device = "cpu"

    [scheme]            name, the words of slmq_edge.scheme.WORDS, and protect: how many, or which
    [calibration]       file as it was typed, sha256 of its documents, windows, length
    [settings]          the method's own

A checkpoint keeps the recipe by which it was made, every value resolved; ``--config`` makes it
again. A recipe may leave out what has a default.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq_edge.errors import Damaged, UsageError, did_you_mean
from slmq_edge.files import existing
from slmq_edge.scheme import PROTECT, WORDS, meaningless, named
from slmq_edge.settings import EITHER, says

FILE = "recipe.toml"
Kinds = type | tuple[type, ...]
# The keys that a recipe may have, and their types; settings are checked by their method.
TOP: dict[str, Kinds] = {
    "model": str,
    "revision": str,
    "method": str,
    "preset": str,
    "device": str,
    "deviations": list,
}
SECTIONS: dict[str, dict[str, Kinds]] = {
    "scheme": {"name": str, **dict.fromkeys(WORDS, str), "kv": int, PROTECT: (int, list)},
    "calibration": {"file": str, "text": str, "sha256": str, "windows": int, "length": int},
}
SYMMETRY = ("weights", "activations")


@dataclass(frozen=True)
class Recipe:
    """Words by section; ``None`` or absent where nothing was said.

    revision: of a hub model. deviations: what ``slmq_edge.deviations`` said of the run; not read.
    """

    model: str | None = None
    revision: str | None = None
    method: str | None = None
    preset: str | None = None
    device: str | None = None
    scheme: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Without what was not said."""
        found = dataclasses.asdict(self) | {"deviations": list(self.deviations)}
        return {key: value for key, value in found.items() if value not in (None, {}, [])}


def over(said: Recipe, below: Recipe) -> Recipe:
    """``said`` where it says something, ``below`` where it does not.

    Another method or preset brings its own symmetry, windows and settings, another scheme leaves
    out what means nothing to it, another text has another hash, another model another revision.
    Where any of what linears were protected for is another, as many are chosen anew.
    """
    if _changes_damage(said, below):
        below = dataclasses.replace(below, scheme=_counted(below.scheme))
    if _differs(said.method, below.method) or _differs(said.preset, below.preset):
        below = dataclasses.replace(
            below,
            scheme=_without(below.scheme, *SYMMETRY),
            calibration=_without(below.calibration, "windows", "length"),
            settings={},
        )
    if _differs(said.model, below.model):
        below = dataclasses.replace(below, revision=None)
    if "file" in said.calibration or (
        _differs(said.model, below.model) and "file" not in below.calibration
    ):
        calibration = _without(below.calibration, "text", "sha256")
        below = dataclasses.replace(below, calibration=calibration)
    plain = {
        name: getattr(said, name) or getattr(below, name)
        for name in ("model", "revision", "method", "preset", "device")
    }
    return Recipe(
        **plain,
        scheme=_fitting(said.scheme, below.scheme),
        calibration={**below.calibration, **said.calibration},
        settings={**_open(said.settings, below.settings), **said.settings},
    )


def _open(said: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from ``below``, without those minutes that epochs which are ``said`` replace."""
    epochs, minutes = EITHER
    return _without(below, minutes) if says(said, epochs) else dict(below)


def _differs(said: str | None, below: str | None) -> bool:
    return said is not None and below is not None and said != below


def _changes_damage(said: Recipe, below: Recipe) -> bool:
    """Whether other linears may be the worst: table, head and activations change nothing."""
    plain = ("model", "revision", "method", "preset")
    return (
        bool(said.calibration)
        or any(_differs(getattr(said, name), getattr(below, name)) for name in plain)
        or any(_differs(said.scheme.get(n), below.scheme.get(n)) for n in ("name", "weights"))
        or any(value != below.settings.get(name) for name, value in said.settings.items())
    )


def _counted(words: Mapping[str, Any]) -> dict[str, Any]:
    """Words of a scheme, with the number of protected linears in the place of their names."""
    kept = words.get(PROTECT)
    return {**words, PROTECT: len(kept)} if isinstance(kept, list) else dict(words)


def _without(words: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in words.items() if name not in names}


def _fitting(said: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Words of a scheme together, those from ``below`` left out that ``said`` makes meaningless."""
    together = {**below, **said}
    if not said or "name" not in together:
        return together
    named(together["name"])
    fewer = {
        word: value
        for word, value in together.items()
        if word == "name" or word in said or not meaningless(word, together)
    }
    # A word may have meant something beside another that has gone.
    return fewer if fewer == together else _fitting(said, fewer)


def read(path: Path) -> Recipe:
    """A recipe from its file, or from the checkpoint folder that holds it.

    Raises:
        NotFound: no such file. Damaged: it is not TOML. UsageError: an unknown key, or a value of
            the wrong type; names it.
    """
    import tomllib

    existing(path, "recipe")
    file = path / FILE if path.is_dir() else existing(path, "recipe")
    try:
        document = tomllib.loads(existing(file, "recipe").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{file} is damaged: {error}") from error
    return from_document(document, file)


def from_document(document: Mapping[str, Any], file: Path) -> Recipe:
    """A recipe from parsed TOML; ``file`` is named where something is wrong with it.

    Raises:
        UsageError: an unknown key, or a value of the wrong type.
    """
    sections = {name: document.get(name, {}) for name in (*SECTIONS, "settings")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise UsageError(f"{file}: {name} must be a section, [{name}]")
    plain = {key: value for key, value in document.items() if key not in sections}
    _check(plain, TOP, file, "", (*TOP, *sections))
    for name, keys in SECTIONS.items():
        _check(sections[name], keys, file, f"{name}.", tuple(keys))
    for key, value in sections["settings"].items():
        if not isinstance(value, str | int | float):
            raise UsageError(f"{file}: settings.{key} must be a single value")
    deviations = tuple(map(str, plain.pop("deviations", ())))
    return Recipe(**plain, **sections, deviations=deviations)


def _check(
    found: Mapping[str, Any],
    keys: Mapping[str, Kinds],
    file: Path,
    prefix: str,
    known: tuple[str, ...],
) -> None:
    for key, value in found.items():
        if key not in keys:
            raise UsageError(
                f"{file}: unknown key {prefix}{key}{did_you_mean(key, known)}; "
                f"known: {', '.join(known)}"
            )
        asked = keys[key]
        kinds = asked if isinstance(asked, tuple) else (asked,)
        if type(value) not in kinds:
            kind = " or ".join(_KINDS[one] for one in kinds)
            raise UsageError(f"{file}: {prefix}{key} must be {kind}, not {value!r}")


_KINDS = {str: "a string", int: "a whole number", list: "a list of strings"}


def text(recipe: Recipe, heading: str = "") -> str:
    """A recipe as TOML, ``heading`` as a comment above it."""
    comment = f"# {heading}\n" if heading else ""
    return comment + toml(recipe.as_json())


def toml(document: Mapping[str, Any]) -> str:
    """TOML of strings, numbers, booleans, lists of strings, and one level of sections."""
    plain = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for name, section in document.items():
        if isinstance(section, Mapping):
            lines += ["", f"[{_key(name)}]"]
            lines += [f"{_key(key)} = {_value(value)}" for key, value in section.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[\n" + "".join(f"    {_value(one)},\n" for one in value) + "]" if value else "[]"
    return _string(value) if isinstance(value, str) else repr(value)


def _string(value: str) -> str:
    """A basic string: JSON's escapes are TOML's, but that it wants DEL escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
