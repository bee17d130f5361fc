"""Find a model by name, folder or hub id, and read it: safetensors only, no code, no pickle."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slmq_edge import builtin, licenses
from slmq_edge.anatomy import HEAD, Anatomy
from slmq_edge.errors import Damaged, MissingExtra, NotFound, Unsupported, UsageError, did_you_mean
from slmq_edge.files import OURS
from slmq_edge.runner.manifest import sha256

if TYPE_CHECKING:
    import torch

    from slmq_edge.decoder import Decoder

DEFAULT_MODEL = "HuggingFaceTB/SmolLM-135M"
WELL_KNOWN = (
    DEFAULT_MODEL,
    "HuggingFaceTB/SmolLM-360M",
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-360M",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",  # where newer tokenizers keep what was in tokenizer_config.json
    "generation_config.json",
)
# What is fetched of a hub repository: no code, no pickle. A chat template is a program, but one
# that transformers runs in a sandbox of Jinja's.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", *licenses.PATTERNS)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where a model came from: its folder here, and how to name it elsewhere.

    revision: the commit of a hub model, whatever branch or tag was asked for.
    """

    name: str
    origin: Literal["built-in", "local", "hub"]
    folder: Path
    revision: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Without the folder, which means nothing on another machine; ``license`` as its card says.

        The licence is ``None`` where the card names none.
        """
        return {
            "name": self.name,
            "origin": self.origin,
            "revision": self.revision,
            "license": licenses.named(self.folder),
        }


def find(model: str, revision: str | None = None, files: Sequence[str] = HUB_FILES) -> Source:
    """Resolve a built-in name, a local folder or a hub id; a ``revision`` is the hub's.

    files: what is fetched of a hub model.

    Raises:
        NotFound: none of the three; says what was tried, and guesses.
        UsageError: one of ours, quantized already; a revision of what is not from the hub.
    """
    found = _find(model, revision, files)
    if revision is not None and found.origin != "hub":
        raise UsageError(f"{model} is no hub model: it has no --revision {revision}")
    return found


def _find(model: str, revision: str | None, files: Sequence[str]) -> Source:
    if model in builtin.MODELS:
        return Source(model, "built-in", builtin.folder(model))
    path = Path(model)
    for manifest, what in OURS.items():
        if (path / manifest).is_file():
            raise UsageError(f"{model} is {what}")
    if path.is_dir():
        return Source(path.resolve().name, "local", path)
    looks_local = path.exists() or model.startswith((".", "/", "~")) or path.parent.is_dir()
    if looks_local or not _HUB_ID.fullmatch(model):
        nearby = [p.name for p in path.absolute().parent.glob("*") if p.is_dir()]
        guess = did_you_mean(model, (*builtin.MODELS, *WELL_KNOWN))
        guess = guess or did_you_mean(path.name, nearby)
        raise NotFound(
            f"no model '{model}'{guess}: give a folder, a hub id "
            f"(like {DEFAULT_MODEL}), or one of {', '.join(builtin.MODELS)}"
        )
    return _download(model, revision, files)


def _download(model: str, revision: str | None, files: Sequence[str]) -> Source:
    """Fetch of a hub repository the ``files`` that it has."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "quantize") from error
    instead = f" Without network, use a local folder or the built-in {builtin.MODELS[0]}."
    with hub_errors_as(f"'{model}'", instead):
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=[*files]
        )
    path = Path(folder)
    return Source(model, "hub", path, revision=path.name)


@contextlib.contextmanager
def hub_errors_as(what: str, instead: str = "") -> Iterator[None]:
    """Turn whatever the hub's client raises while fetching ``what`` into one line.

    instead: what to do without a network, said last.

    Raises:
        NotFound: no such repository, no network, or no leave.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # what it would warn of is in the error that we raise
    try:
        yield
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise NotFound(
            f"the hub has no model {what}{did_you_mean(what.strip(chr(39)), WELL_KNOWN)} "
            f"({_line(error)})"
        ) from error
    except Exception as error:
        # The client lets its HTTP library's errors through, and that library changed (v0, v1).
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and library not in {"huggingface_hub", "httpx"}:
            raise
        raise NotFound(f"cannot fetch {what} from the hub: {_line(error)}{instead}") from error


def _line(error: BaseException) -> str:
    """The first sentence or line of a library's message."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = re.split(r"(?<=[.!])\s", text, maxsplit=1)[0]
    return f"{type(error).__name__}: {first[:300]}".rstrip(".") + "."


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        NotFound: there is none; Damaged: it is not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no config.json: is it a Hugging Face model folder?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} is not a JSON object")
    return value


