"""From a plan to cells: what is made once and what it serves, in the order of the matrix.

    quantize -> export -> build (TensorRT, here) -> profile, eval

With names joined by hyphens: ``profile-demo-llama-gptq-w8a8-ort-local``. The preset is a part of
them where there are several.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from slmq_edge.bench import verbs
from slmq_edge.bench.cells import Cell
from slmq_edge.bench.plan import OWN, RUNS, TRACKS, Entry, Plan, Rule, is_local, place_of
from slmq_edge.errors import UsageError, did_you_mean
from slmq_edge.recipe import toml
from slmq_edge.remote.target import LOCAL
from slmq_edge.scheme import named

NO_PRESET = Entry("", "")
FLOAT_METHOD, FLOAT_SCHEME = Entry("none", "none"), Entry("fp32", "fp32")
# Of [quantize], what a baseline takes too: golden prompts are cut from the text.
OF_BASELINE = ("calib", "device", "revision", "spill")
BOARDS = "boards"  # where a board's own inventory is, of which --device takes one
AGAINST = "against"  # of eval: a model, or a folder of ours
TRT, TORCH, ON_GPU = "trt", "torch", ("ort-cuda", "trt")
TORCH_DEVICE = "torch_device"  # an option of profile and eval
# Verbs that look at a model while it is quantized: folder, methods unless said, words.
EVERY: list[str] = []
LOOKS: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "analyze": ("analyses", [FLOAT_METHOD.name], ("--format", "json")),
    "distributions": ("distributions", EVERY, ()),
}


@dataclass(frozen=True)
class _Combination:
    """One checkpoint's place in the matrix; names by axis."""

    model: Entry
    preset: Entry
    method: Entry
    scheme: Entry

    @property
    def of(self) -> dict[str, str]:
        axes = {axis: getattr(self, axis).name for axis in ("model", "preset", "method", "scheme")}
        return {axis: name for axis, name in axes.items() if name}


def cells_of(plan: Plan, out: Path | None) -> tuple[Cell, ...]:
    """All cells, none before what it needs. out: where paths start; ``None``: they are whole.

    Raises:
        UsageError: a rule that no cell meets, or a matrix of nothing.
    """
    builder = _Builder(plan, out)
    made = list(builder.cells())
    kept = _without(plan.excepts, made)
    for rule in plan.sets:
        _check_meets(rule, made)
    if not kept:
        raise UsageError(f"{plan.title}: no cells: every one is left out by an [[except]]")
    return tuple(kept)


def boards_of(plan: Plan) -> dict[str, str]:
    """Inventories of one board each, for boards of which more is said than an address, by file."""
    return {
        f"{BOARDS}/{entry.name}.toml": _inventory(entry)
        for entry in plan.axes["device"]
        if entry.words
    }


def meets(rule: Rule, cell: Cell) -> bool:
    """Whether a rule is about a cell: it has all axes that are named, and they fit."""
    names = {**cell.of, "kind": cell.kind}
    return all(
        axis in names and any(fnmatchcase(names[axis], pattern) for pattern in patterns)
        for axis, patterns in rule.where.items()
    )


def _without(rules: Sequence[Rule], cells: Sequence[Cell]) -> list[Cell]:
    """Those that no rule is about, and that do not rest on one that is left out."""
    for rule in rules:
        _check_meets(rule, cells)
    _check_unlike(cells)
    kept: dict[str, Cell] = {}
    for cell in cells:
        excepted = any(meets(rule, cell) for rule in rules)
        if not excepted and all(need in kept for need in cell.needs):
            kept[cell.id] = cell
    return list(kept.values())


def _check_unlike(cells: Sequence[Cell]) -> None:
    """Refuse names whose joining says the same of two: one would replace the other's results."""
    found: dict[str, Cell] = {}
    for cell in cells:
        for name in (cell.id, *cell.outputs):
            if name in found:
                first, second = (
                    " ".join(f"{axis} '{value}'" for axis, value in one.of.items())
                    for one in (found[name], cell)
                )
                raise UsageError(
                    f"two cells of the plan would be called {name}, {first} and {second}: give an "
                    'entry another name, { name = "...", ... }'
                )
        found |= dict.fromkeys((cell.id, *cell.outputs), cell)


def _check_meets(rule: Rule, cells: Sequence[Cell]) -> None:
    if any(meets(rule, cell) for cell in cells):
        return
    for axis, patterns in rule.where.items():
        known = list(dict.fromkeys({**cell.of, "kind": cell.kind}.get(axis, "") for cell in cells))
        known = [name for name in known if name]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UsageError(
                    f"{rule.title}: no {axis} '{pattern}'{did_you_mean(pattern, known)}; "
                    f"there are: {', '.join(known) or 'none'}"
                )
    raise UsageError(f"{rule.title} is about no cell: no cell has all of that at once")


