"""What each cell's verb would refuse at once, found for all of them before any starts.

A model of the hub that is not here yet is asked for by name alone: its widths, and what its text
is, show when its first cell fetches it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import builtin
from slmq_edge.bench import verbs
from slmq_edge.bench.cells import Cell
from slmq_edge.errors import MissingExtra, SlmqError, UsageError, unknown
from slmq_edge.runner.manifest import TORCH

if TYPE_CHECKING:
    from slmq_edge.anatomy import Anatomy
    from slmq_edge.scheme import Scheme


@dataclass(frozen=True)
class Made:
    """What a cell makes, or works with. tokens: that are calibrated on, 0 for none.

    shape: ``None`` of a model that is not here yet. settings: of the method. target: of a bundle.
    """

    method: str
    preset: str
    scheme: Scheme
    shape: Anatomy | None
    tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None


@dataclass(frozen=True)
class Checked:
    """refused: cell -> why. made: of the others. notes: what the verbs would say besides."""

    refused: Mapping[str, str]
    made: Mapping[str, Made]
    notes: tuple[str, ...]


def check(cells: Sequence[Cell]) -> Checked:
    """Ask of every cell what can be asked without doing it.

    cells: with whole paths (`matrix.cells_of` without a folder), none before what it needs. Where
    one is refused, those that rest on it are passed over.
    """
    refused: dict[str, str] = {}
    made: dict[str, Made] = {}
    notes: dict[str, None] = {}
    passed: set[str] = set()
    for cell in cells:
        if any(need in refused or need in passed for need in cell.needs):
            passed.add(cell.id)
            continue
        try:
            found = CHECKS[cell.kind](cell, made, lambda note: notes.update({note: None}))
        except SlmqError as error:
            refused[cell.id] = str(error)
            continue
        if found is not None:
            made[cell.id] = found
    return Checked(refused, made, tuple(notes))


Note = Callable[[str], None]


def _making(cell: Cell, made: Mapping[str, Made], note: Note) -> Made:
    from slmq_edge.commands import making, options

    words = verbs.parsed(cell.command, cell.id)
    default = "none" if cell.kind == "analyze" else options.DEFAULT_METHOD
    recipe = options.recipe(words["model"], words, default)
    request = making.request_of(recipe, words)
    model = str(recipe.model)
    said = Made(request.method, str(recipe.preset), request.scheme, None)
    if not _is_here(model, request.revision):
        return said
    from slmq_edge.quantize import plan

    found = plan(model, request, note)
    tokens = 0 if found.text is None else found.size.windows * found.size.length
    settings = dataclasses.asdict(found.settings)
    return dataclasses.replace(said, shape=found.anatomy, tokens=tokens, settings=settings)


def _is_here(model: str, revision: str | None) -> bool:
    """Whether a model can be looked into; one of the hub's must at least be there.

    Raises:
        NotFound: the hub has none of that name, or is out of reach.
    """
    if model in builtin.MODELS or Path(model).is_dir() or not _is_hub_id(model):
        return True  # what is no model at all is said where it is looked for
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtra("huggingface_hub", "quantize")
    import huggingface_hub

    from slmq_edge.models import hub_errors_as

    try:
        huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True)
        return True
    except Exception:  # however its version says that it is not in the cache
        with hub_errors_as(f"'{model}'"):
            huggingface_hub.model_info(model, revision=revision)
    return False


def _is_hub_id(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "/", "~"))


def _export(cell: Cell, made: Mapping[str, Made], note: Note) -> Made:
    from slmq_edge import presets
    from slmq_edge.export import check_scheme, check_target
    from slmq_edge.exporters import Wanted
    from slmq_edge.exporters.limits import check_widths

    words = verbs.parsed(cell.command, cell.id)
    wanted = Wanted(words["target"], words["runtime"], words["activation_mode"])
    check_target(wanted)
    of = made[cell.needs[0]]
    presets.check_exportable(of.preset, of.method)
    check_scheme(of.scheme, wanted)
    if of.shape is not None:
        check_widths(of.scheme, of.shape, wanted.target)
    return dataclasses.replace(of, target=wanted.target)


def _build(cell: Cell, made: Mapping[str, Made], note: Note) -> Made:
    return made[cell.needs[0]]


def _profile(cell: Cell, made: Mapping[str, Made], note: Note) -> Made:
    from slmq_edge.exporters.lowering import context_length
    from slmq_edge.files import existing
    from slmq_edge.runner.measure import check_protocol

    words = verbs.parsed(cell.command, cell.id)
    if words["protocol"] is not None:
        check_protocol(words["protocol"], words["prompt_tokens"])
    if words["text"] is not None:
        existing(words["text"], "text")
    _check_torch(words)
    of = made[cell.needs[0]]
    _check_place(cell, of)
    needed = words["prompt_tokens"] + words["new_tokens"]
    if of.shape is not None and needed > context_length(of.shape):
        raise UsageError(
            f"{words['prompt_tokens']} prompt tokens and {words['new_tokens']} new ones make "
            f"{needed}: the context holds {context_length(of.shape)}"
        )
    return of


def _eval(cell: Cell, made: Mapping[str, Made], note: Note) -> Made | None:
    from slmq_edge.commands.eval import check_against
    from slmq_edge.tracks.accuracy import tasks
    from slmq_edge.tracks.accuracy.inprocess import DTYPES
    from slmq_edge.tracks.accuracy.questions import Folder

    words = verbs.parsed(cell.command, cell.id)
    chosen = tasks.named(words["names"])
    if words["slices"] and words["data_dir"] is None:
        raise UsageError("slices is of local files: give their folder by data_dir")
    if words["dtype"] not in DTYPES:
        raise UsageError(unknown("dtype", words["dtype"], DTYPES))
    if words["against"] is not None:
        check_against(chosen, cell.is_remote)
    _check_torch(words)
    tasks.require_lm_eval()
    if words["data_dir"] is not None:
        tasks.files(chosen, Folder(words["data_dir"], words["slices"]))
    if cell.needs:
        _check_place(cell, made[cell.needs[0]])
        return made[cell.needs[0]]
    model = words["what"]
    if not _is_here(model, words["revision"]):
        return None
    from slmq_edge import models
    from slmq_edge.scheme import named

    shape = models.read_anatomy(models.find(model, words["revision"]).folder)
    return Made("none", "", named("fp32"), shape)


def _check_torch(words: Mapping[str, Any]) -> None:
    from slmq_edge.runner import on_torch

    if words["torch_device"] is not None:
        on_torch.check_name(words["torch_device"])


def _check_place(cell: Cell, of: Made) -> None:
    """Refuse a bundle for torch on a board."""
    from slmq_edge.runner import on_torch

    if of.target == TORCH and cell.is_remote:
        raise UsageError(f"{cell.device}: {on_torch.ELSEWHERE}")


# Kind of cell -> what finds its mistakes. A kind is a verb.
CHECKS: dict[str, Callable[[Cell, Mapping[str, Made], Note], Made | None]] = {
    "quantize": _making,
    "analyze": _making,
    "distributions": _making,
    "export": _export,
    "build": _build,
    "profile": _profile,
    "eval": _eval,
}


def require_all(checked: Checked) -> None:
    """Refuse to begin where some cell could not be done.

    Raises:
        UsageError: the first refusal, and how many there are.
    """
    if not checked.refused:
        return
    (first, why), *others = checked.refused.items()
    more = f"; {len(others)} more cells are refused: slmq-edge bench check lists them" * bool(
        others
    )
    raise UsageError(f"{first}: {why}{more} ([[except]] leaves cells out)")
