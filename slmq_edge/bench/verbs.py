"""The words of a plan's section are options of the verb by whose name it goes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import Unsupported, UsageError, unknown

# Options that no section may have: the matrix says them, or a bench has no use for them.
DECIDED = (
    "output", "json", "format", "force", "fresh", "config", "method", "scheme", "preset", "target",
    "stop", "plot",
)  # fmt: skip
ALSO_DECIDED: dict[str, tuple[str, ...]] = {
    "profile": ("device", "runtime"),
    "eval": ("device", "runtime"),
}


@dataclass(frozen=True)
class Option:
    """One option of a verb. name: of its parameter. off: of a pair of flags, the other."""

    name: str
    on: str
    off: str | None
    is_flag: bool
    is_list: bool


@functools.cache
def _commands() -> Mapping[str, Any]:
    import typer

    from slmq_edge.cli import app

    group: Any = typer.main.get_command(app)
    commands: Mapping[str, Any] = group.commands
    return commands


def command(*verb: str) -> Any:
    """The command of a verb, ``report study`` in two words.

    Raises:
        Unsupported: this release has none.
    """
    found: Any = _commands().get(verb[0])
    for word in verb[1:]:
        found = None if found is None else found.commands.get(word)
    if found is None:
        raise Unsupported(f"this release has no slmq-edge {' '.join(verb)}")
    return found


@functools.cache
def options(verb: str) -> Mapping[str, Option]:
    """What a section of this verb may say: by the option's name, with underscores."""
    decided = (*DECIDED, *ALSO_DECIDED.get(verb, ()))
    if verb == "export":  # of a checkpoint, which has been quantized
        decided = (*decided, *options("quantize"))
    found: dict[str, Option] = {}
    for one in command(verb).params:
        longest = max(one.opts, key=len)
        if not longest.startswith("--"):
            continue
        key = longest.removeprefix("--").replace("-", "_")
        if key not in decided and key != "help":
            off = next((text for text in one.secondary_opts if text.startswith("--")), None)
            is_flag = bool(getattr(one, "is_flag", False))
            many = bool(getattr(one, "multiple", False))
            found[key] = Option(one.name, longest, off, is_flag, many)
    return found


def check(verb: str, words: Mapping[str, Any], where: str, more: Sequence[str] = ()) -> None:
    """Refuse words that are no options of a verb, and values that they cannot have.

    more: words that a section of it has besides.

    Raises:
        UsageError: the first of them; guesses what was meant.
    """
    known = (*options(verb), *more)
    for key in words:
        if key.replace("-", "_") not in known:
            if key in (*DECIDED, *ALSO_DECIDED.get(verb, ())):
                raise UsageError(f"{where}: {key} is not said here: the matrix decides it")
            raise UsageError(f"{where}: {unknown('key', key, known)}")
    arguments(verb, words, where=where)


def arguments(
    verb: str,
    words: Mapping[str, Any],
    place: Callable[[str], str] = lambda path: path,
    where: str | None = None,
) -> tuple[str, ...]:
    """The words as a command line has them; those that are none of the verb's are left out.

    place: what becomes of the value of an option that takes a path. where: named in errors.

    Raises:
        UsageError: a value that its option cannot have.
    """
    known = options(verb)
    said = {key.replace("-", "_"): value for key, value in words.items()}
    chosen = {known[key]: value for key, value in said.items() if key in known}
    for option, value in chosen.items():
        if option.is_flag and not isinstance(value, bool):
            raise UsageError(f"{where or verb}: {option.name} is true or false, not {value!r}")
    plain = [text for option, value in chosen.items() for text in _said(option, value)]
    values = parsed([verb, *plain, *_stand_ins(verb)], where or verb)
    texts: list[str] = []
    for option, value in chosen.items():
        is_path = isinstance(values.get(option.name), Path)
        texts += _said(option, place(str(value)) if is_path else value)
    return tuple(texts)


def parsed(words: Sequence[str], where: str) -> dict[str, Any]:
    """The parameters that a command line leads to, by their names; nothing is run.

    Raises:
        UsageError: the verb would not take them.
    """
    verb, *rest = words
    try:
        params: dict[str, Any] = command(verb).make_context(verb, list(rest)).params
    except Exception as error:
        said = getattr(error, "format_message", None)
        if said is None:
            raise
        raise UsageError(f"{where}: {' '.join(said().split())}") from error
    return params


def _stand_ins(verb: str) -> list[str]:
    """What the verb insists on besides its options."""
    return [
        "something"
        for one in command(verb).params
        if one.required and not max(one.opts, key=len).startswith("-")
    ]


def _said(option: Option, value: Any) -> list[str]:
    if option.is_flag:
        return [option.on] if value else [option.off] if option.off else []
    if option.is_list:
        pairs = value.items() if isinstance(value, Mapping) else ()
        listed = [f"{name}={_text(one)}" for name, one in pairs] or value
        several = listed if isinstance(listed, list) else [listed]
        return [text for one in several for text in (option.on, str(one))]
    if isinstance(value, list):
        return [option.on, ",".join(map(_text, value))]
    return [option.on, _text(value)]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