class _Builder:
    """Makes the cells of a plan; paths in commands start at ``out``, or are whole without it."""

    def __init__(self, plan: Plan, out: Path | None) -> None:
        self._plan, self._out = plan, out
        self._targets = {entry.name: entry.value for entry in plan.axes["target"]}
        self._tracks = {track for track in TRACKS if track in plan.sections}
        scored = plan.sections.get("eval", {}).get("of", ["bundle"])
        scored = [scored] if isinstance(scored, str) else scored
        self._scored = set(scored) if "eval" in self._tracks else set()
        self._exports = bool(
            {"export", "build", "profile"} & set(plan.sections) or "bundle" in self._scored
        )
        # A plan that only looks at models makes no checkpoints, unless it says so.
        looks = bool(self._tracks) and not self._exports and "checkpoint" not in self._scored
        self._quantizes = not looks or "quantize" in plan.sections

    def cells(self) -> Iterator[Cell]:
        """All of them; what is measured once more comes last, when the machine has moved on."""
        again: dict[int, list[Cell]] = {}
        for cell, run in self._all():
            if run == 1:
                yield cell
            else:
                again.setdefault(run, []).append(cell)
        for run in sorted(again):
            yield from again[run]

    def _all(self) -> Iterator[tuple[Cell, int]]:
        """Every cell, and which run of its bundle it is."""
        runs = self._plan.sections.get("profile", {}).get(RUNS, 1)
        for cell in self._once():
            yield cell, 1
            for run in range(2, runs + 1 if cell.kind == "profile" else 2):
                yield _again(cell, run), run

    def _once(self) -> Iterator[Cell]:
        for model in self._plan.axes["model"]:
            if "model" in self._scored:
                yield self._of_model(model)
            for one in self._combinations(model):
                yield from self._of_combination(one)

    def _combinations(self, model: Entry) -> Iterator[_Combination]:
        """The baseline first, for others are compared with it; it knows no preset."""
        yield _Combination(model, NO_PRESET, FLOAT_METHOD, FLOAT_SCHEME)
        axes = self._plan.axes
        for preset in axes["preset"]:
            for method in axes["method"]:
                for scheme in axes["scheme"]:
                    is_baseline = (method.name, scheme.name) == ("none", "fp32")
                    if not is_baseline and (not _is_float(scheme) or method.value == "none"):
                        yield _Combination(model, preset, method, scheme)

    def _of_combination(self, one: _Combination) -> Iterator[Cell]:
        of = one.of
        if len(self._plan.axes["preset"]) == 1:
            of.pop("preset", None)
        stem = "-".join(of.values())
        yield from self._looks(one, stem, of)
        if not self._quantizes:
            return
        checkpoint = f"checkpoints/{stem}"
        head = [self._model(one.model.value), *_chosen(one)]
        quantize = self._cell("quantize", stem, head, _making(one), (), checkpoint, of)
        yield quantize
        # A float checkpoint is simulated by no rounding: that is the model itself.
        if "checkpoint" in self._scored and not ("model" in self._scored and _is_float(one.scheme)):
            name = f"{stem}-simulated"
            output = f"evals/{name}.json"
            yield self._cell("eval", name, [checkpoint], {}, (quantize.id,), output, of)
        if self._exports:
            for target in self._plan.axes["target"]:
                yield from self._of_bundle(stem, checkpoint, quantize, target)

    def _of_bundle(
        self, stem: str, checkpoint: str, quantize: Cell, target: Entry
    ) -> Iterator[Cell]:
        of, name = {**quantize.of, "target": target.name}, f"{stem}-{target.name}"
        bundle, on_gpu = f"bundles/{name}", target.value in ON_GPU
        head = [checkpoint, "--target", target.value]
        export = self._cell("export", name, head, target.words, (quantize.id,), bundle, of)
        yield export
        measured = [
            (kind, folder)
            for kind, folder in (("profile", "runs"), ("eval", "evals"))
            if kind in self._tracks and (kind != "eval" or "bundle" in self._scored)
        ]
        here: tuple[str, ...] = (export.id,)
        is_measured_here = any(one.value == LOCAL for one in self._plan.axes["device"])
        if target.value == TRT and measured and is_measured_here:
            output = f"{bundle}/engines"
            build = self._cell("build", name, [bundle], {}, here, output, of)
            yield dataclasses.replace(build, gpu=True)
            here = (*here, build.id)
        for device in self._plan.axes["device"]:
            is_here = device.value == LOCAL
            address = f"{BOARDS}/{device.name}.toml" if device.words else device.value
            head = [bundle, *([] if is_here else ["--device", address])]
            for kind, folder in measured:
                output = f"{folder}/{name}-{device.name}.json"
                needs = here if is_here else (export.id,)
                of_device = {**of, "device": device.name}
                on = self._cell(kind, f"{name}-{device.name}", head, {}, needs, output, of_device)
                gpu = (on_gpu or (on.gpu and target.value == TORCH)) and is_here
                yield dataclasses.replace(on, device=device.name, address=address, gpu=gpu)

    def _of_model(self, model: Entry) -> Cell:
        head = [self._model(model.value), "--runtime", "torch"]
        name = f"{model.name}-torch"
        words = {key: model.words[key] for key in ("revision",) if key in model.words}
        return self._cell(
            "eval", name, head, words, (), f"evals/{name}.json", {"model": model.name}
        )

    def _looks(self, one: _Combination, stem: str, of: Mapping[str, str]) -> Iterator[Cell]:
        """Cells that look at a model as it is being quantized, and leave no artifact."""
        if _is_float(one.scheme):
            return
        head = [self._model(one.model.value), *_chosen(one)]
        for kind, (folder, methods, more) in LOOKS.items():
            if kind not in self._tracks:
                continue
            listed = self._plan.sections[kind].get("methods", methods)
            chosen = [listed] if isinstance(listed, str) else listed
            if one.method.name in chosen or (chosen is EVERY and one.method.value != "none"):
                output = f"{folder}/{stem}.json"
                yield self._cell(kind, stem, [*head, *more], _making(one), (), output, of)

    def _cell(
        self,
        kind: str,
        name: str,
        head: Sequence[str],
        words: Mapping[str, Any],
        needs: tuple[str, ...],
        output: str,
        of: Mapping[str, str],
    ) -> Cell:
        """One cell; its options by the sections, over them ``words``, over these the rules."""
        cell = Cell(f"{kind}-{name}", kind, (), needs, (output,), of)
        verbs_of = ("quantize", kind) if kind in LOOKS else (kind,)
        layers = [self._section(verb, of) for verb in verbs_of]
        layers.append(words)
        for rule in self._plan.sets:
            if meets(rule, cell):
                layers += [rule.sections.get(verb, {}) for verb in verbs_of]
        said = {
            key.replace("-", "_"): value
            for layer in layers
            for key, value in layer.items()
            if key not in OWN.get(kind, ())
        }
        if AGAINST in said and kind == "eval":
            said[AGAINST] = self._model(str(said[AGAINST]))
        if "target" in of and self._targets[of["target"]] != TORCH:
            said.pop(TORCH_DEVICE, None)  # of a section that is for all targets
        texts = verbs.arguments(kind, said, self._place)
        command = (kind, *head, *texts, *(() if kind == "build" else ("-o", output)))
        device = str(said.get(TORCH_DEVICE if kind in ("profile", "eval") else "device", "cpu"))
        return dataclasses.replace(cell, command=command, gpu=device.startswith("cuda"))

    def _model(self, model: str) -> str:
        return self._place(model) if is_local(model, self._plan.folder) else model

    def _place(self, path: str) -> str:
        """A path of the plan as a command has it."""
        found = place_of(path, self._plan.folder)
        if self._out is None or Path(path).expanduser().is_absolute():
            return os.path.normpath(found)
        return os.path.relpath(found, self._out.absolute())

    def _section(self, verb: str, of: Mapping[str, str]) -> Mapping[str, Any]:
        """A section's words; of ``[quantize]`` those that its method and scheme can take."""
        section = self._plan.sections.get(verb, {})
        if verb != "quantize":
            return section
        if of.get("scheme") == FLOAT_SCHEME.name:
            return {key: section[key] for key in OF_BASELINE if key in section}
        if of.get("method") == FLOAT_METHOD.name and "calib" not in section:
            left_out = ("windows", "length")
            return {key: value for key, value in section.items() if key not in left_out}
        return section


def _again(cell: Cell, run: int) -> Cell:
    """The same measurement, with an output of its own."""
    (output,) = cell.outputs
    other = str(Path(output).with_suffix(f".{run}.json"))
    command = tuple(other if word == output else word for word in cell.command)
    return dataclasses.replace(cell, id=f"{cell.id}.{run}", command=command, outputs=(other,))


def _is_float(scheme: Entry) -> bool:
    return named(scheme.value).weights is None


def _chosen(one: _Combination) -> list[str]:
    """What the matrix says to quantize."""
    preset = ["--preset", one.preset.value] if one.preset.value else []
    return ["--method", one.method.value, "--scheme", one.scheme.value, *preset]


def _making(one: _Combination) -> dict[str, Any]:
    """What the entries of a combination say besides their names; of the model's, all can."""
    return {**one.model.words, **one.method.words, **one.scheme.words}


def _inventory(entry: Entry) -> str:
    words = {"name": entry.name, "device": entry.value, **entry.words}
    return "[[board]]\n" + toml(words)
