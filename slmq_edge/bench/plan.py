"""plan.toml: what to make and what to measure, as data.

    title = "Two small models on this machine"

    [folders]                     # names of places, relative to this file; --folder goes over one
    shared = "../shared"

    [matrix]                      # every model x preset x method x scheme, target and device
    models = ["demo-llama", { name = "stories", model = "{shared}/models/stories260K" }]
    presets = ["fast"]
    methods = ["none", "gptq", { name = "gptq-best", method = "gptq", polish = 2 }]
    schemes = ["w8a8", { name = "w4a8-kv8", scheme = "w4a8", kv = 8 }]
    targets = ["ort"]
    devices = ["local", { name = "orin", device = "ssh://me@orin.local" }, "boards.toml"]

    [quantize]                    # a section for each verb, its keys that verb's options
    calib = "{shared}/text.jsonl"

    [profile]                     # profile, eval, analyze, distributions: done where they stand
    repetitions = 20

    [eval]
    of = ["model", "checkpoint", "bundle"]
    tasks = ["arc_easy", "wikitext2"]

    [[except]]                    # cells that are left out; names or patterns
    model = "stories*"
    scheme = "w4a8-b*"

    [[set]]                       # words for some cells only
    model = "stories"
    quantize = { windows = 16 }

The baseline, method none in fp32, is always a part of the matrix.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq_edge import builtin, presets
from slmq_edge.bench import verbs
from slmq_edge.errors import Damaged, UsageError, unknown
from slmq_edge.exporters import TARGETS
from slmq_edge.files import existing
from slmq_edge.quantization import METHODS
from slmq_edge.remote import inventory, target
from slmq_edge.scheme import named

MAKING = ("quantize", "export", "build")  # verbs whose sections only add words
TRACKS = ("profile", "eval", "analyze", "distributions")  # those that are done where they stand
RUNS = "runs"  # how often every bundle is measured
OWN: dict[str, tuple[str, ...]] = {  # words of a section that are none of its verb's
    "profile": (RUNS,),
    "eval": ("of",),
    "analyze": ("methods",),
    "distributions": ("methods",),
}
OF = ("model", "checkpoint", "bundle")
TOP = ("title", "folders", "matrix", *MAKING, *TRACKS, "except", "set")
# Axis of the matrix -> the verb whose words an entry may add.
AXES: dict[str, str | None] = {
    "model": "quantize",
    "preset": None,
    "method": "quantize",
    "scheme": "quantize",
    "target": "export",
    "device": None,
}
SELECTORS = (*AXES, "kind")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
BOARD = ("python", "home", "config")
DEFAULTS: dict[str, list[Any]] = {"preset": [""], "target": ["ort"], "device": [target.LOCAL]}


@dataclass(frozen=True)
class Entry:
    """One value on an axis. name: a part of the names of cells. words: what it says besides."""

    name: str
    value: str
    words: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """Of ``[[except]]`` or ``[[set]]``. where: patterns by axis. sections: words by verb."""

    title: str
    where: Mapping[str, tuple[str, ...]]
    sections: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """A plan whose keys and names are known. folder: where its relative paths start."""

    text: str
    title: str
    folder: Path
    axes: Mapping[str, tuple[Entry, ...]]
    sections: Mapping[str, Mapping[str, Any]]
    excepts: tuple[Rule, ...]
    sets: tuple[Rule, ...]


def read(path: Path, folders: Mapping[str, str]) -> Plan:
    """Read a plan; ``folders``: places that go over those of its ``[folders]``, by name.

    Raises:
        NotFound: there is no such file. Damaged: it is not TOML.
        UsageError: an unknown key or name, or a value of the wrong kind; says where.
    """
    try:
        text = existing(path, "plan").read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise Damaged(f"{path} is no plan: {error}") from error
    return from_document(document, text, path, folders)


def from_document(
    document: Mapping[str, Any], text: str, path: Path, folders: Mapping[str, str]
) -> Plan:
    """A plan of parsed TOML; ``path`` is what relative paths start at, and what errors name."""
    _keys(str(path), document, TOP)
    home = path.absolute().parent
    places = _folders(path, document.get("folders", {}), folders)
    document = _filled(document, places, path)
    matrix = _table(f"{path}: [matrix]", document.get("matrix"))
    plural = {f"{axis}s": axis for axis in AXES}
    _keys(f"{path}: [matrix]", matrix, tuple(plural))
    axes = {}
    for key, axis in plural.items():
        listed = matrix.get(key, DEFAULTS.get(axis))
        where = f"{path}: [matrix] {key}"
        if not isinstance(listed, list) or not listed:
            raise UsageError(f"{where} is missing: a list of names, or of tables with a name")
        axes[axis] = _entries(axis, listed, where, home)
    sections = {verb: document[verb] for verb in (*MAKING, *TRACKS) if verb in document}
    for verb, words in sections.items():
        _section(f"{path}: [{verb}]", verb, words, axes)
    return Plan(
        text=text,
        title=str(document.get("title", path.stem)),
        folder=home,
        axes=axes,
        sections=sections,
        excepts=_rules("except", document, path, axes),
        sets=_rules("set", document, path, axes),
    )


def place_of(path: str, home: Path) -> Path:
    """Where a path of a plan is: relative to the plan's own folder."""
    return home / Path(path).expanduser()