def read_anatomy(folder: Path) -> Anatomy:
    """Anatomy of the model in ``folder``, without reading its weights."""
    config = read_config(folder)
    try:
        return Anatomy.from_config(config)
    except KeyError as error:
        raise Damaged(f"{folder / 'config.json'} lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / 'config.json'} is damaged: {error}") from error


def read(folder: Path, dtype: torch.dtype | None = None) -> Decoder:
    """Read a model's weights into memory as ``dtype`` (float32 unless told).

    Tensor by tensor, each through a mapping of its own, so that no file is held besides the model
    that is made of it.

    Raises:
        NotFound: no safetensors in the folder.
        Damaged: a file is truncated, or a tensor is missing, extra or of the wrong shape.
    """
    import torch

    from slmq_edge.decoder import Decoder

    shape = read_anatomy(folder)
    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        with _opened(file) as tensors:
            names = list(tensors.keys())
        for name in names:
            if not _recomputed(name, shape):
                with _opened(file) as tensors:
                    weights[name] = tensors.get_tensor(name).to(dtype or torch.float32)
    check_tensors({name: tuple(t.shape) for name, t in weights.items()}, shape, folder)
    return Decoder(shape, weights)


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file.

    Raises:
        Damaged: the file is truncated or not safetensors.
    """
    with _opened(file) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  no dict


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, mapped: ``keys()`` and ``get_tensor(name)``."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtra("safetensors", "quantize") from error
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise Damaged(f"{file} is damaged or truncated: {_line(error)}") from error


def check_tensors(found: Mapping[str, tuple[int, ...]], shape: Anatomy, place: Path) -> None:
    """Compare the names and shapes found with those the anatomy needs.

    Raises:
        Damaged: names the first tensor that differs.
    """
    needed = shape.tensors()
    for name, size in needed.items():
        if name not in found:
            raise Damaged(f"{place} lacks the tensor {name}")
        if found[name] != size:
            raise Damaged(f"{place}: {name} has shape {found[name]}, config.json says {size}")
    extra = sorted(set(found) - set(needed))
    if extra:
        raise Unsupported(
            f"{place} holds tensors that a {shape.family} decoder does not have: "
            f"{', '.join(extra[:3])}{' ...' if len(extra) > 3 else ''}"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, by its index if it has one.

    Raises:
        NotFound: there are none; Damaged: the index is, or names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            mapping = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = [folder / Path(name).name for name in sorted(set(mapping.values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{index} is damaged: {error}") from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise Damaged(f"{folder} lacks {missing[0]}, which its index names")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    why = f" ({pickled[0].name} is a pickle, which is never loaded)" if pickled else ""
    raise NotFound(f"{folder} holds no model.safetensors{why}")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of the files that make a model what it is, by name: config, weights, tokenizer."""
    names = ("config.json", *TOKENIZER_FILES)
    files = [folder / name for name in names if (folder / name).is_file()]
    return {file.name: sha256(file) for file in (*files, *weight_files(folder))}


def _recomputed(name: str, shape: Anatomy) -> bool:
    """Tensors that some writers store although they follow from others."""
    return name.endswith("rotary_emb.inv_freq") or (shape.tied and name == f"{HEAD}.weight")


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, as transformers' fast tokenizer.

    Raises:
        NotFound: there is no ``tokenizer.json``.
    """
    if not (folder / "tokenizer.json").is_file():
        raise NotFound(f"{folder} holds no tokenizer.json, which calibration needs")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("transformers", "quantize") from error
    try:
        # The last is said, or transformers 4.57 warns of Mistral's regex in any large vocabulary.
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, fix_mistral_regex=False
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise Damaged(f"{folder / 'tokenizer.json'} is damaged: {_line(error)}") from error
