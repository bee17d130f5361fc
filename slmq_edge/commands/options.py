"""Options that several verbs share, each written once: a line in a table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from slmq_edge import presets
from slmq_edge.models import DEFAULT_MODEL
from slmq_edge.quantization import METHODS
from slmq_edge.recipe import Recipe, over, read
from slmq_edge.scheme import PROTECT, SCHEMES, WORDS, spoken
from slmq_edge.settings import OPTIONS, pairs

Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output.")]
Where = Annotated[
    str,
    typer.Option(
        "-d",
        "--device",
        metavar="WHERE",
        help="local, ssh://user@host:port, or a TOML file that names several boards.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the manifest, no table.")]

DEFAULT_METHOD = "spinquant"
DEFAULT_SCHEME = "w8a8"


def _option(kind: Any, *flags: str, **keywords: Any) -> Any:
    return Annotated[kind, typer.Option(*flags, **keywords)]


def _one_of(*names: str) -> str:
    return f"{', '.join(names)}."


_WORD_HELP = {
    "weights": "Grid of the weights: {}; default: the preset's.",
    "activations": "Grid of the activations: {}; default: the preset's.",
    "activation_scale": "One scale for each token, found at run time, or one for the whole tensor, "
    "found by calibration: {}.",
    "range": "How ranges are found with --activation-scale tensor: {}.",
    "kv": "Bits of attention's keys and values: {} (16: they stay float).",
    "lm_head": "Precision of the lm_head ({}); on a tied model the lookup table is the same "
    "tensor and follows. int4: in blocks, as the linears of w4a8-b128 or w4a16-g32 are.",
    "embedding": "Precision of the lookup table ({}); on a tied model the lm_head follows, "
    "unless it is given other bits: then it is a tensor of its own.",
}
# Parameter -> its type and option. What is not in the command line is None or empty.
MAKING: dict[str, Any] = {
    "method": _option(
        str | None, "--method", "-m",
        help=f"{_one_of(*METHODS)[:-1]}; default: {DEFAULT_METHOD}, of analyze none.",
    ),
    "scheme": _option(
        str | None, "--scheme", "-s",
        help=f"{_one_of(*SCHEMES)[:-1]}; default: {DEFAULT_SCHEME}.",
    ),
    "preset": _option(
        str | None,
        help=f"What is not said otherwise: {_one_of(*presets.PRESETS)[:-1]}; "
        f"default: {presets.DEFAULT}.",
    ),
    **{
        word: _option(
            int | None if word == "kv" else str | None,
            help=_WORD_HELP[word].format(" or ".join(values)),
        )
        for word, values in WORDS.items()
    },
    "protect": _option(
        int | None, metavar="N",
        help="Linears that keep 8-bit weights where the scheme has 4: the N whose weights cost "
        "most when they alone are rounded, measured on the calibration text (slmq-edge analyze "
        "shows all).",
    ),
    "calib": _option(
        Path | None,
        help="Calibration text, from which golden prompts are cut too: plain text, or JSONL with "
        "a 'text' field. Default: the built-in world for the demo models, WikiText-2 from the "
        "hub otherwise.",
    ),
    "windows": _option(
        int | None, help="How many token windows to calibrate on. Default: the preset's."
    ),
    "length": _option(
        int | None, help="Tokens in a calibration window. Default: the preset's."
    ),
    "device": _option(str | None, help="Where to quantize: cpu, cuda or cuda:N. Default: cpu."),
    "revision": _option(str | None, help="Commit, branch or tag of a model from the hub."),
    **{
        name: _option(str | None, metavar=metavar, help=text)
        if metavar
        else _option(bool | None, f"--{spoken(name)}/--no-{spoken(name)}", help=text)
        for name, (metavar, text) in OPTIONS.items()
    },
    "set": _option(
        list[str] | None, "--set", metavar="NAME=VALUE",
        help="Any setting of the method by its name; may be repeated.",
    ),
    "config": _option(
        Path | None, help="Recipe of a checkpoint (recipe.toml): options given here go over it."
    ),
    "spill": _option(
        Path | None, help="Keep activations in files in this folder, not in memory."
    ),
    "fresh": _option(
        bool, "--fresh", help="Forget what a run that was interrupted has done, and start anew."
    ),
    "compile": _option(
        bool, "--compile",
        help="Let torch compile the step that is learned by (omniquant). Needs Triton on a GPU, a "
        "C++ compiler on a CPU; without, steps run as they are, and a note says so.",
    ),
}  # fmt: skip


# Options that are off until they are said.
SWITCHES = ("fresh", "compile")


def of_making(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb, in the place of its ``**words``, every option of ``MAKING``."""
    own = inspect.signature(verb, eval_str=True)
    parameters = []
    for parameter in own.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            parameters += [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=False if name in SWITCHES else None,
                    annotation=annotation,
                )
                for name, annotation in MAKING.items()
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(verb)
    def called(**arguments: Any) -> None:
        verb(**arguments)

    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def recipe(model: str | None, words: Mapping[str, Any], method: str = DEFAULT_METHOD) -> Recipe:
    """What the command line says, over what its ``--config`` says, over the defaults.

    method: where neither says one.

    Raises:
        SlmqError: a recipe that cannot be read, or a setting given twice.
    """
    scheme = {word: words[word] for word in (*WORDS, PROTECT)} | {"name": words["scheme"]}
    calib = words["calib"]
    calibration = {
        "file": None if calib is None else str(calib),
        "windows": words["windows"],
        "length": words["length"],
    }
    named = {name: words[name] for name in OPTIONS}
    said = Recipe(
        **{name: words[name] for name in ("method", "preset", "device", "revision")},
        model=model,
        scheme=_given(scheme),
        calibration=_given(calibration),
        settings=pairs(words["set"] or (), _given(named)),
    )
    below = Recipe() if words["config"] is None else read(words["config"])
    defaults = Recipe(
        model=DEFAULT_MODEL,
        method=method,
        preset=presets.DEFAULT,
        device="cpu",
        scheme={"name": DEFAULT_SCHEME},
    )
    return over(over(said, below), defaults)


def _given(words: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in words.items() if value is not None}


def default_output(model: str, *parts: str) -> Path:
    """``./SmolLM-135M-spinquant-w8a8`` for a hub id, a folder or a built-in name."""
    return Path("-".join((Path(model).resolve().name, *parts)))