def is_local(model: str, home: Path) -> bool:
    """Whether a model is a folder here, and neither built in nor of the hub."""
    if model in builtin.MODELS:
        return False
    return model.startswith((".", "/", "~")) or place_of(model, home).is_dir()


def _folders(path: Path, said: object, over: Mapping[str, str]) -> dict[str, str]:
    places = _table(f"{path}: [folders]", said)
    for name, place in places.items():
        if not isinstance(place, str):
            raise UsageError(f"{path}: [folders] {name} is a path, in quotes")
    for name in over:
        if name not in places:
            known = unknown("folder", name, tuple(places)) if places else "it names no folders"
            raise UsageError(f"--folder {name}: {path}: {known}")
    home = path.absolute().parent
    # A command line's are relative to where we are.
    return {**places, **{name: os.path.relpath(place, home) for name, place in over.items()}}


def _filled(value: Any, places: Mapping[str, str], path: Path) -> Any:
    """``{name}/...`` with the folder of that name, in every text of the document."""
    if isinstance(value, Mapping):
        return {key: _filled(one, places, path) for key, one in value.items() if key != "folders"}
    if isinstance(value, list):
        return [_filled(one, places, path) for one in value]
    found = re.match(r"\{([^{}/]*)\}(?=/|$)", value) if isinstance(value, str) else None
    if found is None:
        return value
    if found[1] not in places:
        known = tuple(places)
        raise UsageError(f"{path}: {value!r}: {unknown('folder', found[1], known)} ([folders])")
    return places[found[1]] + value[found.end() :]


def _entries(axis: str, listed: list[Any], where: str, home: Path) -> tuple[Entry, ...]:
    found: dict[str, Entry] = {}
    for one in listed:
        for entry in _entry(axis, one, where, home):
            if not NAME.fullmatch(entry.name) and axis != "preset":
                raise UsageError(
                    f"{where}: {entry.name!r} is no name for files: give it another, "
                    f'{{ name = "...", {axis} = "{entry.value}" }}'
                )
            if entry.name in found:
                raise UsageError(
                    f"{where}: {entry.name} is there twice: give one another name, "
                    f'{{ name = "...", {axis} = "{entry.value}" }}'
                )
            found[entry.name] = entry
    if axis == "device":
        _check_apart(tuple(found.values()), where)
    return tuple(found.values())


def _check_apart(devices: Sequence[Entry], where: str) -> None:
    """Refuse one machine by two names: it has one cell at a time."""
    seen: dict[object, str] = {}
    for entry in devices:
        found = target.parse(entry.value)
        place = (found.host, found.port, entry.words.get("config"))
        if place in seen:
            raise UsageError(f"{where}: {seen[place]} and {entry.name} are the same machine")
        seen[place] = entry.name


def _entry(axis: str, one: Any, where: str, home: Path) -> list[Entry]:
    table = one if isinstance(one, Mapping) else {axis: one}
    value = table.get(axis)
    if not isinstance(value, str):
        raise UsageError(f'{where}: {one!r} is no {axis}: a name, or {{ {axis} = "..." }}')
    words = {key: word for key, word in table.items() if key not in ("name", axis)}
    if axis == "device":
        return _devices(value, table.get("name"), words, where, home)
    _known(axis, value, where)
    verb = AXES[axis]
    if verb is None:
        _keys(where, words, ())
    else:
        verbs.check(verb, words, f"{where}, {value}")
    name = table.get("name", Path(value).name if axis == "model" else value)
    return [Entry(str(name), value, words)]


def _known(axis: str, value: str, where: str) -> None:
    tables: dict[str, Sequence[str]] = {
        "method": tuple(METHODS),
        "preset": ("", *presets.PRESETS),
        "target": tuple(TARGETS),
    }
    if axis == "scheme":
        try:
            named(value)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    if axis in tables and value not in tables[axis]:
        known = tuple(name for name in tables[axis] if name)
        raise UsageError(f"{where}: {unknown(axis, value, known)}")


def _devices(
    value: str, name: object, words: Mapping[str, Any], where: str, home: Path
) -> list[Entry]:
    """A machine, or all boards of an inventory, which lies beside the plan."""
    if inventory.is_inventory(value):
        path = place_of(value, home)
        inventory.read(path)
        boards = tomllib.loads(path.read_text(encoding="utf-8"))[inventory.BOARD]
        return [entry for board in boards for entry in _board(board, path.parent)]
    if words:
        _keys(f"{where}, {value}", words, BOARD)
    try:
        found = target.parse(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if words and found.transport == target.LOCAL:
        raise UsageError(f"{where}: {', '.join(words)} is of boards, and {value} is this machine")
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", (found.host or value).rpartition("@")[2])
    return _board({"name": name or plain, "device": value, **words}, home)


def _board(table: Mapping[str, Any], home: Path) -> list[Entry]:
    words = {key: str(table[key]) for key in BOARD if key in table}
    if "config" in words:
        words["config"] = str(place_of(words["config"], home).absolute())
    return [Entry(str(table["name"]), str(table["device"]), words)]


def _section(where: str, verb: str, words: Any, axes: Mapping[str, tuple[Entry, ...]]) -> None:
    own = OWN.get(verb, ())
    table = _table(where, words)
    verbs.check(verb, {k: v for k, v in table.items() if k not in own}, where, own)
    known = {"of": OF, "methods": tuple(one.name for one in axes["method"])}
    runs = table.get(RUNS, 1)
    if RUNS in own and (type(runs) is not int or runs < 1):
        raise UsageError(f"{where} {RUNS}: {runs!r} is no number of runs, like 3")
    for key in (key for key in own if key in known):
        for one in _names(f"{where} {key}", table.get(key, [])):
            if one not in known[key]:
                raise UsageError(f"{where} {key}: {unknown('name', one, known[key])}")


def _rules(
    key: str, document: Mapping[str, Any], path: Path, axes: Mapping[str, tuple[Entry, ...]]
) -> tuple[Rule, ...]:
    listed = document.get(key, [])
    if not isinstance(listed, list):
        raise UsageError(f"{path}: {key} is a list of tables, [[{key}]]")
    found = []
    for number, one in enumerate(listed, 1):
        title = f"{path}: [[{key}]] {number}"
        table = _table(title, one)
        sections = (*MAKING, *TRACKS) if key == "set" else ()
        _keys(title, table, (*SELECTORS, *sections))
        where = {axis: tuple(_names(title, table[axis])) for axis in SELECTORS if axis in table}
        if not where:
            raise UsageError(f"{title} says of no cells: {', '.join(SELECTORS)}")
        words = {verb: table[verb] for verb in sections if verb in table}
        for verb, said in words.items():
            verbs.check(verb, _table(title, said), f"{title} {verb}")
        if key == "set" and not words:
            raise UsageError(f"{title} sets nothing: {', '.join(sections)}")
        found.append(Rule(title, where, words))
    return tuple(found)


def _names(where: str, value: Any) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise UsageError(f"{where}: {value!r} is neither a name nor a list of names")
    return listed


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        problem = "is missing" if value is None else "must be a table"
        raise UsageError(f"{where} {problem}")
    return value


def _keys(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            what = unknown("key", key, known) if known else f"unknown key {key!r}"
            raise UsageError(f"{where}: {what}")
